"""The queue of write operations in one process: one group of them per commit, one writer at a time.

Operations that come while a commit runs go into the next one, so the cost of a commit is shared exactly when there is
something to share.

A thread that waits for its own operation writes it itself if no other thread is writing: handing it over and being
woken again costs more than the commit (55 µs against 20 µs of CPU, measured with single commits). An event loop does
the same after it has looked at its sockets once more, with the operations of both turns: for the events of four
backends that wait for each response, that takes 0.95 times the CPU. It is one commit to the kernel's page cache, while
the way to a thread and back, which contends with the loop for the interpreter's lock, was 40 % of the CPU of many small
rooms. Work that can take longer is left to a thread of the queue: opening the log, waiting for other writers, waiting
for the disk, and everything for a while after a commit that was slow.
"""

from __future__ import annotations

import collections
import logging
import operator
import resource
import sqlite3
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence

from fanfare.engine import errors
from fanfare.engine.local import log_file
from fanfare.engine.local.transactions import Added, WriteOp
from fanfare.runtime import text
from fanfare.runtime.histograms import Histogram
from fanfare.runtime.log_throttle import LogThrottle

_BORN = operator.attrgetter("born")

logger = logging.getLogger(__name__)
throttled = LogThrottle(logger)

# Bounds one commit to some tens of milliseconds, and so the wait of the other writers.
GROUP_OPS = 2_000
LOOP_GROUP_OPS = 256  # the same on an event loop: some milliseconds

# A disk that makes commits wait must not make an event loop wait. A commit that took SLOW_S counts if the thread gave
# up its core to wait: on a busy machine most slow commits were preempted, and a thread would be preempted as well. The
# loop leaves the commits to the thread for REST_S when it has waited STALL_S, beyond STALL_SHARE of the time: a rare
# short wait costs less than 5 s of hand-overs.
SLOW_S = 0.02
STALL_S = 0.1
STALL_SHARE = 0.02
REST_S = 5.0
HUNG_S = 1.0  # a commit that took so long counts in any case

_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)  # Linux

STOP_S = 10.0  # for pending operations to be written
RESTART_PAUSE_S = 0.1  # after a failure of the thread itself


def _nothing() -> None:
    """No reader."""


class CommitQueue:
    """`submit`, `write` and `withdraw` may be called from any thread.

    `logged` is called with the entries of each commit that added some to the log, in the thread that wrote, and with
    whether an event loop wrote them. That loop calls `written` afterwards, when the next group may be written.
    """

    def __init__(
        self,
        log: log_file.LogFile,
        *,
        logged: Callable[[Added, bool], None],
        written: Callable[[], None] = _nothing,
    ) -> None:
        self.log = log
        self.failure: str | None = None  # why a group failed; None after one that changed something
        self.groups = 0
        self.operations = 0
        self.commit_seconds = Histogram()  # from the submission of an operation to its commit
        self.counters: collections.Counter[str] = collections.Counter()
        self._logged = logged
        self._written = written
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # entering it is a call of Python, entering the lock is none
        self._pending: list[WriteOp] = []
        self._soon: AbstractEventLoop | None = None  # writes at the end of its next turn
        self._rest_until = 0.0  # until then no event loop writes
        self._stall_s = 0.0  # how long an event loop has waited in commits, less STALL_SHARE of the time
        self._stalled_at = 0.0
        self._writing = False  # a thread does: only that one touches `log`, and it looks at `_pending` again afterwards
        self._stopping = False
        self._last = False  # no other worker is alive: close the log cleanly
        self._thread: threading.Thread | None = None

    @property
    def is_stopped(self) -> bool:
        return self._stopping

    def submit(self, operation: WriteOp) -> None:
        """Have it written, without waiting. On the loop of the operation, if it has one. Raises EngineUnavailable."""
        with self._lock:
            self._append(operation)
            loop = operation.loop
            if self._writing or (loop is not None and loop is self._soon):
                return
            if loop is None or self._soon is not None or not self._may_write_on_loop():
                self._wake()
                return
            self._soon = loop
        # Not in this turn: the operations of requests that came meanwhile join the group.
        loop.call_soon(loop.call_soon, self._write_on_loop, loop)

    def write(self, operation: WriteOp) -> None:
        """Write it in this thread, with what else is pending, if no other thread is writing and the lock is free soon;
        otherwise have it written. A call that is interrupted (by an exception of a signal handler) may have written it
        or not. Raises EngineUnavailable.
        """
        with self._lock:
            self._append(operation)
            if self._writing:
                return
            self._writing = True
        try:
            self._turn(tries=log_file.TRIES)
        finally:
            with self._lock:
                self._writing = False
                if self._pending or self._stopping or self.log.needs_checkpoint:
                    self._wake()

    def withdraw(self, operation: WriteOp) -> bool:
        """Take back an operation that no transaction has begun with. False: it is too late."""
        with self._lock:
            if operation not in self._pending:
                return False
            self._pending.remove(operation)
            return True

    def expire(self, seconds: float) -> int:
        """Refuse the operations of waiting callers that are older than this; answers how many."""
        if not self._pending:
            return 0
        born_before = time.monotonic() - seconds
        with self._lock:
            late = [one for one in self._pending if one.born <= born_before and one.is_awaited]
            if late:
                gone = set(late)
                self._pending = [one for one in self._pending if one not in gone]
        self._settle(late, errors.EngineUnavailable(timed_out(seconds)))
        return len(late)

    def stop(self, last: bool) -> None:
        """Write pending operations, then close the log. `last`: no other worker is alive. Blocks."""
        with self._lock:
            self._stopping = True
            self._last = last
            self._wake()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def revive(self) -> None:
        """Start the thread again if it ended. Called on a timer."""
        with self._lock:
            if self._thread is not None and not self._thread.is_alive() and not self._stopping:
                self._wake()

    # -- on an event loop ----------------------------------------------------------------------------------------------

    def _may_write_on_loop(self) -> bool:
        return self.log.is_open and not self.log.full_sync and time.monotonic() >= self._rest_until

    def _write_on_loop(self, loop: AbstractEventLoop) -> None:
        """After the callbacks of the loop's turn."""
        with self._lock:
            self._soon = None
            if self._writing or not self._pending:
                return
            self._writing = True
        began, waits = time.monotonic(), _waits()
        got = False
        try:
            got = self._turn(tries=1, here=loop)
        finally:
            with self._lock:
                self._writing = False
                took_s = time.monotonic() - began
                if took_s > SLOW_S and (took_s > HUNG_S or _waits() > waits):
                    self._stalled(began, took_s)
                again = got and bool(self._pending) and not self._stopping and self._may_write_on_loop()
                if again:
                    self._soon = loop
                if self.log.needs_checkpoint or (not again and (self._pending or self._stopping)):
                    self._wake()
        if again:
            loop.call_soon(self._write_on_loop, loop)
        try:
            self._written()
        except Exception:
            self.counters["callbacks_failed"] += 1
            logger.exception("The read after a commit failed")

    def _stalled(self, began: float, took_s: float) -> None:
        """The disk made the event loop wait in a commit."""
        passed_s = began - self._stalled_at
        self._stall_s = max(0.0, self._stall_s - passed_s * STALL_SHARE) + took_s
        self._stalled_at = began
        if self._stall_s > STALL_S:
            self._rest_until = began + REST_S

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _append(self, operation: WriteOp) -> None:
        if self._stopping:
            raise errors.EngineUnavailable("The engine is closed")
        operation.born = time.monotonic()
        self._pending.append(operation)

    def _wake(self) -> None:
        """While holding `_lock`."""
        if self._thread is not None and self._thread.is_alive():
            self._changed.notify()
            return
        if self._thread is not None:
            self.counters["thread_restarts"] += 1
        # A daemon: a shell that forgot to close must be able to end. What is acknowledged is committed.
        self._thread = threading.Thread(target=self._work, name="fanfare-writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads: the next operation, or the timer, tries again
            self._thread = None
            self.failure = f"The writer's thread cannot be started: {error}"
            throttled.error("%s", self.failure, key="thread")

    def _work(self) -> None:
        """The queue's thread. Only the end of the process ends it before `stop`."""
        while True:
            try:
                if self._is_done():
                    break
            except Exception as found:
                # The turn refuses its own operations. Whatever else fails must not leave those of others waiting.
                self.counters["thread_failures"] += 1
                self.failure = text.clean(f"The writer failed: {found!r}")
                logger.exception("The writer's thread failed; it continues")
                time.sleep(RESTART_PAUSE_S)
        self.log.close(last=self._last)

    def _is_done(self) -> bool:
        with self._changed:
            while not self._has_work():
                self._changed.wait()
            copying = self.log.needs_checkpoint
            if not copying and not self._pending:
                return True
            self._writing |= not copying
        if copying:
            self._checkpoint()
            return False
        try:
            self._turn(tries=None)
        finally:
            with self._lock:
                self._writing = False
        return False

    def _has_work(self) -> bool:
        return self.log.needs_checkpoint or (not self._writing and (bool(self._pending) or self._stopping))

    def _checkpoint(self) -> None:
        """While others write. A failure loses nothing: the next checkpoint copies the pages, which are in the WAL."""
        try:
            self.log.checkpoint()
        except Exception as found:  # noqa: BLE001 - of any kind: the log is still written
            throttled.warning("The WAL could not be copied into the log: %s", text.clean(str(found)), key="checkpoint")
            self.log.suspect(found)

    # -- in the thread that writes -------------------------------------------------------------------------------------

    def _turn(self, *, tries: int | None, here: AbstractEventLoop | None = None) -> bool:
        """Acquire the write lock, then write one group. False: other processes held it at each try.

        `here`: the loop that this runs on.
        """
        group: list[WriteOp] = []
        error: errors.EngineError | None = None
        try:
            try:
                if not self.log.lock(tries=tries):
                    return False
                # Taken only now: an operation that waits for the lock can still be withdrawn.
                size = GROUP_OPS if here is None else LOOP_GROUP_OPS
                with self._lock:
                    group, self._pending = self._pending[:size], self._pending[size:]
                if not group:
                    return True
                self.log.write(group, lambda operation, fault: self._settle([operation], fault))
            finally:
                self.log.unlock()
        except errors.EngineError as found:
            error = found
        except (sqlite3.Error, OSError) as found:
            error = errors.EngineUnavailable(f"The log cannot be written: {found}")
            self.log.suspect(found)
        except Exception as found:
            # A caller waits for each operation, and the thread must survive every fault.
            logger.exception("The writer failed")
            error = errors.EngineUnavailable(f"The writer failed: {found!r}")
            self.log.suspect(found)
        except BaseException as found:
            if group:
                done = self.log.committed
                self._settle(
                    group, None if done else errors.EngineUnavailable(f"The writer was interrupted: {found!r}")
                )
            raise
        if error is not None:
            self.log.disconnect()
            if not group:  # the lock or the folder itself failed: no operation may wait for ever
                with self._lock:
                    group, self._pending = self._pending, []
        self._finish(group, error, here)
        return True

    def _finish(
        self, group: Sequence[WriteOp], error: errors.EngineError | None, here: AbstractEventLoop | None
    ) -> None:
        if error is None:
            if self.log.changed_rows:  # on a full disk a group without changes succeeds
                self.failure = None
            self.groups += 1
            self.operations += len(group)
            if group:
                self.commit_seconds.observe_since(list(map(_BORN, group)))
        elif self.failure != str(error):
            self.failure = str(error)
            is_moved = isinstance(error, errors.EngineMoved)  # an operator has done it, so nothing is wrong
            logger.log(logging.WARNING if is_moved else logging.ERROR, "%s", error)
        self._settle(group, error, here)
        if error is None and self.log.added is not None:
            try:
                self._logged(self.log.added, here is not None)
            except Exception:
                # The group is committed: readers find it on their timers.
                self.counters["callbacks_failed"] += 1
                logger.exception("The notification of the readers failed")

    def _settle(
        self, group: Sequence[WriteOp], error: errors.EngineError | None, here: AbstractEventLoop | None = None
    ) -> None:
        """Call back: the operations of one loop with one wake-up of it, those of the loop `here` and of no loop at
        once."""
        elsewhere: dict[AbstractEventLoop, list[WriteOp]] = {}
        for operation in group:
            loop = operation.loop
            if loop is not None and loop is not here:
                elsewhere.setdefault(loop, []).append(operation)
                continue
            try:
                operation.settle(error)
            except Exception:
                # An exception in one callback must not stop the others.
                self.counters["callbacks_failed"] += 1
                logger.exception("A callback after a commit failed")
        for loop, mine in elsewhere.items():
            try:
                loop.call_soon_threadsafe(self._settle, mine, error, loop)
            except RuntimeError:
                logger.debug("A loop was closed before its operations ended")
            except Exception:
                self.counters["callbacks_failed"] += 1
                logger.exception("The results of operations could not be handed to their event loop")


def _waits() -> int:
    """How often this thread has given up its core to wait. Where the kernel does not count that, it always grows."""
    return resource.getrusage(_THREAD).ru_nvcsw if _THREAD is not None else time.monotonic_ns()


def timed_out(seconds: float) -> str:
    return f"Timed out after {seconds:g} s waiting for the log's write lock; nothing was published"
