"""The PostgreSQL engine as the old or the new store of a move. The mark is the row of the table `moved`."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from fanfare.engine import errors, interface, moves
from fanfare.engine.postgres import database, pending, writer

LOCK_S: Final = 5.0
HELD_S: Final = moves.FROZEN_S + 7.0
# That end a transaction; the last one from PostgreSQL 17 on.
_TIMEOUTS: Final = ["idle_in_transaction_session_timeout", "tcp_user_timeout", "transaction_timeout"]

_STREAM: Final = 'app, channel, epoch, "offset", kept_from, size, seconds'
_MS: Final = "(EXTRACT(EPOCH FROM {}) * 1000)::bigint"
_ENTRY: Final = f'l.id, l.kind, l.app, l.channel, l."offset", l.user_id, l.exclude, l.body, {_MS.format("l.created")}'


class PostgresStore(moves.Store):
    partitions = 1

    def __init__(self, url: str) -> None:
        self._address = database.parse(url)
        self._schema = sql.Identifier(self._address.schema)
        self._connection: database.Connection | None = None
        self._next = 1  # id, where the old ones are not kept
        self._listed = ""  # the transaction whose rows, and those of later ones, `changed` answers
        self.public = self._address.public

    @contextlib.contextmanager
    def _reported(self) -> Iterator[database.Connection]:
        """Raises EngineUnavailable, inside the block too."""
        try:
            if self._connection is None:
                self._connection = database.connect_blocking(self._address, "move")
            yield self._connection
        except (psycopg.Error, OSError) as error:
            sentence = f"{self.public} cannot be used: {writer.describe(error)}"
            raise database.failure(error, sentence, self._address) from error

    def _run(self, text: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._reported() as connection:
            cursor = connection.execute(sql.SQL(text).format(self._schema), parameters)
            return cursor.fetchall() if cursor.description is not None else []

    def mark(self) -> moves.Mark | None:
        with self._reported() as connection:
            return database.read_mark(connection, self._address)

    def workers(self) -> int:
        if not self._is_there():
            return 0
        [(alive,)] = self._run("SELECT count(*) FROM {0}.workers WHERE until >= clock_timestamp()")
        return int(alive)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _is_there(self) -> bool:
        [(there,)] = self._run("SELECT to_regclass(%s) IS NOT NULL", (f'"{self._address.schema}".state',))
        return bool(there)

    # -- the old store -------------------------------------------------------------------------------------------------

    def streams(self) -> moves.Streams:
        if not self._is_there():
            raise errors.EngineMisconfigured(f"{self.public} has no log.")
        return self._list("")

    def changed(self) -> moves.Streams | None:
        return self._list("WHERE age(xmin) <= age(%s::text::xid)", self._listed)

    def _list(self, condition: str, *parameters: str) -> moves.Streams:
        """Streams, and the oldest transaction that had not ended before."""
        [(oldest,)] = self._run("SELECT mod(pg_snapshot_xmin(pg_current_snapshot())::text::numeric, 4294967296)::text")
        rows = self._run(f"SELECT {_STREAM} FROM {{0}}.streams {condition}", parameters)
        self._listed = str(oldest)
        return {(row[0], row[1]): moves.Stream._make(row) for row in rows}

    def kept(self, wanted: Sequence[tuple[moves.Stream, int]]) -> Iterator[tuple[moves.Stream, list[interface.Entry]]]:
        rows = self._run(
            f"SELECT w.n, {_ENTRY} FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) "
            "WITH ORDINALITY AS w(app, channel, after, upto, n) JOIN {0}.log l ON l.app = w.app "
            'AND l.channel = w.channel AND l."offset" > w.after AND l."offset" <= w.upto ORDER BY w.n, l."offset"',
            (
                [stream.app for stream, _ in wanted],
                [stream.channel for stream, _ in wanted],
                [after for _, after in wanted],
                [stream.offset for stream, _ in wanted],
            ),
        )
        found: dict[int, list[interface.Entry]] = {}
        for number, *row in rows:
            found.setdefault(number - 1, []).append(interface.Entry._make(row))
        for index, (stream, _) in enumerate(wanted):
            yield stream, found.get(index, [])

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """One transaction that holds the log's lock. It ends with this process. If the process is stopped, the server
        ends it after `HELD_S`, whether it waits for a statement or for the connection to take more of an answer."""
        with self._reported() as connection:
            connection.execute(f"SET lock_timeout = '{LOCK_S:g}s'")
            with connection.transaction():
                connection.execute(
                    "SELECT set_config(name, %s, true) FROM pg_settings WHERE name = ANY(%s)",
                    (f"{HELD_S * 1000:.0f}", _TIMEOUTS),
                )
                connection.execute(
                    "SELECT pg_advisory_xact_lock(%s, %s)", (database.LOCK_CLASS, self._address.lock_key)
                )
                # Transactions of the project write into this table without the lock: those that are open end first.
                self._run("LOCK TABLE {0}.pending IN ACCESS EXCLUSIVE MODE")
                database.create_functions(connection, self._address)  # the workers may be of another release
                move = pending.move_query(self._address)
                while connection.execute(move, (pending.MOVE_ROWS,)).fetchall() == [(pending.MOVE_ROWS,)]:
                    pass
                yield

    def rest(self) -> moves.Rest:
        run = self._run
        [(log_id, top)] = run(
            "SELECT generation, GREATEST(trimmed_to, COALESCE((SELECT MAX(id) FROM {0}.log), 0)) FROM {0}.state"
        )
        readings = [moves.Reading(name, 0, *row) for name, *row in run("SELECT name, position, kinds FROM {0}.cursors")]
        unread: list[interface.Entry] = []
        if readings:
            kinds = [kind.value for kind in interface.Kind if any(one.kinds >> kind & 1 for one in readings)]
            rows = run(
                f"SELECT {_ENTRY} FROM {{0}}.log l WHERE l.id > %s AND l.kind = ANY(%s) ORDER BY l.id",
                (min(one.position for one in readings), kinds),
            )
            unread = [interface.Entry._make(row) for row in rows]
        parts: dict[tuple[str, str, str], list[tuple[int, bytes]]] = {}
        for app, channel, text, seq, part in run("SELECT app, channel, id, seq, part FROM {0}.parts ORDER BY seq"):
            parts.setdefault((app, channel, text), []).append((seq, part))
        expires = _MS.format("expires")
        return moves.Rest(
            keys=[
                moves.Key(app, channel, key, interface.Position(epoch, offset) if epoch else None, expires_ms)
                for app, channel, key, epoch, offset, expires_ms in run(
                    f'SELECT app, channel, key, epoch, "offset", {expires} FROM {{0}}.idempotency'
                )
            ],
            cached=[
                moves.CachedEvent._make(row) for row in run(f"SELECT app, channel, body, {expires} FROM {{0}}.cache")
            ],
            sessions=[
                moves.Session._make(row)
                for row in run(
                    f"SELECT app, token, record, {expires}, COALESCE({_MS.format('taken')}, 0) FROM {{0}}.sessions "
                    "WHERE length(record) > 0"
                )
            ],
            texts=[
                moves.Text._make((*row, tuple(parts.get((row[0], row[1], row[2]), ()))))
                for row in run(
                    f'SELECT app, channel, id, state, seq, size, {_MS.format("until")}, "offset", head, body '
                    "FROM {0}.texts"
                )
            ],
            readings=readings,
            unread=[unread],
            log_id=log_id,
            top=top,
        )

    def leave(self, mark: moves.Mark) -> None:
        self._run("DELETE FROM {0}.moved")
        self._run("INSERT INTO {0}.moved VALUES (%s)", (mark.text(),))
        # The workers find this generation, and a transaction of the project finds no table to write into.
        self._run("UPDATE {0}.state SET generation = %s", (moves.MOVED,))
        self._run("ALTER TABLE {0}.pending RENAME TO pending_moved")
        self._run("SELECT pg_notify(%s, '')", (self._address.topic,))

    def left(self, mark: moves.Mark) -> None:
        """The mark is written in one step."""

    # -- the new store -------------------------------------------------------------------------------------------------

    def begin(self, mark: moves.Mark) -> None:
        with self._reported() as connection:
            if moves.is_in_use(self.mark()) and self._is_there():
                [(used,)] = self._run("SELECT (SELECT COUNT(*) FROM {0}.streams) + (SELECT COUNT(*) FROM {0}.log)")
                if used or self.workers():
                    raise errors.EngineMisconfigured(
                        f"{self.public} has a log of its own, or workers: name another schema (?schema=NAME)."
                    )
            with connection.transaction():
                self._empty()
            database.prepare(connection, self._address)
            self._run("INSERT INTO {0}.moved VALUES (%s)", (mark.text(),))

    def _empty(self) -> None:
        """Drop the tables. The schema stays: the role may own it and lack the right to create one."""
        for kind, what in (("r", "TABLE"), ("S", "SEQUENCE")):
            found = self._run(
                "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = %s AND c.relkind = %s",
                (self._address.schema, kind),
            )
            for (name,) in found:
                self._run(f"DROP {what} IF EXISTS {name} CASCADE")

    def put(self, batch: moves.Batch, *, keeps_ids: bool) -> None:
        with self._reported() as connection, connection.transaction():
            self._many(
                "INSERT INTO {0}.streams VALUES (%s, %s, %s, %s, %s, %s, %s, clock_timestamp() + interval '5 seconds') "
                'ON CONFLICT (app, channel) DO UPDATE SET epoch = excluded.epoch, "offset" = excluded."offset", '
                "kept_from = excluded.kept_from, size = excluded.size, seconds = excluded.seconds",
                [stream for stream, _ in batch],
            )
            self._insert([entry for _, entries in batch for entry in entries], keeps_ids=keeps_ids)

    def _insert(self, entries: Iterable[interface.Entry], *, keeps_ids: bool) -> None:
        query = sql.SQL(
            'COPY {}.log (id, kind, app, channel, "offset", user_id, exclude, body, created) FROM STDIN'
        ).format(self._schema)
        with self._reported() as connection, connection.cursor() as cursor, cursor.copy(query) as copy:
            for entry in entries:
                number = entry.id
                if not keeps_ids:
                    number, self._next = self._next, self._next + 1
                created = dt.datetime.fromtimestamp(entry.created_ms / 1000, dt.UTC)
                copy.write_row((number, *entry[1:8], created))

    def _many(self, text: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._reported() as connection, connection.cursor() as cursor:
            cursor.executemany(sql.SQL(text).format(self._schema), list(rows))

    def forget(self, streams: Iterable[tuple[str, str]]) -> None:
        names = list(streams)
        if names:
            with self._reported() as connection, connection.transaction():
                self._many("DELETE FROM {0}.streams WHERE app = %s AND channel = %s", names)
                self._many("DELETE FROM {0}.log WHERE app = %s AND channel = %s", names)

    def finish(self, rest: moves.Rest, mark: moves.Mark) -> list[moves.Start]:
        keeps_ids = rest.log_id is not None
        start, readings = moves.begin_reading(rest, self._next - 1)
        at = "to_timestamp(%s / 1000.0)"
        with self._reported() as connection, connection.transaction():
            unread = [entry for part in rest.unread for entry in part]
            if keeps_ids:  # kept ones are there
                unread = [entry for entry in unread if entry.offset is None]
            else:
                unread = [entry._replace(offset=None) for entry in unread]
            self._insert(unread, keeps_ids=keeps_ids)
            top = rest.top if keeps_ids else self._next - 1
            self._run("UPDATE {0}.state SET trimmed_to = %s, held_from = %s", (top, start))
            self._run(
                "SELECT setval('{0}.log_id', %s, %s)".replace("{0}", self._address.schema), (max(top, 1), top > 0)
            )
            if rest.log_id is not None:
                self._run("UPDATE {0}.state SET generation = %s", (rest.log_id,))
            self._many("INSERT INTO {0}.cursors VALUES (%s, %s, clock_timestamp(), %s)", readings)
            self._many(
                f"INSERT INTO {{0}}.idempotency VALUES (%s, %s, %s, 0, %s, %s, {at})",
                [(*one[:3], *(one.position or (None, None)), one.expires_ms) for one in rest.keys],
            )
            self._many(f"INSERT INTO {{0}}.cache VALUES (%s, %s, %s, {at})", rest.cached)
            self._many(
                f"INSERT INTO {{0}}.sessions VALUES (%s, %s, %s, {at}, '', '', to_timestamp(%s / 1000.0))",
                [(*one[:4], one.taken_ms or None) for one in rest.sessions],
            )
            self._many(
                f"INSERT INTO {{0}}.texts VALUES (%s, %s, %s, %s, %s, %s, {at}, %s, %s, %s)",
                [one[:10] for one in rest.texts],
            )
            self._many(
                "INSERT INTO {0}.parts VALUES (%s, %s, %s, %s, %s)",
                [(*one[:3], *part) for one in rest.texts for part in one.parts],
            )
        [(log_id,)] = self._run("SELECT generation FROM {0}.state")
        return [] if keeps_ids else [moves.Start(0, log_id, start)]

    def open(self, mark: moves.Mark) -> None:
        self._run("UPDATE {0}.moved SET mark = %s", (mark.text(),))
