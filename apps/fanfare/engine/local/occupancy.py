"""Operations: how many subscribers there are, and what changes for the whole deployment when they come and go."""

from __future__ import annotations

import sqlite3
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fanfare.engine import interface
from fanfare.engine.local import operations


class Count(NamedTuple):
    subscribers: int
    announce: bool


class Counts(operations.WorkerOperation):
    """The absolute numbers of this worker's subscribers, and what they change for the whole deployment.

    `due`: the channels whose COUNT entry has to wait for its turn, with the milliseconds until then.
    """

    __slots__ = ("counts", "due")

    def __init__(
        self, loop: AbstractEventLoop, counts: Mapping[tuple[str, str], Count], settled: operations.Settled
    ) -> None:
        super().__init__(loop, settled)
        self.counts = counts
        self.due: dict[tuple[str, str], int] = {}

    def run(self, group: operations.Group) -> None:
        self.due = {}
        for (app, channel), (subscribers, announce) in self.counts.items():
            self._write(group.cursor, (app, channel, group.worker), subscribers, group)
            if announce:
                wait_ms = _announce_count(group, app, channel)
                if wait_ms:
                    self.due[app, channel] = wait_ms

    def _write(
        self, cursor: sqlite3.Cursor, key: tuple[str, str, str | None], subscribers: int, group: operations.Group
    ) -> None:
        app, channel, _ = key
        if subscribers:
            cursor.execute(
                "UPDATE counts SET subscribers = ? WHERE app = ? AND channel = ? AND worker = ?", (subscribers, *key)
            )
            if cursor.rowcount == 0:
                if channel != interface.CONNECTIONS and not _is_occupied(cursor, app, channel):
                    group.log(interface.Kind.OCCUPIED, app, channel, b"")
                cursor.execute("INSERT INTO counts VALUES (?, ?, ?, ?)", (*key, subscribers))
        else:
            cursor.execute("DELETE FROM counts WHERE app = ? AND channel = ? AND worker = ?", key)
            if cursor.rowcount and channel != interface.CONNECTIONS and not _is_occupied(cursor, app, channel):
                _log_vacated(group, app, channel)


class Announce(operations.WorkerOperation):
    """Counts that had to wait for their turn."""

    __slots__ = ("channels", "due")

    def __init__(
        self, loop: AbstractEventLoop, channels: Sequence[tuple[str, str]], settled: operations.Settled
    ) -> None:
        super().__init__(loop, settled)
        self.channels = channels
        self.due: dict[tuple[str, str], int] = {}

    def run(self, group: operations.Group) -> None:
        waits = {channel: _announce_count(group, *channel) for channel in self.channels}
        self.due = {channel: wait_ms for channel, wait_ms in waits.items() if wait_ms}


class Admit(operations.WorkerOperation):
    """One more connection of an application, counted already, under a limit for the whole deployment."""

    __slots__ = ("app", "limit", "ready", "refused")

    def __init__(self, loop: AbstractEventLoop, app: str, limit: int, ready: interface.Ready) -> None:
        super().__init__(loop)
        self.app = app
        self.limit = limit
        self.ready = ready
        self.refused: interface.Refused | None = None

    def run(self, group: operations.Group) -> None:
        [(connections,)] = group.cursor.execute(
            "SELECT TOTAL(subscribers) FROM counts WHERE app = ? AND channel = ?", (self.app, interface.CONNECTIONS)
        ).fetchall()
        others = int(connections) - 1
        self.refused = None
        if others >= self.limit:
            message = f"The application's maximum number of connections is reached ({others} of {self.limit})"
            self.refused = interface.Refused("connection_limit", message, self.limit, others)


def take_away(group: operations.Group, worker: str) -> None:
    """A worker is gone, and its subscribers with it."""
    left = group.cursor.execute("DELETE FROM counts WHERE worker = ? RETURNING app, channel", (worker,)).fetchall()
    for app, channel in left:
        if channel == interface.CONNECTIONS:
            continue
        if not _is_occupied(group.cursor, app, channel):
            _log_vacated(group, app, channel)
        elif _is_announced(group.cursor, app, channel):
            _announce_count(group, app, channel)


def _is_occupied(cursor: sqlite3.Cursor, app: str, channel: str) -> bool:
    return bool(cursor.execute("SELECT 1 FROM counts WHERE app = ? AND channel = ? LIMIT 1", (app, channel)).fetchall())


def _log_vacated(group: operations.Group, app: str, channel: str) -> None:
    group.log(interface.Kind.VACATED, app, channel, b"")
    group.cursor.execute("DELETE FROM announced WHERE app = ? AND channel = ?", (app, channel))


def _announce_count(group: operations.Group, app: str, channel: str) -> int:
    """Tell a channel how many they are, if that is news and its time has come. Returns the milliseconds to wait
    else."""
    cursor, where = group.cursor, (app, channel)
    [(total,)] = cursor.execute(
        "SELECT COALESCE(SUM(subscribers), 0) FROM counts WHERE app = ? AND channel = ?", where
    ).fetchall()
    last = cursor.execute("SELECT subscribers, at_ms FROM announced WHERE app = ? AND channel = ?", where).fetchall()
    if not total or (last and last[0][0] == total):
        return 0
    if last and total > interface.ANNOUNCE_ALWAYS:
        wait_ms = int(last[0][1]) + interface.ANNOUNCE_SECONDS * 1000 - group.now_ms
        if 0 < wait_ms <= interface.ANNOUNCE_SECONDS * 1000:  # more: the clock went back
            return wait_ms
    group.log(interface.Kind.COUNT, app, channel, str(total).encode())
    cursor.execute("INSERT OR REPLACE INTO announced VALUES (?, ?, ?, ?)", (*where, total, group.now_ms))
    return 0


def _is_announced(cursor: sqlite3.Cursor, app: str, channel: str) -> bool:
    return bool(cursor.execute("SELECT 1 FROM announced WHERE app = ? AND channel = ?", (app, channel)).fetchall())
