"""Queries about the whole deployment, asked in a thread of their own: a list of a hundred thousand channels must not
hold up a delivery."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from fanfare.engine import consumers, errors, interface
from fanfare.engine.local import place, presence, schema, streams, tail

_LAST_CHARACTER = "\U0010ffff"

_TOP_AND_LOG = f"SELECT {schema.TOP}, log_id FROM state"  # noqa: S608
_OF_KINDS = (
    'SELECT id, kind, app, channel, "offset", user_id, exclude, body FROM log '
    "WHERE id > ? AND id <= ? AND kind IN ({}) ORDER BY id LIMIT ?"
)

_VARIABLES = 500  # of one statement; SQLite allows 999 in its oldest versions


class Queries(interface.Queries):
    """One read connection, used by one thread."""

    def __init__(self, where: place.Place) -> None:
        self._where = where
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

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

    def entries(self, after: int, limit: int) -> list[interface.Entry]:
        return tail.entries(self._connect(), after, limit)

    def members(self, app: str, channel: str) -> list[interface.Member]:
        return tail.members(self._connect(), app, channel)

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
        self, app: str, channel: str, after: int, limit: int, *, before: int | None = None, newest_first: bool = False
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        page = streams.Page(after, before, limit, newest_first)
        return streams.read(self._connect(), app, channel, page, int(time.time() * 1000))

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
        connection.execute("BEGIN")
        try:
            [(top, log_id)] = connection.execute(_TOP_AND_LOG).fetchall()
            upto = min(top, after + consumers.SCAN_ENTRIES)
            names = ", ".join(str(kind.value) for kind in sorted(kinds))
            rows = connection.execute(_OF_KINDS.format(names), (after, upto, limit)).fetchall()
        finally:
            connection.execute("COMMIT")
        entries = [interface.Entry._make(row) for row in rows]
        return consumers.Scan(log_id, entries, entries[-1].id if len(entries) == limit else upto, top)

    def sizes(self) -> dict[str, int]:
        """How much is kept for those who come back. Reads two whole tables, of a row for each stream and each page."""
        connection = self._connect()
        [(streams_, kept)] = connection.execute(
            'SELECT COUNT(*), TOTAL("offset" - kept_from + 1) FROM streams'
        ).fetchall()
        [(sessions, sessions_bytes)] = connection.execute(
            "SELECT COUNT(*), TOTAL(LENGTH(record)) FROM sessions WHERE app <> ''"
        ).fetchall()
        [(late,)] = connection.execute(
            "SELECT COUNT(*) FROM sessions WHERE expires_s <= ? AND app <> ''", (int(time.time()),)
        ).fetchall()
        return {
            "streams": streams_,
            "kept": int(kept),
            "sessions": sessions,
            "sessions_late": late,
            "sessions_bytes": int(sessions_bytes),
            "log_bytes": self._where.size(),
        }

    def too_late(self) -> int:
        """When the time of the newest record was over that is one too many; 0 if none is."""
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
        identity = self._where.identity()
        if self._connection is None or identity != self._identity:
            self.close()
            if identity is None:
                raise errors.EngineUnavailable("The log was deleted")
            self._connection, self._identity = schema.connect(self._where), identity
        return self._connection
