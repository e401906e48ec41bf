"""The PostgreSQL engine on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import time
import types
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import uvloop
from psycopg import sql

from fanfare.engine import errors, interface, moves
from fanfare.engine.postgres import database, leases, moving, operations, reader, upkeep, writer
from fanfare.engine.postgres import engine as postgres_engine
from fanfare.runtime import supervisor
from tests.harness import postgresql, waiting
from tests.unit.engine import conformance, deployments, failures, postgres_deployment, streams
from tests.unit.engine.workers import APP, Worker


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.fixture
def url(cluster: postgresql.Cluster) -> Iterator[str]:
    """A log of this test alone: a schema of its own."""
    schema = f"log_{uuid.uuid4().hex[:12]}"
    yield cluster.url("realtime", schema=schema)
    with contextlib.closing(cluster.connect("realtime")) as connection:
        # A statement of a worker that has gone may still run, and lock tables in another order.
        waiting.until(lambda: dropped(connection, schema), 10, "the schema is dropped")


def dropped(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> bool:
    try:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")  # type: ignore[call-overload]
    except psycopg.errors.DeadlockDetected:
        return False
    return True


@pytest.fixture
async def hire(url: str) -> AsyncIterator[conformance.Hire]:
    hired: list[Worker] = []

    async def hire() -> Worker:
        worker = Worker(postgres_engine.PostgresEngine(url))
        hired.append(worker)
        return await worker.open()

    yield hire
    for worker in hired:
        await worker.engine.close()


class TestConformance(
    conformance.Conformance, streams.Streams, streams.Revisions, streams.Updates, streams.Leases, streams.Openings
):
    """Everything that an engine must do."""


@pytest.fixture
async def deployment(
    cluster: postgresql.Cluster, url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[deployments.Deployment]:
    for module, name in ((leases, "LEASE_S"), (leases, "LEASE_POLL_S"), (upkeep, "TRIM_S")):
        monkeypatch.setattr(module, name, getattr(module, name))  # restored after the test
    async with deployments.closing(postgres_deployment.PostgresDeployment(cluster, url)) as deployment:
        yield deployment


class TestFailures(failures.FailureConformance):
    """What it must do when something fails."""


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_one_trimmed_entry_that_was_not_read_is_a_gap(url: str) -> None:
    worker = await Worker(postgres_engine.PostgresEngine(url)).open()
    following = worker.engine._worker.reader  # type: ignore[attr-defined]
    for trimmed, reason in ((0, None), (1, "trimmed")):
        end = following.position + trimmed
        assert following._gap(reader.Look(following.generation, end, end, [], {})) == reason
    await worker.engine.close()


async def test_connections_do_not_compile_statements(url: str) -> None:
    """PostgreSQL would compile each look of a reader, because its estimates of rows are high."""
    async with await database.connect(database.parse(url), "test") as connection:
        assert await (await connection.execute("SHOW jit")).fetchone() == ("off",)
    engine = postgres_engine.PostgresEngine(url)
    with engine.queries() as queries:
        assert queries._ask("SHOW jit") == [("off",)]
    await engine.close()


async def test_call_expires_while_other_statements_hold_the_connection() -> None:
    """As those of the heartbeat and of the leases do, one after another, while the server is frozen."""

    async def reconnected() -> None:
        raise AssertionError("the connection is held by another statement")

    address = database.parse("postgres://127.0.0.1:1/none")
    own = writer.Writer(address, timeout_s=0.1, reconnected=reconnected, logged=lambda: None)
    refused: asyncio.Queue[errors.EngineError | None] = asyncio.Queue()
    async with own._busy:
        for _ in range(2):
            own.submit(operations.Call([operations.Operation("touch")], lambda _, error: refused.put_nowait(error)))
            async with asyncio.timeout(60):
                error = await refused.get()
            assert isinstance(error, errors.EngineUnavailable)
            assert str(error).startswith("Timed out after 0.1 s")
    assert own.expired == 2
    await own.stop()


async def test_process_that_stops_while_it_checks_the_log_does_not_keep_its_lock(
    hire: conformance.Hire, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is frozen, or cut off from the server, at its start or after a reconnect."""
    await hire()
    monkeypatch.setattr(database, "LOCK_IDLE_MS", 500)
    address = database.parse(url)
    stopped, other = (database.connect_blocking(address, "test") for _ in range(2))
    with contextlib.closing(stopped), contextlib.closing(other):
        stopped.execute("BEGIN")
        database._lock(stopped, address)
        await asyncio.to_thread(database.check_generation, other, address)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            stopped.execute("SELECT 1")


async def test_full_queue_and_stopped_writer_refuse_a_call_without_an_exception(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callers are callbacks of connections, which would be closed."""
    engine = (await hire()).engine
    refused: list[str] = []
    monkeypatch.setattr(writer, "MOST_PENDING_BYTES", 1)
    with pytest.raises(errors.EngineUnavailable, match="at most 100000 of 1 may"):
        await engine.append([interface.Publication("1", "news", b"{}")])
    await engine.append([interface.Publication("1", "news", b"1")])
    monkeypatch.setattr(writer, "MOST_PENDING", 0)
    engine.save_session("1", "token", b"{}", 60)
    engine.post(interface.Publication("1", "news", b"{}"), refused.append)
    with pytest.raises(errors.EngineUnavailable, match="at most 0 of 1 may"):
        await engine.append([interface.Publication("1", "news", b"{}")])
    await engine._worker.writer.stop()  # type: ignore[attr-defined]
    engine.post(interface.Publication("1", "news", b"{}"), refused.append)
    assert refused == ["0 writes of 0 bytes wait for the database; at most 0 of 1 may", "The engine is closed"]


async def test_lease_that_was_asked_for_under_an_earlier_id_is_not_held(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = (await hire()).engine._worker  # type: ignore[attr-defined]
    ask, own, asked = worker.writer.ask, worker.writer.worker, 0

    async def asked_during_a_restart(query: object, parameters: tuple[object, ...] = (), **more: object) -> object:
        nonlocal asked
        rows = await ask(query, parameters, **more)
        if parameters[:1] == ("one",):
            asked += 1
            worker.writer.worker = "later" if asked == 1 else own
        return rows

    monkeypatch.setattr(leases, "LEASE_POLL_S", 0.01)
    monkeypatch.setattr(worker.writer, "ask", asked_during_a_restart)
    lease = await worker.lease("one")
    assert (asked > 1, lease.lost.is_set()) == (True, False)


async def test_acknowledged_events_survive_a_crash_of_the_server_and_arrive_once() -> None:
    with postgresql.running() as own:
        own.create("realtime")
        worker = Worker(postgres_engine.PostgresEngine(own.url("realtime")))
        await worker.open()
        acknowledged: list[bytes] = []

        async def publish() -> None:
            for number in range(400):
                body = b"%d" % number
                try:
                    await worker.publish("kept", body, retention=conformance.KEPT)
                except errors.EngineUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    acknowledged.append(body)

        publishing = asyncio.ensure_future(publish())
        await worker.until(lambda: len(acknowledged) > 50, "the first events")
        await asyncio.to_thread(own.stop, signal.SIGQUIT)
        await asyncio.to_thread(own.start)
        await publishing
        await worker.until(lambda: worker.bodies("kept")[-1:] == acknowledged[-1:], "the last event", within=10)
        delivered = worker.bodies("kept")
        assert worker.gaps == []
        assert len(set(delivered)) == len(delivered)
        # An event whose acknowledgement was lost in the crash may be there, and no acknowledged event is missing.
        assert [body for body in delivered if body in set(acknowledged)] == acknowledged
        await worker.engine.close()


@pytest.mark.parametrize("killed", ["server", "backend"])
async def test_no_position_is_given_twice_after_a_crash_that_lost_commits(killed: str) -> None:
    """`synchronous_commit = off`: the server acknowledges commits that it has not written yet. After the crash of a
    backend the same server recovers."""
    with postgresql.running() as own:
        own.create("realtime")
        with contextlib.closing(own.connect()) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        own.stop()
        own.start()
        async with contextlib.AsyncExitStack() as stack:
            worker = await Worker(postgres_engine.PostgresEngine(own.url("realtime"))).open()
            stack.push_async_callback(worker.engine.close)
            [kept] = await worker.publish("kept", b"1", retention=conformance.KEPT)
            with contextlib.closing(own.connect()) as connection:
                connection.execute("CHECKPOINT")
            lost = [one.position for one in await worker.publish("kept", b"2", b"3", retention=conformance.KEPT)]
            if killed == "server":
                await asyncio.to_thread(own.kill)
                await asyncio.to_thread(own.start)
            else:
                with contextlib.closing(own.connect()) as connection:
                    os.kill(connection.info.backend_pid, signal.SIGKILL)
            await worker.until(lambda: worker.gaps, "the gap", within=30)
            store = worker.engine._here()  # type: ignore[attr-defined]
            await worker.until(
                lambda: not store.is_restarting and worker.engine.health().ok, "it follows the log again", within=30
            )
            given = [one.position for one in await worker.publish_when_back(b"4", b"5", retention=conformance.KEPT)]
            assert not {kept.position, *lost} & set(given)
            assert (await conformance.replay(worker, after=lost[-1])).reason == "epoch_changed"
            assert (await worker.engine.take_session(APP, "token", "1.1")).lost_s is not None


async def test_start_of_a_worker_with_another_synchronous_commit_begins_no_generation() -> None:
    """A crash does, if any of the workers acknowledges commits that are not written yet."""
    with postgresql.running() as own:
        own.create("realtime")
        async with contextlib.AsyncExitStack() as stack:

            async def hire(synchronous_commit: str) -> Worker:
                with contextlib.closing(own.connect()) as connection:
                    connection.execute(
                        f"ALTER DATABASE realtime SET synchronous_commit = {synchronous_commit}"  # type: ignore[call-overload]
                    )
                worker = await Worker(postgres_engine.PostgresEngine(own.url("realtime"))).open()
                stack.push_async_callback(worker.engine.close)
                return worker

            worker = await hire("on")
            [before] = await worker.publish("kept", b"1", retention=conformance.KEPT)
            others = [await hire("off"), await hire("on")]
            [after] = await worker.publish("kept", b"2", retention=conformance.KEPT)
            assert before.position is not None
            assert after.position == (before.position.epoch, 2)
            await asyncio.to_thread(own.kill)
            await asyncio.to_thread(own.start)
            for one in (worker, *others):
                await one.until(lambda one=one: one.gaps == ["generation_changed"], "the gap", within=30)


async def test_a_promoted_standby_begins_a_new_generation() -> None:
    """The standby may lack acknowledged entries, so no position from before may look like one of now."""
    with postgresql.running() as primary:
        primary.create("realtime")
        worker = Worker(postgres_engine.PostgresEngine(primary.url("realtime")))
        await worker.open()
        [receipt] = await worker.publish("kept", b"1", retention=conformance.KEPT)
        await worker.engine.close()
        with postgresql.standby(primary) as promoted:
            await asyncio.to_thread(primary.stop)
            promoted.promote()
            worker = Worker(postgres_engine.PostgresEngine(promoted.url("realtime")))
            await worker.open()
            assert receipt.position is not None
            replayed = await conformance.replay(worker, after=receipt.position)
            assert replayed.reason == "epoch_changed"
            assert replayed.position is not None
            assert replayed.position.epoch != receipt.position.epoch
            # The standby may also lack records of sessions. Workers that start later find that too.
            later = Worker(postgres_engine.PostgresEngine(promoted.url("realtime")))
            await later.open()
            for one in (worker, later):
                assert (await one.engine.take_session(conformance.APP, "token", "1.1")).lost_s is not None
                await one.engine.close()


async def test_worker_continues_on_a_backup_with_the_functions_of_an_earlier_release(url: str) -> None:
    worker = await Worker(postgres_engine.PostgresEngine(url)).open()
    address = worker.engine.address  # type: ignore[attr-defined]

    def reconnect_after_a_restore() -> None:
        with database.connect_blocking(address, "test") as connection:
            connection.execute(f"DROP FUNCTION {address.schema}.lose_sessions_{address.form}")
            connection.execute(f"UPDATE {address.schema}.state SET server = 'of the backup'")
            database.check_generation(connection, address)

    await asyncio.to_thread(reconnect_after_a_restore)
    await worker.until(lambda: worker.gaps == ["generation_changed"], "the gap", within=30)
    await worker.until(lambda: worker.engine.health().ok, "it follows the restored log", within=30)
    assert (await worker.engine.take_session(APP, "token", "1.1")).lost_s is not None
    await worker.engine.close()


async def test_running_worker_follows_a_failover_and_begins_a_new_generation() -> None:
    """The URL names both servers. The primary crashes, and the standby is promoted."""
    with postgresql.running() as primary:
        primary.create("realtime")
        with postgresql.standby(primary) as standby:
            hosts = quote(f"{primary.folder},{standby.folder}", safe="")
            url = f"postgres://{postgresql.SUPERUSER}@/realtime?host={hosts}&target_session_attrs=read-write"
            worker = Worker(postgres_engine.PostgresEngine(url))
            await worker.open()
            [before] = await worker.publish("kept", b"1", retention=conformance.KEPT)
            await asyncio.to_thread(standby.catch_up, primary)  # else it may lack the schema, which the worker made
            await asyncio.to_thread(primary.stop, signal.SIGQUIT)
            await asyncio.to_thread(standby.promote)
            await worker.until(lambda: worker.gaps, "the gap", within=30)
            await worker.until(lambda: worker.engine.health().ok, "it follows the standby", within=30)
            [after] = await worker.publish_when_back(b"2", retention=conformance.KEPT)
            assert worker.gaps == ["generation_changed"]
            assert (await worker.engine.take_session(conformance.APP, "token", "1.1")).lost_s is not None
            assert before.position is not None
            assert after.position is not None
            assert before.position.epoch != after.position.epoch
            await worker.engine.close()


async def test_a_worker_that_was_frozen_is_removed_and_starts_again(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 2)
    one, two = await hire(), await hire()
    await one.join("presence-c", "ann", "1.1")
    frozen = one.engine._worker  # type: ignore[attr-defined]
    held = asyncio.Event()
    original = frozen.writer.ask

    async def wait(*arguments: object, **options: object) -> list[object]:
        await held.wait()
        return list(await original(*arguments, **options))

    monkeypatch.setattr(frozen.writer, "ask", wait)
    gone = interface.Kind.MEMBER_REMOVED
    await two.until(lambda: any(entry.kind == gone for entry in two.entries), "the departure", within=10)
    before = frozen.id
    held.set()
    await one.until(lambda: one.gaps, "the frozen worker notices", within=10)
    assert one.gaps == ["worker_unknown"]
    assert [entry.user_id for entry in two.entries if entry.kind == gone] == ["ann"]

    async def is_back() -> bool:
        return frozen.id != before and one.engine.health().ok

    await waiting.until_async(is_back, 10, "the worker has joined under a new id")
    await two.publish("news", b"after")
    await one.until(lambda: one.bodies("news") == [b"after"], "an event after the restart")


async def test_lease_whose_answer_comes_after_the_stop_is_not_given_out(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (await hire()).engine._worker  # type: ignore[attr-defined]
    ask = found.writer.ask

    async def stop_meanwhile(*arguments: Any, **options: Any) -> list[Any]:
        rows = list(await ask(*arguments, **options))
        found.leases.stop()
        return rows

    monkeypatch.setattr(found.writer, "ask", stop_meanwhile)
    with pytest.raises(errors.EngineUnavailable, match="closed before the lease"):
        await found.leases.acquire("outbox")


async def test_late_sessions_over_the_limit_are_dropped_and_counted(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "LATE_SESSIONS", 3)
    monkeypatch.setattr(upkeep, "TRIM_S", 0.05)
    monkeypatch.setattr(upkeep, "MEASURE_S", 0.01)
    one = await hire()
    for number in range(10):
        one.engine.save_session(APP, f"late-{number}", b"record", number - 20)
        one.engine.save_session(APP, f"here-{number}", b"record", 3600)

    def sizes() -> list[float | None]:
        return [one.engine.statistics().get(name) for name in ("sessions", "sessions_late")]

    await one.until(lambda: sizes() == [13, 3], "the end of the others")
    assert one.engine.statistics()["sessions_dropped"] == 7
    kept = [number for number in range(10) if await one.engine.load_session(APP, f"late-{number}")]
    assert kept == [7, 8, 9]


async def test_a_value_that_the_database_refuses_fails_alone(hire: conformance.Hire) -> None:
    one = await hire()
    refused = one.publish("c", b"x", user_id="with a \0 character")
    accepted = one.publish("c", b"y")
    outcomes = await asyncio.gather(refused, accepted, return_exceptions=True)
    assert isinstance(outcomes[0], errors.EngineUnavailable)
    await one.got("c", b"y")


async def test_subscription_whose_query_the_database_refuses_fails_alone(hire: conformance.Hire) -> None:
    one = await hire()
    refused = await one.attach("c", watch=("no text of PostgreSQL \x00",))
    assert isinstance(refused, interface.Refused)
    await one.publish("c", b"y")
    await one.until(lambda: one.bodies("c") == [b"y"], "the next event", within=30)
    assert isinstance(await one.attach("c", counted=True), interface.SubscribeResult)


async def test_a_lease_is_lost_before_another_worker_gets_it(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 3)
    one, two = await hire(), await hire()
    lease = await one.engine.lease("outbox")
    frozen = one.engine._worker  # type: ignore[attr-defined]

    async def fail(*_: object, **__: object) -> None:
        raise errors.EngineUnavailable("cut off")

    monkeypatch.setattr(frozen.writer, "ask", fail)
    taken = await asyncio.wait_for(two.engine.lease("outbox"), 15)
    assert lease.lost.is_set()
    assert not taken.lost.is_set()
    assert taken.term > lease.term  # type: ignore[attr-defined]


class AnsweringWriter:
    """Gives the lease without a database."""

    worker = "1"

    async def ask(self, *_: object) -> list[tuple[int]]:
        return [(1,)]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_lease_is_acquired_after_a_beat_that_was_answered_too_late(run: Any) -> None:
    async def acquire() -> None:
        address = types.SimpleNamespace(function=sql.Identifier, schema="log")
        found = leases.Leases(address, AnsweringWriter(), supervisor.Supervisor())  # type: ignore[arg-type]
        found.renewed(time.monotonic() - leases.LEASE_S)
        lease = await found.acquire("job")
        await asyncio.sleep(0)  # the timer of the late beat
        assert not lease.lost.is_set()
        found.stop()

    run(acquire())


async def test_lease_acquired_without_an_answered_beat_is_lost_in_time(
    hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 3)
    one, two = await hire(), await hire()
    before = await one.engine.lease("outbox")
    found = one.engine._worker  # type: ignore[attr-defined]
    ask = found.writer.ask

    async def no_beats(query: object, parameters: tuple[object, ...], **more: object) -> object:
        if parameters == (found.id, leases.LEASE_S):
            raise errors.EngineUnavailable("no answer to the beat")
        return await ask(query, parameters, **more)

    monkeypatch.setattr(found.writer, "ask", no_beats)
    await asyncio.wait_for(before.lost.wait(), 30)
    lease = await one.engine.lease("outbox")
    taken = await asyncio.wait_for(two.engine.lease("outbox"), 30)
    assert lease.lost.is_set()
    assert taken.term > lease.term  # type: ignore[attr-defined]


async def test_a_transaction_pooler_is_refused_with_the_remedy(cluster: postgresql.Cluster) -> None:
    with postgresql.pooled(cluster, "realtime") as url:
        engine = postgres_engine.PostgresEngine(url)
        with pytest.raises(errors.EngineMisconfigured, match="transaction pooler"):
            await engine.open(lambda entries: None, lambda reason: None)


async def test_role_that_may_not_create_the_schema_is_refused_with_the_missing_right(
    cluster: postgresql.Cluster, url: str
) -> None:
    with contextlib.closing(cluster.connect("realtime")) as connection:
        connection.execute("DROP ROLE IF EXISTS weak")
        connection.execute("CREATE ROLE weak LOGIN")
    parts = urlsplit(url)
    weak = parts._replace(netloc=f"weak@{parts.netloc.rpartition('@')[2]}").geturl()
    with pytest.raises(errors.EngineMisconfigured, match=r"lacks a right: permission denied for database realtime"):
        await postgres_engine.PostgresEngine(weak).open(lambda entries: None, lambda reason: None)


async def test_role_that_owns_an_empty_schema_needs_no_other_right(cluster: postgresql.Cluster, url: str) -> None:
    parts = urlsplit(url)
    schema = database.parse(url).schema
    with contextlib.closing(cluster.connect("realtime")) as connection:
        connection.execute("DROP ROLE IF EXISTS owner_of_schema")
        connection.execute("CREATE ROLE owner_of_schema LOGIN")
        connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION owner_of_schema")  # type: ignore[call-overload]
    own = parts._replace(netloc=f"owner_of_schema@{parts.netloc.rpartition('@')[2]}").geturl()
    for _ in range(2):
        worker = await Worker(postgres_engine.PostgresEngine(own)).open()
        await worker.publish("kept", b"x", retention=conformance.KEPT)
        await worker.engine.close()


def test_no_message_shows_the_password() -> None:
    engine = postgres_engine.PostgresEngine("postgres://ann:hunter2@db.example.com/app?schema=s")
    assert "hunter2" not in str(engine.health())
    assert engine.address.public == "postgres://ann@db.example.com/app (schema s)"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://h/d?schema=Bad-Name", "schema='Bad-Name' is not a name"),
        ("postgres://a:hunter2@h/d?nonsense=1", "has the option 'nonsense'"),
        ("postgres://a:hunter2@[h/d", "not a valid PostgreSQL URL"),
        ("postgres://a:hunter2@h:port/d", "not a valid PostgreSQL URL"),
    ],
)
def test_a_wrong_url_is_refused_with_a_sentence(url: str, words: str) -> None:
    with pytest.raises(errors.EngineMisconfigured, match=f"^FANFARE_ENGINE.* {words}") as raised:
        postgres_engine.PostgresEngine(url)
    assert "hunter2" not in str(raised.value)


# -- releases beside each other ----------------------------------------------------------------------------------------


def functions(cluster: postgresql.Cluster, schema: str) -> dict[str, str]:
    """The text of each function of a log."""
    with contextlib.closing(cluster.connect("realtime")) as connection:
        query = "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = %s::regnamespace"
        return dict(connection.execute(query, (schema,)).fetchall())


async def test_worker_that_restarts_replaces_no_function_of_another_release(
    cluster: postgresql.Cluster, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = await Worker(postgres_engine.PostgresEngine(url)).open()
    schema = earlier.engine.address.schema  # type: ignore[attr-defined]
    texts_before = functions(cluster, schema)
    with monkeypatch.context() as patched:
        patched.setattr(upkeep.database, "SWEEP_SECONDS", database.SWEEP_SECONDS + 1)
        later = await Worker(postgres_engine.PostgresEngine(url)).open()
    texts = functions(cluster, schema)
    assert texts.items() > texts_before.items()
    assert len(texts) == 2 * len(texts_before)
    again = await Worker(postgres_engine.PostgresEngine(url)).open()
    assert functions(cluster, schema) == texts
    for worker in (earlier, later, again):
        await worker.publish("kept", b"x", retention=conformance.KEPT)
    for worker in (earlier, later):
        await worker.until(lambda worker=worker: len(worker.bodies("kept")) == 3, "the events of both releases")
    for worker in (earlier, later, again):
        await worker.engine.close()


def test_failover_after_a_move_gives_transactions_no_table_to_write_into(cluster: postgresql.Cluster, url: str) -> None:
    address = database.parse(url)
    store = moving.PostgresStore(url)
    with contextlib.closing(cluster.connect("realtime")) as connection, contextlib.closing(store):
        database.prepare(connection, address)
        store.leave(moves.Mark(moves.MOVED, "test", "redis://h", 0))
        connection.execute(f"UPDATE {address.schema}.state SET server = 'of the failover'")  # type: ignore[call-overload]
        database.check_generation(connection, address)
        table = connection.execute("SELECT to_regclass(%s)", (f"{address.schema}.pending",)).fetchall()
    assert table == [(None,)]


async def test_functions_of_the_oldest_releases_are_dropped(cluster: postgresql.Cluster, url: str) -> None:
    address = database.parse(url)
    forms = [f"{number:08x}" for number in range(database.FORMS_KEPT + 1)]
    with contextlib.closing(cluster.connect("realtime")) as connection:
        database.prepare(connection, address)
        for form in forms:
            database.create_functions(connection, dataclasses.replace(address, form=form))
        count = len(functions(cluster, address.schema))
        database.prepare(connection, address)
    kept = {name[-8:] for name in functions(cluster, address.schema)}
    assert kept == {*forms[2:], address.form}
    assert len(functions(cluster, address.schema)) == count * database.FORMS_KEPT // (len(forms) + 1)


def test_names_of_functions_change_with_their_text_and_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    def form() -> str:
        return database.parse("postgres://h/d").form

    before = form()
    assert form() == before
    with monkeypatch.context() as patched:
        patched.setattr(interface, "ANNOUNCE_ALWAYS", interface.ANNOUNCE_ALWAYS + 1)
        assert form() != before
    text = database._text
    with monkeypatch.context() as patched:
        patched.setattr(database, "_text", lambda name: text(name) + " ")
        assert form() != before


def test_every_function_is_named_and_called_by_the_form() -> None:
    address = database.parse("postgres://h/d")
    script = database._script("functions.sql", address).decode()
    defined = re.findall(r'CREATE OR REPLACE FUNCTION "fanfare"\.(\w+)\(', script)
    called = re.findall(r'"fanfare"\.(\w+)\(', script)
    assert set(called) == set(defined)
    assert all(name.endswith(f"_{address.form}") for name in defined)


async def test_upgrade_of_pending_events_waits_for_an_open_transaction_without_stopping_publishers(
    cluster: postgresql.Cluster, url: str, hire: conformance.Hire
) -> None:
    """An earlier release made the table without the column `publisher`."""
    first = await hire()
    schema = database.parse(url).schema
    with contextlib.closing(cluster.connect("realtime")) as project:
        project.execute(f"ALTER TABLE {schema}.pending DROP COLUMN publisher")  # type: ignore[call-overload]
        with project.transaction():
            insert = f"INSERT INTO {schema}.pending (app, channel, body, kind) VALUES ('1', 'news', 'late', 0)"
            project.execute(insert)  # type: ignore[call-overload]
            with pytest.raises(errors.EngineUnavailable, match="while a transaction that has published is open"):
                await hire()
            await first.publish("news", b"1")
    await hire()
