"""The local engine passes the conformance suite, and each point that makes it right has a test of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fanfare.engine import current, errors, interface
from fanfare.engine.local import engine, locks, notifications, paths, schema
from fanfare.engine.local import worker as workers
from tests.unit.engine import conformance, deployments, failures, local_deployment, streams
from tests.unit.engine.workers import APP, Worker

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def hire(tmp_path: Path) -> AsyncIterator[conformance.Hire]:
    """Open one more worker of this test's deployment."""
    hired: list[Worker] = []

    async def one(**options: object) -> Worker:
        worker = Worker(engine.LocalEngine(tmp_path / "engine", **options))  # type: ignore[arg-type]
        hired.append(await worker.open())
        return worker

    yield one
    for worker in hired:
        await worker.engine.close()


class TestConformance(
    conformance.Conformance, streams.Streams, streams.Revisions, streams.Updates, streams.Leases, streams.Openings
):
    """All of it."""


@pytest.fixture
async def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[deployments.Deployment]:
    monkeypatch.setattr(workers, "TRIM_S", workers.TRIM_S)  # restored after the test
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_MS", schema.BUSY_TIMEOUT_MS)
    async with deployments.closing(local_deployment.LocalDeployment(tmp_path)) as deployment:
        yield deployment


class TestFailures(failures.FailureConformance):
    """All of them."""


async def test_one_trimmed_entry_that_was_not_read_is_a_gap(hire: conformance.Hire, tmp_path: Path) -> None:
    one = await hire()
    await one.publish("news", b"1")
    await one.got("news", b"1")
    with contextlib.closing(sqlite3.connect(tmp_path / "engine" / "log.sqlite3", isolation_level=None)) as connection:
        [(top,)] = connection.execute("SELECT MAX(id) FROM log").fetchall()
        connection.execute("UPDATE state SET trimmed_to = ?", (top,))
        await one.publish("news", b"2")
        await one.got("news", b"1", b"2")
        assert one.gaps == []
        connection.execute("UPDATE state SET trimmed_to = ?", (top + 2,))
    await one.publish("news", b"3")
    await one.until(lambda: one.gaps == ["trimmed"], "the gap")


async def test_chunk_of_another_epoch_is_not_shared(hire: conformance.Hire, tmp_path: Path) -> None:
    """Clients that reconnect together get the same chunk, unless the stream has a new epoch since it was read."""
    one = await hire()
    [_, receipt] = await one.publish("kept", b"1", b"2", retention=conformance.KEPT)
    assert receipt.position is not None
    before = interface.Position(receipt.position.epoch, 0)
    assert [entry.body for entry in (await conformance.replay(one, after=before)).entries] == [b"1", b"2"]
    with contextlib.closing(sqlite3.connect(tmp_path / "engine" / "log.sqlite3", isolation_level=None)) as connection:
        connection.execute("UPDATE streams SET epoch = 'another_' WHERE channel = 'kept'")
        connection.execute("UPDATE log SET body = CAST('new' || body AS BLOB) WHERE channel = 'kept'")
    after = await conformance.replay(one, after=interface.Position("another_", 0))
    assert [entry.body for entry in after.entries] == [b"new1", b"new2"]


def test_log_without_workers_has_no_channels_and_members(tmp_path: Path) -> None:
    here = engine.LocalEngine(tmp_path / "engine")
    with here.queries() as questions:
        assert questions.channels(APP) == {}
        assert questions.members(APP, "presence-c") == []
        assert questions.read(APP, "kept", 0, 10) == ([], None)
    asyncio.run(here.close())


def test_a_log_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    here = engine.LocalEngine(tmp_path / "engine")
    here.paths.prepare()
    here.paths.log.write_bytes(b"no database" * 100)
    with pytest.raises(errors.EngineUnavailable, match="cannot be read"), here.queries() as questions:
        questions.members(APP, "presence-c")


# -- another process ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(folder: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own: `body` runs in a coroutine with `worker` open, then it prints `ready` and
    waits."""
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from fanfare.engine import interface
        from fanfare.engine.local import engine
        from tests.unit.engine.workers import APP, Worker

        async def main():
            worker = await Worker(engine.LocalEngine(Path(sys.argv[1]), log_seconds=0.5)).open()
        %s
            print("ready", flush=True)
            while True:
                await asyncio.sleep(0.05)
                if worker.gaps:
                    print("gap", worker.gaps[0], flush=True)
                    worker.gaps.clear()

        asyncio.run(main())
        """
    ) % textwrap.indent(textwrap.dedent(body), "    ")
    running = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running
    finally:
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()


JOIN = """
worker.engine.set_subscribers(APP, "presence-c", 1)
await worker.join("presence-c", "ann", "9.9")
"""


async def test_a_killed_worker_is_reaped_by_the_others(tmp_path: Path, hire: conformance.Hire) -> None:
    one, two = await hire(), await hire()
    with process(tmp_path / "engine", JOIN) as other:
        assert (await one.channel("presence-c")) == (1, 1)
        other.kill()
        other.wait()
        await one.until(lambda: one.entries and one.entries[-1].kind == interface.Kind.VACATED, "the departure")
        assert (await one.channel("presence-c")) == (0, 0)
    await two.until(lambda: len(two.entries) == 4, "what came and went")
    assert [entry.kind for entry in two.entries] == [
        interface.Kind.OCCUPIED,
        interface.Kind.MEMBER_ADDED,
        interface.Kind.MEMBER_REMOVED,
        interface.Kind.VACATED,
    ]
    assert sum(worker.engine.statistics().get("reaped", 0) for worker in (one, two)) == 1
    await one.until(lambda: one.engine.statistics()["workers"] == 2, "two workers are left")
    assert len(list((tmp_path / "engine" / "workers").iterdir())) == 2


async def test_a_stopped_worker_is_not_taken_for_dead(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire()
    with process(tmp_path / "engine", JOIN) as other:
        other.send_signal(signal.SIGSTOP)
        before = one.engine.statistics()["reads"]
        await one.until(lambda: one.engine.statistics()["reads"] > before + 2, "some turns of the timer")
        assert (await one.channel("presence-c")) == (1, 1)
        other.send_signal(signal.SIGCONT)


async def test_a_worker_that_slept_past_the_trim_fences_itself(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire(log_seconds=0.5)
    with process(tmp_path / "engine", "pass") as other:
        other.send_signal(signal.SIGSTOP)
        await one.publish("news", b"missed")
        await one.until(lambda: rows(tmp_path) == 0, "the trim", within=10)
        other.send_signal(signal.SIGCONT)
        assert other.stdout is not None
        assert await asyncio.to_thread(other.stdout.readline) == "gap trimmed\n"
    assert one.gaps == []


def rows(tmp_path: Path) -> int:
    with contextlib.closing(sqlite3.connect(tmp_path / "engine" / "log.sqlite3")) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM log").fetchone()[0])


async def test_log_holds_only_the_kinds_of_its_consumers(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire(log_seconds=0.1)
    client_event = interface.Kind.CLIENT_EVENT
    consumer = await one.engine.consume("outbox", 0, frozenset([client_event]))
    for n in range(3):
        await one.publish("news", b"event", b"event")
        await one.publish("news", b"%d" % n, kind=client_event)
        await one.publish("kept", b"%d" % n, kind=client_event, retention=interface.Retention(1, 60))
    await one.until(lambda: rows(tmp_path) == 6, "the trim of the events", within=10)
    assert [entry.body for entry in await consumer.next(3, 5)] == [b"0", b"0", b"1"]
    await consumer.keep(consumer.position)
    await one.until(lambda: rows(tmp_path) <= 5, "the trim of the first entries", within=10)
    assert [entry.body for entry in await consumer.next(10, 5)] == [b"1", b"2", b"2"]
    await consumer.drop()
    await one.until(lambda: rows(tmp_path) <= 3, "the trim", within=10)
    assert one.gaps == []


async def test_a_lease_passes_on_when_its_holder_is_killed(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire()
    with process(tmp_path / "engine", 'lease = await worker.engine.lease("outbox")') as other:
        waiting = asyncio.ensure_future(one.engine.lease("outbox"))
        await asyncio.sleep(0)
        assert not waiting.done()
        other.kill()
        (await asyncio.wait_for(waiting, 10)).release()


async def test_released_lease_is_not_kept(tmp_path: Path) -> None:
    held = locks.Leases(tmp_path / "leases")
    lease = await held.acquire("outbox")
    lease.release()
    released = weakref.ref(lease)
    del lease
    gc.collect()
    assert released() is None


async def test_a_worker_that_is_only_late_is_not_told_of_a_gap(hire: conformance.Hire) -> None:
    one, two = await hire(log_seconds=0.5), await hire(log_seconds=0.5)
    for n in range(20):
        await one.publish("news", str(n).encode())
        await asyncio.sleep(0.1)
    await two.until(lambda: len(two.entries) == 20, "all entries")
    assert one.gaps == two.gaps == []


# -- a log that is deleted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remains", [("-wal", "-shm", ""), ("",)], ids=["all its files", "only the main file"])
async def test_deleted_log_is_a_gap_for_all_workers_and_one_new_log_follows(
    tmp_path: Path, hire: conformance.Hire, remains: tuple[str, ...]
) -> None:
    one, two = await hire(), await hire()
    [before] = await one.publish("kept", b"old", retention=conformance.KEPT)
    for suffix in remains:
        (tmp_path / "engine" / f"log.sqlite3{suffix}").unlink(missing_ok=True)
    for worker in (one, two):
        await worker.until(lambda worker=worker: worker.gaps == ["log_replaced"], "the fence")
        await worker.until(lambda worker=worker: worker.engine.health().ok, "health")
    [after] = await one.publish("kept", b"new", retention=conformance.KEPT)
    await two.until(lambda: b"new" in two.bodies("kept"), "the new entry")
    assert before.position is not None
    assert after.position is not None
    assert before.position.epoch != after.position.epoch
    for worker in (one, two):
        lost_s = (await worker.engine.take_session(conformance.APP, "token", "1.1")).lost_s
        assert lost_s is not None, "the new log lacks the records of sessions"
    assert await two.join("presence-c", "ann", "1.1") == ["ann"]
    assert [member.user_id for member in await one.members("presence-c")] == ["ann"]


async def test_nothing_is_acknowledged_into_a_deleted_log(tmp_path: Path, hire: conformance.Hire) -> None:
    one, two = await hire(), await hire()
    acknowledged: list[bytes] = []

    async def publish() -> None:
        for n in range(300):
            body = str(n).encode()
            try:
                await one.publish("kept", body, retention=interface.Retention(1000, 60))
            except errors.EngineUnavailable:
                acknowledged.clear()  # the log was replaced: what was acknowledged before is in the old one
            else:
                acknowledged.append(body)
            if n == 100:
                (tmp_path / "engine" / "log.sqlite3").unlink()

    await publish()
    entries, _ = await two.read("kept", 0, 1000)
    bodies = {entry.body for entry in entries}
    missing = [body for body in acknowledged if body not in bodies]
    assert not [body for body in missing if int(body) > 101], "acknowledged, but in no log that anybody can read"
    assert len(bodies) > 100


# -- what cannot be written --------------------------------------------------------------------------------------------


async def test_a_log_that_cannot_be_written_refuses_and_recovers(
    tmp_path: Path, hire: conformance.Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program holds SQLite's lock, outside of the queue: publishers hear of it, leaves and counts are
    retried."""
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_MS", 50)
    one = await hire()
    await one.join("presence-c", "ann", "1.1")
    with contextlib.closing(sqlite3.connect(tmp_path / "engine" / "log.sqlite3", isolation_level=None)) as thief:
        thief.execute("BEGIN IMMEDIATE")
        one.engine.leave(APP, "presence-c", "1.1")
        one.engine.set_subscribers(APP, "news", 7)
        with pytest.raises(errors.EngineUnavailable, match="locked"):
            await one.publish("news", b"x")
        assert not one.engine.health().ok
        refused = await one.attach("news")
        assert isinstance(refused, interface.Refused)
        assert refused.code == "engine_unavailable"
        thief.execute("ROLLBACK")
    gone = interface.Kind.MEMBER_REMOVED
    await one.until(lambda: any(entry.kind == gone for entry in one.entries), "the leave that was tried again")
    assert (await one.channel("news")).subscriptions == 7
    await one.until(lambda: one.engine.health().ok, "health")


def test_folder_of_another_user_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = paths.LogPaths(tmp_path / "engine")
    here.prepare()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    monkeypatch.setattr(paths, "SOCKET_PATH_BYTES", 1_000)  # the sockets are beside the log
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(errors.EngineMisconfigured, match=rf"belongs to user {owner} .* run every worker as one user"):
        here.prepare()


async def test_a_worker_that_could_not_start_starts_when_the_cause_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_MS", 50)
    first = await Worker(engine.LocalEngine(tmp_path)).open()
    await first.engine.close()
    one = Worker(engine.LocalEngine(tmp_path))
    with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite3", isolation_level=None)) as thief:
        thief.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(errors.EngineUnavailable, match="locked"):
                await one.open()
        thief.execute("ROLLBACK")
    await one.open()
    await one.publish("c", b"x")
    await one.got("c", b"x")
    await one.engine.close()


async def test_a_publisher_does_not_wait_for_ever_for_a_held_queue(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire(append_timeout=0.2)
    await one.publish("c", b"1")
    holder = locks.FileLock(tmp_path / "engine" / "log.lock")
    assert holder.acquire()
    with pytest.raises(errors.EngineUnavailable, match=r"Timed out after 0\.2 s waiting for the log's write lock"):
        await one.publish("c", b"2")
    with pytest.raises(errors.EngineUnavailable, match="Timed out"):
        await asyncio.to_thread(one.engine.append_blocking, [interface.Publication(APP, "c", b"3")])
    holder.release()
    await one.publish("c", b"4")
    await one.got("c", b"1", b"4")


async def test_one_bad_operation_does_not_take_its_neighbours_with_it(hire: conformance.Hire) -> None:
    one = await hire()
    good, bad = await asyncio.gather(
        one.publish("c", b"good"), one.publish("c", b"bad", kind=object()), return_exceptions=True
    )
    assert isinstance(bad, errors.EngineUnavailable)
    assert isinstance(good, list)
    await one.got("c", b"good")


# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "sync", "same"),
    [(False, "normal", False), (True, "normal", True), (False, "full", True)],
    ids=["after a crash", "after a clean stop", "after a crash with every commit on the disk"],
)
async def test_positions_are_doubted_after_a_boot_exactly_when_commits_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: bool, sync: str, same: bool
) -> None:
    async def publish_once() -> interface.Position:
        worker = await Worker(engine.LocalEngine(tmp_path / "engine", full_sync=sync == "full")).open()
        [receipt] = await worker.publish("kept", b"x", retention=conformance.KEPT)
        if not clean:
            monkeypatch.setattr(schema, "mark_clean", lambda connection: None)
        await worker.engine.close()
        assert receipt.position is not None
        return receipt.position

    before = await publish_once()
    monkeypatch.setattr(schema, "boot_id", lambda: "another boot")
    after = await publish_once()
    assert after.offset == before.offset + 1
    assert (after.epoch == before.epoch) is same


async def test_a_restart_without_a_boot_keeps_every_position(tmp_path: Path) -> None:
    for expected in (1, 2):
        worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
        [receipt] = await worker.publish("kept", b"x", retention=conformance.KEPT)
        assert receipt.position is not None
        assert receipt.position.offset == expected
        await worker.engine.close()


async def test_ids_go_on_after_everything_was_trimmed(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire(log_seconds=0.1)
    await one.publish("c", b"1")
    await one.until(lambda: rows(tmp_path) == 0, "the trim", within=10)
    await one.publish("c", b"2")
    await one.until(lambda: len(one.entries) == 2, "both")
    assert one.entries[1].id == one.entries[0].id + 1


async def test_kept_entries_survive_the_trim_and_go_by_their_own_rule(tmp_path: Path, hire: conformance.Hire) -> None:
    one = await hire(log_seconds=0.1)
    for _ in range(3):
        await one.publish("long", b"x", retention=interface.Retention(10, 600))
        await one.publish("short", b"x", retention=interface.Retention(10, 1))
    await one.until(lambda: rows(tmp_path) == 3, "the short ones are swept", within=20)
    entries, top = await one.read("long", 0, 10)
    assert [entry.offset for entry in entries] == [1, 2, 3]
    entries, top = await one.read("short", 0, 10)
    assert entries == []
    assert top is not None
    assert top.offset == 3


# -- the place ---------------------------------------------------------------------------------------------------------


async def test_data_directories_are_separate_deployments(tmp_path: Path) -> None:
    here = await Worker(engine.LocalEngine(tmp_path / "here")).open()
    there = await Worker(engine.LocalEngine(tmp_path / "there")).open()
    await here.publish("c", b"x")
    await here.got("c", b"x")
    assert await there.channels(APP) == {}
    assert there.entries == []
    await here.engine.close()
    await there.engine.close()


async def test_a_path_that_is_too_long_for_a_socket_gets_a_hashed_one(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / "engine"
    one = await Worker(engine.LocalEngine(folder)).open()
    two = await Worker(engine.LocalEngine(folder)).open()
    sockets = paths.LogPaths(folder)
    sockets.prepare()
    assert len(os.fsencode(sockets.sockets)) < 80
    assert len(list(sockets.sockets.glob("*.sock"))) == 2
    await one.publish("c", b"x")
    await two.got("c", b"x")
    await one.engine.close()
    await two.engine.close()
    sockets.sockets.rmdir()


async def test_without_sockets_the_timer_carries_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications.Listener, "open", lambda self: None)
    monkeypatch.setattr(notifications.Notifier, "notify", lambda self, folder, but: None)
    one = await Worker(engine.LocalEngine(tmp_path)).open()
    two = await Worker(engine.LocalEngine(tmp_path)).open()
    await one.publish("c", b"x")
    await two.got("c", b"x")
    await one.engine.close()
    await two.engine.close()


def test_a_network_file_system_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(paths, "_MOUNTS", mounts)
    with pytest.raises(errors.EngineMisconfigured, match=r"network file system \(nfs4\)"):
        paths.LogPaths(tmp_path / "engine").prepare()


def test_log_of_another_user_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.EngineUnavailable, match="read-only"):
        paths.LogPaths(tmp_path).prepare()
    another_user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another_user)
    with pytest.raises(errors.EngineMisconfigured, match="run every worker as one user"):
        paths.LogPaths(tmp_path).prepare()


LATER = f"""
UPDATE state SET version = {schema.VERSION - 1};
PRAGMA user_version = {schema.VERSION - 1};
INSERT INTO log VALUES (3, 0, '1', 'kept', 1, NULL, NULL, x'7b7d', 0);
INSERT INTO workers VALUES ('old', 1);
INSERT INTO members VALUES (1, '1', 'presence-c', 'ann', '1.1', 'old', 'null');
INSERT INTO users VALUES ('1', 'presence-c', 1);
"""


async def test_log_of_the_previous_format_is_converted_when_its_workers_have_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await Worker(engine.LocalEngine(tmp_path)).open()
    await worker.engine.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite3")) as connection:
        connection.executescript(LATER)
    monkeypatch.setitem(schema.MIGRATIONS, schema.VERSION - 1, "ALTER TABLE state ADD COLUMN more INTEGER")
    old = locks.FileLock(tmp_path / "workers" / "old.lock")
    assert old.acquire()
    with pytest.raises(errors.EngineUnavailable, match=r"and workers of the .* still run \(processes 1\)"):
        await Worker(engine.LocalEngine(tmp_path)).open()
    old.release()

    worker = await Worker(engine.LocalEngine(tmp_path)).open()
    await worker.publish("c", b"x")
    await worker.until(lambda: len(worker.entries) == 2, "the event, and the departure of the old worker's member")
    assert sorted(entry.id for entry in worker.entries) == [4, 5]
    assert await worker.members("presence-c") == []
    await worker.engine.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite3")) as connection:
        assert connection.execute("SELECT version, more FROM state").fetchall() == [(schema.VERSION, None)]


@pytest.mark.parametrize(
    ("version", "in_header", "sentence"),
    [
        (99, 99, f"format 99, which a newer release of Fanfare wrote; this release reads format {schema.VERSION}"),
        *(
            (
                1,
                in_header,
                f"this release reads the formats from {min(schema.MIGRATIONS)} on. Stop all workers and move",
            )
            for in_header in (1, 0)
        ),
    ],
)
async def test_log_of_an_unknown_format_is_refused_with_the_remedy(
    tmp_path: Path, version: int, in_header: int, sentence: str
) -> None:
    worker = await Worker(engine.LocalEngine(tmp_path)).open()
    await worker.engine.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite3", isolation_level=None)) as connection:
        connection.execute("UPDATE state SET version = ?", (version,))
        connection.execute(f"PRAGMA user_version = {in_header}")
    with pytest.raises(errors.EngineMisconfigured, match=sentence):
        await Worker(engine.LocalEngine(tmp_path)).open()


async def test_the_log_is_not_opened_as_a_plain_file(tmp_path: Path, hire: conformance.Hire) -> None:
    """Closing any other descriptor of the file would drop SQLite's locks on it."""
    one = await hire()
    await one.publish("c", b"x")
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    logs = [path for path in opened if path.name == "log.sqlite3" and path.is_relative_to(tmp_path)]
    assert 1 <= len(logs) <= 3, "the writer's connection, the tail's and that for questions"


# -- processes that fork -----------------------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_use(tmp_path: Path) -> None:
    current.configure("local", tmp_path)
    assert current.current() is current.current()
    assert list(tmp_path.iterdir()) == []


def published(body: str) -> int:
    """The offset of an event that this process's engine published."""
    event = interface.Publication(APP, "c", body.encode(), retention=conformance.KEPT)
    [receipt] = current.current().append_blocking([event])
    assert receipt.position is not None
    return receipt.position.offset


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_publishes_through_an_engine_of_its_own(tmp_path: Path) -> None:
    current.configure("local", tmp_path)
    assert published("parent") == 1

    def child() -> None:
        os._exit(0 if published("child") == 2 else 1)

    forked = multiprocessing.get_context("fork").Process(target=child)
    forked.start()
    forked.join(10)
    assert forked.exitcode == 0
    assert published("parent") == 3


def test_a_wrong_engine_is_refused_by_name_and_value(tmp_path: Path) -> None:
    with pytest.raises(errors.EngineMisconfigured, match="FANFARE_ENGINE='redis'"):
        current.configure("redis", tmp_path)
    with pytest.raises(errors.EngineMisconfigured, match="FANFARE_SYNC='fast'"):
        current.configure("local", tmp_path, sync="fast")


def test_writers_of_several_processes_wait_about_as_long_as_each_other(tmp_path: Path) -> None:
    """On SQLite's own busy handler a writer waited up to 2.4 s. The bounds leave room for a machine that does more."""
    folder = tmp_path / "engine"
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from fanfare.engine import interface
        from fanfare.engine.local import engine

        publisher = engine.LocalEngine(Path(sys.argv[1]))
        publication = interface.Publication("1", "c", b"x" * 150)
        publisher.append_blocking([publication])
        print("ready", flush=True)
        sys.stdin.readline()
        until, done, longest = time.monotonic() + 1.5, 0, 0.0
        while time.monotonic() < until:
            began = time.monotonic()
            publisher.append_blocking([publication])
            longest = max(longest, time.monotonic() - began)
            done += 1
        print(done, longest, flush=True)
        """
    )
    command = [sys.executable, "-c", script, str(folder)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    try:
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        results = [one.communicate(timeout=30)[0].split() for one in running]
    finally:
        for one in running:
            one.kill()
            one.wait()
    shares = [int(done) for done, _ in results]
    assert min(shares) > sum(shares) / 16, results
    assert max(float(longest) for _, longest in results) < 1.0, results
    assert time.monotonic() > 0
