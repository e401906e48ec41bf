"""How one group of operations gets into the log: the turn among all writers, one transaction, and the file itself.

Writers of different processes queue on the kernel's lock of a file beside the log. On SQLite's own busy handler, which
backs off, four saturated writers waited up to 2.4 s and got shares of 3:1; on the kernel's queue 17 ms, with equal
shares.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence

from fanfare.engine import errors
from fanfare.engine.local import operations, place, schema

logger = logging.getLogger(__name__)

# Who does not want to block on the lock looks again after a pause of about one commit (20 µs and the timer's slack of
# 50 µs): of four saturated writers one in a hundred gives up.
TRIES = 20
PAUSE_S = 20e-6

# Some 8 MB of WAL: a checkpoint takes as long as hundreds of commits.
CHECKPOINT_PAGES = 2_000
COMMIT_PAGES = 6  # of a small commit: the last pages of the tables and indexes that it changes
PAGE_BYTES = 4_096
LONG_PAGES = 8_000  # 32 MB: other writers never paused

Fault = Callable[[operations.Operation, errors.EngineError], None]


class Commits:
    """The log, opened for writing. Used by one thread at a time, whichever it is: `enter`, `write`, `leave`."""

    def __init__(self, where: place.Place, *, full_sync: bool) -> None:
        self.where = where
        self.worker: str | None = None  # set before the first group in a process that is a worker
        self.reopened = 0
        self.set_aside = 0  # damaged logs
        self.suspected = False  # somebody found damage in the log
        self.changed_rows = False  # by the last group
        self.committed = False  # whether all of the last group is in the log
        self.logged = False  # whether it added entries, which the workers want to read
        self.checkpoints = 0
        self._uncopied = 0  # pages since the last one, as far as they can be guessed
        self._weight = 0  # bytes of the last group's entries
        self._full_sync = full_sync
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._registered: str | None = None  # the worker whose row is in this file
        self._queue_fd = -1
        # Gives the turn back, also one that was not got. Not a method: before the first line of one a signal's handler
        # can raise, and then every writer of the machine would wait for this process.
        self.leave: Callable[[], object] = _nothing

    @property
    def is_open(self) -> bool:
        """Whether the next group finds the log opened, and nobody doubts that it is sound."""
        return self._connection is not None and not self.suspected

    @property
    def is_long(self) -> bool:
        """Whether it is time for a checkpoint, of what this process wrote."""
        return self._uncopied >= CHECKPOINT_PAGES

    def enter(self, *, tries: int | None) -> bool:
        """Take the turn among all writers. None: block for it, however long. False: it was taken at each try."""
        self.committed = self.logged = False
        if self._queue_fd < 0:
            self.where.prepare()
            self._queue_fd = os.open(self.where.queue, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.leave = functools.partial(fcntl.flock, self._queue_fd, fcntl.LOCK_UN)
        if tries is None:
            fcntl.flock(self._queue_fd, fcntl.LOCK_EX)
            return True
        for left in reversed(range(tries)):
            try:
                fcntl.flock(self._queue_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if left:
                    time.sleep(PAUSE_S)
            else:
                return True
        return False

    def write(self, group: list[operations.Operation], at_fault: Fault) -> None:
        """Write all of the group in one transaction.

        An operation whose values are at fault is told to `at_fault` and taken out of the group. Raises what the place
        is at fault for, and then nothing of the group is acknowledged.
        """
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
                self._try(connection, operation, group, at_fault)
        self.changed_rows = connection.total_changes > changes
        if self.where.identity() != self._identity:
            # What was just written is in a file that nobody else will ever open: it must not be acknowledged.
            raise errors.EngineUnavailable("The log was deleted or replaced while it was written")
        self.committed = True
        self._uncopied += COMMIT_PAGES + self._weight // PAGE_BYTES

    def checkpoint(self) -> None:
        """Bring what the WAL holds into the log itself, and both to the disk: milliseconds, on a slow disk many. In any
        thread.

        Others go on writing meanwhile, and the WAL begins anew once nothing of it is left to copy. Where they write so
        fast that this never happens, a last part is copied in their turn. Raises sqlite3.Error, OSError, EngineError.
        """
        self._uncopied = 0
        self.checkpoints += 1
        with contextlib.closing(schema.connect(self.where)) as connection:
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages < LONG_PAGES:
                return
            queue = os.open(self.where.queue, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # a turn beside `enter`'s
            try:
                fcntl.flock(queue, fcntl.LOCK_EX)
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            finally:
                os.close(queue)

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self, *, last: bool) -> None:
        """`last`: no other worker lives, leave the log clean."""
        try:
            if last and self._connection is not None and self.where.identity() == self._identity:
                self.enter(tries=None)
                schema.mark_clean(self._connection)
        except (sqlite3.Error, OSError, errors.EngineError) as error:
            logger.warning("The log could not be left clean: %s", error)
        finally:
            self.disconnect()
            if self._queue_fd >= 0:
                self.leave = _nothing
                os.close(self._queue_fd)
                self._queue_fd = -1

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
            self.logged |= transaction.has_entries
            self._weight = transaction.weight
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _try(
        self,
        connection: sqlite3.Connection,
        operation: operations.Operation,
        group: list[operations.Operation],
        at_fault: Fault,
    ) -> None:
        """Write one operation; take it out of its group if it is the one at fault."""
        try:
            self._transact(connection, [operation])
        except Exception as fault:
            if _is_of_the_place(fault):
                raise
            group.remove(operation)
            at_fault(operation, errors.EngineUnavailable(f"The engine failed: {fault!r}"))

    def _connect(self) -> sqlite3.Connection:
        """The connection to the file that is at the log's path now."""
        if self.suspected:
            self._replace_if_damaged()
        if self._connection is not None and self.where.identity() == self._identity:
            return self._connection
        if self._connection is not None:
            logger.warning("The log was deleted or replaced; opening the one that is there now")
            self.reopened += 1
        self.disconnect()
        self.where.prepare()
        if self.where.identity() is None:
            self.where.clear_remains()
        connection = schema.connect(self.where, create=True, any_thread=True)
        try:
            schema.prepare(connection, self.where, full_sync=self._full_sync)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity, self._registered = connection, self.where.identity(), None
        return connection

    def _replace_if_damaged(self) -> None:
        """A log that is damaged would be of no use to anybody until a person came; a new one is of use at once. Its
        streams have new epochs, so everybody who comes back is told that events are missing.
        """
        self.disconnect()
        if self.where.identity() is not None and not schema.is_sound(self.where):
            aside = self.where.set_aside()
            self.set_aside += 1
            logger.critical(
                "The log was damaged: it is kept as %s, and a new one is begun. Histories, positions and resume tokens "
                "are lost, and who comes back is told so. Check the disk.",
                aside,
            )
        self.suspected = False


def _nothing() -> None:
    """There is no turn to give back."""


def _is_of_the_place(fault: Exception) -> bool:
    """Whether the file is the reason (locked, full, unreadable, corrupt) and not one operation's values."""
    return (
        isinstance(fault, (errors.EngineError, OSError, sqlite3.OperationalError))
        or type(fault) is sqlite3.DatabaseError
    )
