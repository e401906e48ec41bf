"""Write operations: members, and the removal of a worker with everything that it holds."""

from __future__ import annotations

import sqlite3
from asyncio import AbstractEventLoop
from collections.abc import Sequence

from fanfare.engine import interface
from fanfare.engine.local import counts
from fanfare.engine.local.transactions import BlockingOp, Settled, Transaction, WorkerOp

# A cache channel that stays empty is announced once in this time: it bounds the table of announced misses.
MISS_SECONDS = 3600

NO_LIMIT = 2**63 - 1

# Not with RETURNING, for which SQLite fills a temporary table: it doubles the cost of a statement.
_PRESENT_AND_OWNER = (
    "SELECT EXISTS (SELECT 1 FROM members WHERE app = ? AND channel = ? AND user_id = ?), "
    "(SELECT user_id FROM members WHERE app = ? AND channel = ? AND socket_id = ?)"
)
_OF_SOCKET = (
    "SELECT seq, user_id, EXISTS (SELECT 1 FROM members AS other WHERE other.app = one.app "
    "AND other.channel = one.channel AND other.user_id = one.user_id AND other.seq <> one.seq) "
    "FROM members AS one WHERE app = ? AND channel = ? AND socket_id = ?"
)
_COUNT_USER = (
    "INSERT INTO users SELECT ?, ?, 1 WHERE ? > 0 "
    "ON CONFLICT (app, channel) DO UPDATE SET users = users + 1 WHERE users < ?"
)


class Subscribe(WorkerOp):
    """A subscription that waits for the log; with a member, a user's arrival."""

    __slots__ = ("ready", "refused", "wanted")

    is_awaited = True

    def __init__(self, loop: AbstractEventLoop, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        super().__init__(loop)
        self.wanted = wanted
        self.ready = ready
        self.refused: interface.Refused | None = None

    def run(self, transaction: Transaction) -> None:
        self.refused = None
        wanted = self.wanted
        if wanted.member is None:
            return
        cursor, where = transaction.cursor, (wanted.app, wanted.channel)
        user_id, info = wanted.member
        [(present, owner)] = cursor.execute(_PRESENT_AND_OWNER, (*where, user_id, *where, wanted.socket_id)).fetchall()
        if owner is not None and owner != user_id:  # the leave of the socket's last user could not be written
            _remove(transaction, *where, wanted.socket_id)
        if not present and not _count_user(transaction, *where, wanted.member_limit):
            self.refused = interface.too_many_members(wanted.member_limit or 0, users_of(cursor, *where))
            return
        cursor.execute(
            "INSERT INTO members (app, channel, user_id, socket_id, worker, info) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (app, channel, socket_id) DO UPDATE SET info = excluded.info, worker = excluded.worker",
            (*where, user_id, wanted.socket_id, transaction.worker, info),
        )
        if not present:
            transaction.log(interface.Kind.MEMBER_ADDED, *where, info.encode(), user_id=user_id)


class UpdateMember(BlockingOp):
    """All connections of one user get a new info. `is_member`: whether there are any."""

    def __init__(self, app: str, channel: str, user_id: str, info: str) -> None:
        super().__init__()
        self.where = (app, channel)
        self.user_id = user_id
        self.info = info
        self.is_member = False

    def run(self, transaction: Transaction) -> None:
        transaction.cursor.execute(
            "UPDATE members SET info = ? WHERE app = ? AND channel = ? AND user_id = ?",
            (self.info, *self.where, self.user_id),
        )
        self.is_member = transaction.cursor.rowcount > 0
        if self.is_member:
            transaction.log(interface.Kind.MEMBER_UPDATED, *self.where, self.info.encode(), user_id=self.user_id)


class LeaseMember(BlockingOp):
    """A user becomes a member for a time, without a connection, or renews that. `joined`: it was no member before."""

    def __init__(
        self, app: str, channel: str, user_id: str, info: str | None, *, seconds: float, limit: int | None
    ) -> None:
        super().__init__()
        self.where = (app, channel)
        self.user_id = user_id
        self.info = info
        self.seconds = seconds
        self.limit = limit
        self.joined = False
        self.full: interface.Refused | None = None

    def run(self, transaction: Transaction) -> None:
        self.full = None
        cursor, where, user_id = transaction.cursor, self.where, self.user_id
        known = cursor.execute(
            "SELECT info FROM members WHERE app = ? AND channel = ? AND user_id = ? ORDER BY seq DESC LIMIT 1",
            (*where, user_id),
        ).fetchall()
        self.joined = not known
        if self.joined and not _count_user(transaction, *where, self.limit):
            self.full = interface.too_many_members(self.limit or 0, users_of(cursor, *where))
            return
        before = known[0][0] if known else "null"
        info = before if self.info is None else self.info
        until = interface.lease_until(transaction.now_ms + self.seconds * 1000)
        cursor.execute(
            "INSERT INTO members (app, channel, user_id, socket_id, worker, info) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (app, channel, socket_id) DO UPDATE SET worker = excluded.worker",
            (*where, user_id, interface.lease_socket(user_id), until, info),
        )
        if self.joined:
            transaction.log(interface.Kind.MEMBER_ADDED, *where, info.encode(), user_id=user_id)
        elif info != before:
            cursor.execute(
                "UPDATE members SET info = ? WHERE app = ? AND channel = ? AND user_id = ?", (info, *where, user_id)
            )
            transaction.log(interface.Kind.MEMBER_UPDATED, *where, info.encode(), user_id=user_id)


class ReleaseMember(BlockingOp):
    """The end of a lease before its time. `was_member`: whether there was one."""

    def __init__(self, app: str, channel: str, user_id: str) -> None:
        super().__init__()
        self.where = (app, channel)
        self.user_id = user_id
        self.was_member = False

    def run(self, transaction: Transaction) -> None:
        self.was_member = _remove(transaction, *self.where, interface.lease_socket(self.user_id))


class ExpireMembers(WorkerOp):
    """Members whose time is over leave. Every worker looks for them; the first one's transaction removes them."""

    __slots__ = ()

    def run(self, transaction: Transaction) -> None:
        gone = transaction.cursor.execute(
            "DELETE FROM members WHERE worker > ? AND worker < ? RETURNING app, channel, user_id",
            (interface.LEASE_PREFIX, interface.lease_until(transaction.now_ms)),
        ).fetchall()
        log_departures(transaction, gone)


class OpenStream(WorkerOp):
    """A channel without history gets a position, so that its subscribers can recover later."""

    __slots__ = ("app", "channel")

    def __init__(self, loop: AbstractEventLoop, app: str, channel: str, settled: Settled) -> None:
        super().__init__(loop, settled)
        self.app = app
        self.channel = channel

    def run(self, transaction: Transaction) -> None:
        transaction.open_stream(self.app, self.channel)


class CacheMiss(WorkerOp):
    """A cache channel had no event for a subscriber: announced once until an event is published."""

    __slots__ = ("app", "channel")

    def __init__(self, loop: AbstractEventLoop, app: str, channel: str) -> None:
        super().__init__(loop)
        self.app = app
        self.channel = channel

    def run(self, transaction: Transaction) -> None:
        now_s = transaction.now_ms // 1000
        known = transaction.cursor.execute(
            "SELECT 1 FROM cache WHERE app = ? AND channel = ? AND expires_s > ?", (self.app, self.channel, now_s)
        ).fetchall()
        if not known:
            transaction.log(interface.Kind.CACHE_MISS, self.app, self.channel, b"")
            transaction.cursor.execute(
                "INSERT OR REPLACE INTO cache VALUES (?, ?, NULL, ?)", (self.app, self.channel, now_s + MISS_SECONDS)
            )


class Leave(WorkerOp):
    """One connection of a user leaves; with the last one the user."""

    __slots__ = ("app", "channel", "failed", "key", "socket_id")

    def __init__(self, loop: AbstractEventLoop, app: str, channel: str, socket_id: str) -> None:
        super().__init__(loop)
        self.app = app
        self.channel = channel
        self.socket_id = socket_id
        self.key = (app, channel, socket_id)
        self.failed = False  # not written, to be submitted again

    def run(self, transaction: Transaction) -> None:
        _remove(transaction, *self.key)


class RemoveWorker(WorkerOp):
    """A worker died or closes: its members, counts and row are deleted, with the entries that announce it, in one
    transaction."""

    __slots__ = ("worker",)

    def __init__(self, loop: AbstractEventLoop, worker: str, settled: Settled | None = None) -> None:
        super().__init__(loop, settled)
        self.worker = worker

    def run(self, transaction: Transaction) -> None:
        gone = transaction.cursor.execute(
            "DELETE FROM members WHERE worker = ? RETURNING app, channel, user_id", (self.worker,)
        ).fetchall()
        log_departures(transaction, sorted(set(gone)))
        counts.remove_worker(transaction, self.worker)
        transaction.cursor.execute("DELETE FROM workers WHERE id = ?", (self.worker,))


def users_of(reader: sqlite3.Cursor | sqlite3.Connection, app: str, channel: str) -> int:
    """How many distinct users a channel has. Kept in a table of its own, because a channel may have many."""
    rows = reader.execute("SELECT users FROM users WHERE app = ? AND channel = ?", (app, channel)).fetchall()
    return rows[0][0] if rows else 0


def members_of(
    reader: sqlite3.Connection, app: str, channel: str, limit: int | None = None
) -> tuple[interface.Member, ...]:
    """Distinct users in the order in which they joined, each with the info of its newest connection. With `limit`, the
    first users by their ids, which are read from an index."""
    if limit is None:
        found = reader.execute(
            "SELECT user_id, info FROM members WHERE app = ? AND channel = ? ORDER BY seq", (app, channel)
        )
    else:
        found = reader.execute(
            "SELECT user_id, info FROM members WHERE seq IN (SELECT MAX(seq) FROM members "
            "WHERE app = ? AND channel = ? GROUP BY user_id ORDER BY user_id LIMIT ?) ORDER BY seq",
            (app, channel, limit),
        )
    return interface.distinct_members(found.fetchall())


def _count_user(transaction: Transaction, app: str, channel: str, limit: int | None) -> bool:
    """Count a user who joins. False: the channel has `limit` users already."""
    most = NO_LIMIT if limit is None else limit
    transaction.cursor.execute(_COUNT_USER, (app, channel, most, most))
    return transaction.cursor.rowcount > 0


def _remove(transaction: Transaction, app: str, channel: str, socket_id: str) -> bool:
    """Delete the member of a socket, and announce the user's departure if it was the last one. False: there is none."""
    cursor = transaction.cursor
    found = cursor.execute(_OF_SOCKET, (app, channel, socket_id)).fetchall()
    for seq, user_id, stays in found:
        cursor.execute("DELETE FROM members WHERE seq = ?", (seq,))
        if not stays:
            _log_departure(transaction, app, channel, user_id)
    return bool(found)


def _is_present(cursor: sqlite3.Cursor, app: str, channel: str, user_id: str) -> bool:
    return bool(
        cursor.execute(
            "SELECT 1 FROM members WHERE app = ? AND channel = ? AND user_id = ? LIMIT 1", (app, channel, user_id)
        ).fetchall()
    )


def log_departures(transaction: Transaction, users: Sequence[tuple[str, str, str]]) -> None:
    """Announce those of (app, channel, user_id) whose last connection has left."""
    for app, channel, user_id in users:
        if not _is_present(transaction.cursor, app, channel, user_id):
            _log_departure(transaction, app, channel, user_id)


def _log_departure(transaction: Transaction, app: str, channel: str, user_id: str) -> None:
    cursor = transaction.cursor
    cursor.execute("UPDATE users SET users = users - 1 WHERE app = ? AND channel = ? AND users > 1", (app, channel))
    if cursor.rowcount == 0:
        cursor.execute("DELETE FROM users WHERE app = ? AND channel = ?", (app, channel))
    transaction.log(interface.Kind.MEMBER_REMOVED, app, channel, b"", user_id=user_id)
