"""Questions about the whole deployment, for any thread: with connections of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import psycopg_pool
from psycopg import sql

from fanfare.engine import consumers, interface
from fanfare.engine.postgres import database, writer

# Of the table `log`, as `l`, in the order of the fields of `interface.Entry`.
COLUMNS = (
    'l.id, l.kind, l.app, l.channel, l."offset", l.user_id, l.exclude, l.body, '
    "(EXTRACT(EPOCH FROM l.created) * 1000)::bigint AS created_ms"
)
FETCHED_AT_ONCE = 1_000  # rows: less than 1 ms


class Pool:
    """The connections of a process for callers that block. It is opened at its first use, so it survives a fork that
    comes before."""

    def __init__(self, address: database.Address, *, size: int, timeout_s: float) -> None:
        self._address = address
        self._size = size
        self._timeout_s = timeout_s
        self._pool: psycopg_pool.ConnectionPool[database.Connection] | None = None

    @contextlib.contextmanager
    def connection(self, timeout_s: float | None = None) -> Iterator[database.Connection]:
        """Raises EngineUnavailable, inside the block too."""
        try:
            with self._opened().connection(timeout_s or self._timeout_s) as connection:
                yield connection
        except (psycopg.Error, psycopg_pool.PoolTimeout, OSError) as error:
            sentence = f"The database cannot be reached: {writer.describe(error)}"
            raise database.failure(error, sentence, self._address) from error

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(timeout=1.0)

    def _opened(self) -> psycopg_pool.ConnectionPool[database.Connection]:
        if self._pool is None:
            with database.connect_blocking(self._address, "start") as connection:
                database.prepare(connection, self._address)
            self._pool = psycopg_pool.ConnectionPool(
                self._address.conninfo,
                min_size=0,
                max_size=self._size,
                max_idle=60.0,
                timeout=self._timeout_s,
                kwargs={"autocommit": True, "prepare_threshold": 1, "connect_timeout": database.CONNECT_SECONDS},
                configure=_configure,
                check=psycopg_pool.ConnectionPool.check_connection,
                open=True,
            )
        return self._pool


def _configure(connection: database.Connection) -> None:
    connection.execute(database.NO_JIT)


class Queries(interface.Queries):
    """The questions, on one connection."""

    def __init__(self, connection: database.Connection, address: database.Address) -> None:
        self._connection = connection
        self._schema = sql.Identifier(address.schema)

    def _ask(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql.SQL(text).format(self._schema), parameters)
        rows = cursor.fetchmany(FETCHED_AT_ONCE)
        while some := cursor.fetchmany(FETCHED_AT_ONCE):  # other threads run between two calls
            rows += some
        return rows

    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        pattern = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        users = dict(self._ask("SELECT channel, users FROM {0}.users WHERE app = %s AND channel LIKE %s", app, pattern))
        counts = self._ask(
            "SELECT channel, SUM(subscribers)::bigint FROM {0}.counts "
            "WHERE app = %s AND channel LIKE %s AND channel <> '' GROUP BY channel",
            app,
            pattern,
        )
        return {channel: interface.ChannelCounts(count, users.get(channel, 0)) for channel, count in counts}

    def search(self, app: str, text: str, after: str, limit: int) -> list[tuple[str, interface.ChannelCounts]]:
        rows = self._ask(
            "SELECT c.channel, SUM(c.subscribers)::bigint, COALESCE((SELECT u.users FROM {0}.users u "
            "WHERE u.app = %s AND u.channel = c.channel), 0) FROM {0}.counts c "
            "WHERE c.app = %s AND c.channel > %s AND strpos(c.channel, %s) > 0 AND left(c.channel, 1) NOT IN ('', '#') "
            "GROUP BY c.channel ORDER BY c.channel LIMIT %s",
            app,
            app,
            after,
            text,
            limit,
        )
        return [(channel, interface.ChannelCounts(count, users)) for channel, count, users in rows]

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        [(subscriptions, users)] = self._ask(
            "SELECT (SELECT COALESCE(SUM(subscribers), 0)::bigint FROM {0}.counts WHERE app = %s AND channel = %s), "
            "(SELECT COALESCE(MAX(users), 0) FROM {0}.users WHERE app = %s AND channel = %s)",
            app,
            channel,
            app,
            channel,
        )
        return interface.ChannelCounts(subscriptions, users)

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        rows = self._ask(
            "SELECT body, ceil(EXTRACT(EPOCH FROM expires - clock_timestamp()))::integer FROM {0}.cache "
            "WHERE app = %s AND channel = %s AND expires > clock_timestamp() AND body IS NOT NULL",
            app,
            channel,
        )
        return interface.Cached(*rows[0]) if rows else None

    def members(self, app: str, channel: str, limit: int | None = None) -> list[interface.Member]:
        if limit is None:
            rows = self._ask(
                "SELECT user_id, info FROM {0}.members WHERE app = %s AND channel = %s ORDER BY seq", app, channel
            )
        else:
            rows = self._ask(
                "SELECT user_id, info FROM {0}.members WHERE seq IN (SELECT MAX(seq) FROM {0}.members "
                "WHERE app = %s AND channel = %s GROUP BY user_id ORDER BY user_id LIMIT %s) ORDER BY seq",
                app,
                channel,
                limit,
            )
        return list(interface.distinct_members(rows))

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        rows = self._ask(
            "SELECT DISTINCT user_id FROM {0}.members WHERE app = %s AND channel = %s AND user_id = ANY(%s::text[])",
            app,
            channel,
            list(user_ids),
        )
        return {user_id for (user_id,) in rows}

    def stream(self, app: str, channel: str, stream_id: str) -> interface.Streamed | None:
        rows = self._ask(f"{STREAMS} AND t.id = %s", app, channel, stream_id)
        return streamed(rows[0]) if rows else None

    def streams(self, app: str, channel: str) -> list[interface.Streamed]:
        return [streamed(row) for row in self._ask(STREAMS, app, channel)]

    def lapsed_streams(self, limit: int) -> list[interface.StreamName]:
        rows = self._ask(
            "SELECT app, channel, id FROM {0}.texts WHERE state = 0 AND until < clock_timestamp() LIMIT %s", limit
        )
        return [interface.StreamName._make(row) for row in rows]

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
        order = "DESC" if newest_first else "ASC"
        rows = self._ask(
            f'SELECT s.epoch, s."offset", {COLUMNS} FROM {{0}}.streams s LEFT JOIN LATERAL ('
            f'SELECT *, SUM(octet_length(body)) OVER (ORDER BY "offset" {order}) - octet_length(body) AS earlier '
            'FROM {0}.log l WHERE l.app = s.app AND l.channel = s.channel AND l."offset" > %s '
            'AND l."offset" > s."offset" - s.size AND l."offset" < COALESCE(%s, s."offset" + 1) '
            "AND l.created >= clock_timestamp() - s.seconds * interval '1 second' "
            f'ORDER BY l."offset" {order} LIMIT %s) l ON l.earlier <= COALESCE(%s::bigint, l.earlier) '
            f'WHERE s.app = %s AND s.channel = %s ORDER BY l."offset" {order}',
            after,
            before,
            limit,
            max_bytes,
            app,
            channel,
        )
        if not rows:
            return [], None
        entries = [interface.Entry._make(row[2:]) for row in rows if row[2] is not None]
        return entries, interface.Position(rows[0][0], rows[0][1])

    def session(self, app: str, token: str) -> bytes | None:
        rows = self._ask(
            "SELECT record FROM {0}.sessions WHERE app = %s AND token = %s "
            "AND expires > clock_timestamp() - %s * interval '1 second'",
            app,
            token,
            interface.LATE_SECONDS,
        )
        return bytes(rows[0][0]) or None if rows else None

    def scan(self, kinds: frozenset[interface.Kind], after: int, limit: int) -> consumers.Scan:
        rows = self._ask(
            "SELECT s.generation, s.top, l.* FROM (SELECT generation, "
            "GREATEST(trimmed_to, COALESCE((SELECT MAX(id) FROM {0}.log), 0)) AS top FROM {0}.state) s "
            f"LEFT JOIN LATERAL (SELECT {COLUMNS} FROM {{0}}.log l WHERE l.id > %s AND l.id <= LEAST(s.top, %s) "
            "AND l.kind = ANY(%s) ORDER BY l.id LIMIT %s) l ON true ORDER BY l.id",
            after,
            after + consumers.SCAN_ENTRIES,
            [kind.value for kind in kinds],
            limit,
        )
        generation, top = rows[0][:2]
        entries = [interface.Entry._make(row[2:]) for row in rows if row[2] is not None]
        read_to = entries[-1].id if len(entries) == limit else min(top, after + consumers.SCAN_ENTRIES)
        return consumers.Scan(generation, entries, read_to, top)

    def sizes(self) -> dict[str, int]:
        """How much is kept. Read from statistics where a count would read a whole table."""
        [(streams, kept, sessions, sessions_bytes, late, log_bytes)] = self._ask(
            "SELECT (SELECT count(*) FROM {0}.streams), "
            '(SELECT COALESCE(SUM("offset" - kept_from + 1), 0)::bigint FROM {0}.streams), '
            "(SELECT count(*) FROM {0}.sessions WHERE app <> ''), "
            "(SELECT COALESCE(SUM(length(record)), 0)::bigint FROM {0}.sessions WHERE app <> ''), "
            "(SELECT count(*) FROM {0}.sessions WHERE app <> '' AND expires <= clock_timestamp()), "
            "(SELECT SUM(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relkind = 'r')",
            self._schema.as_string(None).strip('"'),
        )
        return {
            "streams": streams,
            "kept": kept,
            "sessions": sessions,
            "sessions_bytes": sessions_bytes,
            "sessions_late": late,
            "log_bytes": log_bytes or 0,
        }


# The streams of a channel; more conditions may follow.
STREAMS = (
    'SELECT t.id, t.state, t.seq, t.size, t.head, t.body, t."offset", ARRAY(SELECT p.part FROM {0}.parts p '
    "WHERE p.app = t.app AND p.channel = t.channel AND p.id = t.id ORDER BY p.seq) "
    "FROM {0}.texts t WHERE t.app = %s AND t.channel = %s"
)


def streamed(row: tuple[Any, ...]) -> interface.Streamed:
    """A row of `STREAMS`."""
    stream_id, state, seq, size, head, body, offset, parts = row
    return interface.Streamed(
        stream_id, interface.StreamState(state), seq, size, bytes(head), tuple(map(bytes, parts)), body, offset
    )
