"""Queries about the whole deployment, in a thread of their own: a list of a hundred thousand channels must not hold up
a delivery."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from collections.abc import Iterator, Sequence

from fanfare.engine import consumers, errors, interface
from fanfare.engine.local import presence, schema, streams
from fanfare.engine.local.paths import LogPaths

_LAST_CHARACTER = "\U0010ffff"
_VARIABLES = 500  # of one statement; SQLite allows 999 in its oldest versions

_KEPT = (
    "SELECT {} FROM log WHERE app = ? AND channel = ? "
    'AND "offset" > ? AND "offset" < ? AND created_ms >= ? ORDER BY "offset" {} LIMIT ?'
)
_OF_KINDS = f"SELECT {schema.ENTRY} FROM log WHERE id > ? AND id <= ? AND kind IN ({{}}) ORDER BY id LIMIT ?"  # noqa: S608
_TOP_AND_LOG = f"SELECT {schema.TOP}, log_id FROM state"  # noqa: S608


class LogQueries(interface.Queries):
    """One read connection, used by one thread."""

    def __init__(self, paths: LogPaths) -> None:
        self._paths = paths
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    # -- the queries of the interface ----------------------------------------------------------------------------------

    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        connection, span = self._connect(), (app, prefix, prefix + _LAST_CHARACTER)
        subscriptions = connection.execute(
            "SELECT channel, SUM(subscribers) FROM counts "
            "WHERE app = ? AND channel >= ? AND channel < ? AND channel <> ? GROUP BY channel",
            (*span, interface.CONNECTIONS),
        ).fetchall()
        users = dict(
            connection.execute(
                "SELECT channel, users FROM users WHERE app = ? AND channel >= ? AND channel < ?", span
            ).fetchall()
        )
        return {channel: interface.ChannelCounts(count, users.get(channel, 0)) for channel, count in subscriptions}

    def search(self, app: str, text: str, after: str, limit: int) -> list[tuple[str, interface.ChannelCounts]]:
        rows = self._connect().execute(
            "SELECT channel, SUM(subscribers), COALESCE((SELECT users FROM users WHERE users.app = counts.app AND "
            "users.channel = counts.channel), 0) FROM counts WHERE app = ? AND channel > ? AND instr(channel, ?) > 0 "
            "AND channel <> ? GROUP BY channel ORDER BY channel LIMIT ?",
            (app, max(after, interface.LAST_INTERNAL), text, interface.CONNECTIONS, limit),
        )
        return [(channel, interface.ChannelCounts(count, users)) for channel, count, users in rows]

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        connection = self._connect()
        [(subscriptions,)] = connection.execute(
            "SELECT COALESCE(SUM(subscribers), 0) FROM counts WHERE app = ? AND channel = ?", (app, channel)
        ).fetchall()
        return interface.ChannelCounts(subscriptions, presence.users_of(connection, app, channel))

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        now_s = int(time.time())
        rows = (
            self._connect()
            .execute(
                "SELECT body, expires_s FROM cache "
                "WHERE app = ? AND channel = ? AND expires_s > ? AND body IS NOT NULL",
                (app, channel, now_s),
            )
            .fetchall()
        )
        return interface.Cached(rows[0][0], rows[0][1] - now_s) if rows else None

    def members(self, app: str, channel: str, limit: int | None = None) -> list[interface.Member]:
        return list(presence.members_of(self._connect(), app, channel, limit))

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        connection = self._connect()
        found: set[str] = set()
        for begin in range(0, len(user_ids), _VARIABLES):
            some = user_ids[begin : begin + _VARIABLES]
            marks = ",".join("?" * len(some))
            found.update(
                user_id
                for (user_id,) in connection.execute(
                    f"SELECT DISTINCT user_id FROM members WHERE app = ? AND channel = ? AND user_id IN ({marks})",  # noqa: S608
                    (app, channel, *some),
                ).fetchall()
            )
        return found

    def read(
        self,
        app: str,
        channel: str,
        after: int,
        limit: int,
        *,
        before: int | None = None,
        newest_first: bool = False,
        max_bytes: int | None = None,
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        connection, now_ms = self._connect(), int(time.time() * 1000)
        with _snapshot(connection):  # the entries and the top agree
            rows = connection.execute(
                'SELECT epoch, "offset", size, seconds FROM streams WHERE app = ? AND channel = ?', (app, channel)
            ).fetchall()
            if not rows:
                return [], None
            epoch, top, size, seconds = rows[0]
            before = top + 1 if before is None else before
            order, span = "DESC" if newest_first else "ASC", (max(after, top - size), before, now_ms - seconds * 1000)
            if max_bytes is not None:  # SQLite reads the length of a body without the body
                sizes = connection.execute(_KEPT.format("LENGTH(body)", order), (app, channel, *span, limit)).fetchall()
                total = itertools.accumulate(size for (size,) in sizes)
                limit = min(limit, 1 + sum(bytes_ <= max_bytes for bytes_ in total))
            statement = _KEPT.format(schema.ENTRY, order)
            entries = connection.execute(statement, (app, channel, *span, limit)).fetchall()
        return [interface.Entry._make(row) for row in entries], interface.Position(epoch, top)

    def stream(self, app: str, channel: str, stream_id: str) -> interface.Streamed | None:
        connection = self._connect()
        with _snapshot(connection):
            return next(iter(streams.of_channel(connection, app, channel, stream_id)), None)

    def streams(self, app: str, channel: str) -> list[interface.Streamed]:
        connection = self._connect()
        with _snapshot(connection):
            return streams.of_channel(connection, app, channel)

    def lapsed_streams(self, limit: int) -> list[interface.StreamName]:
        rows = self._connect().execute(
            "SELECT app, channel, id FROM texts INDEXED BY texts_open WHERE state = 0 AND until_ms < ? LIMIT ?",
            (int(time.time() * 1000), limit),
        )
        return [interface.StreamName._make(row) for row in rows.fetchall()]

    # -- for the worker itself -----------------------------------------------------------------------------------------

    def session(self, app: str, token: str) -> bytes | None:
        rows = (
            self._connect()
            .execute(
                "SELECT record FROM sessions WHERE app = ? AND token = ? AND expires_s > ?",
                (app, token, int(time.time()) - interface.LATE_SECONDS),
            )
            .fetchall()
        )
        return (rows[0][0] or None) if rows else None

    def scan(self, kinds: frozenset[interface.Kind], after: int, limit: int) -> consumers.Scan:
        connection = self._connect()
        with _snapshot(connection):
            [(top, log_id)] = connection.execute(_TOP_AND_LOG).fetchall()
            upto = min(top, after + consumers.SCAN_ENTRIES)
            names = ", ".join(str(kind.value) for kind in sorted(kinds))
            rows = connection.execute(_OF_KINDS.format(names), (after, upto, limit)).fetchall()
        entries = [interface.Entry._make(row) for row in rows]
        return consumers.Scan(log_id, entries, entries[-1].id if len(entries) == limit else upto, top)

    def sizes(self) -> dict[str, int]:
        """The size of the kept history and sessions. Reads two whole tables, with a row for each stream and page."""
        connection = self._connect()
        [(streams, kept)] = connection.execute(
            'SELECT COUNT(*), TOTAL("offset" - kept_from + 1) FROM streams'
        ).fetchall()
        [(sessions, sessions_bytes)] = connection.execute(
            "SELECT COUNT(*), TOTAL(LENGTH(record)) FROM sessions"
        ).fetchall()
        [(late,)] = connection.execute(
            "SELECT COUNT(*) FROM sessions WHERE expires_s <= ?", (int(time.time()),)
        ).fetchall()
        return {
            "streams": streams,
            "kept": int(kept),
            "sessions": sessions,
            "sessions_late": late,
            "sessions_bytes": int(sessions_bytes),
            "log_bytes": self._paths.size(),
        }

    def too_late(self) -> int:
        """When the time of the newest session was over that is one too many; 0 if none is."""
        rows = (
            self._connect()
            .execute(
                "SELECT expires_s FROM sessions WHERE expires_s <= ? ORDER BY expires_s DESC LIMIT 1 OFFSET ?",
                (int(time.time()), interface.LATE_SESSIONS),
            )
            .fetchall()
        )
        return rows[0][0] if rows else 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        identity = self._paths.identity()
        if self._connection is None or identity != self._identity:
            self.close()
            if identity is None:
                raise errors.EngineUnavailable("The log was deleted")
            self._connection, self._identity = schema.connect(self._paths), identity
        return self._connection


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")
