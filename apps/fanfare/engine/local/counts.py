"""The numbers of subscribers: absolute numbers of each worker, written soon and together."""

from __future__ import annotations

import asyncio
import sqlite3
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fanfare.engine import errors, interface
from fanfare.engine.local.transactions import Settled, Transaction, WorkerOp

# Numbers without a waiting caller are written at most this often: 3,000 clients per second that reconnect to one
# channel cost 50 upserts.
WRITE_S = 0.02


class SubscriberCounts:
    """The numbers of this worker that are not in the log yet. One that could not be written is kept, unless there is a
    newer one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, submit: Callable[[WorkerOp], None]) -> None:
        self.writing = 0  # operations that are submitted and not settled
        self.retried = 0
        self._loop = loop
        self._submit = submit
        self._unwritten: dict[tuple[str, str], Count] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._announcing: dict[tuple[str, str], asyncio.TimerHandle] = {}

    def set(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        self._unwritten[app, channel] = Count(count, announce)
        if self._timer is None:
            self._timer = self._loop.call_at(max(self._loop.time(), self._due), self.write)

    def write(self) -> None:
        """Submit the unwritten numbers now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unwritten:
            counts, self._unwritten = self._unwritten, {}
            self._due = self._loop.time() + WRITE_S
            self.writing += 1
            self._submit(StoreCounts(self._loop, counts, self._written))

    def stop(self) -> None:
        for timer in (self._timer, *self._announcing.values()):
            if timer is not None:
                timer.cancel()

    def _written(self, operation: StoreCounts, error: errors.EngineError | None) -> None:
        self.writing -= 1
        if error is None:
            self._announce_later(operation.due)
        else:
            self.retried += 1
            self._unwritten = {**operation.counts, **self._unwritten}

    def _announce_later(self, due: dict[tuple[str, str], int]) -> None:
        """Above the bound of subscribers a channel's changes are announced now and then, and always the last one."""
        for channel, wait_ms in due.items():
            if channel not in self._announcing:
                self._announcing[channel] = self._loop.call_later(wait_ms / 1000, self._announce, channel)

    def _announce(self, channel: tuple[str, str]) -> None:
        del self._announcing[channel]
        self._submit(AnnounceCounts(self._loop, [channel], self._announced))

    def _announced(self, operation: AnnounceCounts, error: errors.EngineError | None) -> None:
        # Where it could not be written, the next change announces.
        if error is None:
            self._announce_later(operation.due)


class Count(NamedTuple):
    subscribers: int
    announce: bool


class StoreCounts(WorkerOp):
    """The numbers of this worker, and the entries for what they change in the whole deployment.

    `due`: the channels whose COUNT entry has to wait, with the milliseconds until then.
    """

    __slots__ = ("counts", "due")

    def __init__(self, loop: AbstractEventLoop, counts: Mapping[tuple[str, str], Count], settled: Settled) -> None:
        super().__init__(loop, settled)
        self.counts = counts
        self.due: dict[tuple[str, str], int] = {}

    def run(self, transaction: Transaction) -> None:
        self.due = {}
        for (app, channel), (subscribers, announce) in self.counts.items():
            _store(transaction, app, channel, subscribers)
            if announce:
                wait_ms = _announce(transaction, app, channel)
                if wait_ms:
                    self.due[app, channel] = wait_ms


class AnnounceCounts(WorkerOp):
    """COUNT entries that had to wait."""

    __slots__ = ("channels", "due")

    def __init__(self, loop: AbstractEventLoop, channels: Sequence[tuple[str, str]], settled: Settled) -> None:
        super().__init__(loop, settled)
        self.channels = channels
        self.due: dict[tuple[str, str], int] = {}

    def run(self, transaction: Transaction) -> None:
        waits = {channel: _announce(transaction, *channel) for channel in self.channels}
        self.due = {channel: wait_ms for channel, wait_ms in waits.items() if wait_ms}


class Admit(WorkerOp):
    """Whether one more connection of an application, which is counted already, fits under a limit."""

    __slots__ = ("app", "limit", "ready", "refused")

    is_awaited = True

    def __init__(self, loop: AbstractEventLoop, app: str, limit: int, ready: interface.Ready) -> None:
        super().__init__(loop)
        self.app = app
        self.limit = limit
        self.ready = ready
        self.refused: interface.Refused | None = None

    def run(self, transaction: Transaction) -> None:
        [(connections,)] = transaction.cursor.execute(
            "SELECT TOTAL(subscribers) FROM counts WHERE app = ? AND channel = ?", (self.app, interface.CONNECTIONS)
        ).fetchall()
        others = int(connections) - 1
        self.refused = None
        if others >= self.limit:
            self.refused = interface.too_many_connections(self.limit, others)


def remove_worker(transaction: Transaction, worker: str) -> None:
    """Delete the numbers of a worker."""
    left = transaction.cursor.execute(
        "DELETE FROM counts WHERE worker = ? RETURNING app, channel", (worker,)
    ).fetchall()
    for app, channel in left:
        if channel == interface.CONNECTIONS:
            continue
        if not _is_occupied(transaction.cursor, app, channel):
            _log_vacated(transaction, app, channel)
        elif _is_announced(transaction.cursor, app, channel):
            _announce(transaction, app, channel)


def _store(transaction: Transaction, app: str, channel: str, subscribers: int) -> None:
    cursor, key = transaction.cursor, (app, channel, transaction.worker)
    if subscribers:
        cursor.execute(
            "UPDATE counts SET subscribers = ? WHERE app = ? AND channel = ? AND worker = ?", (subscribers, *key)
        )
        if cursor.rowcount == 0:
            if channel != interface.CONNECTIONS and not _is_occupied(cursor, app, channel):
                transaction.log(interface.Kind.OCCUPIED, app, channel, b"")
            cursor.execute("INSERT INTO counts VALUES (?, ?, ?, ?)", (*key, subscribers))
    else:
        cursor.execute("DELETE FROM counts WHERE app = ? AND channel = ? AND worker = ?", key)
        if cursor.rowcount and channel != interface.CONNECTIONS and not _is_occupied(cursor, app, channel):
            _log_vacated(transaction, app, channel)


def _is_occupied(cursor: sqlite3.Cursor, app: str, channel: str) -> bool:
    return bool(cursor.execute("SELECT 1 FROM counts WHERE app = ? AND channel = ? LIMIT 1", (app, channel)).fetchall())


def _log_vacated(transaction: Transaction, app: str, channel: str) -> None:
    transaction.log(interface.Kind.VACATED, app, channel, b"")
    transaction.cursor.execute("DELETE FROM announced WHERE app = ? AND channel = ?", (app, channel))


def _announce(transaction: Transaction, app: str, channel: str) -> int:
    """Add a COUNT entry if the number changed and its time has come; otherwise answers the milliseconds to wait."""
    cursor, where = transaction.cursor, (app, channel)
    [(total,)] = cursor.execute(
        "SELECT COALESCE(SUM(subscribers), 0) FROM counts WHERE app = ? AND channel = ?", where
    ).fetchall()
    last = cursor.execute("SELECT subscribers, at_ms FROM announced WHERE app = ? AND channel = ?", where).fetchall()
    if not total or (last and last[0][0] == total):
        return 0
    if last and total > interface.ANNOUNCE_ALWAYS:
        wait_ms = int(last[0][1]) + interface.ANNOUNCE_SECONDS * 1000 - transaction.now_ms
        if 0 < wait_ms <= interface.ANNOUNCE_SECONDS * 1000:  # more: the clock went back
            return wait_ms
    transaction.log(interface.Kind.COUNT, app, channel, str(total).encode())
    cursor.execute("INSERT OR REPLACE INTO announced VALUES (?, ?, ?, ?)", (*where, total, transaction.now_ms))
    return 0


def _is_announced(cursor: sqlite3.Cursor, app: str, channel: str) -> bool:
    return bool(cursor.execute("SELECT 1 FROM announced WHERE app = ? AND channel = ?", (app, channel)).fetchall())
