"""The local engine: its parts put together, and what they do on a timer."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from apps.engine import errors, interface
from apps.engine.local import liveness, operations, place, pokes, queries, tail, writer

logger = logging.getLogger("fanfare.engine")

T = TypeVar("T")

TICK_S = 1.0  # how soon a dead worker, a lost poke or a deleted log is noticed
BLIND_TICK_S = 0.02  # the same where there are no sockets to poke through
TRIM_S = 2.0
REMAINS_S = 60.0  # how old a lock must be before it is looked at without a row in the log

# Counts that nobody waits for are written at most this often: 3,000 clients a second that come back to one channel are 50 upserts.
COUNTS_S = 0.02


class LocalEngine(interface.Engine):
    """See `interface.Engine`. `folder` is the world: engines of one folder share everything, of two folders nothing."""

    def __init__(
        self, folder: Path, *, full_sync: bool = False, log_seconds: float = 20.0, append_timeout: float = 5.0
    ) -> None:
        self.place = place.Place(folder)
        self._full_sync = full_sync
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._ringer = pokes.Ringer()
        self._writer = writer.Writer(self.place, full_sync=full_sync, committed=self._ring)
        self._counters: collections.Counter[str] = collections.Counter()
        # From here on: only while this process is a worker.
        self._worker: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tail: tail.Tail | None = None
        self._lock: liveness.Lock | None = None
        self._bell: pokes.Bell | None = None
        self._fenced: interface.Fenced | None = None
        self._queries: queries.Queries | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._dirty: dict[tuple[str, str], int] = {}
        self._counts_due = 0.0
        self._counts_written = 0  # operations under way
        self._leaving: dict[tuple[str, str, str], operations.Leave] = {}  # submitted, or waiting for another try
        self._reaping: dict[str, liveness.Lock] = {}
        self._seen: collections.deque[tuple[float, int]] = collections.deque()
        self._restarting = False
        self._workers = 0

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def open(self, deliver: interface.Deliver, fenced: interface.Fenced) -> None:
        if self._worker is not None:
            raise errors.EngineMisconfigured("This engine is open already")
        self.place.prepare()
        worker = secrets.token_hex(8)
        lock = liveness.Lock(self.place.workers / f"{worker}.lock")
        if not lock.acquire():
            raise errors.EngineUnavailable(f"{lock.path} is held by another process")
        self._lock, self._worker, self._fenced = lock, worker, fenced
        self._loop = asyncio.get_running_loop()
        self._tail = tail.Tail(self.place, self._loop, deliver, self._lost)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="fanfare-queries")
        self._queries = queries.Queries(self.place)
        self._bell = pokes.Bell(self.place.sockets, worker)
        # The writer may have run already, for a publisher in this process: a stopped writer cannot be told of its worker.
        self._writer.worker = worker
        try:
            await self._register(self._tail)
        except BaseException:
            await self.close()
            raise
        heard = self._bell.open()
        if heard:
            assert self._bell.socket is not None
            self._loop.add_reader(self._bell.socket.fileno(), self._poked)
        self._every("tick", TICK_S if heard else BLIND_TICK_S, self._tick)
        self._every("reap", TICK_S, self._reap)
        self._every("trim", TRIM_S, self._trim)
        self._reap()

    async def close(self) -> None:
        worker, loop = self._worker, self._loop
        if worker is None or loop is None:
            await asyncio.get_running_loop().run_in_executor(None, lambda: self._stop_writer(last=False))
            return
        self._worker = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        try:
            await asyncio.wait_for(self._do(lambda settled: operations.Reap(loop, settled, worker)), 5)
        except (errors.EngineError, TimeoutError) as error:
            logger.warning("The worker could not say goodbye (%s): another one will do it", error)
        last = False
        if self._tail is not None:
            with contextlib.suppress(sqlite3.Error):
                last = self._tail.following and not self._tail.workers()
            self._tail.close()
            self._refuse(self._tail.give_up(), "The worker is closing")
        if self._bell is not None:
            if self._bell.socket is not None:
                loop.remove_reader(self._bell.socket.fileno())
            self._bell.close()
        if self._executor is not None and self._queries is not None:
            await loop.run_in_executor(self._executor, self._queries.close)
            self._executor.shutdown()
        await loop.run_in_executor(None, lambda: self._stop_writer(last=last))
        if self._lock is not None:
            self._lock.release(remove=True)

    def _stop_writer(self, *, last: bool) -> None:
        self._writer.stop(last=last)
        self._ringer.close()

    def health(self) -> interface.Health:
        details = {"workers": self._workers, "log": str(self.place.log)}
        if self._writer.failure is not None:
            return interface.Health(False, self._writer.failure, details)
        if self._worker is not None and (self._tail is None or not self._tail.following):
            return interface.Health(False, "The worker does not follow the log (yet)", details)
        return interface.Health(True, "ok", details)

    def statistics(self) -> dict[str, int | float]:
        following = self._tail
        return {
            "groups": self._writer.groups,
            "operations": self._writer.operations,
            "reopened": self._writer.reopened,
            "position": following.position if following else 0,
            "behind": following.top - following.position if following else 0,
            "reads": following.reads if following else 0,
            "entries": following.delivered if following else 0,
            "workers": self._workers,
            **self._counters,
        }

    # -- the log --------------------------------------------------------------------------------------------------------------

    def append(self, publications: Sequence[interface.Publication]) -> Awaitable[list[interface.Receipt]]:
        loop = asyncio.get_running_loop()
        operation = operations.AwaitedAppend(publications, loop)
        self._writer.submit(operation)
        if self._worker is None:  # no timer looks after it
            timer = loop.call_later(self._append_timeout, self._expire)
            operation.future.add_done_callback(lambda _: timer.cancel())
        return operation.future

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        timeout = self._append_timeout if timeout is None else timeout
        operation = operations.BlockingAppend(publications)
        self._writer.submit(operation)
        if not operation.done.wait(timeout):
            if self._writer.withdraw(operation):
                raise errors.EngineUnavailable(f"The log's queue did not move for {timeout:g} s")
            # Its transaction has begun: it ends within SQLite's busy time-out, one way or the other.
            if not operation.done.wait(timeout + 5):
                raise errors.EngineUnavailable(f"The commit takes longer than {2 * timeout + 5:g} s; it may still happen")
        if operation.error is not None:
            raise operation.error
        return operation.receipts

    async def read(
        self, app: str, channel: str, after: int, limit: int, *, newest_first: bool = False
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        return await self._ask(lambda ask: ask.read(app, channel, after, limit, newest_first))

    # -- presence and counts --------------------------------------------------------------------------------------------------

    def set_subscribers(self, app: str, channel: str, count: int) -> None:
        self._dirty[app, channel] = count
        if "counts" not in self._timers and self._loop is not None:
            now = self._loop.time()
            self._timers["counts"] = self._loop.call_at(max(now, self._counts_due), self._write_counts)

    def attach(
        self,
        app: str,
        channel: str,
        ready: interface.Ready,
        *,
        socket_id: str | None = None,
        member: interface.Member | None = None,
        member_limit: int | None = None,
    ) -> None:
        self._write_counts()
        if member is not None and socket_id is not None:
            self._leaving.pop((app, channel, socket_id), None)  # it came back: an old leave must not be tried again
        self._submit(
            operations.Attach(self._running(), self._attached, app, channel, ready, socket_id, member, member_limit)
        )

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        operation = operations.Leave(self._running(), self._left, app, channel, socket_id)
        self._leaving[operation.key] = operation
        self._submit(operation)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        self._write_counts()
        self._submit(operations.Admit(self._running(), self._admitted, app, limit, ready))

    # -- questions ------------------------------------------------------------------------------------------------------------

    async def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        return await self._ask(lambda ask: ask.channels(app, prefix))

    async def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        return await self._ask(lambda ask: ask.channel(app, channel))

    async def members(self, app: str, channel: str) -> list[interface.Member]:
        return await self._ask(lambda ask: ask.members(app, channel))

    async def _ask(self, question: Callable[[queries.Queries], T]) -> T:
        """In the thread for questions: one may be long. What this worker has not written yet is written first."""
        if self._queries is None or self._executor is None:
            raise errors.EngineUnavailable("The engine is not open")
        self._write_counts()
        if self._counts_written:
            await self._do(lambda settled: operations.Touch(self._running(), settled))
        asked = self._queries
        try:
            return await self._running().run_in_executor(self._executor, lambda: question(asked))
        except sqlite3.Error as error:
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error

    # -- the ends of operations -----------------------------------------------------------------------------------------------

    def _attached(self, operation: operations.Attach, error: errors.EngineError | None) -> None:
        if error is not None:
            operation.ready(interface.Refused("engine_unavailable", str(error)))
        elif operation.refused is not None:
            operation.ready(operation.refused)
        elif self._tail is None or self._worker is None:
            operation.ready(interface.Refused("engine_unavailable", "The worker is closing"))
        else:
            self._tail.settle(operation)  # the writer wakes the tail after it has settled the group

    def _left(self, operation: operations.Leave, error: errors.EngineError | None) -> None:
        if self._leaving.get(operation.key) is not operation:
            return
        if error is None:
            del self._leaving[operation.key]
        else:
            self._counters["leaves_retried"] += 1
            operation.failed = True

    def _admitted(self, operation: operations.Admit, error: errors.EngineError | None) -> None:
        if error is not None:
            operation.ready(interface.Refused("engine_unavailable", str(error)))
        else:
            operation.ready(operation.refused or interface.Attached())

    def _counted(self, operation: operations.Counts, error: errors.EngineError | None) -> None:
        self._counts_written -= 1
        if error is not None:
            self._counters["counts_retried"] += 1
            # Absolute numbers: what was said since then is newer.
            self._dirty = {**operation.counts, **self._dirty}

    def _write_counts(self) -> None:
        timer = self._timers.pop("counts", None)
        if timer is not None:
            timer.cancel()
        if self._dirty:
            loop = self._running()
            counts, self._dirty = self._dirty, {}
            self._counts_due = loop.time() + COUNTS_S
            self._counts_written += 1
            self._submit(operations.Counts(loop, self._counted, counts))

    async def _do(self, make: Callable[[operations.Settled], operations.WorkerOperation]) -> None:
        """Wait for one operation. Raises what it failed with."""
        done: asyncio.Future[None] = self._running().create_future()

        def settled(_: operations.WorkerOperation, error: errors.EngineError | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

        self._submit(make(settled))
        await done

    def _submit(self, operation: operations.WorkerOperation) -> None:
        try:
            self._writer.submit(operation)
        except errors.EngineError as error:
            operation.settle(error)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise errors.EngineUnavailable("The engine is not open")
        return self._loop

    # -- following ------------------------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        """In the writer's thread, after a commit: wake the others, and this worker's own loop."""
        self._ringer.ring(self.place.sockets, self._worker)
        loop = self._loop
        if loop is not None and self._worker is not None:
            try:
                loop.call_soon_threadsafe(self._advance)
            except RuntimeError:
                logger.debug("The loop was closed before the last commit")

    def _poked(self) -> None:
        if self._bell is not None and self._bell.socket is not None:
            self._bell.drain()
        self._advance()

    def _advance(self) -> None:
        if self._tail is not None:
            self._tail.advance()

    async def _register(self, following: tail.Tail) -> None:
        """Write this worker's row (the writer does it with any group) and follow from where the log stands then."""
        touched: list[operations.Touch] = []
        loop = self._running()

        def make(settled: operations.Settled) -> operations.Touch:
            touched.append(operations.Touch(loop, settled))
            return touched[0]

        await self._do(make)
        try:
            following.follow(touched[0].top)
        except sqlite3.Error as error:
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error

    def _lost(self, reason: str) -> None:
        """Entries may have been missed: say so, and start again from the present."""
        self._counters["fenced"] += 1
        logger.error("Entries of the log may have been missed (%s): starting again from the present", reason)
        assert self._tail is not None
        self._tail.close()
        self._seen.clear()
        self._refuse(self._tail.give_up(), "The worker starts again")
        if self._executor is not None and self._queries is not None:
            self._executor.submit(self._queries.close)
        if self._fenced is not None:
            self._fenced(reason)
        if not self._restarting:
            self._restarting = True
            task = self._running().create_task(self._restart(self._tail))
            task.add_done_callback(lambda _: setattr(self, "_restarting", False))

    async def _restart(self, following: tail.Tail) -> None:
        delay_s = 0.05
        while self._worker is not None:
            try:
                await self._register(following)
            except errors.EngineError as error:
                logger.warning("The log cannot be followed again yet: %s", error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 2.0)
            else:
                return

    def _refuse(self, attachments: Sequence[operations.Attach], why: str) -> None:
        for attachment in attachments:
            attachment.ready(interface.Refused("engine_unavailable", why))

    # -- on a timer -----------------------------------------------------------------------------------------------------------

    def _every(self, name: str, seconds: float, job: Callable[[], None]) -> None:
        """Run `job` again and again; a failure is logged and counted, and the next turn comes all the same."""
        loop = self._running()

        def turn() -> None:
            try:
                job()
            except Exception:
                self._counters["timer_failures"] += 1
                logger.exception("The engine's %s failed", name)
            if self._worker is not None:
                self._timers[name] = loop.call_later(seconds, turn)

        self._timers[name] = loop.call_later(seconds, turn)

    def _tick(self) -> None:
        """The net below the pokes, and what could not be written before."""
        self._expire()
        for operation in [one for one in self._leaving.values() if one.failed]:
            operation.failed = False
            self._submit(operation)
        self._write_counts()
        self._advance()

    def _expire(self) -> None:
        for late in self._writer.expire(self._append_timeout):
            self._counters["expired"] += 1
            late.settle(errors.EngineUnavailable(f"The log's queue did not move for {self._append_timeout:g} s"))

    def _reap(self) -> None:
        """Take the lock of each worker that does not hold it any more; who has it, and nobody else, cleans up."""
        if self._tail is None or not self._tail.following or self._lock is None or self._worker is None:
            return
        workers = self._tail.workers()
        self._workers = len(workers)
        if self._worker not in workers or not self._lock.is_in_place():
            self._readmit()
            return
        for other in {*workers, *self._old_locks()} - {self._worker, *self._reaping}:
            lock = liveness.Lock(self.place.workers / f"{other}.lock")
            if lock.acquire():
                self._reaping[other] = lock
                self._counters["reaped"] += 1
                logger.warning("Worker %s is dead: its members and counts are taken away", other)
                self._submit(operations.Reap(self._running(), self._reaped, other))

    def _old_locks(self) -> list[str]:
        """Workers that the log may know nothing of, because it was deleted: what they left in the folders goes too. A lock that is
        younger may belong to a worker that is being born."""
        before = time.time() - REMAINS_S
        with os.scandir(self.place.workers) as found:
            return [entry.name.removesuffix(".lock") for entry in found if entry.stat().st_mtime < before]

    def _reaped(self, operation: operations.Reap, error: errors.EngineError | None) -> None:
        if error is None:
            (self.place.sockets / f"{operation.worker}.sock").unlink(missing_ok=True)
        self._reaping.pop(operation.worker).release(remove=error is None)

    def _readmit(self) -> None:
        """Our row or our lock's file is gone (somebody cleaned up the folder): others may take us for dead, so be born again."""
        assert self._lock is not None
        self._lock.release(remove=False)
        self.place.workers.mkdir(parents=True, exist_ok=True, mode=0o700)
        worker = secrets.token_hex(8)
        self._lock = liveness.Lock(self.place.workers / f"{worker}.lock")
        self._lock.acquire()
        self._worker = self._writer.worker = worker
        self._lost("worker_unknown")

    def _trim(self) -> None:
        """Forget what every worker has had `log_seconds` to read. The age is told by samples of the monotonic clock of this
        process, not by the rows: a wall clock that jumps trims nothing."""
        if self._tail is None or not self._tail.following:
            return
        now = time.monotonic()
        self._seen.append((now, self._tail.top))
        upto = 0
        while self._seen and self._seen[0][0] <= now - self._log_seconds:
            upto = self._seen.popleft()[1]
        if upto:
            self._submit(operations.Trim(self._running(), self._trimmed, upto))

    def _trimmed(self, operation: operations.Trim, error: errors.EngineError | None) -> None:
        if error is None and operation.more:
            self._submit(operations.Trim(self._running(), self._trimmed, operation.upto))
