"""Who writes to the log, and when: one thread per process, one group of operations per commit.

What comes in while a commit runs goes into the next one, so the cost of a commit is shared exactly when there is
something to share. Writers of different processes queue on the kernel's lock of a file beside the log: on SQLite's own
busy handler, which polls, four saturated writers waited up to 2.4 s and got shares of 3:1; on the kernel's queue 17 ms,
with equal shares.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence

from apps.engine import errors
from apps.engine.local import occupancy, operations, place, presence, publishing, schema

logger = logging.getLogger(__name__)

# Bounds one commit to some tens of milliseconds, and so the wait of the other writers.
GROUP_OPERATIONS = 2_000


# What somebody waits for with a time-out; the other operations are kept until they are written.
_AWAITED = (publishing.AwaitedAppend, presence.Attach, occupancy.Admit)


class Writer:
    """The thread and its queue. `submit` and `withdraw` may be called from any thread."""

    def __init__(self, where: place.Place, *, full_sync: bool, committed: Callable[[], None]) -> None:
        self.where = where
        self.worker: str | None = None  # set before `start` in a process that is a worker
        self.failure: str | None = None  # why a group failed; None after one that changed something
        self.groups = 0
        self.operations = 0
        self.reopened = 0
        self.set_aside = 0  # damaged logs
        self._suspected = False  # somebody found damage in the log
        self._full_sync = full_sync
        self._committed = committed
        self._changed = threading.Condition(threading.Lock())
        self._pending: list[operations.Operation] = []
        self._stopping = False
        self._last = False  # no other worker lives: leave the log clean
        self._thread: threading.Thread | None = None
        # The writer's thread only:
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._registered: str | None = None  # the worker whose row is in this file
        self._queue_fd = -1
        self._changed_rows = False  # by the last group

    def submit(self, operation: operations.Operation) -> None:
        with self._changed:
            if self._stopping:
                raise errors.EngineUnavailable("The engine is closed")
            self._pending.append(operation)
            if self._thread is None:
                # A daemon: a shell that forgot to close must be able to end. What is acknowledged is committed.
                self._thread = threading.Thread(target=self._work, name="fanfare-writer", daemon=True)
                self._thread.start()
            else:
                self._changed.notify()

    @property
    def stopped(self) -> bool:
        return self._stopping

    def withdraw(self, operation: operations.Operation) -> bool:
        """Take back what no transaction has begun with. False: it is too late."""
        with self._changed:
            if operation not in self._pending:
                return False
            self._pending.remove(operation)
            return True

    def suspect(self) -> None:
        """Somebody who reads found damage: the log is looked at before the next group is written."""
        self._suspected = True

    def expire(self, seconds: float) -> int:
        """Refuse what somebody waits for and has waited for longer than this; answers how much that is."""
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
        """Write what is pending, then end the thread. `last`: no other worker lives, leave the log clean. Blocks."""
        with self._changed:
            self._stopping = True
            self._last = last
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=10)

    # -- in the writer's thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._stopping:
                    self._changed.wait()
                if not self._pending:
                    break
            self._turn()
        self._close()

    def _turn(self) -> None:
        """Wait for the turn among all writers, then write one group."""
        group: list[operations.Operation] = []
        error: errors.EngineError | None = None
        try:
            self._queue()
            try:
                # Taken only now: what waits for the lock can still be withdrawn.
                with self._changed:
                    group, self._pending = self._pending[:GROUP_OPERATIONS], self._pending[GROUP_OPERATIONS:]
                if group:
                    self._write(group)
            finally:
                fcntl.flock(self._queue_fd, fcntl.LOCK_UN)
        except errors.EngineError as found:
            error = found
        except (sqlite3.Error, OSError) as found:
            error = errors.EngineUnavailable(f"The log cannot be written: {found}")
            self._suspected |= schema.is_damage(found)
        except Exception as found:  # this thread must outlive every mistake: somebody waits for each operation
            logger.exception("The writer failed")
            error = errors.EngineUnavailable(f"The writer failed: {found!r}")
        if error is not None:
            self._disconnect()
            if not group:  # the lock or the folder itself failed: nobody may wait for ever
                with self._changed:
                    group, self._pending = self._pending, []
        self._finish(group, error)

    def _finish(self, group: Sequence[operations.Operation], error: errors.EngineError | None) -> None:
        if error is None:
            if self._changed_rows:  # on a full disk all goes well as long as there is nothing to write
                self.failure = None
            self.groups += 1
            self.operations += len(group)
        elif self.failure != str(error):
            self.failure = str(error)
            logger.error("%s", error)
        settle(group, error)
        if error is None:
            self._committed()

    def _write(self, group: list[operations.Operation]) -> None:
        connection = self._connect()
        changes = connection.total_changes
        try:
            self._transact(connection, group)
        except Exception as fault:
            if _is_of_the_place(fault):
                raise
            # One operation is at fault: let it alone pay.
            logger.exception("An operation of a group of %d failed; each is tried alone", len(group))
            for operation in list(group):
                self._try(connection, operation, group)
        self._changed_rows = connection.total_changes > changes
        if self.where.identity() != self._identity:
            # What was just written is in a file that nobody else will ever open: it must not be acknowledged.
            raise errors.EngineUnavailable("The log was deleted or replaced while it was written")

    def _transact(self, connection: sqlite3.Connection, group: Sequence[operations.Operation]) -> None:
        try:
            transaction = operations.open_group(connection, self.worker)
            worker = self.worker
            if worker is not None and worker != self._registered:
                # Before anything in this file that would have to be taken away after its death.
                connection.execute("INSERT OR IGNORE INTO workers VALUES (?, ?)", (worker, os.getpid()))
            for operation in group:
                operation.run(transaction)
            transaction.finish()
            connection.execute("COMMIT")
            self._registered = worker
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _try(
        self, connection: sqlite3.Connection, operation: operations.Operation, group: list[operations.Operation]
    ) -> None:
        """Write one operation; take it out of its group if it is the one at fault."""
        try:
            self._transact(connection, [operation])
        except Exception as fault:
            if _is_of_the_place(fault):
                raise
            group.remove(operation)
            settle([operation], errors.EngineUnavailable(f"The engine failed: {fault!r}"))

    def _queue(self) -> None:
        if self._queue_fd < 0:
            self.where.prepare()
            self._queue_fd = os.open(self.where.queue, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._queue_fd, fcntl.LOCK_EX)

    def _connect(self) -> sqlite3.Connection:
        """The connection to the file that is at the log's path now."""
        if self._suspected:
            self._replace_if_damaged()
        if self._connection is not None and self.where.identity() == self._identity:
            return self._connection
        if self._connection is not None:
            logger.warning("The log was deleted or replaced; opening the one that is there now")
            self.reopened += 1
        self._disconnect()
        self.where.prepare()
        if self.where.identity() is None:
            self.where.clear_remains()
        connection = schema.connect(self.where, create=True)
        try:
            schema.prepare(connection, full_sync=self._full_sync)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity, self._registered = connection, self.where.identity(), None
        return connection

    def _replace_if_damaged(self) -> None:
        """A log that is damaged would be of no use to anybody until a person came; a new one is of use at once. Its
        streams have new epochs, so everybody who comes back is told that events are missing.
        """
        self._disconnect()
        if self.where.identity() is not None and not schema.is_sound(self.where):
            aside = self.where.set_aside()
            self.set_aside += 1
            logger.critical(
                "The log was damaged: it is kept as %s, and a new one is begun. Histories, positions and resume tokens "
                "are lost, and who comes back is told so. Check the disk.",
                aside,
            )
        self._suspected = False

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _close(self) -> None:
        try:
            if self._last and self._connection is not None and self.where.identity() == self._identity:
                self._queue()
                schema.mark_clean(self._connection)
        except (sqlite3.Error, OSError, errors.EngineError) as error:
            logger.warning("The log could not be left clean: %s", error)
        finally:
            self._disconnect()
            if self._queue_fd >= 0:
                os.close(self._queue_fd)
                self._queue_fd = -1


def _is_of_the_place(fault: Exception) -> bool:
    """Whether the file is the reason (locked, full, unreadable, corrupt) and not one operation's values."""
    return (
        isinstance(fault, (errors.EngineError, OSError, sqlite3.OperationalError))
        or type(fault) is sqlite3.DatabaseError
    )


def settle(group: Sequence[operations.Operation], error: errors.EngineError | None) -> None:
    """Tell the makers, those of one loop with one wake-up of it."""
    here = [operation for operation in group if operation.loop is None]
    for operation in here:
        operation.settle(error)
    if len(here) == len(group):
        return
    by_loop: dict[AbstractEventLoop, list[operations.Operation]] = {}
    for operation in group:
        if operation.loop is not None:
            by_loop.setdefault(operation.loop, []).append(operation)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle_all, mine, error)
        except RuntimeError:
            logger.debug("A loop was closed before its operations ended")


def _settle_all(group: Sequence[operations.Operation], error: errors.EngineError | None) -> None:
    for operation in group:
        operation.settle(error)
