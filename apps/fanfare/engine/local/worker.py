"""A worker: a process that is registered with the others, follows the log, and removes workers that died."""

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

from fanfare.engine import consumers, errors, interface, moves
from fanfare.engine.local import (
    commit_queue,
    counts,
    locks,
    maintenance,
    notifications,
    presence,
    queries,
    read_scheduler,
    reader,
    schema,
    sessions,
    transactions,
)
from fanfare.engine.local.paths import LogPaths
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)
throttled = LogThrottle(logger)

T = TypeVar("T")
Op = TypeVar("Op", bound=transactions.WorkerOp)

TICK_S = 0.5  # how soon a lost notification, a deleted log or a publisher's timeout is noticed
POLL_INTERVAL_S = 0.02  # the same where other processes cannot notify this one
REMOVE_S = 1.0  # how soon a dead worker is noticed
EXPIRE_S = 1.0  # how soon a member whose time is over leaves
TRIM_S = 2.0
SHORT_TRIM_S = 0.25  # while the log is short of space
SHORT_LOG_SECONDS = 2.0  # how long entries stay then; workers read them within milliseconds
EVICT_TO_SHARE = 0.7  # of the limit, when kept entries are deleted before their time
SHRINK_S = 0.05  # between two steps that give pages back to the disk: 20 MB/s
MEASURE_S = 10.0
OLD_LOCK_S = 60.0  # how old a lock must be before it is checked without a row in the log
GOODBYE_S = 5.0  # a worker that cannot write its own removal in this time leaves it to the others
LONGEST_PAUSE_S = 2.0  # between two tries to follow the log again


class Worker:
    """Made and used on one event loop; `open` to `close` is one life."""

    def __init__(
        self,
        paths: LogPaths,
        commits: commit_queue.CommitQueue,
        deliver: interface.Deliver,
        on_gap: interface.OnGap,
        *,
        log_seconds: float,
        append_timeout: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()  # the loop's
        self.id = secrets.token_hex(8)
        self.workers = 0  # how many are alive, as last seen
        self.is_closing = False
        self.counters: collections.Counter[str] = collections.Counter()
        self.sizes: dict[str, int] = {}  # of what is kept, as last measured
        self.reader = reader.LogReader(paths, self.loop, deliver, self._lost, self._suspect)
        self.subscribers = counts.SubscriberCounts(self.loop, self.submit)
        self.leases = locks.Leases(paths.leases)
        self._paths = paths
        self._commits = commits
        self._on_gap = on_gap
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._lock = locks.FileLock(paths.worker_lock(self.id))
        self.scheduler = self._new_scheduler()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="fanfare-queries")
        self._queries = queries.LogQueries(paths)
        self._supervisor = Supervisor(logger, count=self._count)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._leaving: dict[tuple[str, str, str], presence.Leave] = {}  # submitted, or waiting for another try
        self._removing: dict[str, locks.FileLock] = {}  # dead workers, by their ids
        self._samples: collections.deque[tuple[float, int]] = collections.deque()  # (monotonic time, the log's top)
        self._restarting: asyncio.Task[None] | None = None
        self._lost_at_s: float | None = None  # monotonic: see `lost_s`
        self._measuring: asyncio.Task[None] | None = None
        self._short_since_s = float("inf")  # monotonic: since when space is short
        self._is_shrinking = False

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Raises EngineUnavailable, EngineMisconfigured."""
        self._acquire_lock()
        await self._follow()
        self.scheduler.open()
        self._every("tick", TICK_S, self._tick)
        if not self.scheduler.is_notified:
            self._every("poll", POLL_INTERVAL_S, self._poll)
        self._every("removal of dead workers", REMOVE_S, self._remove_dead)
        self._every("expiry of members", EXPIRE_S, self._expire_members)
        self._every("trim", TRIM_S, self._trim)
        self._every("measurement", MEASURE_S, self._measure)
        self._remove_dead()

    @property
    def lost_s(self) -> float | None:
        """The seconds since this worker found another log, which lacks records of sessions, or None."""
        return None if self._lost_at_s is None else time.monotonic() - self._lost_at_s

    async def close(self) -> bool:
        """Remove everything of this worker. True: no other worker is alive."""
        self.is_closing = True
        for timer in self._timers.values():
            timer.cancel()
        self.subscribers.stop()
        self.leases.close()
        await self._supervisor.stop()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.done(presence.RemoveWorker(self.loop, self.id))
        except errors.EngineMoved:
            pass  # the new store does not know this worker
        except (errors.EngineError, TimeoutError) as error:
            logger.warning("The worker could not remove itself from the log (%s): another worker will", error)
        last = False
        with contextlib.suppress(sqlite3.Error):
            last = self.reader.is_following and not self.reader.workers()
        self.reader.close()
        self._refuse_waiting("The worker is closing")
        self.scheduler.close()
        await self.loop.run_in_executor(self._executor, self._queries.close)
        self._executor.shutdown()
        self._commits.log.worker = None
        return last

    def release(self) -> None:
        """Release the lock, by which other workers find that this one has ended."""
        self._lock.release(remove=True)

    def is_home(self) -> bool:
        """Whether this is the thread of the worker's loop."""
        return threading.get_ident() == self._thread

    def problem(self) -> str | None:
        """Why this worker cannot publish or does not follow, in one sentence."""
        if self._commits.failure is not None:
            return self._commits.failure
        if self._commits.log.full is not None:
            return str(self._commits.log.full)
        if not self.reader.is_following:
            return "The worker does not follow the log (yet)"
        return None

    def _acquire_lock(self) -> None:
        """Take the lock of this worker's id, under which it writes from now on."""
        try:
            acquired = self._lock.acquire()
        except OSError as error:
            raise errors.EngineUnavailable(f"{self._lock.path} cannot be locked: {error.strerror}") from error
        if not acquired:
            raise errors.EngineUnavailable(f"{self._lock.path} is locked by another process")
        self._commits.log.worker = self.id
        self.reader.mailbox = sessions.mailbox_of(self.id)

    def _new_scheduler(self) -> read_scheduler.ReadScheduler:
        listener = notifications.Listener(self._paths.sockets, self.id)
        return read_scheduler.ReadScheduler(self.loop, listener, self.reader)

    # -- writes --------------------------------------------------------------------------------------------------------

    def submit(self, operation: transactions.WorkerOp) -> None:
        try:
            self._commits.submit(operation)
        except errors.EngineError as error:
            operation.settle(error)

    async def done(self, operation: Op) -> Op:
        """Submit it and wait. Raises the error of its group."""
        done: asyncio.Future[None] = self.loop.create_future()

        def settled(_: transactions.WorkerOp, error: errors.EngineError | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

        operation.settled = settled
        self.submit(operation)
        await done
        return operation

    def attach(self, operation: presence.Subscribe) -> None:
        wanted = operation.wanted
        if wanted.cached:
            operation.ready = self._noting_misses(wanted, operation.ready)
        if wanted.history is not None:
            operation.ready = self._opening_streams(operation, operation.ready)
        if not wanted.durable and wanted.member is None:  # nothing to write: only to be read where the reader stands
            self.reader.settle(operation)
            self.reader.advance()
            return
        self.subscribers.write()
        # An old leave of the same socket must not be tried again.
        self._leaving.pop((wanted.app, wanted.channel, wanted.socket_id), None)
        operation.settled = self._attached
        self.submit(operation)

    def _noting_misses(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> interface.Ready:
        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if isinstance(answer, interface.SubscribeResult) and answer.cached is None:
                self.submit(presence.CacheMiss(self.loop, wanted.app, wanted.channel))
            ready(answer)

        return answered

    def _opening_streams(self, operation: presence.Subscribe, ready: interface.Ready) -> interface.Ready:
        """A stream that was never written to has no epoch, so its subscribers could not recover: create it, ask
        again. If the answer is the same, the reader does not see what was written: the log is damaged."""
        is_opened = False

        def opened(_: presence.OpenStream, error: errors.EngineError | None) -> None:
            self._attached(operation, error)

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            replayed = answer.replayed if isinstance(answer, interface.SubscribeResult) else None
            if replayed is None or replayed.position is not None:
                ready(answer)
                return
            wanted = operation.wanted
            nonlocal is_opened
            if is_opened:
                why = f"The stream of {wanted.channel} was written and cannot be read"
                self._suspect(schema.corrupt(why))
                self._lost("log_unreadable")
                ready(interface.Refused("engine_unavailable", why))
                return
            is_opened = True
            self.submit(presence.OpenStream(self.loop, wanted.app, wanted.channel, opened))

        return answered

    def _attached(self, operation: presence.Subscribe, error: errors.EngineError | None) -> None:
        if error is not None:
            operation.ready(interface.Refused("engine_unavailable", str(error)))
        elif operation.refused is not None:
            operation.ready(operation.refused)
        elif self.is_closing:
            operation.ready(interface.Refused("engine_unavailable", "The worker is closing"))
        else:
            self.reader.settle(operation)
            self.scheduler.read_soon()  # one read for all subscriptions of a group

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

    def admit(self, operation: counts.Admit) -> None:
        self.subscribers.write()
        operation.settled = self._admitted
        self.submit(operation)

    def _admitted(self, operation: counts.Admit, error: errors.EngineError | None) -> None:
        if error is not None:
            operation.ready(interface.Refused("engine_unavailable", str(error)))
        else:
            operation.ready(operation.refused or interface.SubscribeResult())

    # -- queries and consumers -----------------------------------------------------------------------------------------

    async def ask(self, query: Callable[[queries.LogQueries], T]) -> T:
        """In the thread for queries. What this worker has not written yet is written first. Raises
        EngineUnavailable."""
        self.subscribers.write()
        if self.subscribers.writing:
            await self.done(transactions.Barrier(self.loop))
        try:
            return await self.loop.run_in_executor(self._executor, query, self._queries)
        except (sqlite3.Error, UnicodeError) as error:
            self._paths.refuse_if_moved()
            self._suspect(error)
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error
        except RuntimeError as error:  # the executor was shut down
            raise errors.EngineUnavailable(f"The engine is closed: {error}") from error

    async def consume(
        self, name: str, kinds: frozenset[interface.Kind], after: int | None, *, transient: bool
    ) -> interface.Consumer:
        mask = consumers.mask(kinds)

        async def scan(after: int, limit: int) -> consumers.Scan:
            return await self.ask(lambda asked: asked.scan(kinds, after, limit))

        async def move(position: int | None) -> None:
            forget = position is None
            await self.done(maintenance.StoreCursor(self.loop, name, position, kinds=mask, forget=forget))

        if transient:
            return await consumers.transient(after, scan=scan, grown=self.reader.grown)
        found = await self.done(maintenance.StoreCursor(self.loop, name, kinds=mask, first=after))
        return consumers.ScanningConsumer(
            found.log_id, found.position or 0, scan=scan, grown=self.reader.grown, move=move
        )

    def _in_thread(self, function: Callable[[], object]) -> None:
        """Call it in the thread for queries, without waiting. A failure is logged and counted."""

        def call() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001
                self.counters["callbacks_failed"] += 1
                throttled.error("Work in the thread for queries failed", error=error)

        self._executor.submit(call)

    def _suspect(self, error: BaseException) -> None:
        """A read failed: the next group checks the log if it may be damaged."""
        self._commits.log.suspect(error)
        if self._commits.log.suspected:
            self.submit(transactions.Barrier(self.loop))

    # -- following -----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Write this worker's row, which is part of any group, and follow from where the log ends then."""
        barrier = await self.done(transactions.Barrier(self.loop))
        try:
            self.reader.follow(barrier.top)
        except (sqlite3.Error, UnicodeError) as error:
            self._suspect(error)
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error

    def _lost(self, reason: str) -> None:
        """Entries may have been missed: report the gap, and start again at the newest entry."""
        self.counters["gaps"] += 1
        if reason == "log_replaced":
            self._lost_at_s = time.monotonic()
        if reason != moves.MOVED:  # which the commit queue logs
            throttled.error("Entries of the log may have been missed (%s): starting again at the newest entry", reason)
        self.reader.close()
        self._samples.clear()
        self._refuse_waiting("The worker starts again")
        if not self.is_closing:
            self._in_thread(self._queries.close)
        try:
            self._on_gap(reason, None)
        except Exception:
            self.counters["callbacks_failed"] += 1
            logger.exception("The report of a gap failed")
        if self._restarting is None or self._restarting.done():
            self._restarting = self._supervisor.spawn("The restart after a gap", self._restart())

    async def _restart(self) -> None:
        backoff = Backoff(first_s=0.05, longest_s=LONGEST_PAUSE_S)
        while not self.is_closing:
            try:
                await self._follow()
            except errors.EngineMoved:
                await asyncio.sleep(backoff.failed())
            except errors.EngineError as error:
                throttled.warning("The log cannot be followed again yet: %s", error)
                await asyncio.sleep(backoff.failed())
            except Exception as error:  # noqa: BLE001  (until it succeeds, this worker delivers nothing)
                throttled.error("The log cannot be followed again yet", error=error)
                await asyncio.sleep(backoff.failed())
            else:
                if self.reader.is_following:
                    return
                await asyncio.sleep(backoff.failed())  # it found another gap at once

    def _refuse_waiting(self, why: str) -> None:
        for subscription in self.reader.give_up():
            self.reader.answer(subscription, interface.Refused("engine_unavailable", why))

    # -- on a timer ----------------------------------------------------------------------------------------------------

    def _every(self, name: str, seconds: float, job: Callable[[], float | None]) -> None:
        """Run `job` again and again, after `seconds` or after those that it answers. A failure is logged and counted,
        and the next turn comes all the same."""

        def turn() -> None:
            pause_s = None
            try:
                pause_s = job()
            except Exception:
                self.counters["timer_failures"] += 1
                logger.exception("The engine's %s failed", name)
            if not self.is_closing:
                self._timers[name] = self.loop.call_later(pause_s or seconds, turn)

        self._timers[name] = self.loop.call_later(seconds, turn)

    def _tick(self) -> None:
        """The safety net below the notifications, and what could not be written before."""
        self.counters["expired"] += self._commits.expire(self._append_timeout)
        self._commits.revive()
        if self._commits.failure is not None:  # find out when the cause is gone, also where no client writes
            self.submit(transactions.TrialWrite(self.loop))
        for operation in [one for one in self._leaving.values() if one.failed]:
            operation.failed = False
            self.submit(operation)
        self.subscribers.write()
        self.leases.check()
        self.scheduler.tick()
        self.reader.recovery.clean()

    def _poll(self) -> None:
        if not self.scheduler.is_notified:
            self.reader.advance()

    def _remove_dead(self) -> None:
        """Take the lock of each worker that does not hold it any more. The process that gets it removes the worker."""
        if not self.reader.is_following:
            return
        try:
            workers = self.reader.workers()
        except sqlite3.Error as error:
            self._suspect(error)
            return
        self.workers = len(workers)
        if self.id not in workers or not self._lock.is_in_place():
            self._register_again()
            return
        for other in {*workers, *self._old_locks()} - {self.id, *self._removing}:
            lock = locks.FileLock(self._paths.worker_lock(other))
            if lock.acquire():
                self._removing[other] = lock
                self.counters["reaped"] += 1
                logger.warning("Worker %s is dead: its members and counts are removed", other)
                self.submit(presence.RemoveWorker(self.loop, other, self._removed))

    def _expire_members(self) -> None:
        try:
            if self.reader.is_following and self.reader.has_expired_members():
                self.submit(presence.ExpireMembers(self.loop))
        except sqlite3.Error as error:
            self._suspect(error)

    def _old_locks(self) -> Sequence[str]:
        """Workers without a row, because the log was deleted: their files are removed too. A lock that is younger may
        belong to a worker that is starting.
        """
        before = time.time() - OLD_LOCK_S
        with os.scandir(self._paths.workers) as found:
            return [entry.name.removesuffix(".lock") for entry in found if entry.stat().st_mtime < before]

    def _removed(self, operation: presence.RemoveWorker, error: errors.EngineError | None) -> None:
        lock = self._removing.pop(operation.worker)
        try:
            if error is None:
                notifications.remove(self._paths.sockets / f"{operation.worker}{notifications.SOCKET}")
        finally:
            lock.release(remove=error is None)

    def _register_again(self) -> None:
        """This worker's row or its lock's file was deleted, so others may take it for dead: it takes a new id."""
        self._lock.release()
        self._paths.workers.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.id = secrets.token_hex(8)
        self._lock = locks.FileLock(self._paths.worker_lock(self.id))
        self._acquire_lock()
        self._lost("worker_unknown")
        self.scheduler.close()
        self.scheduler = self._new_scheduler()
        self.scheduler.open()

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def _trim(self) -> float | None:
        """Delete entries that every worker has had `log_seconds` to read, sooner where space is short.

        The age is known from samples of this process's monotonic clock and not from the rows: a wall clock that jumps
        trims nothing. Answers the seconds until the next turn.
        """
        if not self.reader.is_following:
            return None
        space = self._commits.log.space
        now = time.monotonic()
        self._samples.append((now, self.reader.top))
        age_s = min(self._log_seconds, SHORT_LOG_SECONDS) if space.is_short else self._log_seconds
        upto = 0
        while self._samples and self._samples[0][0] <= now - age_s:
            upto = self._samples.popleft()[1]
        self._short_since_s = min(self._short_since_s, now) if space.is_short else float("inf")
        # Kept entries are deleted only where trimming the others was not enough.
        is_long_short = now - self._short_since_s > 2 * SHORT_LOG_SECONDS
        evict = int(space.used - space.limit * EVICT_TO_SHARE) if is_long_short else 0
        if upto or evict:
            self.submit(maintenance.Trim(self.loop, upto, self._trimmed, evict=evict))
        if not self._is_shrinking:
            self._shrink(must=space.is_disk_short)
        return SHORT_TRIM_S if space.is_short else None

    def _trimmed(self, operation: maintenance.Trim, error: errors.EngineError | None) -> None:
        if error is not None:
            return
        if operation.evicted:
            self.counters["evicted"] += operation.evicted
            throttled.error("The log is short of space: %d entries of histories were deleted", operation.evicted)
        if operation.more:
            self.submit(maintenance.Trim(self.loop, operation.upto, self._trimmed))

    def _shrink(self, *, must: bool) -> None:
        self._is_shrinking = True
        self.submit(maintenance.Shrink(self.loop, self._shrunk, must=must))

    def _shrunk(self, operation: maintenance.Shrink, error: errors.EngineError | None) -> None:
        was_shrinking = self._is_shrinking and operation.did
        self._is_shrinking = error is None and operation.more and not self.is_closing
        if was_shrinking and not self._is_shrinking:
            self._commits.log.request_checkpoint()
        if self._is_shrinking:
            self._timers["shrink"] = self.loop.call_later(SHRINK_S, lambda: self._shrink(must=operation.must))

    def _measure(self) -> None:
        if self.reader.is_following and (self._measuring is None or self._measuring.done()):
            self._measuring = self._supervisor.spawn(
                "The measurement of the log", self._measured(), expected=(errors.EngineError,)
            )

    async def _measured(self) -> None:
        self._in_thread(self._commits.log.reserve.restore)
        self.sizes = await self.ask(queries.LogQueries.sizes)
        if self.sizes["sessions_late"] > interface.LATE_SESSIONS:
            # Up to an instant, not a number of them: every worker measures, and asks for the same.
            expired_s = await self.ask(queries.LogQueries.too_late)
            self.submit(sessions.DropLateSessions(self.loop, expired_s, self._sessions_dropped))

    def _sessions_dropped(self, operation: sessions.DropLateSessions, error: errors.EngineError | None) -> None:
        if error is None and operation.dropped:
            self.counters["sessions_dropped"] += operation.dropped
            throttled.warning(
                "%d records of resume tokens were deleted: %d are kept after their window",
                operation.dropped,
                interface.LATE_SESSIONS,
            )

    def _count(self, name: str) -> None:
        self.counters[name] += 1
