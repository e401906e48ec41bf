"""One write transaction: it runs write operations, gives out ids and offsets, and collects the rows of the log.

A write operation is made in any thread, run in the thread that writes, and settled on its event loop. It may run twice
(a group that failed because of one operation is repeated), so `run` keeps its result in the operation and nowhere else.
"""

from __future__ import annotations

import abc
import sqlite3
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fanfare.engine import errors, interface
from fanfare.engine.local import schema

# Called on an operation's loop: with (operation, None) after the commit, with (operation, error) if its group failed.
Settled = Callable[[Any, errors.EngineError | None], None]

# A stream's position outlives its entries this many times, so that an expired history does not look like another epoch.
POSITION_OUTLIVES = 10
EMPTY_SECONDS = 3600  # how long a stream without entries waits for the first one after the last subscriber has left
FULL_SWEEP_SECONDS = 5  # until a stream that is over its size is swept: a few seconds of extra rows, and few sweeps

# For each parameter that is not exactly a str, int, float or bytearray, Python's sqlite3 tries its adapters, and up to
# 3.11 formats an error that it discards: with None, bytes and an IntEnum, a row cost 3.1 µs instead of 0.8.
_PLAIN = "INSERT INTO log VALUES (?, ?, ?, ?, NULL, NULL, NULL, ?, ?)"
_WHOLE = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

PLAIN_COLUMNS = _PLAIN.count("?")

# A plain row as a transaction of one statement. Text as the id is refused: `begin` then finds out whether the log was
# closed or is damaged.
_NEXT = f"SELECT {schema.TOP} + 1 FROM state WHERE clean = 0 AND typeof(trimmed_to) = 'integer'"  # noqa: S608
_ALONE = _PLAIN.replace("?", f"COALESCE(({_NEXT}), '')", 1)

Row = tuple[Any, ...]  # of either form; both begin with id, kind, application and channel

_TOP_AND_CLEAN = f"SELECT {schema.TOP}, clean FROM state"  # noqa: S608


class Transaction:
    """`top`: the newest id; `after`: the newest one when the transaction began. `worker`: whose members and counts are
    written; None in a process that is no worker."""

    def __init__(self, cursor: sqlite3.Cursor, top: int, worker: str | None, full: errors.LogFull | None) -> None:
        self.cursor = cursor
        self.after = self.top = top
        self.worker = worker
        self.full = full  # why publications are refused
        self.now_ms = int(time.time() * 1000)
        self.bytes = 0  # of the bodies
        self.frees_space = False
        self._streams: dict[tuple[str, str], _Stream] = {}  # that it gave a position
        self._plain: list[tuple[int, int, str, str, bytearray, int]] = []
        self._whole: list[tuple[int, int, str, str, int | None, str | None, str | None, bytearray, int]] = []

    def log(
        self,
        kind: int,
        app: str,
        channel: str,
        body: bytes,
        *,
        offset: int | None = None,
        user_id: str | None = None,
        exclude: str | None = None,
    ) -> None:
        """Add an entry."""
        self.top += 1
        self.bytes += len(body)
        blob = bytearray(body)
        if offset is None and user_id is None and exclude is None:
            self._plain.append((self.top, int(kind), app, channel, blob, self.now_ms))
        else:
            self._whole.append((self.top, int(kind), app, channel, offset, user_id, exclude, blob, self.now_ms))

    def advance(self, app: str, channel: str, retention: interface.Retention) -> interface.Position:
        """The next position of a stream.

        An append only takes the next offset. Entries over a stream's bounds are deleted in sweeps (`maintenance`), and
        never before the log was trimmed past them: a worker may not have read them yet. A query applies both bounds
        exactly.
        """
        stream = self._streams.get((app, channel))
        if stream is None:
            rows = self.cursor.execute(
                'SELECT epoch, "offset", kept_from, sweep_s FROM streams WHERE app = ? AND channel = ?', (app, channel)
            ).fetchall()
            stream = _Stream(*rows[0]) if rows else _Stream(schema.new_epoch(), 0, 1, self.now_ms // 1000)
            self._streams[app, channel] = stream
        stream.retention = retention
        stream.offset += 1
        return interface.Position(stream.epoch, stream.offset)

    def open_stream(self, app: str, channel: str) -> None:
        """Give a stream its epoch before its first entry."""
        if (app, channel) not in self._streams:
            first_sweep_s = self.now_ms // 1000 + EMPTY_SECONDS
            self.cursor.execute(
                "INSERT OR IGNORE INTO streams VALUES (?, ?, ?, 0, 1, 1, ?, ?)",
                (app, channel, schema.new_epoch(), EMPTY_SECONDS // POSITION_OUTLIVES, first_sweep_s),
            )

    def position(self, app: str, channel: str) -> interface.Position:
        """The newest position of a stream, which is opened if it is new."""
        stream = self._streams.get((app, channel))
        if stream is not None:
            return interface.Position(stream.epoch, stream.offset)
        self.open_stream(app, channel)
        [row] = self.cursor.execute(
            'SELECT epoch, "offset" FROM streams WHERE app = ? AND channel = ?', (app, channel)
        ).fetchall()
        return interface.Position._make(row)

    def rows(self) -> list[Row]:
        """The rows of the entries, in their order; `entry` makes an entry of one."""
        return sorted([*self._plain, *self._whole]) if self._whole else self._plain

    def added(self, top: int, row: tuple[int, str, str, bytearray, int]) -> None:
        """One plain row was written with this id."""
        self.top, self.after = top, top - 1
        self.bytes = len(row[3])
        self._plain.append((top, *row))

    def finish(self) -> None:
        """Write the collected rows; the commit is the caller's."""
        if self._plain:
            self.cursor.executemany(_PLAIN, self._plain)
        if self._whole:
            self.cursor.executemany(_WHOLE, self._whole)
        for (app, channel), stream in self._streams.items():
            size, seconds = stream.retention
            if stream.offset - stream.kept_from >= size + max(16, size // 10):
                stream.sweep_s = min(stream.sweep_s, self.now_ms // 1000 + FULL_SWEEP_SECONDS)
            self.cursor.execute(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (app, channel, stream.epoch, stream.offset, stream.kept_from, size, seconds, stream.sweep_s),
            )


class Added(NamedTuple):
    """The entries that one group added to the log, for the reader in the same process. `log`: the file's identity."""

    log: tuple[int, int] | None
    after: int
    top: int
    rows: Sequence[Row]


def entry(row: Row) -> interface.Entry:
    """The entry of a row that `Transaction.rows` gave, as a query would answer it."""
    if len(row) == PLAIN_COLUMNS:
        number, kind, app, channel, body, created_ms = row
        return interface.Entry(number, kind, app, channel, None, None, None, bytes(body), created_ms)
    number, kind, app, channel, offset, user_id, exclude, body, created_ms = row
    return interface.Entry(number, kind, app, channel, offset, user_id, exclude, bytes(body), created_ms)


def begin(connection: sqlite3.Connection, worker: str | None, full: errors.LogFull | None = None) -> Transaction:
    """Start a transaction. The first one in a log that was closed marks it as open again, on the disk, before anything
    else. Raises sqlite3.Error."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    [(top, clean)] = cursor.execute(_TOP_AND_CLEAN).fetchall()
    if clean:
        cursor.execute("ROLLBACK")
        [(mode,)] = cursor.execute("PRAGMA synchronous").fetchall()
        cursor.execute("PRAGMA synchronous=FULL")
        with schema.transaction(connection):
            cursor.execute("UPDATE state SET clean = 0")
        cursor.execute(f"PRAGMA synchronous={mode}")
        cursor.execute("BEGIN IMMEDIATE")
        [(top, _)] = cursor.execute(_TOP_AND_CLEAN).fetchall()
    return Transaction(cursor, top, worker, full)


def append_alone(connection: sqlite3.Connection, operation: WriteOp) -> Transaction | None:
    """Commit an operation that is one plain row in one statement, which costs half of a transaction. None: it is
    another one, or needs `begin`, and nothing was written. Raises sqlite3.Error."""
    publication = operation.plain()
    if publication is None:
        return None
    transaction = Transaction(connection.cursor(), 0, None, None)
    app, channel, body, kind, *_ = publication
    row = (int(kind), app, channel, bytearray(body), transaction.now_ms)
    try:
        transaction.cursor.execute(_ALONE, row)
    except sqlite3.IntegrityError:
        return None
    top = transaction.cursor.lastrowid or 0
    transaction.added(top, row)
    operation.appended(top)
    return transaction


class _Stream:
    __slots__ = ("epoch", "kept_from", "offset", "retention", "sweep_s")

    def __init__(self, epoch: str, offset: int, kept_from: int, sweep_s: int) -> None:
        self.epoch = epoch
        self.offset = offset
        self.kept_from = kept_from
        self.sweep_s = sweep_s
        self.retention = interface.Retention(1, 1)


class WriteOp(abc.ABC):
    """`born`: the monotonic time of submission, set by the queue. `is_awaited`: a caller waits with a timeout, so the
    operation is refused when it waits too long; the others are kept until they are written."""

    __slots__ = ("born",)

    loop: AbstractEventLoop | None = None  # where `settle` must be called; None: in the thread that wrote
    is_awaited = False

    born: float

    @abc.abstractmethod
    def run(self, transaction: Transaction) -> None: ...

    def plain(self) -> interface.Publication | None:
        """The publication, if the operation is one row of the log without an offset, a user or a socket to exclude, and
        nothing else."""
        return None

    def appended(self, entry_id: int) -> None:
        """The result of a plain operation, instead of `run`."""
        raise NotImplementedError

    @abc.abstractmethod
    def settle(self, error: errors.EngineError | None) -> None:
        """Committed, or failed as a whole with `error`."""


class BlockingOp(WriteOp):
    """For a thread that waits. Without slots, since it is one of two bases."""

    is_awaited = True
    refused: errors.EngineError | None = None  # by its own `run`
    error: errors.EngineError | None = None
    settled = False

    def __init__(self) -> None:
        self._end = threading.Lock()  # held until the end: a tenth of the cost of an Event
        self._end.acquire()

    def wait(self, timeout: float) -> bool:
        """Whether it is settled, `timeout` seconds from now at the latest."""
        return self.settled or self._end.acquire(timeout=timeout)

    def settle(self, error: errors.EngineError | None) -> None:
        self.error = error or self.refused
        self.settled = True
        self._end.release()


class WorkerOp(WriteOp):
    """A write of the worker itself; `settled` is called on the worker's loop."""

    __slots__ = ("loop", "settled")

    def __init__(self, loop: AbstractEventLoop, settled: Settled | None = None) -> None:
        self.loop = loop
        self.settled = settled

    def settle(self, error: errors.EngineError | None) -> None:
        if self.settled is not None:
            self.settled(self, error)


class Barrier(WorkerOp):
    """Writes nothing: it shows that everything that was submitted before is written, and where the log ends."""

    __slots__ = ("top",)

    def __init__(self, loop: AbstractEventLoop, settled: Settled | None = None) -> None:
        super().__init__(loop, settled)
        self.top = 0

    def run(self, transaction: Transaction) -> None:
        self.top = transaction.top


class TrialWrite(WorkerOp):
    """Changes a row, after a write that failed: a group without changes succeeds on a full disk too."""

    __slots__ = ()

    def run(self, transaction: Transaction) -> None:
        transaction.cursor.execute("INSERT OR REPLACE INTO budgets VALUES ('', ?, 0)", (transaction.now_ms,))
