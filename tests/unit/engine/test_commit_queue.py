"""A thread that waits for its publication writes it; operations of several threads and loops share a commit."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fanfare.engine import errors, interface
from fanfare.engine.local import appends, commit_queue, engine, log_file, schema, transactions
from tests.harness import waiting
from tests.unit.engine.workers import APP, Worker


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[engine.LocalEngine]:
    """No worker, as in a shell or a task worker."""
    here = engine.LocalEngine(tmp_path / "engine")
    yield here
    asyncio.run(here.close())


def event(body: bytes = b"{}") -> interface.Publication:
    return interface.Publication(APP, "c", body, retention=interface.Retention(100_000, 60))


def offset(receipts: list[interface.Receipt]) -> int:
    """The order of publications: all are on one channel."""
    [receipt] = receipts
    assert receipt.position is not None
    return receipt.position.offset


def thread(publisher: engine.LocalEngine) -> threading.Thread | None:
    return publisher._commits._thread


def test_lone_publisher_writes_without_another_thread(publisher: engine.LocalEngine) -> None:
    assert [offset(publisher.append_blocking([event()])) for _ in range(3)] == [1, 2, 3]
    assert thread(publisher) is None


def test_publisher_leaves_the_wait_for_the_lock_to_the_thread(publisher: engine.LocalEngine, tmp_path: Path) -> None:
    publisher.append_blocking([event()])
    with (tmp_path / "engine" / "log.lock").open("rb") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits = pool.submit(publisher.append_blocking, [event()], 30)
        waiting.until(lambda: thread(publisher), 30, "the writer's thread")
        fcntl.flock(held, fcntl.LOCK_UN)
        assert offset(waits.result()) == 2
    assert offset(publisher.append_blocking([event()])) == 3


def test_threads_that_publish_together_keep_their_order(publisher: engine.LocalEngine) -> None:
    def publish(number: int) -> list[int]:
        return [offset(publisher.append_blocking([event(b"%d" % number)], 30)) for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(publish, range(8)))
    assert all(mine == sorted(mine) for mine in ids)
    assert sorted(one for mine in ids for one in mine) == list(range(1, 401))
    written = publisher.statistics()
    assert written["operations"] == 400
    assert written["groups"] <= 400


async def test_loop_and_threads_write_together(tmp_path: Path) -> None:
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    one = await asyncio.gather(
        *(worker.engine.append([event(b"loop")]) for _ in range(50)),
        *(asyncio.to_thread(worker.engine.append_blocking, [event(b"thread")], 30) for _ in range(50)),
    )
    assert sorted(map(offset, one)) == list(range(1, 101))
    await worker.until(lambda: len(worker.entries) == 100, "all entries")
    await worker.engine.close()


class Noting(transactions.WriteOp):
    """Notes the thread that writes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None, *, slow_s: float = 0) -> None:
        super().__init__()
        self.loop = loop
        self.slow_s = slow_s
        self.thread = ""
        self.settled = threading.Event()

    def run(self, transaction: transactions.Transaction) -> None:
        time.sleep(self.slow_s)
        self.thread = threading.current_thread().name

    def settle(self, error: errors.EngineError | None) -> None:
        assert error is None
        self.settled.set()

    async def written_by(self, worker: Worker) -> str:
        await idle(worker)
        worker.engine._commits.submit(self)
        await worker.until(self.settled.is_set, "it is written")
        return self.thread


HERE, WRITER = "MainThread", "fanfare-writer"


async def idle(worker: Worker) -> None:
    """What comes while the thread writes is the thread's, too."""
    here = worker.engine._commits
    await worker.until(lambda: not here._writing and not here._pending, "nobody writes")


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    """On a disk that is never slow, however busy the machine is."""
    monkeypatch.setattr(commit_queue, "SLOW_S", 60.0)
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    await idle(worker)
    yield worker
    await worker.engine.close()


async def test_event_loop_writes_the_operations_of_a_turn_as_one_group(worker: Worker) -> None:
    before = worker.engine.statistics()["groups"]
    noting = Noting(asyncio.get_running_loop())
    worker.engine._commits.submit(noting)
    await asyncio.gather(*(worker.engine.append([event()]) for _ in range(20)))
    assert noting.thread == HERE
    assert worker.engine.statistics()["groups"] == before + 1


async def test_operation_of_the_next_turn_joins_the_group(worker: Worker) -> None:
    before = worker.engine.statistics()["groups"]
    first = worker.engine.append([event()])
    await asyncio.sleep(0)  # the loop looks at its sockets, and another request comes
    await asyncio.gather(first, worker.engine.append([event()]))
    assert worker.engine.statistics()["groups"] == before + 1


async def test_callback_and_delivery_come_in_the_turn_that_commits(worker: Worker) -> None:
    order: list[str] = []

    def then(receipts: Sequence[interface.Receipt], error: BaseException | None) -> None:
        assert error is None
        order.append(f"answer {offset(list(receipts))}, {len(worker.entries)} delivered")
        asyncio.get_running_loop().call_soon(lambda: order.append(f"next turn, {len(worker.entries)} delivered"))

    assert worker.engine.append_then([event()], then)
    assert not order
    await worker.until(lambda: len(order) == 2, "the callback and the turn after it")
    assert order == ["answer 1, 0 delivered", "next turn, 1 delivered"]


async def test_callback_gets_the_reason_of_a_refusal(worker: Worker) -> None:
    errors_found: list[BaseException | None] = []
    budget = interface.Budget(APP, per_second=0)
    worker.engine.append_then([event()], lambda _receipts, error: errors_found.append(error), budget=budget)
    await worker.until(lambda: bool(errors_found), "the refusal")
    assert isinstance(errors_found[0], errors.OverBudget)


def test_process_without_a_worker_has_no_callbacks(publisher: engine.LocalEngine) -> None:
    assert not publisher.append_then([event()], lambda _receipts, _error: None)


async def test_exception_in_the_read_after_a_commit_is_counted(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise ValueError

    monkeypatch.setattr(worker.engine._commits, "_written", failing)
    await worker.engine.append([event()])
    await worker.until(lambda: worker.engine.statistics()["callbacks_failed"] >= 1, "the failure is counted")
    await worker.until(lambda: len(worker.entries) == 1, "the timer reads the entry")


async def test_flood_is_written_in_groups_and_the_loop_turns_between_them(worker: Worker) -> None:
    count = 4 * commit_queue.LOOP_GROUP_OPS
    before = worker.engine.statistics()["groups"]
    turns = 0
    flood = asyncio.gather(*(worker.engine.append([event()]) for _ in range(count)))
    while not flood.done():
        turns += 1
        await asyncio.sleep(0)
    assert [offset(receipts) for receipts in flood.result()] == list(range(1, count + 1))
    assert worker.engine.statistics()["groups"] >= before + 4
    assert turns >= 4


async def test_event_loop_does_not_wait_for_the_lock(worker: Worker, tmp_path: Path) -> None:
    with (tmp_path / "engine" / "log.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        noting = Noting(asyncio.get_running_loop())
        worker.engine._commits.submit(noting)
        await worker.until(lambda: not worker.engine._commits._soon, "the loop has tried")
        assert not noting.settled.is_set()
        fcntl.flock(held, fcntl.LOCK_UN)
        await worker.until(noting.settled.is_set, "the thread has written it")
    assert noting.thread == WRITER
    assert await Noting(asyncio.get_running_loop()).written_by(worker) == HERE


async def test_after_slow_commits_the_thread_writes(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One short wait for the disk leaves the commits with the loop; several leave them to the thread."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(commit_queue, "SLOW_S", 0.01)
    monkeypatch.setattr(commit_queue, "STALL_S", 10.0)
    assert await Noting(loop, slow_s=0.02).written_by(worker) == HERE
    assert await Noting(loop).written_by(worker) == HERE
    monkeypatch.setattr(commit_queue, "STALL_S", 0.03)
    assert await Noting(loop, slow_s=0.02).written_by(worker) == HERE
    assert await Noting(loop).written_by(worker) == WRITER


async def test_preempted_commit_is_not_a_slow_one(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has not waited, so the disk is not the reason."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(commit_queue, "SLOW_S", 0.01)
    monkeypatch.setattr(commit_queue, "STALL_S", 0.0)
    monkeypatch.setattr(commit_queue, "_waits", lambda: 0)
    assert await Noting(loop, slow_s=0.02).written_by(worker) == HERE
    assert await Noting(loop).written_by(worker) == HERE


async def test_event_loop_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    worker = await Worker(engine.LocalEngine(tmp_path / "engine", full_sync=True)).open()
    assert await Noting(asyncio.get_running_loop()).written_by(worker) == WRITER
    await worker.engine.close()


async def test_loop_that_ended_before_it_wrote_does_not_block_others(worker: Worker) -> None:
    async def hasty() -> None:
        worker.engine._commits.submit(Noting(asyncio.get_running_loop()))

    await asyncio.to_thread(asyncio.run, hasty())
    assert offset(await asyncio.wait_for(worker.engine.append([event()]), 10)) == 1


async def test_loop_of_another_thread_publishes_through_the_worker(worker: Worker) -> None:
    async def elsewhere() -> int:
        return offset(await asyncio.wait_for(worker.engine.append([event()]), 10))

    assert await asyncio.to_thread(asyncio.run, elsewhere()) == 1


async def test_exception_in_one_callback_does_not_stop_the_others(worker: Worker) -> None:
    class Failing(Noting):
        def settle(self, error: errors.EngineError | None) -> None:
            raise ValueError

    worker.engine._commits.submit(Failing(asyncio.get_running_loop()))
    assert offset(await asyncio.wait_for(worker.engine.append([event()]), 10)) == 1
    await worker.until(lambda: worker.entries, "the entry")


async def test_wal_begins_anew_while_a_loop_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are made beside the loop, and what they have copied is written over."""
    monkeypatch.setattr(schema, "CHECKPOINT_PAGES", 0)  # no commit makes one
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    wal = tmp_path / "engine" / "log.sqlite3-wal"
    body = b"x" * 64 * 1024
    written = 0
    try:
        # The checkpoints have a thread of their own: on a busy machine the loop writes much before the first one ends.
        while written < 4 * log_file.LONG_WAL_BYTES or wal.stat().st_size > 0.75 * written:
            assert written < 20 * log_file.LONG_WAL_BYTES, "the WAL grew with each event"
            await worker.engine.append([event(body)])
            written += len(body)
        assert worker.engine.statistics()["checkpoints"] > 1
    finally:
        await worker.engine.close()


class Interrupting(transactions.WriteOp):
    """A signal's handler that raises while a group is written."""

    def run(self, transaction: transactions.Transaction) -> None:
        raise KeyboardInterrupt

    def settle(self, error: errors.EngineError | None) -> None:
        assert error is not None


def test_interrupted_publisher_does_not_block_others(publisher: engine.LocalEngine, tmp_path: Path) -> None:
    """Its own group fails, none of it is in the log, and no other publisher waits for it."""
    publisher.append_blocking([event()])
    beside = appends.BlockingAppend([event(b"beside")])
    publisher._commits._pending.append(beside)
    with pytest.raises(KeyboardInterrupt):
        publisher._commits.write(Interrupting())
    assert beside.wait(0)
    assert isinstance(beside.error, errors.EngineUnavailable)
    queue = os.open(tmp_path / "engine" / "log.lock", os.O_RDWR)
    fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(queue)
    assert offset(publisher.append_blocking([event()])) == 2


def test_stopped_queue_has_written_pending_operations(tmp_path: Path) -> None:
    here = engine.LocalEngine(tmp_path / "engine")
    here.append_blocking([event()])
    late = appends.BlockingAppend([event(b"late")])
    here._commits.submit(late)
    here._commits.stop(last=False)
    assert late.wait(0)
    assert late.error is None
    with pytest.raises(errors.EngineUnavailable, match="closed"):
        here.append_blocking([event()])
    asyncio.run(here.close())


# -- faults of the queue itself ----------------------------------------------------------------------------------------


async def test_exception_in_the_notification_of_readers_is_isolated(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no more descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(worker.engine._notifier, "notify", fail)
        assert offset(await asyncio.wait_for(worker.engine.append([event()]), 10)) == 1
    assert offset(await asyncio.wait_for(worker.engine.append([event()]), 10)) == 2
    assert worker.engine.statistics()["callbacks_failed"] == 1
    await worker.until(lambda: len(worker.entries) == 2, "the entry that notified no reader")


async def test_thread_survives_a_fault_of_the_queue_and_refuses_what_waited(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop does not write, so that the thread does."""
    commits = worker.engine._commits
    monkeypatch.setattr(commits, "_may_write_on_loop", lambda: False)
    with monkeypatch.context() as patched:
        patched.setattr(commits.log, "write", lambda group, at_fault: 1 / 0)
        with pytest.raises(errors.EngineUnavailable, match="ZeroDivisionError"):
            await asyncio.wait_for(worker.engine.append([event()]), 10)
        assert not worker.engine.health().ok
    assert offset(await asyncio.wait_for(worker.engine.append([event()]), 10)) == 1
    assert worker.engine.health().ok


async def test_thread_that_ended_is_started_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = worker.engine._commits
    monkeypatch.setattr(commits, "_may_write_on_loop", lambda: False)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    class Ending(Noting):
        def settle(self, error: errors.EngineError | None) -> None:
            raise SystemExit

    commits.submit(Ending(None))
    await worker.until(lambda: commits._thread and not commits._thread.is_alive(), "the end of the thread")
    assert offset(await asyncio.wait_for(worker.engine.append([event()]), 10)) == 1
    assert worker.engine.statistics()["thread_restarts"] == 1


async def test_timer_of_a_publication_that_raises_leaves_the_others(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's tick also refuses what waits for too long."""
    commits = worker.engine._commits
    monkeypatch.setattr(commits, "_may_write_on_loop", lambda: False)
    monkeypatch.setattr(commits, "expire", lambda seconds: 1 / 0)
    assert offset(await asyncio.wait_for(worker.engine.append([event()]), 10)) == 1
    assert worker.engine.health().ok


async def test_restart_after_a_gap_survives_any_exception(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    here = worker.engine._worker
    follow, failures = here._follow, iter([ZeroDivisionError(), ValueError()])

    async def fail_twice() -> None:
        for error in failures:
            raise error
        await follow()

    monkeypatch.setattr(here, "_follow", fail_twice)
    here._lost("trimmed")
    await worker.until(lambda: worker.engine.health().ok, "the worker follows again")
    await worker.engine.append([event()])
    await worker.until(lambda: len(worker.entries) == 1, "the next entry")


async def test_notification_that_raises_comes_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer below the notifications reads the log, too."""
    scheduler = worker.engine._worker.scheduler
    monkeypatch.setattr(scheduler, "_look", lambda: 1 / 0)
    await worker.engine.append([event()])
    await worker.until(lambda: len(worker.entries) == 1, "the entry, found by the timer")


async def test_delivery_that_raises_is_a_gap(tmp_path: Path) -> None:
    log, gaps, delivered = engine.LocalEngine(tmp_path / "engine"), list[str](), list[object]()

    def deliver(entries: Sequence[interface.Entry]) -> None:
        if not gaps:
            raise ValueError
        delivered.extend(entries)

    await log.open(deliver, lambda reason, partition: gaps.append(reason))
    log.listen(APP, "c", True)
    await log.append([event(b"1")])

    async def is_lost() -> bool:
        return gaps == ["delivery_failed"] and log.health().ok

    await waiting.until_async(is_lost, 5, "the gap, and that the log is followed again")
    await log.append([event(b"2")])

    async def is_delivered() -> bool:
        return [entry.body for entry in delivered] == [b"2"]  # type: ignore[attr-defined]

    await waiting.until_async(is_delivered, 5, "the next entry")
    assert log.statistics()["delivery_failures"] == 1
    await log.close()


def test_publisher_at_the_open_file_limit_is_refused_and_publishes_again(publisher: engine.LocalEngine) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(errors.EngineUnavailable):
            publisher.append_blocking([event()], 10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert offset(publisher.append_blocking([event()], 10)) == 1


def test_publisher_gets_its_answer_before_an_sdk_gives_up(publisher: engine.LocalEngine, tmp_path: Path) -> None:
    """5 s is the time-out of Pusher's libraries."""
    publisher.append_blocking([event()])
    with (tmp_path / "engine" / "log.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(errors.EngineUnavailable, match="Timed out after 3 s"):
            publisher.append_blocking([event()])
        assert time.monotonic() - began < 4.5


async def test_coroutine_gets_its_answer_before_an_sdk_gives_up(tmp_path: Path) -> None:
    """With SQLite's own lock held as well, which is waited for inside of the transaction."""
    worker = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    with contextlib.closing(sqlite3.connect(tmp_path / "engine" / "log.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(errors.EngineUnavailable):
            await worker.engine.append([event()])
        assert time.monotonic() - began < 4.5
        other.execute("ROLLBACK")
    await worker.engine.close()
