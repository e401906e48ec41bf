"""The log opened for writing: the write lock, one transaction for each group of operations, checkpoints.

Writers of different processes queue on the kernel's lock of a file beside the log. With SQLite's own busy handler,
which backs off, four saturated writers waited up to 2.4 s and got shares of 3:1; in the kernel's queue 17 ms, with
equal shares.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import mmap
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fanfare.engine import errors
from fanfare.engine.local import disk_space, schema, transactions
from fanfare.engine.local.paths import LogPaths
from fanfare.engine.local.transactions import WriteOp

logger = logging.getLogger(__name__)

# A writer that must not block looks at the lock again after a pause of about one commit (20 µs and the timer's slack of
# 50 µs): of four saturated writers one in a hundred gives up.
TRIES = 20
PAUSE_S = 20e-6

CHECKPOINT_BYTES = 8 * 1024 * 1024  # of WAL; a checkpoint takes as long as hundreds of commits
LEAST_CHECKPOINT_BYTES = 256 * 1024
WAL_SHARE = 8  # on a small disk, or with a small limit: that part of the limit
COMMIT_BYTES = 6 * schema.PAGE_BYTES  # of a small commit: the last pages of the tables and indexes that it changes
LONG_WAL_BYTES = 32 * 1024 * 1024  # other writers never paused
WAL_BYTES = 16 * 1024 * 1024  # of the WAL's file that stay after a burst

# The space is measured after so many bytes of this process, and after so long if others write.
MEASURE_BYTES = 1024 * 1024
ROW_BYTES = 256  # of a small commit, beside the bodies
MEASURE_S = 1.0

CHECK_PAUSE_S = 60.0  # between two checks of a log that was found sound, unless SQLite itself reports damage
# After so many of them in such a time it is replaced all the same: damage in the index of the WAL stops writes, and a
# check only reads.
SOUND_CHECKS = 2

Fault = Callable[[WriteOp, errors.EngineError], None]


class LogFile:
    """Used by one thread at a time: `lock`, `write`, `unlock`. `max_bytes`: more than that the log never holds."""

    def __init__(self, paths: LogPaths, *, full_sync: bool, max_bytes: int) -> None:
        self.paths = paths
        self.worker: str | None = None  # set before the first group in a process that is a worker
        self.reopened = 0
        self.set_aside = 0  # damaged logs
        self.suspected = False  # a read or write found what may be damage
        self.changed_rows = False  # by the last group
        self.committed = False  # whether all of the last group is in the log
        self.added: transactions.Added | None = None  # the entries that it added
        self.checkpoints = 0
        self.space = disk_space.Space(0, max_bytes, 0, 0, max_bytes)
        self.full: errors.LogFull | None = None  # why publications are refused, as last measured
        self.needs_checkpoint = False  # for what this process wrote
        self.reserve = disk_space.Reserve(paths.reserve)
        self.full_sync = full_sync
        self._max_bytes = max_bytes
        self._checkpoint_bytes = CHECKPOINT_BYTES  # with the limit of the log
        self._uncopied = 0  # bytes of WAL since the last checkpoint, as far as they can be estimated
        self._unmeasured = MEASURE_BYTES  # bytes since the space was measured
        self._measured_s = 0.0
        self._checked_s = float("-inf")  # when a full check found the log sound
        self._sound_checks = 0  # without such a pause between them
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._registered: str | None = None  # the worker whose row is in this file
        self._high_water = HighWaterMark(paths.high_water)
        self._lock_fd = -1
        # Releases the write lock, also one that was not acquired. Not a method: a signal's handler can raise before a
        # method's first line, and then every writer of the machine would wait for this process.
        self.unlock: Callable[[], object] = _nothing

    @property
    def is_open(self) -> bool:
        """Whether the next group finds the log opened and not suspected of damage."""
        return self._connection is not None and not self.suspected

    def lock(self, *, tries: int | None) -> bool:
        """Acquire the write lock. None: wait for it, however long. False: it was held at each try. Raises OSError,
        EngineError."""
        self.committed = False
        self.added = None
        if self._lock_fd < 0:
            self.paths.prepare()
            self._lock_fd = os.open(self.paths.write_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.unlock = functools.partial(fcntl.flock, self._lock_fd, fcntl.LOCK_UN)
        if tries is None:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            return True
        for left in reversed(range(tries)):
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if left:
                    time.sleep(PAUSE_S)
            else:
                return True
        return False

    def write(self, group: list[WriteOp], at_fault: Fault) -> None:
        """Write all of the group in one transaction.

        An operation whose values are at fault is given to `at_fault` and removed from the group. Raises the faults of
        the file, and then nothing of the group is acknowledged.
        """
        try:
            connection = self._connection
            if connection is None or self.suspected:
                connection = self._connect()
            transaction = self._write(connection, group, at_fault)
            if self.paths.identity() != self._identity:
                # The group is in a file that no process will open again. The check comes after the commit only: another
                # one before it would cost 2 µs of each commit, and find the same.
                self.added = None
                transaction = self._write(self._connect(), group, at_fault)
                if self.paths.identity() != self._identity:
                    raise errors.EngineUnavailable("The log was deleted or replaced while it was written")
            self.committed = True
            if transaction is not None:
                self._high_water.store(transaction.top)
                self._unmeasured += MEASURE_BYTES if transaction.frees_space else transaction.bytes + ROW_BYTES
                self._uncopied += COMMIT_BYTES + transaction.bytes
                self.needs_checkpoint = self._uncopied >= self._checkpoint_bytes
        except (sqlite3.Error, OSError) as fault:
            if disk_space.is_full(fault):
                self.reserve.release()
                self._unmeasured = MEASURE_BYTES
            raise

    def _write(
        self, connection: sqlite3.Connection, group: list[WriteOp], at_fault: Fault
    ) -> transactions.Transaction | None:
        """Commit the group. Answers the last transaction."""
        if self._unmeasured >= MEASURE_BYTES or time.monotonic() - self._measured_s >= MEASURE_S:
            self._measure(connection)
        changes = connection.total_changes
        transaction: transactions.Transaction | None
        try:
            transaction = self._transact(connection, group)
        except Exception as fault:
            if _is_of_the_file(fault):
                raise
            logger.exception("An operation of a group of %d failed; each is tried alone", len(group))
            transaction = self._try_each(connection, group, at_fault)
        self.changed_rows = connection.total_changes > changes
        return transaction

    def checkpoint(self) -> None:
        """Copy the WAL into the log, and both to the disk: milliseconds, on a slow disk many. In any thread.

        Other writers go on meanwhile, and the WAL begins anew once nothing of it is left to copy. Where they write so
        fast that this never happens, a last part is copied while holding the write lock. Raises sqlite3.Error, OSError,
        EngineError.
        """
        self._uncopied = 0
        self.needs_checkpoint = False
        self.checkpoints += 1
        with contextlib.closing(schema.connect(self.paths)) as connection:
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages * schema.PAGE_BYTES < LONG_WAL_BYTES and not self.space.is_short:
                return
            lock = os.open(self.paths.write_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # beside that of `lock`
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            finally:
                os.close(lock)

    def request_checkpoint(self) -> None:
        """Pages were moved or freed, and the file becomes smaller with the next checkpoint."""
        self._uncopied = max(self._uncopied, CHECKPOINT_BYTES)
        self.needs_checkpoint = True

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self, *, last: bool) -> None:
        """`last`: no other worker is alive, so the log is marked as closed."""
        try:
            if last and self._connection is not None and self.paths.identity() == self._identity:
                self.lock(tries=None)
                schema.mark_clean(self._connection)
        except (sqlite3.Error, OSError, errors.EngineError) as error:
            logger.warning("The log could not be closed cleanly: %s", error)
        finally:
            self.disconnect()
            self._high_water.close()
            if self._lock_fd >= 0:
                self.unlock = _nothing
                os.close(self._lock_fd)
                self._lock_fd = -1

    # -- one transaction -----------------------------------------------------------------------------------------------

    def _transact(self, connection: sqlite3.Connection, group: Sequence[WriteOp]) -> transactions.Transaction:
        worker = self.worker
        try:
            transaction = None
            if len(group) == 1 and self.full is None and worker == self._registered:
                transaction = transactions.append_alone(connection, group[0])
            if transaction is None:
                try:
                    transaction = transactions.begin(connection, worker, self.full)
                except (ValueError, TypeError) as fault:
                    raise sqlite3.DatabaseError(f"The log's table `state` is damaged: {fault}") from fault
                if worker is not None and worker != self._registered:
                    # Before everything in this file that has to be removed after the worker's death.
                    connection.execute("INSERT OR IGNORE INTO workers VALUES (?, ?)", (worker, os.getpid()))
                for operation in group:
                    operation.run(transaction)
                transaction.finish()
                connection.execute("COMMIT")
                self._registered = worker
            rows = transaction.rows()
            if rows:
                before, after = self.added, transaction.after
                if before is not None:
                    after, rows = before.after, [*before.rows, *rows]
                self.added = transactions.Added(self._identity, after, transaction.top, rows)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return transaction

    def _try_each(
        self, connection: sqlite3.Connection, group: list[WriteOp], at_fault: Fault
    ) -> transactions.Transaction | None:
        """Write each operation alone, and remove the one at fault from the group. Answers the last transaction."""
        transaction = None
        for operation in list(group):
            try:
                transaction = self._transact(connection, [operation])
            except Exception as fault:
                if _is_of_the_file(fault):
                    raise
                self.suspected |= schema.may_be_damage(fault) and self._may_check()
                group.remove(operation)
                at_fault(operation, errors.EngineUnavailable(f"The engine failed: {fault!r}"))
        return transaction

    # -- the file ------------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """The connection to the file that is at the log's path now. Raises sqlite3.Error, OSError, EngineError."""
        if self.suspected:
            self._replace_if_damaged()
        if self._connection is not None and self.paths.identity() == self._identity:
            return self._connection
        was_open = self._connection is not None
        self.disconnect()
        self.paths.refuse_if_moved()
        if was_open:
            logger.warning("The log was deleted or replaced; the one that is there now is opened")
            self.reopened += 1
        self.paths.prepare()
        self.reserve.release_if_needed()
        try:
            return self._open()
        except (sqlite3.Error, ValueError, TypeError) as fault:
            if disk_space.is_full(fault) and self.reserve.release():
                return self._open()
            if not schema.may_be_damage(fault):
                raise
            self._replace_if_damaged()  # a start must not fail because of it
            try:
                return self._open()
            except (ValueError, TypeError) as again:
                raise sqlite3.DatabaseError(f"The log cannot be opened: {again}") from again

    def _open(self) -> sqlite3.Connection:
        if self.paths.identity() is None:
            self.paths.remove_side_files()
            self._high_water.reset()
        connection = schema.connect(self.paths, create=True, any_thread=True)
        try:
            high_water = self._high_water.open()
            schema.prepare(connection, self.paths, full_sync=self.full_sync, high_water=high_water)
            [(top,)] = connection.execute(f"SELECT {schema.TOP} FROM state").fetchall()  # noqa: S608
            self._high_water.store(top)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity, self._registered = connection, self.paths.identity(), None
        self._unmeasured = MEASURE_BYTES
        return connection

    def _measure(self, connection: sqlite3.Connection) -> None:
        self._unmeasured, self._measured_s = 0, time.monotonic()
        was_full, limit = self.full, self.space.limit
        self.space = disk_space.measure(connection, self.paths, self._max_bytes)
        self._checkpoint_bytes = max(LEAST_CHECKPOINT_BYTES, min(CHECKPOINT_BYTES, self.space.limit // WAL_SHARE))
        if self.space.limit != limit:
            wal_bytes = min(WAL_BYTES, max(self.space.limit, 0) // WAL_SHARE)
            connection.execute(f"PRAGMA journal_size_limit={wal_bytes}")
        full = self.full = self.space.full()
        if full is not None and was_full is None:
            is_disk = self.space.limit < self.space.configured
            remedy = f"free space on the disk of {self.paths.folder}" if is_disk else "raise it, or shorten histories"
            logger.error("%s. Publications are refused until old entries are trimmed: %s.", full, remedy)
        elif full is None and was_full is not None:
            logger.warning("The log has space again: it holds %d of %d bytes", self.space.used, self.space.limit)

    def _may_check(self) -> bool:
        return time.monotonic() - self._checked_s > CHECK_PAUSE_S

    def suspect(self, fault: BaseException) -> None:
        """A read or write failed: the log is checked before the next group is written if it may be damaged."""
        if schema.may_be_damage(fault):
            is_certain = isinstance(fault, sqlite3.Error) and getattr(fault, "sqlite_errorcode", 0) & 0xFF in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
            )
            self.suspected |= is_certain or self._may_check()

    def _replace_if_damaged(self) -> None:
        """Move a damaged log away and begin a new one, so that the server continues without an operator. Its streams
        have new epochs, so clients that reconnect get a notice that events are missing.
        """
        self.disconnect()
        self.paths.refuse_if_moved()
        if self.paths.identity() is not None:
            if self._may_check():
                self._sound_checks = 0
            if self._sound_checks < SOUND_CHECKS and schema.is_sound(self.paths):
                self._sound_checks += 1
                self._checked_s = time.monotonic()
            else:
                aside = self.paths.set_aside()
                self.set_aside += 1
                self._sound_checks = 0
                logger.critical(
                    "The log was damaged: it is kept as %s, and a new log begins. Histories, positions and resume "
                    "tokens are lost; clients that reconnect get the reason epoch_changed. Check the disk.",
                    aside,
                )
        self.suspected = False


class HighWaterMark:
    """The newest committed id, in a file of its own: at the next start, it shows whether the log lost commits, because
    its WAL was damaged or an older copy was put in its place.

    Mapped into memory: a store costs 0.2 µs. It is in the page cache, so it survives the end of every process.
    """

    _FORM = struct.Struct("<QQ")
    _MASK = 2**64 - 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def open(self) -> int | None:
        """The stored id; None if there is none, as beside a log that was copied from a backup. Never raises: if the
        file cannot be read, it is 0, and commits that are lost go unnoticed."""
        try:
            if self._map is None:
                with self._path.open("a+b") as file:
                    if file.seek(0, os.SEEK_END) < self._FORM.size:
                        file.write(bytes(self._FORM.size))
                        file.flush()
                    self._map = mmap.mmap(file.fileno(), self._FORM.size)
            top, check = self._FORM.unpack_from(self._map)
        except (OSError, ValueError):
            return 0
        return top if top ^ self._MASK == check else None

    def store(self, top: int) -> None:
        if self._map is not None:
            self._FORM.pack_into(self._map, 0, top, top ^ self._MASK)

    def reset(self) -> None:
        """There is no log, or a new one whose offsets are trusted."""
        self.open()
        self.store(0)

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None


def _nothing() -> None:
    """The lock is not held."""


def _is_of_the_file(fault: Exception) -> bool:
    """Whether the file is the reason (locked, full, unreadable, corrupt) and not one operation's values."""
    return (
        isinstance(fault, (errors.EngineError, OSError, sqlite3.OperationalError))
        or type(fault) is sqlite3.DatabaseError
    )
