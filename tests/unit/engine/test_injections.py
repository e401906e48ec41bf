"""An exception is injected into each callback, timer, thread and task of the engines of shared stores.

tests/lint/callbacks.py finds the places. Two workers of one deployment run on a real server while a function raises
once: the failure is in the log or reaches the caller, and both workers get the next publication.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import hiredis
import pytest

from fanfare.engine import errors, interface
from fanfare.engine.postgres import counts, database, leases, pending, upkeep
from fanfare.engine.postgres import engine as postgres_engine
from fanfare.engine.postgres import operations as postgres_operations
from fanfare.engine.postgres import reader as postgres_reader
from fanfare.engine.postgres import worker as postgres_worker
from fanfare.engine.postgres import writer as postgres_writer
from fanfare.engine.redis import address, catch_up, link, operations, partition, queries, sentinels, topology, wire
from fanfare.engine.redis import counts as redis_counts
from fanfare.engine.redis import engine as redis_engine
from fanfare.engine.redis import worker as redis_worker
from tests.harness import postgresql, redisserver, waiting
from tests.lint import callbacks
from tests.unit.engine.workers import APP, Worker

PATIENCE_S = 30.0
PATHS = ("engine/postgres/", "engine/redis/", "engine/shared_store.py")

Act = Callable[[Worker], Awaitable[object]]


class Fault:
    """Raises at the first call after `arm`, in place of an attribute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.raised = 0
        self._armed = False
        inner = getattr(owner, name)

        def replacement(*arguments: Any, **options: Any) -> Any:
            self._check(name)
            return inner(*arguments, **options)

        async def coroutine(*arguments: Any, **options: Any) -> Any:
            self._check(name)
            return await inner(*arguments, **options)

        monkeypatch.setattr(owner, name, coroutine if inspect.iscoroutinefunction(inner) else replacement)

    def arm(self) -> None:
        self._armed = True

    def _check(self, name: str) -> None:
        if self._armed:
            self._armed = False
            self.raised += 1
            raise RuntimeError(f"injected into {name}")


@dataclasses.dataclass(frozen=True)
class Injection:
    """`place`: path, function and call of tests/lint/callbacks.py. `owner` and `name`: what raises; a function for the
    owner gets the worker. `act`: brings the call about. `is_red`: a task pauses for some 0.7 s, and health says so."""

    place: tuple[str, str, str]
    owner: Any
    name: str
    act: Act
    is_red: bool = False
    at_start: bool = False
    gap: str = ""

    def __str__(self) -> str:
        return f"{self.place[1]}-{self.place[2]}-{self.name}"


# -- what brings the calls about ---------------------------------------------------------------------------------------


def inside(worker: Worker) -> Any:
    return worker.engine._worker  # type: ignore[attr-defined]


async def publish(worker: Worker) -> None:
    for _ in range(5):
        await worker.publish("plain", b"x")


async def nothing(_worker: Worker) -> None:
    """A timer of the engine calls it."""


async def query(worker: Worker) -> None:
    await worker.channel("news")


async def subscribe(worker: Worker) -> None:
    worker.engine.set_subscribers(APP, "calm", 1)


async def attach(worker: Worker) -> None:
    await worker.attach("news", counted=True)


async def announce(worker: Worker) -> None:
    inside(worker).subscribers._announce_later((APP, "news"), 1)


async def reopen(worker: Worker) -> None:
    """A third engine is opened and closed."""
    engine = type(worker.engine)(worker.url)  # type: ignore[attr-defined, call-arg]
    await engine.open(lambda _entries: None, lambda _reason, _partition: None)
    await engine.close()


async def publish_outside(worker: Worker) -> None:
    """From a process without a worker."""
    engine = type(worker.engine)(worker.url)  # type: ignore[attr-defined, call-arg]
    try:
        await engine.append([interface.Publication(APP, "plain", b"x")])
    finally:
        await engine.close()


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


async def release(worker: Worker) -> None:
    """The lease passes on, although its first release fails."""
    lease = await worker.engine.lease("job")
    lease.release()
    await asyncio.sleep(0.05)


async def cut_writer(worker: Worker) -> None:
    await inside(worker).writer._disconnect()
    await publish(worker)


async def gap(worker: Worker) -> None:
    inside(worker)._gap("test")


async def end_leases(worker: Worker) -> None:
    inside(worker)._beaten(time.monotonic() - leases.LEASE_S)


def inside_upkeep(worker: Worker) -> Any:
    return inside(worker).upkeep


async def exceed_time(worker: Worker) -> None:
    connection = await database.connect(inside(worker)._address, "test")
    async with database.time_limit(connection, 0.05):
        await connection.execute("SELECT pg_sleep(0.3)")
    await connection.close()


async def move_pending(worker: Worker) -> None:
    await asyncio.to_thread(worker.engine.move_pending)


PG_WORKER = ("engine/postgres/worker.py", "Worker.open", "run")
POSTGRES = [
    Injection(("engine/postgres/database.py", "time_limit", "call_later"), database.os, "dup", exceed_time),
    Injection(
        ("engine/postgres/engine.py", "PostgresEngine.move_pending", "call_soon_threadsafe"),
        postgres_reader.Reader,
        "hint",
        move_pending,
    ),
    Injection(
        ("engine/postgres/engine.py", "PostgresEngine._ask", "to_thread"), interface.ChannelCounts, "__new__", query
    ),
    Injection(("engine/postgres/worker.py", "Worker.open", "to_thread"), postgres_worker, "_prepare", reopen),
    Injection(PG_WORKER, postgres_writer.Writer, "_write_group", publish, is_red=True),
    Injection(PG_WORKER, postgres_reader.Reader, "_look", publish, is_red=True),
    Injection(PG_WORKER, postgres_reader.Reader, "_result", attach),
    Injection(PG_WORKER, Worker, "deliver", publish, gap="delivery_failed"),
    Injection(PG_WORKER, postgres_reader.Reader, "receive_notifications", nothing, at_start=True),
    Injection(PG_WORKER, postgres_worker.Worker, "_beaten", nothing, is_red=True),
    Injection(PG_WORKER, inside_upkeep, "_measure", nothing),
    Injection(
        ("engine/postgres/counts.py", "SubscriberCounts.set", "call_later"), counts.SubscriberCounts, "write", subscribe
    ),
    Injection(
        ("engine/postgres/counts.py", "SubscriberCounts._announce_later", "call_later"),
        postgres_operations,
        "Operation",
        announce,
    ),
    Injection(("engine/postgres/leases.py", "Leases._give_back", "spawn"), leases.Leases, "_release", release),
    Injection(("engine/postgres/leases.py", "Leases.renewed", "call_later"), leases.Leases, "lose_all", end_leases),
    Injection(
        ("engine/postgres/worker.py", "Worker._reconnected", "to_thread"), database, "check_generation", cut_writer
    ),
    Injection(
        ("engine/postgres/worker.py", "Worker._gap", "run"),
        postgres_worker.Worker,
        "_join",
        gap,
        is_red=True,
        gap="test",
    ),
    Injection(("engine/postgres/worker.py", "Worker._gap", "run"), Worker, "on_gap", gap, gap="test"),
    Injection(
        ("engine/postgres/writer.py", "Writer._await_expiry", "call_later"), postgres_writer.Writer, "expire", publish
    ),
    Injection(
        ("engine/postgres/writer.py", "Writer._execute", "call_later"),
        postgres_writer.Writer,
        "_notify_later",
        publish,
    ),
    Injection(
        ("engine/shared_store.py", "SharedStoreEngine.append", "to_thread"),
        postgres_engine.PostgresEngine,
        "_append_here",
        publish_outside,
    ),
    Injection(
        ("engine/shared_store.py", "SharedStoreEngine.close", "to_thread"),
        postgres_engine.PostgresEngine,
        "_disconnect",
        reopen,
    ),
]


# -- Redis -------------------------------------------------------------------------------------------------------------


def news(worker: Worker) -> partition.Partition:
    found: partition.Partition = inside(worker).of(APP, "news")
    return found


async def listen(worker: Worker) -> None:
    of = news(worker)
    name = f"{of.prefix}@{APP}:news"
    of.catch_up._since[name] = of.position
    of.catch_up._read_later(name)


async def forget_scripts(worker: Worker) -> None:
    assert news(worker).handle(hiredis.ReplyError("NOSCRIPT"))


async def slot_moves(worker: Worker) -> None:
    assert news(worker).handle(hiredis.ReplyError("TRYAGAIN"))


async def partition_gap(worker: Worker) -> None:
    news(worker).gap("test")


async def moved(worker: Worker) -> None:
    assert isinstance(news(worker).moved(hiredis.ReplyError("moved")), errors.EngineMoved)


async def cut(worker: Worker) -> None:
    for each in inside(worker).topology.links.values():
        if each.wire is not None:
            each.wire.abort()


async def relocate(worker: Worker) -> None:
    inside(worker).relocate()


REDIS = [
    Injection(("engine/redis/engine.py", "RedisEngine._ask", "to_thread"), queries.Store, "ask", query),
    Injection(
        ("engine/redis/catch_up.py", "CatchUp._read_later", "call_later"),
        catch_up.CatchUp,
        "_read",
        listen,
    ),
    Injection(("engine/redis/partition.py", "Partition.schedule", "call_soon"), partition.Partition, "flush", publish),
    Injection(
        ("engine/redis/partition.py", "Partition.moved", "call_soon"),
        partition.Partition,
        "_gap_if_entered",
        moved,
    ),
    Injection(
        ("engine/redis/partition.py", "Partition.handle", "call_soon"),
        partition.Partition,
        "flush",
        forget_scripts,
    ),
    Injection(
        ("engine/redis/partition.py", "Partition.handle", "call_later"), partition.Partition, "flush", slot_moves
    ),
    Injection(
        ("engine/redis/partition.py", "Partition.gap", "on_gap"),
        Worker,
        "on_gap",
        partition_gap,
        gap="test",
    ),
    Injection(("engine/redis/topology.py", "Topology._keep", "run"), link.Link, "connect", cut, is_red=True),
    Injection(("engine/redis/topology.py", "Topology._keep", "run"), partition.Partition, "join", cut, is_red=True),
    Injection(("engine/redis/topology.py", "Topology._keep", "run"), redis_worker.Worker, "entered", cut),
    Injection(("engine/redis/wire.py", "Wire._send", "call_soon"), wire.Wire, "flush", publish),
    Injection(("engine/redis/worker.py", "Worker.open", "run"), redis_worker.Worker, "_expire", nothing, is_red=True),
    Injection(
        ("engine/redis/worker.py", "Worker.hand_over", "call_soon"), Worker, "deliver", publish, gap="delivery_failed"
    ),
    Injection(("engine/redis/worker.py", "Worker._write_again", "spawn"), queries.Store, "check", cut),
    Injection(("engine/redis/worker.py", "Worker._write_again", "to_thread"), queries.Store, "check", cut),
    Injection(
        ("engine/redis/counts.py", "SubscriberCounts.set", "call_later"),
        redis_counts.SubscriberCounts,
        "write_of",
        subscribe,
    ),
    Injection(
        ("engine/redis/counts.py", "SubscriberCounts._announce_later", "call_later"), operations, "identity", announce
    ),
    Injection(("engine/shared_store.py", "SharedStoreEngine._begin", "to_thread"), queries.Store, "check", reopen),
]

FIND = ("engine/redis/topology.py", "Topology.find", "to_thread")
CLUSTER = [
    Injection(FIND, address.Address, "slots", reopen),
    Injection(("engine/redis/topology.py", "Topology._follow_slots", "to_thread"), address.Address, "slots", relocate),
    Injection(("engine/redis/topology.py", "Topology.follow", "run"), topology.Topology, "_assign", relocate),
]
SENTINEL = [
    Injection(("engine/redis/topology.py", "Topology._locate", "to_thread"), sentinels.Sentinels, "primary", nothing),
]


def test_every_place_has_an_injection() -> None:
    found = {(place.path, place.where, place.call) for place in callbacks.places() if place.path.startswith(PATHS)}
    assert found == {case.place for case in (*POSTGRES, *REDIS, *CLUSTER, *SENTINEL)}


# -- the servers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.fixture(scope="module")
def redis_server() -> Iterator[redisserver.Server]:
    with redisserver.running() as server:
        yield server


@pytest.fixture(scope="module")
def cluster_of_one() -> Iterator[redisserver.Server]:
    with redisserver.cluster_of_one() as server:
        yield server


# -- the tests ---------------------------------------------------------------------------------------------------------


class Examined(Worker):
    """A worker whose callbacks are looked up at each call."""

    def __init__(self, engine: interface.Engine, url: str) -> None:
        super().__init__(engine)
        self.url = url

    async def open(self, *, listening: bool = True) -> Worker:
        await self.engine.open(
            lambda entries: type(self).deliver(self, entries),  # type: ignore[attr-defined]
            lambda reason, _partition: type(self).on_gap(self, reason),  # type: ignore[attr-defined]
        )
        for channel in ("news", "plain"):
            self.engine.listen(APP, channel, True)
        return self


def deliver(self: Worker, entries: Any) -> None:
    self._deliver(entries)


def on_gap(self: Worker, reason: str) -> None:
    self.gaps.append(reason)


async def examine(
    case: Injection,
    make: Callable[[], interface.Engine],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(upkeep, "TRIM_S", 0.1)
    monkeypatch.setattr(upkeep, "MEASURE_S", 0.5)
    monkeypatch.setattr(Worker, "deliver", deliver, raising=False)
    monkeypatch.setattr(Worker, "on_gap", on_gap, raising=False)
    caplog.set_level(logging.WARNING)
    one, two = Examined(make(), url), Examined(make(), url)
    async with contextlib.AsyncExitStack() as stack:
        for each in (one, two):
            stack.push_async_callback(each.engine.close)
        if case.at_start:
            fault = Fault(monkeypatch, case.owner, case.name)
            fault.arm()
        for each in (one, two):
            await each.open()
        if not case.at_start:
            fault = Fault(monkeypatch, case.owner(one) if inspect.isfunction(case.owner) else case.owner, case.name)
        failures = await inject(case, fault, one, two)
        await still_works(one, two)
        assert "injected into" in caplog.text or any("injected into" in str(error) for error in failures)
        gaps = [reason for each in (one, two) for reason in each.gaps]
        assert not case.gap or case.gap in gaps
        if case.act is release:
            lease = await asyncio.wait_for(two.engine.lease("job"), PATIENCE_S * waiting.SLACK)
            lease.release()


async def inject(case: Injection, fault: Fault, one: Worker, two: Worker) -> list[Exception]:
    """What the caller got."""
    failures: list[Exception] = []
    was_red = False

    async def watch() -> None:
        nonlocal was_red
        while not was_red:
            was_red = not (one.engine.health().ok and two.engine.health().ok)
            await asyncio.sleep(0.01)

    async def act() -> bool:
        try:
            await case.act(one)
        except (RuntimeError, errors.EngineError) as error:
            failures.append(error)
        await asyncio.sleep(0.05)
        return fault.raised > 0

    watching = asyncio.ensure_future(watch())
    try:
        fault.arm()
        await waiting.until_async(act, PATIENCE_S, f"{case.name} was called")

        async def is_red() -> bool:
            return was_red

        if case.is_red:
            await waiting.until_async(is_red, PATIENCE_S, "health is red")
    finally:
        watching.cancel()
    return failures


async def still_works(one: Worker, two: Worker) -> None:
    number = 0

    async def is_delivered() -> bool:
        """Both are healthy and get a publication of the other."""
        nonlocal number
        number += 1
        bodies = [b"%d from one" % number, b"%d from two" % number]
        if not (one.engine.health().ok and two.engine.health().ok):
            return False
        for each, body in zip((one, two), bodies, strict=True):
            try:
                await each.publish("news", body)
            except errors.EngineUnavailable:
                return False
        for each in (one, two):
            await each.until(lambda each=each: set(bodies) <= set(each.bodies("news")), "delivery", PATIENCE_S)
        return True

    await waiting.until_async(is_delivered, PATIENCE_S, "publications are delivered")


def unique() -> str:
    return f"log_{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("case", POSTGRES, ids=str)
async def test_exception_in_one_callback_of_postgres_stops_nothing_else(
    cluster: postgresql.Cluster, case: Injection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if case.act is move_pending:
        monkeypatch.setattr(pending, "move_query", lambda _address: "SELECT 1 WHERE %s > 0")
    url = cluster.url("realtime", schema=unique())
    await examine(case, lambda: postgres_engine.PostgresEngine(url), url, monkeypatch, caplog)


@pytest.mark.parametrize("case", REDIS, ids=str)
async def test_exception_in_one_callback_of_redis_stops_nothing_else(
    redis_server: redisserver.Server,
    case: Injection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if case.act is moved:

        def refuse(_error: Exception, _address: object) -> None:
            raise errors.EngineMoved("moved")

        monkeypatch.setattr(queries, "moved", refuse)
    url = redis_server.url(prefix=unique())
    await examine(case, lambda: redis_engine.RedisEngine(url), url, monkeypatch, caplog)


@pytest.mark.parametrize("case", CLUSTER, ids=str)
async def test_exception_in_one_callback_of_a_cluster_stops_nothing_else(
    cluster_of_one: redisserver.Server,
    case: Injection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster_of_one.port}?prefix={unique()}"
    await examine(case, lambda: redis_engine.RedisEngine(url), url, monkeypatch, caplog)


@pytest.mark.parametrize("case", SENTINEL, ids=str)
async def test_exception_in_one_callback_with_sentinels_stops_nothing_else(
    case: Injection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with redisserver.watched() as deployment:
        url = deployment.url(prefix=unique())
        await examine(case, lambda: redis_engine.RedisEngine(url), url, monkeypatch, caplog)
