"""A process that takes part: it is known to the others, follows the log, and looks after what the dead leave behind."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fanfare.engine import consumers, errors, interface
from fanfare.engine.local import (
    leases,
    liveness,
    occupancy,
    operations,
    pace,
    place,
    pokes,
    presence,
    queries,
    schema,
    subscribers,
    tail,
    upkeep,
    writer,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
Op = TypeVar("Op", bound=operations.WorkerOperation)

TICK_S = 1.0  # how soon a dead worker, a lost poke or a deleted log is noticed
BLIND_TICK_S = 0.02  # the same where there are no sockets to poke through
TRIM_S = 2.0

MEASURE_S = 10.0
PROBE_S = 2.0  # between two writes that only show that writing works
PROBE_KEPT_S = 60
REMAINS_S = 60.0  # how old a lock must be before it is looked at without a row in the log
GOODBYE_S = 5.0  # a worker that cannot write its own leave in this time leaves it to the others


class Worker:
    """Made and used on one event loop; `open` to `close` is one life."""

    def __init__(
        self,
        where: place.Place,
        writes: writer.Writer,
        deliver: interface.Deliver,
        on_gap: interface.OnGap,
        *,
        log_seconds: float,
        append_timeout: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()  # the loop's
        self.id = secrets.token_hex(8)
        self.workers = 0  # how many live, as last seen
        self.closing = False
        self.counters: collections.Counter[str] = collections.Counter()
        self.tail = tail.Tail(where, self.loop, deliver, self._lost, writes.suspect)
        self.subscribers = subscribers.Subscribers(self.loop, self.submit)
        self._where = where
        self._writer = writes
        self._on_gap = on_gap
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._lock = liveness.Lock(where.lock_of(self.id))
        self._pace = pace.Pace(self.loop, pokes.Bell(where.sockets, self.id), self.tail)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="fanfare-queries")
        self._queries = queries.Queries(where)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._leaving: dict[tuple[str, str, str], presence.Leave] = {}  # submitted, or waiting for another try
        self._reaping: dict[str, liveness.Lock] = {}
        self._samples: collections.deque[tuple[float, int]] = collections.deque()  # (monotonic time, the log's top)
        self._restarting: asyncio.Task[None] | None = None
        self.leases = leases.Leases(where)
        self._probed_s = float("-inf")
        self.sizes: dict[str, int] = {}  # of what is kept, as last measured
        self._measuring: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        if not self._lock.acquire():
            raise errors.EngineUnavailable(f"{self._where.workers} gave no lock for a new worker")
        self._writer.worker = self.id
        self.tail.mailbox = upkeep.mailbox_of(self.id)
        await self._follow()
        self._pace.open()
        self._every("tick", TICK_S if self._pace.is_poked else BLIND_TICK_S, self._tick)
        self._every("reap", TICK_S, self._reap)
        self._every("trim", TRIM_S, self._trim)
        self._every("measure", MEASURE_S, self._measure)
        self._reap()

    async def close(self) -> bool:
        """Take everything of this worker away. True: no other worker lives."""
        self.closing = True
        for timer in self._timers.values():
            timer.cancel()
        self.subscribers.stop()
        self.leases.close()
        for task in (self._restarting, self._measuring):
            if task is not None:
                task.cancel()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.done(presence.Reap(self.loop, self.id))
        except (errors.EngineError, TimeoutError) as error:
            logger.warning("The worker could not say goodbye (%s): another one will do it", error)
        last = False
        with contextlib.suppress(sqlite3.Error):
            last = self.tail.following and not self.tail.workers()
        self.tail.close()
        self._refuse_waiting("The worker is closing")
        self._pace.close()
        await self.loop.run_in_executor(self._executor, self._queries.close)
        self._executor.shutdown()
        self._writer.worker = None
        return last

    def release(self) -> None:
        """The last act: from now on the kernel tells the others that this worker is gone."""
        self._lock.release(remove=True)

    def is_home(self) -> bool:
        """Whether this is the thread of the worker's loop."""
        return threading.get_ident() == self._thread

    def logged(self) -> None:
        """This process added entries. From any thread."""
        self._pace.logged()

    # -- operations ----------------------------------------------------------------------------------------------------

    def submit(self, operation: operations.WorkerOperation) -> None:
        try:
            self._writer.submit(operation)
        except errors.EngineError as error:
            operation.settle(error)

    async def done(self, operation: Op) -> Op:
        """Submit it and wait. Raises what its group failed with."""
        done: asyncio.Future[None] = self.loop.create_future()

        def settled(_: operations.WorkerOperation, error: errors.EngineError | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

        operation.settled = settled
        self.submit(operation)
        await done
        return operation

    def attach(self, operation: presence.Attach) -> None:
        wanted = operation.wanted
        if wanted.cached:
            operation.ready = self._noting_misses(wanted, operation.ready)
        if wanted.history is not None:
            operation.ready = self._opening_streams(operation, operation.ready)
        if not wanted.durable and wanted.member is None:  # nothing to write: only to be read where the tail stands
            self.tail.settle(operation)
            self.tail.advance()
            return
        self.subscribers.write()
        # It came back: an old leave must not be tried again.
        self._leaving.pop((wanted.app, wanted.channel, wanted.socket_id), None)
        operation.settled = self._attached
        self.submit(operation)

    def _noting_misses(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> interface.Ready:
        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if isinstance(answer, interface.SubscribeResult) and answer.cached is None:
                self.submit(presence.CacheMiss(self.loop, wanted.app, wanted.channel))
            ready(answer)

        return answered

    def _opening_streams(self, operation: presence.Attach, ready: interface.Ready) -> interface.Ready:
        """A stream that was never written to has no epoch, and so nobody could come back to it: make it, ask again."""

        def opened(_: presence.OpenStream, error: errors.EngineError | None) -> None:
            self._attached(operation, error)

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            replayed = answer.replayed if isinstance(answer, interface.SubscribeResult) else None
            if replayed is None or replayed.position is not None:
                ready(answer)
                return
            wanted = operation.wanted
            self.submit(presence.OpenStream(self.loop, wanted.app, wanted.channel, opened))

        return answered

    def _attached(self, operation: presence.Attach, error: errors.EngineError | None) -> None:
        if error is not None:
            operation.ready(interface.Refused("engine_unavailable", str(error)))
        elif operation.refused is not None:
            operation.ready(operation.refused)
        elif self.closing:
            operation.ready(interface.Refused("engine_unavailable", "The worker is closing"))
        else:
            self.tail.settle(operation)
            self._pace.logged()  # one read for all attachments of a group

    def leave(self, operation: presence.Leave) -> None:
        self._leaving[operation.key] = operation
        operation.settled = self._left
        self.submit(operation)

    def _left(self, operation: presence.Leave, error: errors.EngineError | None) -> None:
        if self._leaving.get(operation.key) is not operation:
            return
        if error is None:
            del self._leaving[operation.key]
        else:
            self.counters["leaves_retried"] += 1
            operation.failed = True

    def admit(self, operation: occupancy.Admit) -> None:
        self.subscribers.write()
        operation.settled = self._admitted
        self.submit(operation)

    def _admitted(self, operation: occupancy.Admit, error: errors.EngineError | None) -> None:
        if error is not None:
            operation.ready(interface.Refused("engine_unavailable", str(error)))
        else:
            operation.ready(operation.refused or interface.SubscribeResult())

    async def ask(self, question: Callable[[queries.Queries], T]) -> T:
        """In the thread for questions, for one may be long. What this worker has not written yet is written first."""
        self.subscribers.write()
        if self.subscribers.writing:
            await self.done(upkeep.Touch(self.loop))
        try:
            return await self.loop.run_in_executor(self._executor, question, self._queries)
        except sqlite3.Error as error:
            self._look_for_damage(error)
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error

    def probe(self) -> None:
        """Write something, so that `writer.failure` tells how it is now, also where nobody publishes."""
        now = time.monotonic()
        if now - self._probed_s >= PROBE_S:
            self._probed_s = now
            record = str(now).encode()  # another one each time: SQLite writes no page that stays as it is
            self.submit(upkeep.Session(self.loop, "", f"#probe-{self.id}", record, seconds=PROBE_KEPT_S))

    def _look_for_damage(self, error: sqlite3.Error) -> None:
        if schema.is_damage(error):
            self._writer.suspect()
            self.submit(upkeep.Touch(self.loop))

    async def consume(self, name: str, kinds: frozenset[interface.Kind], after: int | None) -> interface.Consumer:
        mask = consumers.mask(kinds)
        found = await self.done(upkeep.Cursor(self.loop, name, after, kinds=mask))

        async def scan(after: int, limit: int) -> consumers.Scan:
            return await self.ask(lambda asked: asked.scan(kinds, after, limit))

        async def move(position: int | None) -> None:
            await self.done(upkeep.Cursor(self.loop, name, position, kinds=mask, forget=position is None))

        return consumers.ScanningConsumer(
            found.log_id, found.position or 0, scan=scan, grown=self.tail.grown, move=move
        )

    # -- following -----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Write this worker's row, which the writer does with any group, and follow from where the log stands then."""
        touched = await self.done(upkeep.Touch(self.loop))
        try:
            self.tail.follow(touched.top)
        except sqlite3.Error as error:
            self._look_for_damage(error)
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error

    def _lost(self, reason: str) -> None:
        """Entries may have been missed: say so, and start again from the present."""
        self.counters["gaps"] += 1
        logger.error("Entries of the log may have been missed (%s): starting again from the present", reason)
        self.tail.close()
        self._samples.clear()
        self._refuse_waiting("The worker starts again")
        self._executor.submit(self._queries.close)
        self._on_gap(reason, None)
        if self._restarting is None:
            self._restarting = self.loop.create_task(self._restart())

    async def _restart(self) -> None:
        delay_s = 0.05
        while not self.closing:
            try:
                await self._follow()
            except errors.EngineError as error:
                logger.warning("The log cannot be followed again yet: %s", error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 2.0)
            else:
                break
        self._restarting = None

    def _refuse_waiting(self, why: str) -> None:
        for attachment in self.tail.give_up():
            attachment.ready(interface.Refused("engine_unavailable", why))

    # -- on a timer ----------------------------------------------------------------------------------------------------

    def _every(self, name: str, seconds: float, job: Callable[[], None]) -> None:
        """Run `job` again and again; a failure is logged and counted, and the next turn comes all the same."""

        def turn() -> None:
            try:
                job()
            except Exception:
                self.counters["timer_failures"] += 1
                logger.exception("The engine's %s failed", name)
            if not self.closing:
                self._timers[name] = self.loop.call_later(seconds, turn)

        self._timers[name] = self.loop.call_later(seconds, turn)

    def _tick(self) -> None:
        """The net below the pokes, and what could not be written before."""
        self.counters["expired"] += self._writer.expire(self._append_timeout)
        for operation in [one for one in self._leaving.values() if one.failed]:
            operation.failed = False
            self.submit(operation)
        self.subscribers.write()
        self.leases.check()
        self._pace.tick()
        self.tail.replays.clean()

    def _reap(self) -> None:
        """Take the lock of each worker that does not hold it any more; who has it, and nobody else, cleans up."""
        if not self.tail.following:
            return
        workers = self.tail.workers()
        self.workers = len(workers)
        if self.id not in workers or not self._lock.is_in_place():
            self._be_born_again()
            return
        for other in {*workers, *self._old_locks()} - {self.id, *self._reaping}:
            lock = liveness.Lock(self._where.lock_of(other))
            if lock.acquire():
                self._reaping[other] = lock
                self.counters["reaped"] += 1
                logger.warning("Worker %s is dead: its members and counts are taken away", other)
                self.submit(presence.Reap(self.loop, other, self._reaped))

    def _old_locks(self) -> Sequence[str]:
        """Workers that the log may know nothing of, because it was deleted: what they left in the folders goes too. A
        lock that is younger may belong to a worker that is being born.
        """
        before = time.time() - REMAINS_S
        with os.scandir(self._where.workers) as found:
            return [entry.name.removesuffix(".lock") for entry in found if entry.stat().st_mtime < before]

    def _reaped(self, operation: presence.Reap, error: errors.EngineError | None) -> None:
        if error is None:
            pokes.remove(self._where.sockets / f"{operation.worker}{pokes.SOCKET}")
        self._reaping.pop(operation.worker).release(remove=error is None)

    def _be_born_again(self) -> None:
        """Our row or our lock's file is gone (somebody cleaned up the folder), so others may take us for dead."""
        self._lock.release(remove=False)
        self._where.workers.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.id = self._writer.worker = secrets.token_hex(8)
        self.tail.mailbox = upkeep.mailbox_of(self.id)
        self._lock = liveness.Lock(self._where.lock_of(self.id))
        self._lock.acquire()
        self._lost("worker_unknown")

    def _measure(self) -> None:
        if self.tail.following and (self._measuring is None or self._measuring.done()):
            self._measuring = self.loop.create_task(self._measured())

    async def _measured(self) -> None:
        try:
            self.sizes = await self.ask(queries.Queries.sizes)
            if self.sizes["sessions_late"] > interface.LATE_SESSIONS:
                # Up to an instant, and not so and so many: every worker looks, and asks for the same.
                expired_s = await self.ask(queries.Queries.too_late)
                self.submit(upkeep.Forget(self.loop, expired_s))
        except errors.EngineError as error:
            logger.debug("The sizes are not known: %s", error)

    def _trim(self) -> None:
        """Forget what every worker has had `log_seconds` to read.

        The age is told by samples of this process's monotonic clock and not by the rows: a wall clock that jumps trims
        nothing.
        """
        if not self.tail.following:
            return
        now = time.monotonic()
        self._samples.append((now, self.tail.top))
        upto = 0
        while self._samples and self._samples[0][0] <= now - self._log_seconds:
            upto = self._samples.popleft()[1]
        if upto:
            self.submit(upkeep.Trim(self.loop, upto, self._trimmed))

    def _trimmed(self, operation: upkeep.Trim, error: errors.EngineError | None) -> None:
        if error is None and operation.more:
            self.submit(upkeep.Trim(self.loop, operation.upto, self._trimmed))
