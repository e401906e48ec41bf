"""Operations: who is there, and what is told of it."""

from __future__ import annotations

import sqlite3
from asyncio import AbstractEventLoop
from collections.abc import Sequence

from fanfare.engine import interface
from fanfare.engine.local import occupancy, operations

# A cache channel that stays empty is announced once in this time: it bounds the table of what was announced.
MISS_SECONDS = 3600


class Attach(operations.WorkerOperation):
    """A subscription that waits for the log; with a member, a user's arrival."""

    __slots__ = ("ready", "refused", "wanted")

    def __init__(self, loop: AbstractEventLoop, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        super().__init__(loop)
        self.wanted = wanted
        self.ready = ready
        self.refused: interface.Refused | None = None

    def run(self, group: operations.Group) -> None:
        self.refused = None
        wanted = self.wanted
        if wanted.member is None:
            return
        cursor, where = group.cursor, (wanted.app, wanted.channel)
        user_id, info = wanted.member
        # A socket that was somebody else, whose leave could not be written.
        gone = cursor.execute(
            "DELETE FROM members WHERE app = ? AND channel = ? AND socket_id = ? AND user_id <> ? "
            "RETURNING app, channel, user_id",
            (*where, wanted.socket_id, user_id),
        ).fetchall()
        log_absent(group, gone)
        present = _is_present(cursor, *where, user_id)
        if not present and wanted.member_limit is not None:
            users = users_of(cursor, *where)
            if users >= wanted.member_limit:
                message = f"The channel has {users} members; {wanted.member_limit} are allowed"
                self.refused = interface.Refused("member_limit", message, wanted.member_limit, users)
                return
        cursor.execute(
            "INSERT INTO members (app, channel, user_id, socket_id, worker, info) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (app, channel, socket_id) DO UPDATE SET info = excluded.info, worker = excluded.worker",
            (*where, user_id, wanted.socket_id, group.worker, info),
        )
        if not present:
            cursor.execute(
                "INSERT INTO users VALUES (?, ?, 1) ON CONFLICT (app, channel) DO UPDATE SET users = users + 1", where
            )
            group.log(interface.Kind.MEMBER_ADDED, *where, info.encode(), user_id=user_id)


class OpenStream(operations.WorkerOperation):
    """Somebody asked for the past of a channel that has none: from now on it has a position."""

    __slots__ = ("app", "channel")

    def __init__(self, loop: AbstractEventLoop, app: str, channel: str, settled: operations.Settled) -> None:
        super().__init__(loop, settled)
        self.app = app
        self.channel = channel

    def run(self, group: operations.Group) -> None:
        group.streams.open(self.app, self.channel)


class CacheMiss(operations.WorkerOperation):
    """Somebody found a cache channel empty: said once until something is published to it."""

    __slots__ = ("app", "channel")

    def __init__(self, loop: AbstractEventLoop, app: str, channel: str) -> None:
        super().__init__(loop)
        self.app = app
        self.channel = channel

    def run(self, group: operations.Group) -> None:
        now_s = group.now_ms // 1000
        known = group.cursor.execute(
            "SELECT 1 FROM cache WHERE app = ? AND channel = ? AND expires_s > ?", (self.app, self.channel, now_s)
        ).fetchall()
        if not known:
            group.log(interface.Kind.CACHE_MISS, self.app, self.channel, b"")
            group.cursor.execute(
                "INSERT OR REPLACE INTO cache VALUES (?, ?, NULL, ?)", (self.app, self.channel, now_s + MISS_SECONDS)
            )


class Leave(operations.WorkerOperation):
    """One connection of a user goes; the user, with the last one."""

    __slots__ = ("app", "channel", "failed", "key", "socket_id")

    def __init__(self, loop: AbstractEventLoop, app: str, channel: str, socket_id: str) -> None:
        super().__init__(loop)
        self.app = app
        self.channel = channel
        self.socket_id = socket_id
        self.key = (app, channel, socket_id)
        self.failed = False  # not written, to be submitted again

    def run(self, group: operations.Group) -> None:
        gone = group.cursor.execute(
            "DELETE FROM members WHERE app = ? AND channel = ? AND socket_id = ? RETURNING app, channel, user_id",
            (self.app, self.channel, self.socket_id),
        ).fetchall()
        log_absent(group, gone)


class Reap(operations.WorkerOperation):
    """A worker is gone (or says goodbye): its members, counts and its own row go, with what must be told, in one
    transaction."""

    __slots__ = ("worker",)

    def __init__(self, loop: AbstractEventLoop, worker: str, settled: operations.Settled | None = None) -> None:
        super().__init__(loop, settled)
        self.worker = worker

    def run(self, group: operations.Group) -> None:
        gone = group.cursor.execute(
            "DELETE FROM members WHERE worker = ? RETURNING app, channel, user_id", (self.worker,)
        ).fetchall()
        log_absent(group, sorted(set(gone)))
        occupancy.take_away(group, self.worker)
        group.cursor.execute("DELETE FROM workers WHERE id = ?", (self.worker,))


def users_of(reader: sqlite3.Cursor | sqlite3.Connection, app: str, channel: str) -> int:
    """How many distinct users a channel has: counted where they come and go, because a channel may have many."""
    rows = reader.execute("SELECT users FROM users WHERE app = ? AND channel = ?", (app, channel)).fetchall()
    return rows[0][0] if rows else 0


def _is_present(cursor: sqlite3.Cursor, app: str, channel: str, user_id: str) -> bool:
    return bool(
        cursor.execute(
            "SELECT 1 FROM members WHERE app = ? AND channel = ? AND user_id = ? LIMIT 1", (app, channel, user_id)
        ).fetchall()
    )


def log_absent(group: operations.Group, users: Sequence[tuple[str, str, str]]) -> None:
    """Announce those of (app, channel, user_id) whose last connection is gone."""
    cursor = group.cursor
    for app, channel, user_id in users:
        if not _is_present(cursor, app, channel, user_id):
            cursor.execute("UPDATE users SET users = users - 1 WHERE app = ? AND channel = ?", (app, channel))
            cursor.execute("DELETE FROM users WHERE app = ? AND channel = ? AND users = 0", (app, channel))
            group.log(interface.Kind.MEMBER_REMOVED, app, channel, b"", user_id=user_id)
