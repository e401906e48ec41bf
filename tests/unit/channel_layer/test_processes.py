"""The layer between the processes of a deployment."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from asgiref.sync import async_to_sync

from fanfare.channel_layer import errors
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.hub import hub
from tests.unit.channel_layer.test_specification import nothing_comes, received, until

pytestmark = pytest.mark.parametrize("make_engine", ["local", "postgres", "redis"], indirect=True)


@pytest.fixture
async def here(process):
    layer = process().layer()
    await layer.new_channel()
    return layer


@pytest.fixture
async def there(process):
    layer = process().layer()
    await layer.new_channel()
    return layer


async def test_group_message_reaches_the_members_in_every_process(here, there):
    members = [(layer, await layer.new_channel()) for layer in (here, there, there)]
    for layer, channel in members:
        await layer.group_add("group", channel)
    await here.group_send("group", {"type": "hello"})
    for layer, channel in members:
        assert await received(layer, channel) == {"type": "hello"}


async def test_all_members_get_the_messages_of_a_group_in_one_order(here, there):
    members = [(layer, await layer.new_channel()) for layer in (here, there)]
    for layer, channel in members:
        await layer.group_add("group", channel)
    await asyncio.gather(
        *(layer.group_send("group", {"type": "n", "n": number}) for number in range(20) for layer in (here, there))
    )
    seen = [[(await received(layer, channel))["n"] for _ in range(40)] for layer, channel in members]
    assert seen[0] == seen[1]


async def test_message_to_a_process_local_channel_reaches_its_owner_only(here, there):
    channel = await there.new_channel()
    await here.send(channel, {"type": "hello"})
    assert await received(there, channel) == {"type": "hello"}
    assert channel not in here._buffers


async def test_process_reads_only_the_messages_of_its_channels_and_groups(process, here, there):
    """A third process, which receives too, reads nothing of the groups and channels of the others."""
    elsewhere = process().layer()
    await elsewhere.new_channel()
    channel = await there.new_channel()
    await there.group_add("group", channel)
    for _ in range(5):
        await here.group_send("group", {"type": "hello"})
        await here.send(channel, {"type": "hello"})
        await here.send("thumbnails", {"type": "hello"})
    for _ in range(10):
        assert await received(there, channel) == {"type": "hello"}
    engines = [layer._transport._own for layer in (here, there, elsewhere)]
    await engines[0].append([interface.Publication("", "end", b"", interface.Kind.CONTROL)])  # every worker reads it
    await until(lambda: sum(engine.statistics()["entries"] for engine in engines) >= 18)
    assert [engine.statistics()["entries"] for engine in engines] == [6, 11, 1]


async def test_process_that_starts_to_receive_later_gets_the_messages_that_are_not_taken(here, there):
    for number in range(3):
        await here.send("thumbnails", {"type": "n", "n": number})
    assert (await received(here, "thumbnails"))["n"] == 0
    assert [(await received(there, "thumbnails"))["n"] for _ in range(2)] == [1, 2]


async def test_flushed_messages_are_not_received_by_a_process_that_starts_later(process, here):
    await here.send("thumbnails", {"type": "old"})
    await here.flush()
    late = process().layer()
    await late.new_channel()
    await here.send("thumbnails", {"type": "new"})
    assert await received(late, "thumbnails") == {"type": "new"}


async def test_discarded_group_is_read_no_longer(here, there):
    channel = await there.new_channel()
    await there.group_add("group", channel)
    await there.group_discard("group", channel)
    before = there._transport._own.statistics()["entries"]
    await here.group_send("group", {"type": "hello"})
    await nothing_comes(there, channel)
    assert there._transport._own.statistics()["entries"] == before + 1


async def test_message_to_a_normal_channel_is_received_once_in_the_whole_deployment(here, there):
    """Both processes have two receivers; together they receive each of twenty messages once."""
    got = []

    async def work(layer):
        while True:
            got.append((await layer.receive("thumbnails"))["n"])

    async with asyncio.timeout(20):
        workers = [asyncio.create_task(work(layer)) for layer in (here, there) for _ in range(2)]
        for number in range(20):
            await here.send("thumbnails", {"type": "n", "n": number})
        while len(got) < 20:
            await asyncio.sleep(0.01)
        # When these messages have arrived, all earlier ones have arrived too.
        for layer in (here, there):
            own = await layer.new_channel()
            await nothing_comes(layer, own)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    assert sorted(got) == list(range(20))


async def test_message_received_in_one_process_does_not_count_towards_the_capacity_in_another(here, there):
    for _ in range(2 * here.capacity):
        await here.send("thumbnails", {"type": "n"})
        await received(there, "thumbnails")
        channel = await here.new_channel()
        await nothing_comes(here, channel)
    assert "thumbnails" not in here._buffers


async def test_normal_channels_in_a_group_get_each_message_once(here, there):
    channel = await here.new_channel()
    for name in ("thumbnails", "statistics", channel):
        await here.group_add("uploads", name)
    await there.group_send("uploads", {"type": "hello"})
    assert await received(here, channel) == {"type": "hello"}
    assert await received(there, "thumbnails") == {"type": "hello"}
    assert await received(here, "statistics") == {"type": "hello"}
    await nothing_comes(here, "thumbnails")


async def test_member_can_be_added_and_discarded_from_another_process(here, there):
    channel = await there.new_channel()
    await here.group_add("group", channel)
    await here.group_send("group", {"type": "hello"})
    assert await received(there, channel) == {"type": "hello"}
    await here.group_discard("group", channel)
    await here.group_send("group", {"type": "hello"})
    await nothing_comes(there, channel)


async def test_flush_applies_to_all_processes(here, there):
    channel = await there.new_channel()
    await there.group_add("group", channel)
    await here.flush()
    await here.group_send("group", {"type": "hello"})
    await nothing_comes(there, channel)


async def test_layers_with_different_prefixes_are_separate(process):
    one = process()
    first, second = one.layer(prefix="first"), one.layer(prefix="second")
    members = [(layer, await layer.new_channel()) for layer in (first, second)]
    for layer, channel in members:
        await layer.group_add("group", channel)
    await first.group_send("group", {"type": "hello"})
    assert await received(*members[0]) == {"type": "hello"}
    await nothing_comes(*members[1])


async def test_process_that_only_sends_does_not_read_the_log(process, there):
    channel = await there.new_channel()
    await there.group_add("group", channel)
    sender = process()
    await sender.layer().group_send("group", {"type": "hello"})
    await sender.layer().send(channel, {"type": "and.you"})
    assert await received(there, channel) == {"type": "hello"}
    assert await received(there, channel) == {"type": "and.you"}
    assert sender.transport.loop is None


async def test_synchronous_code_sends_from_a_thread_of_its_own(process, there):
    channel = await there.new_channel()
    await there.group_add("group", channel)

    def view():
        async_to_sync(process().layer().group_send)("group", {"type": "hello"})

    await asyncio.get_running_loop().run_in_executor(None, view)
    assert await received(there, channel) == {"type": "hello"}


async def test_threads_of_the_receiving_process_can_add_members_and_send(here):
    channel = await here.new_channel()

    def elsewhere():
        asyncio.run(here.group_add("group", channel))
        asyncio.run(here.group_send("group", {"type": "hello"}))
        asyncio.run(here.send(channel, {"type": "and.you"}))

    await asyncio.get_running_loop().run_in_executor(None, elsewhere)
    assert await received(here, channel) == {"type": "hello"}
    assert await received(here, channel) == {"type": "and.you"}


async def test_receive_on_a_second_event_loop_raises_wrong_loop(here):
    def elsewhere():
        asyncio.run(here.receive("plain"))

    with pytest.raises(errors.WrongLoop):
        await asyncio.get_running_loop().run_in_executor(None, elsewhere)


async def test_concurrent_first_receivers_start_one_reader_even_if_the_first_is_cancelled(process):
    layer = process().layer()
    first, *others = [asyncio.create_task(layer.new_channel()) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    channels = await asyncio.gather(*others)
    await layer.send(channels[0], {"type": "hello"})
    assert await received(layer, channels[0]) == {"type": "hello"}


async def test_receiver_reads_the_kept_messages_itself_if_the_one_that_began_to_is_cancelled(here, there, monkeypatch):
    """It would otherwise wait for messages to a name that its process does not listen to."""
    kept, is_reading, go_on = here._transport.kept, asyncio.Event(), asyncio.Event()

    async def slow(*arguments):
        is_reading.set()
        await go_on.wait()
        return await kept(*arguments)

    monkeypatch.setattr(here._transport, "kept", slow)
    first = asyncio.create_task(here.receive("plain"))
    await is_reading.wait()
    second = asyncio.create_task(received(here, "plain"))
    await asyncio.sleep(0)
    first.cancel()
    go_on.set()
    await there.send("plain", {"type": "hello"})
    assert await second == {"type": "hello"}


async def test_layer_receives_again_after_a_close(process):
    layer = process().layer()
    await layer.new_channel()
    await layer.close()
    await layer.close()
    channel = await layer.new_channel()
    await nothing_comes(layer, channel)


async def test_failed_append_raises_and_releases_its_reservation(here, monkeypatch):
    channel = await here.new_channel()

    async def unavailable(*_, **__):
        raise engine_errors.EngineUnavailable("the disk is full")

    with monkeypatch.context() as away:
        away.setattr(here._transport._own, "append", unavailable)
        for _ in range(2 * here.capacity):
            with pytest.raises(engine_errors.EngineUnavailable):
                await here.send(channel, {"type": "hello"})
    await nothing_comes(here, channel)


# -- in a worker of the server -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(process):
    """A worker: the hub reads the log."""
    worker = hub.Hub(current.another())
    process.transport.serve(worker)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
        process.transport.leave()


async def test_hub_of_a_worker_delivers_messages_to_the_layer(process, there):
    one = process()
    async with serving(one) as worker:
        layer = one.layer()
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await there.group_send("group", {"type": "hello"})
        assert await received(layer, channel) == {"type": "hello"}
        assert worker.statistics()["engine.workers"] == 2, "no second engine was opened"
        assert "controls.unknown" not in worker.counters


async def test_dropped_messages_are_counted_in_the_statistics_of_the_worker(process):
    one = process()
    async with serving(one) as worker:
        layer = one.layer(capacity=1)
        full, other = await layer.new_channel(), await layer.new_channel()
        for channel in (full, other):
            await layer.group_add("group", channel)
        for _ in range(3):
            await layer.group_send("group", {"type": "hello"})
            await received(layer, other)
        assert worker.counters["layer.full"] == 2


async def test_malformed_message_is_logged_and_later_messages_arrive(here, caplog):
    channel = await here.new_channel()
    publication = interface.Publication("", here._mailbox, b"\xc1", interface.Kind.MESSAGE)
    await current.current().append([publication])
    await nothing_comes(here, channel)
    assert "could not be delivered" in caplog.text


async def test_server_started_in_a_receiving_process_causes_no_duplicates(process):
    one = process()
    layer = one.layer()
    channel = await layer.new_channel()
    async with serving(one):
        await layer.group_add("group", channel)
        await layer.group_send("group", {"type": "hello"})
        assert await received(layer, channel) == {"type": "hello"}
        await nothing_comes(layer, channel)
        await layer.close()
        await nothing_comes(layer, channel)
