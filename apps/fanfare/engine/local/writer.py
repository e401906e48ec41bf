"""Who writes to the log, and when: one group of operations per commit, one writer at a time in a process.

What comes in while a commit runs goes into the next one, so the cost of a commit is shared exactly when there is
something to share.

A thread that waits for its own operation writes it itself where nobody else is writing: handing it to another thread
and being woken again costs more than the commit (55 µs against 20 µs of CPU, measured with single commits). An event
loop does the same at the end of a turn with what came in during it. That is one commit to the kernel's page cache,
while the way to a thread and back, which fights with the loop for the interpreter's lock, was 40 % of the CPU of many
small rooms. What can take longer is left to a thread of the writer's own: to open the log, to queue behind other
writers, to bring what was committed to the disk, and everything for a while after a commit that was slow.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence

from fanfare.engine import errors
from fanfare.engine.local import commits, occupancy, operations, place, presence, publishing, schema

logger = logging.getLogger(__name__)

# Bounds one commit to some tens of milliseconds, and so the wait of the other writers.
GROUP_OPERATIONS = 2_000
HERE_OPERATIONS = 256  # the same on an event loop: some milliseconds

# A disk that makes commits wait must not make an event loop wait. Two looks at a clock for each commit tell.
SLOW_S = 0.02
REST_S = 5.0

# What somebody waits for with a time-out; the other operations are kept until they are written.
_AWAITED = (publishing.AwaitedAppend, publishing.PostedAppend, presence.Attach, occupancy.Admit)

STOP_S = 10.0  # for what is pending to be written


class Writer:
    """The queue, and the thread. `submit`, `write` and `withdraw` may be called from any thread.

    `logged` is called after a commit that added entries to the log, in the thread that wrote.
    """

    def __init__(self, where: place.Place, *, full_sync: bool, logged: Callable[[], None]) -> None:
        self.failure: str | None = None  # why a group failed; None after one that changed something
        self.groups = 0
        self.operations = 0
        self._commits = commits.Commits(where, full_sync=full_sync)
        self._logged = logged
        self._changed = threading.Condition(threading.Lock())
        self._pending: list[operations.Operation] = []
        self._soon: AbstractEventLoop | None = None  # writes at the end of its turn
        self._rest_until = 0.0  # until then no event loop writes
        self._full_sync = full_sync
        self._writing = False  # somebody does: only they touch `_commits`, and they look at `_pending` again afterwards
        self._stopping = False
        self._last = False  # no other worker lives: leave the log clean
        self._thread: threading.Thread | None = None

    @property
    def worker(self) -> str | None:
        return self._commits.worker

    @worker.setter
    def worker(self, worker: str | None) -> None:
        self._commits.worker = worker

    @property
    def reopened(self) -> int:
        return self._commits.reopened

    @property
    def set_aside(self) -> int:
        return self._commits.set_aside

    @property
    def checkpoints(self) -> int:
        return self._commits.checkpoints

    @property
    def stopped(self) -> bool:
        return self._stopping

    def submit(self, operation: operations.Operation) -> None:
        """Have it written, without waiting. On the loop of the operation, if it has one."""
        with self._changed:
            self._append(operation)
            loop = operation.loop
            if self._writing or (loop is not None and loop is self._soon):
                return
            if loop is None or self._soon is not None or not self._may_write_here():
                self._wake()
                return
            self._soon = loop
        loop.call_soon(self._write_here, loop)

    def write(self, operation: operations.Operation) -> None:
        """Write it in this thread, with what else is pending, if nobody is writing and the turn comes at once; else
        have it written. What is interrupted (by an exception of a signal handler) may be written or not.
        """
        with self._changed:
            self._append(operation)
            if self._writing:
                return
            self._writing = True
        try:
            self._turn(tries=commits.TRIES)
        finally:
            with self._changed:
                self._writing = False
                if self._pending or self._stopping or self._commits.is_long:
                    self._wake()

    def withdraw(self, operation: operations.Operation) -> bool:
        """Take back what no transaction has begun with. False: it is too late."""
        with self._changed:
            if operation not in self._pending:
                return False
            self._pending.remove(operation)
            return True

    def suspect(self) -> None:
        """Somebody who reads found damage: the log is looked at before the next group is written."""
        self._commits.suspected = True

    def expire(self, seconds: float) -> int:
        """Refuse what somebody waits for and has waited for longer than this; answers how much that is."""
        if not self._pending:
            return 0
        born_before = time.monotonic() - seconds
        with self._changed:
            late: list[operations.Operation] = [
                one for one in self._pending if one.born <= born_before and isinstance(one, _AWAITED)
            ]
            if late:
                gone = set(late)
                self._pending = [one for one in self._pending if one not in gone]
        settle(late, errors.EngineUnavailable(f"The log's queue did not move for {seconds:g} s"))
        return len(late)

    def stop(self, last: bool) -> None:
        """Write what is pending, then close the log. `last`: no other worker lives, leave the log clean. Blocks."""
        with self._changed:
            self._stopping = True
            self._last = last
            self._wake()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _may_write_here(self) -> bool:
        return self._commits.is_open and not self._full_sync and time.monotonic() >= self._rest_until

    def _write_here(self, loop: AbstractEventLoop) -> None:
        """In an event loop, after the callbacks of its turn."""
        with self._changed:
            self._soon = None
            if self._writing or not self._pending:
                return
            self._writing = True
        began = time.monotonic()
        got = False
        try:
            got = self._turn(tries=1, here=loop)
        finally:
            with self._changed:
                self._writing = False
                if time.monotonic() - began > SLOW_S:
                    self._rest_until = began + REST_S
                again = got and bool(self._pending) and not self._stopping and self._may_write_here()
                if again:
                    self._soon = loop
                if self._commits.is_long or (not again and (self._pending or self._stopping)):
                    self._wake()
        if again:
            loop.call_soon(self._write_here, loop)

    def _append(self, operation: operations.Operation) -> None:
        if self._stopping:
            raise errors.EngineUnavailable("The engine is closed")
        self._pending.append(operation)

    def _wake(self) -> None:
        if self._thread is None:
            # A daemon: a shell that forgot to close must be able to end. What is acknowledged is committed.
            self._thread = threading.Thread(target=self._work, name="fanfare-writer", daemon=True)
            self._thread.start()
        else:
            self._changed.notify()

    def _work(self) -> None:
        """The writer's own thread."""
        while True:
            with self._changed:
                while not self._has_work():
                    self._changed.wait()
                copying = self._commits.is_long
                if not copying and not self._pending:
                    break
                self._writing |= not copying
            if copying:
                self._checkpoint()
                continue
            self._turn(tries=None)
            with self._changed:
                self._writing = False
        self._commits.close(last=self._last)

    def _has_work(self) -> bool:
        return self._commits.is_long or (not self._writing and (bool(self._pending) or self._stopping))

    def _checkpoint(self) -> None:
        """While others write. What goes wrong is not lost: it is in the WAL, and the next one copies it."""
        try:
            self._commits.checkpoint()
        except (sqlite3.Error, OSError, errors.EngineError) as found:
            logger.warning("The log could not be brought up to date with its WAL: %s", found)
            self._commits.suspected |= schema.is_damage(found)

    # -- by whoever is writing -----------------------------------------------------------------------------------------

    def _turn(self, *, tries: int | None, here: AbstractEventLoop | None = None) -> bool:
        """Get the turn among all writers, then write one group. False: somebody else had it at each try.

        `here`: the loop that this runs on.
        """
        group: list[operations.Operation] = []
        error: errors.EngineError | None = None
        try:
            try:
                if not self._commits.enter(tries=tries):
                    return False
                # Taken only now: what waits for the turn can still be withdrawn.
                size = GROUP_OPERATIONS if here is None else HERE_OPERATIONS
                with self._changed:
                    group, self._pending = self._pending[:size], self._pending[size:]
                if not group:
                    return True
                self._commits.write(group, _settle_one)
            finally:
                self._commits.leave()
        except errors.EngineError as found:
            error = found
        except (sqlite3.Error, OSError) as found:
            error = errors.EngineUnavailable(f"The log cannot be written: {found}")
            self._commits.suspected |= schema.is_damage(found)
        except Exception as found:  # somebody waits for each operation, and the thread must outlive every mistake
            logger.exception("The writer failed")
            error = errors.EngineUnavailable(f"The writer failed: {found!r}")
        except BaseException as found:
            if group:
                done = self._commits.committed
                settle(group, None if done else errors.EngineUnavailable(f"The writer was interrupted: {found!r}"))
            raise
        if error is not None:
            self._commits.disconnect()
            if not group:  # the lock or the folder itself failed: nobody may wait for ever
                with self._changed:
                    group, self._pending = self._pending, []
        self._finish(group, error, here)
        return True

    def _finish(
        self,
        group: Sequence[operations.Operation],
        error: errors.EngineError | None,
        here: AbstractEventLoop | None,
    ) -> None:
        if error is None:
            if self._commits.changed_rows:  # on a full disk all goes well as long as there is nothing to write
                self.failure = None
            self.groups += 1
            self.operations += len(group)
        elif self.failure != str(error):
            self.failure = str(error)
            logger.error("%s", error)
        settle(group, error, here)
        if error is None and self._commits.logged:
            self._logged()


def settle(
    group: Sequence[operations.Operation], error: errors.EngineError | None, here: AbstractEventLoop | None = None
) -> None:
    """Tell the makers: those of one loop with one wake-up of it, those of the loop `here` and of no loop at once."""
    at_once = [operation for operation in group if operation.loop is here or operation.loop is None]
    _settle_all(at_once, error)
    if len(at_once) == len(group):
        return
    by_loop: dict[AbstractEventLoop, list[operations.Operation]] = {}
    for operation in group:
        if operation.loop is not None and operation.loop is not here:
            by_loop.setdefault(operation.loop, []).append(operation)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle_all, mine, error)
        except RuntimeError:
            logger.debug("A loop was closed before its operations ended")


def _settle_one(operation: operations.Operation, error: errors.EngineError) -> None:
    settle([operation], error)


def _settle_all(group: Sequence[operations.Operation], error: errors.EngineError | None) -> None:
    for operation in group:
        try:
            operation.settle(error)
        except Exception:
            # Whoever is told second must not pay for whoever is told first.
            logger.exception("The end of an operation could not be told")
