"""Moves of a log between real stores, with workers and publishers that are connected to the old one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fanfare.engine import current, errors, interface, moves
from fanfare.engine.redis import address
from fanfare.engine.redis import moving as redis_moving
from fanfare.engine.redis.engine import RedisEngine
from tests.harness import postgresql, redisserver, waiting
from tests.unit.engine import postgres_deployment
from tests.unit.engine.workers import APP, Worker

PAIRS = [
    ("local", "postgres"),
    ("local", "redis"),
    ("postgres", "redis"),
    ("redis", "postgres"),
    ("postgres", "local"),
    ("redis", "local"),
]
KEPT = interface.Retention(50, 600)
KINDS = frozenset([interface.Kind.CLIENT_EVENT])
WITHIN = 30


class Place:
    """A store of the test: its engines, and its part of a move."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.workers: list[Worker] = []

    def engine(self) -> interface.Engine:
        current.configure(self.name, self.folder)
        return current.another()

    def store(self) -> moves.Store:
        return current.store(self.name, self.folder)

    async def hire(self) -> Worker:
        worker = Worker(self.engine())
        self.workers.append(worker)
        return await worker.open()


@pytest.fixture
async def place(
    cluster: postgresql.Cluster, store: redisserver.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str], Place]]:
    for name in ("_make", "_engine", "_pid"):
        monkeypatch.setattr(current, name, getattr(current, name))  # restored after the test
    made: list[Place] = []

    def make(kind: str) -> Place:
        number = uuid.uuid4().hex[:12]
        name = {
            "local": "local",
            "postgres": cluster.url("realtime", schema=f"log_{number}"),
            "redis": store.url(prefix=f"log-{number}"),
        }[kind]
        made.append(Place(name, tmp_path / number))
        return made[-1]

    yield make
    for one in made:
        for worker in one.workers:
            await worker.engine.close()


async def move(old: Place, new: Place) -> moves.Report:
    def run() -> moves.Report:
        stores = old.store(), new.store()
        try:
            return moves.Mover(*stores, move="test").run()
        finally:
            for store in stores:
                store.close()

    return await asyncio.to_thread(run)


async def refusal(worker: Worker) -> errors.EngineError:
    with pytest.raises(errors.EngineError) as refused:
        await worker.publish("kept", b"late", retention=KEPT)
    return refused.value


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_histories_sessions_and_keys_are_in_the_new_store(
    place: Callable[[str], Place], source: str, target: str
) -> None:
    old, new = place(source), place(target)
    before = await old.hire()
    receipts = await before.publish("kept", b"1", b"2", b"3", retention=KEPT)
    [keyed] = await before.publish("kept", b"4", retention=KEPT, idempotency_key="once")
    await before.publish("kept", b"5", retention=KEPT, exclude="1.1", user_id="ann")
    await before.publish("plain", b"unkept", idempotency_key="plain")
    await before.publish("cache-c", b"cached", cache_seconds=600)
    await before.engine.take_session(APP, "token", "1.1")
    before.engine.save_session(APP, "token", b"record", 600, holder="1.1")
    assert await before.engine.load_session(APP, "token") == b"record"

    report = await move(old, new)
    assert (report.entries, report.cached, report.sessions) == (5, 1, 1)

    after = await new.hire()
    entries, top = await after.read("kept", 0, 100)
    assert [(entry.offset, entry.body) for entry in entries] == [(n, b"%d" % n) for n in range(1, 6)]
    assert (entries[4].exclude, entries[4].user_id) == ("1.1", "ann")
    assert keyed.position is not None
    assert top == interface.Position(keyed.position.epoch, 5)
    assert receipts[0].position is not None
    answer = await after.attach("kept", history=interface.RecoveryRequest(after=receipts[0].position))
    assert isinstance(answer, interface.SubscribeResult)
    assert answer.replayed is not None
    assert [entry.body for entry in answer.replayed.entries] == [b"2", b"3", b"4", b"5"]
    [again] = await after.publish("kept", b"4", retention=KEPT, idempotency_key="once")
    assert (again.duplicate, again.position) == (True, keyed.position)
    [again] = await after.publish("plain", b"unkept", idempotency_key="plain")
    assert again.duplicate
    [sixth] = await after.publish("kept", b"6", retention=KEPT)
    assert sixth.position == interface.Position(keyed.position.epoch, 6)
    await after.got("kept", b"6")
    cached = await after.cached("cache-c")
    assert cached is not None
    assert cached.body == b"cached"
    taken = await after.engine.take_session(APP, "token", "2.2")
    assert (taken.record, taken.holder) == (b"record", None)


@pytest.mark.parametrize("source", ["local", "postgres", "redis"])
async def test_changed_streams_are_those_that_were_written(place: Callable[[str], Place], source: str) -> None:
    old = place(source)
    worker = await old.hire()
    for channel in ("quiet", "busy"):
        await worker.publish(channel, b"1", retention=KEPT)
    with contextlib.closing(old.store()) as store:
        assert {channel: one.offset for (_, channel), one in store.streams().items()} == {"quiet": 1, "busy": 1}
        assert store.changed() == {}
        await worker.publish("busy", b"2", b"3", retention=KEPT)
        await worker.publish("new", b"1", retention=KEPT)
        await worker.publish("plain", b"1")
        answer = await worker.attach("empty", history=interface.RecoveryRequest())
        assert isinstance(answer, interface.SubscribeResult)
        assert answer.replayed is not None
        changed = store.changed()
        assert changed is not None
        assert {channel: one.offset for (_, channel), one in changed.items()} == {"busy": 3, "new": 1, "empty": 0}
        assert changed[APP, "empty"].epoch == answer.replayed.position.epoch
        assert "busy" not in {channel for _, channel in store.changed() or {}}


async def test_redis_lists_all_streams_where_its_log_is_trimmed_too_far(place: Callable[[str], Place]) -> None:
    old = place("redis")
    worker = await old.hire()
    await worker.publish("kept", b"1", retention=KEPT)
    with contextlib.closing(old.store()) as store:
        store.streams()
        await worker.publish("kept", b"2", retention=KEPT)
        engine = worker.engine
        assert isinstance(engine, RedisEngine)
        state = address.key_prefix(engine.address.prefix, engine.partition(APP, "kept"), engine.partitions) + "state"
        with contextlib.closing(engine.address.blocking(5)) as client:
            client.hset(state, "trimmed", int(client.hget(state, "top")))
        assert store.changed() is None


async def test_redis_lists_all_streams_where_its_log_is_trimmed_during_the_listing(
    place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = place("redis")
    worker = await old.hire()
    await worker.publish("kept", b"1", retention=KEPT)
    engine = worker.engine
    assert isinstance(engine, RedisEngine)
    prefix = address.key_prefix(engine.address.prefix, engine.partition(APP, "kept"), engine.partitions)
    read = redis_moving.RedisStore._written

    def trim(store: redis_moving.RedisStore, client: Any, *arguments: Any) -> list[str]:
        """As a heartbeat does for entries that are old."""
        top = int(client.hget(prefix + "state", "top"))
        client.hset(prefix + "state", "trimmed", top)
        client.xtrim(prefix + "log", minid=f"{top + 1}-0")
        return read(store, client, *arguments)

    with contextlib.closing(old.store()) as store:
        store.streams()
        await worker.publish("kept", b"2", retention=KEPT)
        monkeypatch.setattr(redis_moving.RedisStore, "_written", trim)
        assert store.changed() is None


@pytest.mark.parametrize(("source", "target"), [("local", "postgres"), ("redis", "local")])
async def test_recorded_members_are_not_moved(place: Callable[[str], Place], source: str, target: str) -> None:
    """They name entries of the old log."""
    old, new = place(source), place(target)
    worker = await old.hire()
    await worker.publish(f"{interface.MEMBER_HISTORY}presence-c", b"[1]", retention=KEPT)
    await worker.publish("kept", b"1", retention=KEPT)
    assert (await move(old, new)).streams == 1
    with new.engine().queries() as queries:
        assert queries.read(APP, f"{interface.MEMBER_HISTORY}presence-c", 0, 10)[0] == []


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_stream_goes_on_in_the_new_store(place: Callable[[str], Place], source: str, target: str) -> None:
    old, new = place(source), place(target)
    before = await old.hire()

    def write(worker: Worker, stream: str, after: int, size: int, **more: Any) -> interface.StreamReceipt:
        one = interface.StreamWrite(APP, "kept", stream, after, after + 1, size, seconds=600, **more)
        return worker.engine.write_streams([one])[0]

    for stream in ("open", "ended"):
        await asyncio.to_thread(write, before, stream, -1, 0, head=b"head")
        await asyncio.to_thread(write, before, stream, 0, 2, part=b"he", body=b"he")
    end = {"state": interface.StreamState.DONE, "body": b"whole", "retention": KEPT}
    assert (await asyncio.to_thread(write, before, "ended", 1, 2, **end)).done
    await move(old, new)
    after = await new.hire()
    assert (await asyncio.to_thread(write, after, "open", 1, 5, part=b"llo", body=b"llo")).done
    streams = await after.engine.ask(lambda queries: queries.streams(APP, "kept"))
    found = {one.id: (one.state, one.size, b"".join(one.parts), one.body, one.offset) for one in streams}
    assert found == {
        "open": (interface.StreamState.OPEN, 5, b"hello", None, None),
        "ended": (interface.StreamState.DONE, 2, b"", b"whole", 1),
    }
    assert (await asyncio.to_thread(write, after, "open", 2, 5, **end)).done
    assert [entry.body for entry in (await after.read("kept", 0, 10))[0]] == [b"whole", b"whole"]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_old_store_refuses_workers_and_publishers(
    place: Callable[[str], Place], source: str, target: str
) -> None:
    old, new = place(source), place(target)
    running = await old.hire()
    publisher = old.engine()
    await running.publish("kept", b"1", retention=KEPT)
    await move(old, new)

    error = await refusal(running)
    assert "was moved to" in str(error)
    assert "set FANFARE_ENGINE" in str(error)
    await running.until(lambda: running.gaps, "the gap that closes the sockets", WITHIN)
    await running.until(lambda: not running.engine.health().ok, "the worker is not ready", WITHIN)
    with pytest.raises(errors.EngineError, match="was moved to"):
        await asyncio.to_thread(publisher.append_blocking, [interface.Publication(APP, "kept", b"late")])
    with pytest.raises(errors.EngineMisconfigured, match="was moved to"):
        await Worker(old.engine()).open()

    after = await new.hire()
    assert [entry.body for entry in (await after.read("kept", 0, 100))[0]] == [b"1"]


@pytest.mark.parametrize(("source", "target"), [("local", "redis"), ("postgres", "local"), ("redis", "local")])
async def test_worker_reports_a_move_in_one_line_and_no_loss(
    place: Callable[[str], Place], source: str, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = place(source), place(target)
    running = await old.hire()
    partitions = running.engine.statistics().get("partitions", 1)
    await move(old, new)
    await running.until(lambda: len(running.gaps) == partitions, "the gaps that close the sockets", WITHIN)
    await running.until(lambda: running.engine.is_moved, "the worker knows that the log was moved", WITHIN)
    await running.until(lambda: not running.engine.health().ok, "the worker is not ready", WITHIN)
    assert isinstance(await refusal(running), errors.EngineMoved)
    assert set(running.gaps) == {"moved"}
    records = [record for record in caplog.records if record.name.startswith("fanfare.engine")]
    assert [record.levelno for record in records if "was moved to" in record.getMessage()] == [logging.WARNING]
    assert not [record for record in records if "missed" in record.getMessage()]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_every_acknowledged_event_is_in_the_new_store(
    place: Callable[[str], Place], source: str, target: str
) -> None:
    old, new = place(source), place(target)
    running = await old.hire()
    acknowledged: list[bytes] = []
    stopped = threading.Event()
    engine = old.engine()

    def publish() -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            body = b"%d" % number
            try:
                engine.append_blocking(
                    [interface.Publication(APP, "long", body, retention=interface.Retention(1_000_000, 600))]
                )
            except errors.EngineUnavailable:
                continue
            acknowledged.append(body)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        await running.until(lambda: len(acknowledged) > 100, "events before the move", WITHIN)
        await move(old, new)
    finally:
        stopped.set()
        await asyncio.to_thread(thread.join)
    after = await new.hire()
    found: list[bytes] = []
    while True:
        entries, _ = await after.read("long", len(found), 1000)
        if not entries:
            break
        found += [entry.body for entry in entries]
    # An event whose answer was lost may be there beside those that were acknowledged.
    assert [body for body in found if body in set(acknowledged)] == acknowledged


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_consumer_goes_on_with_what_it_has_not_read(
    place: Callable[[str], Place], source: str, target: str
) -> None:
    old, new = place(source), place(target)
    before = await old.hire()
    channel = "plain"
    partition = before.engine.partition(APP, channel)
    consumer = await before.engine.consume("test", partition, KINDS)
    await before.publish(channel, b"1", b"2", b"3", b"4", kind=interface.Kind.CLIENT_EVENT, user_id="ann")
    read = await consumer.next(2, WITHIN)
    assert [entry.body for entry in read] == [b"1", b"2"]
    await consumer.keep(read[-1].id)
    consumer.close()
    await move(old, new)

    after = await new.hire()
    consumer = await after.engine.consume("test", after.engine.partition(APP, channel), KINDS)
    assert [entry.body for entry in await consumer.next(10, WITHIN)] == [b"3", b"4"]
    await after.publish(channel, b"5", kind=interface.Kind.CLIENT_EVENT)
    assert [entry.body for entry in await consumer.next(10, WITHIN)] == [b"5"]
    consumer.close()


async def test_log_moves_into_a_schema_of_a_role_that_may_create_none(
    place: Callable[[str], Place], cluster: postgresql.Cluster, tmp_path: Path
) -> None:
    schema, role = f"log_{uuid.uuid4().hex[:12]}", f"role_{uuid.uuid4().hex[:12]}"
    with contextlib.closing(cluster.connect("realtime")) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")  # type: ignore[call-overload]
        connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")  # type: ignore[call-overload]
    parts = urlsplit(cluster.url("realtime", schema=schema))
    old = place("local")
    new = Place(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl(), tmp_path / schema)
    unused = await new.hire()
    await unused.engine.close()
    running = await old.hire()
    await running.publish("kept", b"1", retention=KEPT)
    await move(old, new)
    after = await new.hire()
    assert [entry.body for entry in (await after.read("kept", 0, 100))[0]] == [b"1"]
    await after.engine.close()


async def test_log_moves_there_and_back(place: Callable[[str], Place]) -> None:
    first, second = place("local"), place("postgres")
    worker = await first.hire()
    [receipt] = await worker.publish("kept", b"1", retention=KEPT)
    await move(first, second)
    between = await second.hire()
    await between.publish("kept", b"2", retention=KEPT)
    await move(second, first)
    again = await first.hire()
    entries, top = await again.read("kept", 0, 100)
    assert [entry.body for entry in entries] == [b"1", b"2"]
    assert receipt.position is not None
    assert top == interface.Position(receipt.position.epoch, 2)
    with pytest.raises(errors.EngineMisconfigured, match="was moved to local"):
        await Worker(second.engine()).open()


@pytest.mark.parametrize("target", ["local", "postgres", "redis"])
async def test_move_into_a_store_with_content_is_refused(place: Callable[[str], Place], target: str) -> None:
    old, new = place("local"), place(target)
    await (await old.hire()).publish("kept", b"1", retention=KEPT)
    other = await new.hire()
    await other.publish("kept", b"other", retention=KEPT)
    with pytest.raises(errors.EngineMisconfigured, match="has a log of its own"):
        await move(old, new)
    assert [entry.body for entry in (await other.read("kept", 0, 10))[0]] == [b"other"]
    await old.workers[0].publish("kept", b"2", retention=KEPT)


@pytest.mark.parametrize("target", ["local", "postgres", "redis"])
async def test_move_into_a_store_that_a_log_was_moved_to_is_refused(place: Callable[[str], Place], target: str) -> None:
    first, second, new = place("local"), place("local"), place(target)
    await (await first.hire()).publish("kept", b"first", retention=KEPT)
    await (await second.hire()).publish("kept", b"second", retention=KEPT)
    await move(first, new)
    with contextlib.closing(new.store()) as store:
        mark = store.mark()
    assert mark is not None
    assert mark.what == moves.ARRIVED
    with pytest.raises(errors.EngineMisconfigured, match="has a log of its own"):
        await move(second, new)
    after = await new.hire()
    assert [entry.body for entry in (await after.read("kept", 0, 10))[0]] == [b"first"]


@pytest.mark.parametrize("source", ["local", "postgres", "redis"])
async def test_move_refuses_entries_of_a_newer_release(place: Callable[[str], Place], source: str) -> None:
    old, new = place(source), place("postgres" if source == "local" else "local")
    worker = await old.hire()
    await worker.publish("kept", b"1", retention=KEPT, kind=interface.NEWEST_KIND + 1)
    with pytest.raises(errors.EngineMisconfigured, match="newer release of Fanfare wrote events of the channel kept"):
        await move(old, new)
    await worker.publish("kept", b"2", retention=KEPT)


@pytest.mark.parametrize("source", ["local", "postgres", "redis"])
async def test_old_store_goes_on_after_a_move_that_failed(
    place: Callable[[str], Place], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = place(source), place("postgres")
    worker = await old.hire()
    await worker.publish("kept", b"1", retention=KEPT)

    def fail(*_: object) -> None:
        raise errors.EngineUnavailable("The new store has failed")

    with monkeypatch.context() as patch:
        patch.setattr("fanfare.engine.postgres.moving.PostgresStore.finish", fail)
        with pytest.raises(errors.EngineUnavailable, match="has failed"):
            await move(old, new)
    with pytest.raises(errors.EngineUnavailable, match="not complete yet"):
        await Worker(new.engine()).open()

    await waiting.until_async(lambda: acknowledges(worker), WITHIN, "the old store goes on")
    await move(old, new)
    after = await new.hire()
    assert [entry.body for entry in (await after.read("kept", 0, 10))[0]] == [b"1", b"2"]


async def test_postgresql_goes_on_by_itself_while_the_process_of_a_move_is_stopped(
    place: Callable[[str], Place],
) -> None:
    old = place("postgres")
    worker = await old.hire()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=postgres_deployment.hold_frozen, args=(old.name, theirs), daemon=True)
    process.start()
    try:
        assert await asyncio.to_thread(ours.poll, WITHIN), "the log is frozen"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        await waiting.until_async(lambda: acknowledges(worker), WITHIN, "the old store takes events")
    finally:
        process.kill()
        process.join()


async def acknowledges(worker: Worker) -> bool:
    try:
        await worker.publish("kept", b"2", retention=KEPT, idempotency_key="2")
    except errors.EngineUnavailable:
        return False
    return True


class Killed(Exception):
    """The process of a move ends here."""


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_move_that_was_killed_before_the_new_store_opens_is_completed_by_the_next_command(
    place: Callable[[str], Place], source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = place(source), place(target)
    worker = await old.hire()
    await worker.publish("kept", b"1", retention=KEPT)
    with contextlib.closing(new.store()) as store, monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise Killed

        patch.setattr(type(store), "open", die)
        with pytest.raises(Killed):
            await move(old, new)
    assert isinstance(await refusal(worker), errors.EngineMoved)
    with pytest.raises(errors.EngineUnavailable, match="the move was interrupted: run"):
        await Worker(new.engine()).open()
    assert await asyncio.to_thread(complete, old, new)
    after = await new.hire()
    assert [entry.body for entry in (await after.read("kept", 0, 10))[0]] == [b"1"]
    assert not await asyncio.to_thread(complete, old, new)


def complete(old: Place, new: Place) -> bool:
    with contextlib.closing(old.store()) as left, contextlib.closing(new.store()) as arrived:
        return moves.Mover(left, arrived, move="again").complete()


@pytest.mark.parametrize("is_decided", [False, True])
async def test_no_partition_of_redis_takes_writes_after_a_move_was_killed_at_its_decision(
    place: Callable[[str], Place], is_decided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = place("redis"), place("local")
    worker = await old.hire()
    await worker.publish("kept", b"1", retention=KEPT)
    notes = 0
    write = redis_moving.RedisStore._note

    def die_after(store: redis_moving.RedisStore, *arguments: Any, **more: Any) -> None:
        nonlocal notes
        notes += 1
        if notes == 3:  # of the freeze, of the freeze for good, of the move
            raise Killed
        write(store, *arguments, **more)
        if notes == 2 and not is_decided:
            store._frozen = []  # as a process that ends here, which thaws nothing
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(redis_moving.RedisStore, "_note", die_after)
        with pytest.raises(Killed):
            await move(old, new)
    for channel in range(40):  # in most of the 16 partitions
        with pytest.raises(errors.EngineUnavailable, match="is being moved"):
            await worker.publish(f"channel-{channel}", b"late", retention=KEPT)
    if is_decided:
        assert await asyncio.to_thread(complete, old, new)
    else:
        with pytest.raises(errors.EngineUnavailable, match="is being moved already"):
            await move(old, new)
        monkeypatch.setattr(redis_moving, "LEFT_S", -1)  # its time is over
        await move(old, new)
    assert isinstance(await refusal(worker), errors.EngineMoved)
    after = await new.hire()
    assert [entry.body for entry in (await after.read("kept", 0, 10))[0]] == [b"1"]


@pytest.mark.parametrize("source", ["local", "postgres", "redis"])
async def test_move_that_stops_publishing_too_long_moves_nothing_and_says_what_took_the_time(
    place: Callable[[str], Place], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = place(source), place("postgres" if source == "local" else "local")
    worker = await old.hire()
    await worker.publish("kept", b"1", retention=KEPT)
    with contextlib.closing(old.store()) as store, monkeypatch.context() as patch:
        read = type(store).rest

        def slow(store: moves.Store) -> moves.Rest:
            found = read(store)
            patch.setattr(moves, "FROZEN_S", 0.0)  # it is over now
            return found

        patch.setattr(type(store), "rest", slow)
        with pytest.raises(errors.EngineUnavailable, match="nothing was moved, and the old store continues") as aborted:
            await move(old, new)
    assert re.search(r"The longest step was the .+: [0-9.]+ s\.", str(aborted.value))
    [receipt] = await worker.publish("kept", b"2", retention=KEPT)
    assert receipt.position is not None
    assert receipt.position.offset == 2
    await move(old, new)
    after = await new.hire()
    assert [entry.body for entry in (await after.read("kept", 0, 10))[0]] == [b"1", b"2"]
