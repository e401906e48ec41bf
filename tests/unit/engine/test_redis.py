"""The Redis engine on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from fanfare.engine import errors, interface
from fanfare.engine.redis import address, moving, queries, scripts, wire
from fanfare.engine.redis import consumer as redis_consumer
from fanfare.engine.redis import engine as redis_engine
from fanfare.engine.redis import leases as redis_leases
from tests.harness import redisserver, waiting
from tests.harness.deployments import REPOSITORY
from tests.unit.engine import conformance, deployments, failures, redis_deployment, streams
from tests.unit.engine.workers import APP, Worker


@pytest.fixture(scope="module")
def server() -> Iterator[redisserver.Server]:
    with redisserver.running() as server:
        yield server


@pytest.fixture
def url(server: redisserver.Server) -> str:
    """A log of this test alone: a prefix of its own."""
    return server.url(prefix=f"log-{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def hire(url: str) -> AsyncIterator[conformance.Hire]:
    hired: list[Worker] = []

    async def hire() -> Worker:
        worker = Worker(redis_engine.RedisEngine(url))
        hired.append(worker)
        return await worker.open()

    yield hire
    for worker in hired:
        await worker.engine.close()


@pytest.fixture
async def deployment(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[deployments.Deployment]:
    for module, name in ((scripts, "LEASE_S"), (redis_leases, "LEASE_POLL_S")):
        monkeypatch.setattr(module, name, getattr(module, name))  # restored after the test
    with redisserver.running(*redis_deployment.OPTIONS) as own:
        async with deployments.closing(redis_deployment.RedisDeployment(own, "log")) as deployment:
            yield deployment


class TestFailures(failures.FailureConformance):
    """What it must do when something fails."""


class TestConformance(
    conformance.Conformance, streams.Streams, streams.Leases, streams.Revisions, streams.Updates, streams.Openings
):
    """Everything that an engine must do."""


async def replies_first(server: redisserver.Server) -> bool:
    """Whether the reply to a call precedes the messages that the call publishes, on a connection that gets both."""
    order: list[str] = []
    both = wire.Wire(lambda _messages: order.append("message"), lambda _error: None, lambda _channel: None)
    await asyncio.get_running_loop().create_connection(lambda: both, server.host, server.port)
    try:
        await both.ask("HELLO", "3")
        both.subscribe(["c"], lambda refusal: order.append(str(refusal)))
        both.call(lambda _answer: order.append("reply"), "EVAL", "return redis.call('SPUBLISH', KEYS[1], '1')", 1, "c")
        await both.ask("PING")  # its reply follows both
    finally:
        both.abort()
    assert sorted(order) == ["message", "reply"]
    return order[0] == "reply"


def hold_messages_until_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over, replied = wire.Wire._hand_over, wire.Wire._replied
    held: list[tuple[bytes, bytes]] = []

    def reply_first(self: wire.Wire, item: object) -> None:
        replied(self, item)
        messages = held[:]
        held.clear()
        hand_over(self, messages)

    monkeypatch.setattr(wire.Wire, "_hand_over", lambda self, messages: held.extend(messages))
    monkeypatch.setattr(wire.Wire, "_replied", reply_first)


@pytest.mark.parametrize("is_valkey", [False, True], ids=["redis", "valkey"])
async def test_messages_of_a_call_may_come_after_its_reply(is_valkey: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis sends them in this order from 7.2 on, and Valkey always. With Redis 7.0 the test imitates the order."""
    with redisserver.running(is_valkey=is_valkey) as server:
        if not await replies_first(server):
            assert not is_valkey
            hold_messages_until_the_reply(monkeypatch)
        one = Worker(redis_engine.RedisEngine(server.url()))
        try:
            await one.open()
            await one.publish("c", b"1", b"2")
            await one.publish("kept", b"3", retention=conformance.KEPT)
            await one.got("c", b"1", b"2")
            await one.got("kept", b"3")
            delivered: list[list[int]] = []
            request = interface.SubscribeRequest(APP, "presence-c", "1.1", member=interface.Member("ann", "{}"))
            one.engine.attach(request, lambda _answer: delivered.append([entry.kind for entry in one.entries]))
            await one.until(lambda: delivered, "the answer")
            assert interface.Kind.MEMBER_ADDED in delivered[0], "before the answer"
            assert await streams.lease(one, "bot", None, seconds=0) is True
            removed = (interface.Kind.MEMBER_REMOVED, "bot", b"")
            await one.until(lambda: removed in streams.changes(one), "a member that a heartbeat removes has left")
            assert one.gaps == []
        finally:
            await one.engine.close()


async def test_statistics_count_sessions_of_all_partitions_and_only_the_newest_late_ones_are_kept(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "LATE_SESSIONS", 0)  # one is kept in each partition
    one, two = await hire(), await hire()
    late = [f"late-{number}" for number in range(40)]
    for number, token in enumerate(late):
        one.engine.save_session(APP, token, b"record", number - 50)
        one.engine.save_session(APP, f"here-{number}", b"record", 3600)
    newest = {one.engine.partition(APP, f"#session-{token}"): token for token in late}
    for worker in (one, two):

        def is_counted(worker: Worker = worker) -> bool:
            seen = worker.engine.statistics()
            return (seen["sessions"], seen["sessions_late"]) == (40 + len(newest), len(newest))

        await worker.until(is_counted, "the end of the others")
    kept = [token for token in late if await one.engine.load_session(APP, token)]
    assert kept == sorted(newest.values(), key=late.index)
    dropped = sum(worker.engine.statistics()["sessions_dropped"] for worker in (one, two))
    assert 0 < dropped <= 40 - len(newest)


async def test_search_reads_the_names_in_steps_and_no_more_than_it_needs(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "SEARCHED_NAMES", 2)
    one = await hire()
    names = sorted(f"room-{number:02}" for number in range(40))
    for name in names:
        one.engine.set_subscribers(APP, name, 1)
    one.engine.set_subscribers("7", "room-99", 1)

    async def search(text: str, after: str, limit: int) -> list[str]:
        found = await one.engine.ask(lambda asked: asked.search(APP, text, after, limit))
        assert all(counts == interface.ChannelCounts(1, 0) for _, counts in found)
        return [name for name, _ in found]

    assert await search("room-", "", 100) == names
    assert await search("-", "room-09", 3) == ["room-10", "room-11", "room-12"]
    assert await search("5", "", 3) == ["room-05", "room-15", "room-25"]
    assert await search("nothing", "", 3) == []


async def test_members_are_read_in_pages(hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "PAGE", 2)
    one = await hire()
    for number in range(5):
        await one.join("presence-c", f"user-{number}", f"1.{number}", info=str(number))
    all_members = [interface.Member(f"user-{number}", str(number)) for number in range(5)]
    assert await one.members("presence-c") == all_members


# -- failures ----------------------------------------------------------------------------------------------------------


class Publisher:
    """Publishes numbers on one channel until it is stopped, and records those that were acknowledged."""

    def __init__(self, worker: Worker, channel: str, count: int) -> None:
        self.acknowledged: list[bytes] = []
        self.refused = 0
        self._worker = worker
        self._channel = channel
        self._count = count

    async def run(self) -> None:
        for number in range(self._count):
            body = b"%d" % number
            try:
                await self._worker.publish(self._channel, body, retention=conformance.KEPT)
            except errors.EngineUnavailable:
                self.refused += 1
                await asyncio.sleep(0.02)
            else:
                self.acknowledged.append(body)


def assert_delivered(worker: Worker, channel: str, acknowledged: list[bytes]) -> None:
    """Each acknowledged event once and in order; one whose acknowledgement was lost may be there too."""
    delivered = worker.bodies(channel)
    assert len(set(delivered)) == len(delivered)
    assert [body for body in delivered if body in set(acknowledged)] == acknowledged


async def healthy(*workers: Worker) -> None:
    for worker in workers:
        await worker.until(lambda worker=worker: worker.engine.health().ok, "the worker is healthy")


async def test_lost_connections_are_repaired_from_the_log(hire: conformance.Hire, server: redisserver.Server) -> None:
    """CLIENT KILL ends all subscribers four times while events are published."""
    one, two = await hire(), await hire()
    publisher = Publisher(one, "kept", 400)
    publishing = asyncio.ensure_future(publisher.run())
    with server.client() as client:
        for share in range(1, 5):
            await one.until(lambda share=share: len(publisher.acknowledged) > share * 60, "events")
            await asyncio.to_thread(client.execute_command, "CLIENT", "KILL", "TYPE", "pubsub")
    await publishing
    await two.until(lambda: two.bodies("kept")[-1:] == publisher.acknowledged[-1:], "the last event")
    assert one.gaps == two.gaps == []
    assert two.engine.statistics()["reconnects"] > 1
    assert_delivered(two, "kept", publisher.acknowledged)


async def test_lease_whose_answer_comes_after_the_stop_is_not_given_out(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (await hire()).engine._worker.leases  # type: ignore[attr-defined]
    for partition in found._partitions:
        ask = partition.calls.ask

        async def stop_meanwhile(*operations: Any, ask: Any = ask) -> Any:
            answer = await ask(*operations)
            found.stop()
            return answer

        monkeypatch.setattr(partition.calls, "ask", stop_meanwhile)
    with pytest.raises(errors.EngineUnavailable, match="closed before the lease"):
        await found.acquire("outbox")


async def test_pause_of_the_server_loses_nothing(hire: conformance.Hire, server: redisserver.Server) -> None:
    one, two = await hire(), await hire()
    publisher = Publisher(one, "kept", 300)
    publishing = asyncio.ensure_future(publisher.run())
    with server.client() as client:
        await one.until(lambda: len(publisher.acknowledged) > 50, "events")
        await asyncio.to_thread(client.execute_command, "CLIENT", "PAUSE", "1000", "ALL")
    await publishing
    await two.until(lambda: two.bodies("kept")[-1:] == publisher.acknowledged[-1:], "the last event")
    assert one.gaps == two.gaps == []
    assert_delivered(two, "kept", publisher.acknowledged)


async def test_server_that_does_not_answer_is_reported_and_its_return_too(hire: conformance.Hire) -> None:
    with redisserver.running() as own:
        worker = Worker(redis_engine.RedisEngine(own.url(), append_timeout=1.0))
        await worker.open()
        own.signal(signal.SIGSTOP)
        with pytest.raises(errors.EngineUnavailable):
            await worker.publish("kept", b"during")
        await worker.until(lambda: not worker.engine.health().ok, "the worker reports it")
        assert worker.gaps == []
        own.signal(signal.SIGCONT)
        await healthy(worker)
        await worker.publish("kept", b"after")
        await worker.until(lambda: worker.bodies("kept")[-1:] == [b"after"], "an event after the return")
        await worker.engine.close()


@pytest.mark.parametrize("durability", [("--appendonly", "yes", "--appendfsync", "everysec"), ()])
async def test_restarted_server_begins_new_generations_and_no_position_is_given_twice(
    durability: tuple[str, ...],
) -> None:
    """With and without an append-only file: a server of another run may have lost acknowledged entries."""
    with redisserver.running(*durability) as own:
        one, two = [await Worker(redis_engine.RedisEngine(own.url())).open() for _ in range(2)]
        publisher = Publisher(one, "kept", 200)
        publishing = asyncio.ensure_future(publisher.run())
        [before] = await one.publish("long", b"1", retention=conformance.KEPT)
        await one.until(lambda: len(publisher.acknowledged) > 50, "events")
        await asyncio.to_thread(own.kill)
        await asyncio.to_thread(own.start)
        await publishing
        for worker in (one, two):
            await worker.until(lambda worker=worker: len(worker.gaps) >= redis_engine.PARTITIONS, "gaps")
        await healthy(one, two)
        assert len(one.gaps) == len(two.gaps) == redis_engine.PARTITIONS
        assert set(one.gaps) == {"generation_changed"}
        replayed = await conformance.replay(one, channel="long", after=before.position)
        assert replayed.reason == "epoch_changed"
        positions = [(entry.channel, entry.offset) for entry in two.entries]
        [after] = await one.publish("long", b"2", retention=conformance.KEPT)
        assert before.position is not None
        assert after.position is not None
        assert after.position.epoch != before.position.epoch
        assert positions
        for worker in (one, two):
            await worker.engine.close()


async def test_emptied_store_is_filled_again_and_told(hire: conformance.Hire) -> None:
    """FLUSHALL: a gap in each partition, and connections and signed-in users are said again."""
    with redisserver.running() as own:
        one, two = [await Worker(redis_engine.RedisEngine(own.url())).open() for _ in range(2)]
        one.engine.set_subscribers(APP, interface.CONNECTIONS, 3)
        await one.join(interface.USERS, "ann", "1.1")
        with own.client() as client:
            client.flushall()
        for worker in (one, two):
            await worker.until(lambda worker=worker: len(worker.gaps) == redis_engine.PARTITIONS, "gaps")
        await healthy(one, two)

        async def is_back() -> bool:
            present = await two.engine.ask(lambda queries: queries.present(APP, interface.USERS, ["ann"]))
            return present == {"ann"}

        await waiting.until_async(is_back, 30, "the user is online")
        answers: list[object] = []
        two.engine.admit(APP, 3, answers.append)
        await two.until(lambda: answers, "an answer")
        assert isinstance(answers[0], interface.SubscribeResult), "2 others of 3"
        await two.publish("news", b"after")
        await one.until(lambda: one.bodies("news") == [b"after"], "an event after it")
        for worker in (one, two):
            await worker.engine.close()


async def test_partition_that_has_lost_its_state_begins_again_without_its_log(
    hire: conformance.Hire, server: redisserver.Server, url: str
) -> None:
    """As after an eviction: the state is gone, and the log's entries have larger sequences than the next ones."""
    one, two = await hire(), await hire()
    before = [receipt.position for receipt in await one.publish("kept", b"1", b"2", b"3", retention=conformance.KEPT)]
    partition = one.engine._worker.of(APP, "kept")  # type: ignore[attr-defined]
    with server.client() as client:
        assert client.delete(partition.prefix + "state") == 1
    for worker in (one, two):
        await worker.until(lambda worker=worker: worker.gaps, "the gap")
    await healthy(one, two)
    after = [receipt.position for receipt in await one.publish("kept", b"4", b"5", retention=conformance.KEPT)]
    assert not set(before) & set(after)
    await two.until(lambda: two.bodies("kept")[-2:] == [b"4", b"5"], "the next events")
    assert (await conformance.replay(two, after=before[-1])).reason == "epoch_changed"


@pytest.mark.parametrize("connections", ["kept", "lost"])
@pytest.mark.parametrize("form", ["single", "cluster"])
async def test_backup_that_is_restored_into_a_running_server_begins_a_new_generation_in_each_partition(
    form: str, connections: str
) -> None:
    """The run id stays the same. The numbers of the entries show that the store is an older one, and in a partition
    without entries those of the heartbeats."""
    with redisserver.running() if form == "single" else redisserver.cluster_of_one() as own:
        url = own.url() if form == "single" else f"redis+cluster://127.0.0.1:{own.port}"
        one, two = [await Worker(redis_engine.RedisEngine(url)).open() for _ in range(2)]
        partitions = one.engine._worker.all  # type: ignore[attr-defined]
        await one.publish("kept", b"1", retention=conformance.KEPT)
        assert (await one.engine.take_session(APP, "token", "1.1")).lost_s is None
        with redis.Redis("127.0.0.1", own.port) as raw:

            def keys_of(prefix: str) -> list[bytes]:
                return [key for key in raw.scan_iter() if key.startswith(prefix.encode())]

            backup = {each.prefix: {key: raw.dump(key) for key in keys_of(each.prefix)} for each in partitions}
            [lost] = await one.publish("kept", b"2", retention=conformance.KEPT)
            one.engine.save_session(APP, "token", b"lost too", 60, holder="1.1", release=True)
            await two.got("kept", b"1", b"2")
            seen = [int(raw.hget(f"{each.prefix}state", "beats")) for each in partitions]
            for worker in (one, two):
                for each, beats in zip(worker.engine._worker.all, seen, strict=True):  # type: ignore[attr-defined]
                    await worker.until(lambda each=each, beats=beats: each.beats > beats, "a heartbeat", within=60)
            if connections == "lost":
                for kind in ("normal", "pubsub"):
                    raw.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            for prefix, values in backup.items():
                restoring = raw.pipeline(transaction=True)
                restoring.delete(*keys_of(prefix))
                for key, value in values.items():
                    restoring.restore(key, 0, value)
                await asyncio.to_thread(restoring.execute)
        for worker in (one, two):
            await worker.until(lambda worker=worker: len(worker.gaps) == len(partitions), "the gaps", within=60)
        await healthy(one, two)
        assert (await one.engine.take_session(APP, "token", "1.2")).lost_s is not None
        assert (await conformance.replay(two, after=lost.position)).reason == "epoch_changed"
        [after] = await one.publish("kept", b"3", retention=conformance.KEPT)
        assert after.position is not None
        assert lost.position is not None
        assert after.position.epoch != lost.position.epoch
        assert after.position.offset == 2
        await two.got("kept", b"1", b"2", b"3")
        for worker in (one, two):
            assert worker.gaps == ["generation_changed"] * len(partitions), (
                "one generation, although both have seen more"
            )
            await worker.engine.close()


async def test_session_taken_after_a_loss_of_the_store_reports_it() -> None:
    """A store that was emptied has no session, and a new one has none either."""
    with redisserver.running(*redis_deployment.OPTIONS) as own:
        one, two = [await Worker(redis_engine.RedisEngine(own.url())).open() for _ in range(2)]
        assert (await one.engine.take_session(APP, "token", "1.1")).lost_s is None, "a new deployment has lost nothing"
        with own.client() as client:
            client.flushall()
        for worker in (two, one):  # the first of them may not have noticed it yet
            assert (await worker.engine.take_session(APP, "token", "1.2")).lost_s is not None
        await healthy(one, two)
        three = await Worker(redis_engine.RedisEngine(own.url())).open()
        assert (await three.engine.take_session(APP, "token", "3.1")).lost_s is not None, "the store remembers it"
        for worker in (one, two, three):
            await worker.engine.close()


async def test_session_taken_after_a_restart_of_the_store_reports_that_the_newest_may_be_lost() -> None:
    with redisserver.running("--appendonly", "yes", "--appendfsync", "always") as own:
        one = await Worker(redis_engine.RedisEngine(own.url())).open()
        assert (await one.engine.take_session(APP, "token", "1.1")).lost_s is None
        await asyncio.to_thread(own.kill)
        await asyncio.to_thread(own.start)
        two = await Worker(redis_engine.RedisEngine(own.url())).open()
        assert (await two.engine.take_session(APP, "token", "2.1")).lost_s is not None
        for worker in (one, two):
            await worker.engine.close()


async def test_transient_consumer_is_forgotten_without_keep(
    url: str, server: redisserver.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "TRANSIENT_SECONDS", 1)
    one = await Worker(redis_engine.RedisEngine(url, log_seconds=1)).open()
    index = one.engine.partition(APP, "c")
    prefix = one.engine._worker.all[index].prefix  # type: ignore[attr-defined]
    consumer = await one.engine.consume("tail", index, frozenset([interface.Kind.EVENT]), transient=True)
    with contextlib.closing(consumer), server.client() as client:

        async def is_forgotten() -> bool:
            await one.publish("c", b"unread")  # entries are trimmed while others come
            wanted = int(client.hget(f"{prefix}state", "kinds"))
            return not (wanted or client.hlen(f"{prefix}consumers") or client.xlen(f"{prefix}facts"))

        await waiting.until_async(is_forgotten, 30, "the log keeps nothing for the consumer")
        monkeypatch.undo()
        await consumer.keep(consumer.position)
        await one.publish("c", b"later")
        assert [entry.body for entry in await consumer.next(10, 30)] == [b"later"]
    await one.engine.close()


async def test_transient_consumer_holds_no_entries_and_does_not_move_to_another_store(
    hire: conformance.Hire, url: str, server: redisserver.Server
) -> None:
    one = await hire()
    index = one.engine.partition(APP, "c")
    prefix = one.engine._worker.all[index].prefix  # type: ignore[attr-defined]
    kinds = frozenset([interface.Kind.EVENT])
    await one.engine.consume("outbox", index, kinds)
    consumer = await one.engine.consume("tail", index, kinds, transient=True)
    with server.client() as client, contextlib.closing(moving.RedisStore(url, redis_engine.PARTITIONS)) as store:

        def stored() -> tuple[int, int]:
            """The position, and the time when it is forgotten. Older releases read this form."""
            found = re.fullmatch(r"(\d+) (\d+) \d+ \w+", client.hget(f"{prefix}consumers", "tail"))
            assert found is not None
            return int(found[1]), int(found[2]) + interface.CONSUMER_SECONDS * 1000

        async def is_renewed() -> bool:
            await consumer.keep(consumer.position)
            return stored()[1] > before

        before = stored()[1]
        [receipt] = await one.publish("c", b"unread")
        await waiting.until_async(is_renewed, 30, "the consumer is renewed")
        assert stored()[0] == receipt.id
        assert stored()[1] <= (client.time()[0] + interface.TRANSIENT_SECONDS + 1) * 1000
        assert [reading.name for reading in store.rest().readings] == ["outbox"]
        await consumer.drop()
        assert client.hkeys(f"{prefix}consumers") == ["outbox"]


async def test_consumer_that_gets_no_entries_is_renewed(
    hire: conformance.Hire, server: redisserver.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store forgets a consumer that it has not heard from for a day."""
    one = await hire()
    index = one.engine.partition(APP, "c")
    prefix = one.engine._worker.all[index].prefix  # type: ignore[attr-defined]
    consumer = await one.engine.consume("outbox", index, frozenset([interface.Kind.CLIENT_EVENT]))
    with server.client() as client:

        async def is_renewed() -> bool:
            await consumer.keep(consumer.position)
            return str(client.hget(f"{prefix}consumers", "outbox")) != before

        before = client.hget(f"{prefix}consumers", "outbox")
        await one.publish("c", b"of another kind")
        assert not await is_renewed(), "most calls cost nothing"
        monkeypatch.setattr(redis_consumer, "RENEW_S", 0.0)
        await waiting.until_async(is_renewed, 30, "the consumer is renewed")
        assert client.hget(f"{prefix}consumers", "outbox").split()[1] > before.split()[1]


async def test_full_memory_refuses_publications_and_nothing_else() -> None:
    with redisserver.running() as own:
        worker = await Worker(redis_engine.RedisEngine(own.url())).open()
        await worker.join("presence-c", "ann", "1.1")
        with own.client() as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(errors.EngineUnavailable, match="maxmemory"):
                await worker.publish("kept", b"refused", retention=conformance.KEPT)
            await worker.until(lambda: not worker.engine.health().ok, "the worker reports it")
            worker.engine.leave(APP, "presence-c", "1.1")
            gone = interface.Kind.MEMBER_REMOVED
            await worker.until(lambda: worker.entries[-1].kind == gone, "the departure, which frees memory")
            client.config_set("maxmemory", 0)
        await healthy(worker)
        [receipt] = await worker.publish("kept", b"1", retention=conformance.KEPT)
        assert receipt.position is not None
        assert receipt.position.offset == 1, "the refused one has left nothing"
        assert worker.gaps == []
        await worker.engine.close()


async def test_socket_that_joins_and_leaves_during_a_gap_is_no_member(url: str) -> None:
    """After a gap joins wait until the hub has closed the affected connections, and other writes do not."""
    answers: list[object] = []

    def join_and_leave(_reason: str, _partition: int | None) -> None:
        member = interface.Member("ann", "null")
        engine.attach(interface.SubscribeRequest(APP, "presence-c", "1.1", member=member), answers.append)
        engine.leave(APP, "presence-c", "1.1")
        engine.when_written(lambda: answers.append("closed"))  # the partition settles until this is called

    engine = redis_engine.RedisEngine(url)
    worker = Worker(engine)
    await engine.open(lambda _entries: None, join_and_leave)
    partition = engine._worker.all[engine.partition(APP, "presence-c")]  # type: ignore[union-attr]
    partition.guarded(partition.gap, "trimmed")
    await worker.until(lambda: len(answers) == 2, "the join is answered")
    await worker.written()
    assert answers[0] == "closed", "no subscriber is answered before"
    assert isinstance(answers[1], interface.SubscribeResult)
    assert await worker.members("presence-c") == []
    await engine.close()


async def test_one_trimmed_entry_that_was_not_read_is_a_gap(hire: conformance.Hire, server: redisserver.Server) -> None:
    one = await hire()
    partition = one.engine._worker.all[one.engine.partition(APP, "news")]  # type: ignore[attr-defined]
    await one.publish("news", b"1")
    await one.got("news", b"1")
    with server.client() as client:
        for trimmed, gaps in ((0, []), (1, ["trimmed"])):
            client.hset(f"{partition.prefix}state", "trimmed", partition.position + trimmed)
            before = partition.wire
            before.abort()
            await one.until(lambda before=before: partition.is_following and partition.wire is not before, "it follows")
            assert one.gaps == gaps


async def test_user_that_left_is_not_online_again_after_the_store_was_emptied() -> None:
    """Users that are signed in are written again, because the hub closes no socket without a channel."""
    with redisserver.running() as own:
        worker = await Worker(redis_engine.RedisEngine(own.url())).open()
        for user_id, socket_id in (("ann", "1.1"), ("bob", "1.2")):
            await worker.attach(interface.USERS, socket_id, user_id)
        worker.engine.leave(APP, interface.USERS, "1.1")
        await worker.written()
        with own.client() as client:
            client.flushall()
        await worker.until(lambda: worker.gaps, "the gap")
        await healthy(worker)
        await worker.written()
        answer = await worker.attach(interface.USERS, "1.3", "cid", watch=("ann", "bob"))
        assert isinstance(answer, interface.SubscribeResult)
        assert answer.online == ("bob",)
        await worker.engine.close()


async def test_listener_that_has_not_caught_up_when_its_connection_breaks_misses_nothing(
    hire: conformance.Hire,
) -> None:
    """Other channels have moved the position of the partition beyond an entry that the listener still lacks."""
    one, two = await hire(), await hire()
    index = one.engine.partition(APP, "news")
    late = next(name for name in map("late-{}".format, range(99)) if one.engine.partition(APP, name) == index)
    partition = one.engine._worker.all[index]  # type: ignore[attr-defined]
    partition._not_before = float("inf")  # the read of the log for the new listener waits
    one.engine.listen(APP, late, True)
    await two.publish(late, b"missed")
    await two.publish("news", b"later")
    await one.got("news", b"later")
    assert one.bodies(late) == []
    partition._not_before = 0.0
    partition.wire.abort()
    await one.got(late, b"missed")
    await healthy(one)
    assert (one.bodies("news"), one.gaps) == ([b"later"], [])


async def test_subscriber_whose_answer_shows_a_new_generation_is_refused() -> None:
    """The answer stands in another log than the entries that this worker delivers. The hub repeats the subscribe."""
    with redisserver.running() as own:
        worker = await Worker(redis_engine.RedisEngine(own.url())).open()
        with own.client() as client:
            client.flushall()
        answer = await worker.attach("news")
        assert isinstance(answer, interface.Refused), answer
        await worker.until(lambda: worker.gaps, "the gap")
        await healthy(worker)
        assert isinstance(await worker.attach("news"), interface.SubscribeResult)
        await worker.engine.close()


async def test_holder_from_which_a_session_was_taken_does_not_write_it_after_its_release(
    hire: conformance.Hire,
) -> None:
    """A worker is frozen, another one takes the session and releases it, and the first one sends its record then."""
    one, two = await hire(), await hire()
    await one.engine.take_session(APP, "token", "1.1")
    await two.engine.take_session(APP, "token", "2.1")
    two.engine.save_session(APP, "token", b"newer", 60, holder="2.1", release=True)
    assert await two.engine.load_session(APP, "token") == b"newer"
    for release in (False, True):
        one.engine.save_session(APP, "token", b"older", 60, holder="1.1", release=release)
        assert await one.engine.load_session(APP, "token") == b"newer"
    assert (await two.engine.take_session(APP, "token", "2.2")).holder is None
    assert (await one.engine.take_session(APP, "token", "1.1")).holder == "2.2"
    one.engine.save_session(APP, "token", b"newest", 60, holder="1.1")
    assert await one.engine.load_session(APP, "token") == b"newest", "it has taken the session again"


async def test_repeated_release_does_not_replace_the_record_of_a_later_holder(hire: conformance.Hire) -> None:
    """The first release was written, and its answer was lost."""
    one, two = await hire(), await hire()
    await one.engine.take_session(APP, "token", "1.1")
    one.engine.save_session(APP, "token", b"older", 60, holder="1.1", release=True)
    assert await one.engine.load_session(APP, "token") == b"older"
    await two.engine.take_session(APP, "token", "2.1")
    two.engine.save_session(APP, "token", b"newer", 60, holder="2.1", release=True)
    assert await two.engine.load_session(APP, "token") == b"newer"
    again = ("s", APP, "token", b"older", 60, "1.1", True)
    one.engine._worker.sessions._release((APP, "token"), again, again=True)  # type: ignore[attr-defined]
    assert await one.engine.load_session(APP, "token") == b"newer"


async def test_full_memory_does_not_keep_the_holder_of_a_session() -> None:
    with redisserver.running() as own:
        worker = await Worker(redis_engine.RedisEngine(own.url())).open()
        engine = worker.engine
        await engine.take_session(APP, "token", "1.1")
        engine.save_session(APP, "token", b"before", 60, holder="1.1")
        assert await engine.load_session(APP, "token") == b"before"
        with own.client() as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(errors.EngineUnavailable, match="maxmemory"):
                await engine.take_session(APP, "token", "1.2")
            engine.save_session(APP, "token", b"at its end", 60, holder="1.1", release=True)
            assert await engine.load_session(APP, "token") == b"at its end"
            client.config_set("maxmemory", 0)
        await healthy(worker)
        assert await engine.take_session(APP, "token", "1.2") == interface.Taken(b"at its end", None, None)
        await engine.close()


async def test_release_of_a_session_is_written_after_the_store_was_away() -> None:
    with redisserver.running("--appendonly", "yes", "--appendfsync", "always") as own:
        engines = [redis_engine.RedisEngine(own.url(), append_timeout=0.5) for _ in range(2)]
        one, two = [await Worker(engine).open() for engine in engines]
        await one.engine.take_session(APP, "token", "1.1")
        await asyncio.to_thread(own.kill)
        one.engine.save_session(APP, "token", b"at its end", 60, holder="1.1", release=True)
        await one.until(lambda: one.engine.statistics().get("releases_retried"), "a failed release")
        await asyncio.to_thread(own.start)
        await healthy(one, two)

        async def is_written() -> bool:
            return await two.engine.load_session(APP, "token") == b"at its end"

        await waiting.until_async(is_written, 30, "the release")
        taken = await two.engine.take_session(APP, "token", "2.1")
        assert (taken.record, taken.holder, taken.changed_s) == (b"at its end", None, None)
        for worker in (one, two):
            await worker.engine.close()


async def test_frozen_worker_is_removed_and_starts_again(
    hire: conformance.Hire, server: redisserver.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await hire(), await hire()
    await one.join("presence-c", "ann", "1.1")
    frozen = one.engine._worker  # type: ignore[attr-defined]
    partition = frozen.of(APP, "presence-c")
    before = partition.life
    with monkeypatch.context() as patched:
        patched.setattr(frozen.topology.links[None], "beat", lambda: None)
        with server.client() as client:
            client.zadd(partition.prefix + "workers", {before: 1}, xx=True)  # its lease has ended
        gone = interface.Kind.MEMBER_REMOVED
        await two.until(lambda: two.entries[-1:] and two.entries[-1].kind == gone, "the departure")
    await one.until(lambda: one.gaps == ["worker_unknown"], "the worker notices")
    assert [entry.user_id for entry in two.entries if entry.kind == gone] == ["ann"]
    assert partition.life != before
    await healthy(one)
    await two.publish("presence-c", b"after")
    await one.until(lambda: one.bodies("presence-c")[-1:] == [b"after"], "an event after the restart")


async def test_value_that_redis_refuses_fails_alone(hire: conformance.Hire) -> None:
    one = await hire()
    refused = one.publish("c", b"x", user_id="a lone surrogate \ud800")
    accepted = one.publish("c", b"y")
    outcomes = await asyncio.gather(refused, accepted, return_exceptions=True)
    assert isinstance(outcomes[0], errors.EngineUnavailable)
    await one.got("c", b"y")


async def test_member_that_redis_refuses_fails_alone(hire: conformance.Hire) -> None:
    one = await hire()
    refused, joined = await asyncio.gather(
        one.attach("presence-c", "1.1", "a lone surrogate \ud800"), one.attach("presence-c", "1.2", "ann")
    )
    assert isinstance(refused, interface.Refused)
    assert isinstance(joined, interface.SubscribeResult)
    await one.publish("c", b"y")
    await one.got("c", b"y")


async def test_delivery_that_raises_is_a_gap(url: str) -> None:
    engine, gaps, delivered = redis_engine.RedisEngine(url), list[str](), list[bytes]()

    def deliver(entries: Sequence[interface.Entry]) -> None:
        if not gaps:
            raise ValueError
        delivered.extend(entry.body for entry in entries)

    async def is_there(found: Callable[[], bool], what: str) -> None:
        async def look() -> bool:
            return found()

        await waiting.until_async(look, 30, what)

    await engine.open(deliver, lambda reason, partition: gaps.append(reason))
    engine.listen(APP, "c", True)
    await engine.append([interface.Publication(APP, "c", b"1")])
    await is_there(lambda: gaps == ["delivery_failed"] and engine.health().ok, "the gap")
    await engine.append([interface.Publication(APP, "c", b"2")])
    await is_there(lambda: delivered == [b"2"], "the next entry")
    assert engine.statistics()["delivery_failures"] == 1
    await engine.close()


# -- the start ---------------------------------------------------------------------------------------------------------


async def open_and_close(url: str) -> None:
    engine = redis_engine.RedisEngine(url)
    try:
        await engine.open(lambda entries: None, lambda reason, partition: None)
    finally:
        await engine.close()


async def test_eviction_policy_is_refused_with_the_remedy() -> None:
    with (
        redisserver.running("--maxmemory-policy", "allkeys-lru") as own,
        pytest.raises(errors.EngineMisconfigured, match=r"allkeys-lru.*noeviction"),
    ):
        await open_and_close(own.url())


async def test_replica_is_refused(server: redisserver.Server) -> None:
    with (
        redisserver.running("--replicaof", "127.0.0.1", str(server.port)) as replica,
        pytest.raises(errors.EngineMisconfigured, match="is a replica"),
    ):
        await open_and_close(replica.url())


async def test_sentinel_in_the_url_of_a_server_is_refused_with_the_remedy(tmp_path: Path) -> None:
    sentinel = redisserver.Server(tmp_path, program="redis-sentinel")
    (tmp_path / "sentinel.conf").write_text(f"port {sentinel.port}\nbind 127.0.0.1\n", encoding="utf-8")
    try:
        sentinel.start()
        with pytest.raises(errors.EngineMisconfigured, match=r"is a sentinel: FANFARE_ENGINE=redis\+sentinel"):
            await open_and_close(sentinel.url())
    finally:
        sentinel.stop()


@pytest.mark.parametrize("form", ["redis+cluster://", "redis+sentinel://"])
async def test_lone_server_in_a_url_of_another_form_is_named(server: redisserver.Server, form: str) -> None:
    url = f"{form}127.0.0.1:{server.port}{'/main' if 'sentinel' in form else ''}"
    with pytest.raises(errors.EngineUnavailable, match=rf"FANFARE_ENGINE={re.escape(form)}… names"):
        await open_and_close(url)


async def test_user_without_a_right_is_refused_and_the_documented_user_is_not(server: redisserver.Server) -> None:
    page = (REPOSITORY / "docs/how-to/many-machines.md").read_text(encoding="utf-8")
    [rule] = re.findall(r"ACL SETUSER fanfare on >PASSWORD (.*)", page)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "fanfare", "reset", "on", ">hunter2", *rule.split())
        client.execute_command("ACL", "SETUSER", "less", "reset", "on", ">hunter2", *rule.split(), "-xadd")
        client.execute_command("ACL", "SETUSER", "deaf", "reset", "on", ">hunter2", *rule.split(), "resetchannels")
    where = f"127.0.0.1:{server.port}/0"
    with pytest.raises(errors.EngineMisconfigured, match="XADD"):
        await open_and_close(f"redis://less:hunter2@{where}")
    with pytest.raises(errors.EngineMisconfigured, match="SPUBLISH"):
        await open_and_close(f"redis://deaf:hunter2@{where}")
    with pytest.raises(errors.EngineMisconfigured, match="refuses the user or password") as failure:
        await open_and_close(f"redis://fanfare:wrong-one@{where}")
    assert "wrong-one" not in str(failure.value)
    await open_and_close(f"redis://fanfare:hunter2@{where}")


async def test_another_number_of_partitions_is_refused(hire: conformance.Hire, url: str) -> None:
    await hire()
    engine = redis_engine.RedisEngine(url, partitions=4)
    with pytest.raises(errors.EngineMisconfigured, match=r"has 16 partitions.*FANFARE_REDIS_PARTITIONS is 4"):
        await engine.open(lambda entries: None, lambda reason, partition: None)
    await engine.close()


@pytest.mark.parametrize("form", ["redis://", "redis+cluster://", "redis+sentinel://"])
def test_publisher_without_a_worker_gets_engine_unavailable_while_no_server_listens(form: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        engine = redis_engine.RedisEngine(
            f"{form}127.0.0.1:{closed.getsockname()[1]}{'/main' if 'sentinel' in form else ''}", append_timeout=1
        )
        with pytest.raises(errors.EngineUnavailable), engine.queries() as queries:
            queries.channels(APP)
        with pytest.raises(errors.EngineUnavailable):
            engine.append_blocking([interface.Publication(APP, "orders", b"{}")])


def test_unknown_option_is_named() -> None:
    with pytest.raises(errors.EngineMisconfigured, match="has the option 'prefixx'; the engine has ca, cert,"):
        redis_engine.RedisEngine("redis://ann:hunter2@redis.example.com/3?prefixx=shop")


def test_no_message_shows_the_password() -> None:
    engine = redis_engine.RedisEngine("rediss://ann:hunter2@redis.example.com/3?prefix=shop")
    assert "hunter2" not in str(engine.health()) + repr(engine.address)
    assert engine.address.public == "rediss://ann@redis.example.com/3 (prefix shop)"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/0?prefix=two%20words",
        "redis://h/0?nonsense=1",
        "redis://h/not-a-number",
        "redis://one,two/0",
        "redis+sentinel://h:26379",
        "redis+cluster://h/1",
        "redis://h:port/0",
    ],
)
def test_wrong_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(errors.EngineMisconfigured, match="FANFARE_ENGINE"):
        redis_engine.RedisEngine(url)


def test_partitions_are_spread_over_the_slots_of_a_cluster() -> None:
    slots = [
        address.slot_of(address.key_prefix("fanfare", index, 16).partition("{")[2].partition("}")[0])
        for index in range(16)
    ]
    assert [slot * 16 // address.SLOTS for slot in slots] == list(range(16))
