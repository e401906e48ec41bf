"""The database of the engine: its address, its connections, its tables and functions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.resources
import os
import re
import secrets
import socket
import string
import urllib.parse
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from fanfare.engine import errors, interface, moves

VERSION: Final = 2  # of the tables
OLDEST_SERVER: Final = 140_000

DEFAULT_SCHEMA: Final = "fanfare"
LOCK_CLASS: Final = 0x66_66  # of the advisory locks, beside the schema's own number

SWEEP_SECONDS: Final = 5  # until a stream that is over its size is swept
POSITION_OUTLIVES: Final = 10  # a stream's position outlives its entries this many times
EMPTY_STREAM_SECONDS: Final = 360
FORMS_KEPT: Final = 10  # of the functions: one for each release that changed them
TAKEN_SECONDS: Final = 600  # how long a session without a record is kept; a connected page saves one within seconds

LOST_SESSIONS: Final = "lost"  # the token of the row that keeps when sessions may have been lost; its `app` is empty

CONNECT_SECONDS: Final = 5
LOCK_IDLE_MS: Final = 5_000  # between two statements of a process that holds the log's lock
# The planner overestimates the rows of short statements, and then compiles them: some 20 ms of each look of a reader.
NO_JIT: Final = "SET jit = off"
MOVED_STATE: Final = "FF001"  # the SQLSTATE of a log that was moved; the message is the mark
# What a call raises while the server is away.
RETRIED: Final = (psycopg.Error, OSError, TimeoutError, errors.EngineUnavailable)
_ALPHABET: Final = string.digits + string.ascii_letters

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]
Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the log is. `conninfo` holds the password: only `public` may be shown. `form`: see functions.sql."""

    conninfo: str
    schema: str
    public: str
    form: str

    @property
    def topic(self) -> str:
        """The name of the notifications."""
        return f"fanfare_{self.schema}"

    @property
    def lock_key(self) -> int:
        """The schema's number among the advisory locks: 31 bits of a hash of its name."""
        return zlib.crc32(self.schema.encode()) & 0x7FFF_FFFF

    def function(self, name: str) -> sql.Identifier:
        """A function of functions.sql, as this release calls it."""
        return sql.Identifier(self.schema, f"{name}_{self.form}")


def parse(url: str) -> Address:
    """Read `postgres://user:password@host:port/database?schema=fanfare`; every other option is passed to libpq.

    Raises EngineMisconfigured, without the password in its message.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise _invalid() from None
    options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    schema = options.pop("schema", DEFAULT_SCHEMA)
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,50}", schema):
        raise errors.EngineMisconfigured(
            f"FANFARE_ENGINE: schema={schema!r} is not a name of lower-case letters, digits and underscores."
        )
    user = f"{parts.username}@" if parts.username else ""
    host = parts.netloc.rpartition("@")[2] or options.get("host", "")
    conninfo = urllib.parse.urlunsplit(
        ("postgresql", parts.netloc, parts.path, urllib.parse.urlencode(options), parts.fragment)
    )
    _check_conninfo(conninfo, options)
    return Address(conninfo, schema, f"postgres://{user}{host}{parts.path} (schema {schema})", _form())


def _check_conninfo(conninfo: str, options: dict[str, str]) -> None:
    """Raises EngineMisconfigured."""
    for name, value in options.items():
        try:
            psycopg.conninfo.make_conninfo(**{name: value})
        except psycopg.ProgrammingError:
            raise errors.EngineMisconfigured(
                f"FANFARE_ENGINE has the option {name!r}; the options are `schema` and those of libpq."
            ) from None
    try:
        ports = str(psycopg.conninfo.conninfo_to_dict(conninfo).get("port") or "")
    except psycopg.ProgrammingError:
        raise _invalid() from None
    if not re.fullmatch(r"[0-9,]*", ports):
        raise _invalid()


def _invalid() -> errors.EngineMisconfigured:
    return errors.EngineMisconfigured(
        "FANFARE_ENGINE is not a valid PostgreSQL URL; expected "
        "postgres://user:password@host:port/database?schema=fanfare."
    )


async def connect(address: Address, name: str) -> AsyncConnection:
    """A connection in autocommit mode. Raises psycopg.Error."""
    connection = await psycopg.AsyncConnection.connect(
        address.conninfo,
        autocommit=True,
        prepare_threshold=1,
        connect_timeout=CONNECT_SECONDS,
        application_name=f"fanfare {name}",
        **_KEEPALIVE,
    )
    try:
        await connection.execute(NO_JIT)
    except BaseException:
        await connection.close()
        raise
    return connection


def connect_blocking(address: Address, name: str) -> Connection:
    """A short-lived connection for a thread. It prepares no statements. Raises psycopg.Error."""
    return psycopg.connect(
        address.conninfo,
        autocommit=True,
        prepare_threshold=None,
        connect_timeout=CONNECT_SECONDS,
        application_name=f"fanfare {name}",
        **_KEEPALIVE,
    )


@contextlib.asynccontextmanager
async def time_limit(connection: AsyncConnection, seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after `seconds`, and break the connection.

    To cancel a statement, psycopg asks the server first, and waits for it: 10 s more where it does not answer.
    """
    is_over = False

    def end() -> None:
        nonlocal is_over
        is_over = True
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except (psycopg.Error, OSError) as error:
        if is_over:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()


# A server that is cut off is noticed by the kernel too, and not only by a call that gets no answer.
_KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def prepare(connection: Connection, address: Address) -> None:
    """Create or check the tables and functions, and begin a new generation where acknowledged entries may be gone.

    Raises EngineMisconfigured, EngineUnavailable, psycopg.Error.
    """
    version = connection.info.server_version
    if version < OLDEST_SERVER:
        raise errors.EngineMisconfigured(
            f"PostgreSQL {version // 10_000} is too old for the engine: {OLDEST_SERVER // 10_000} or later is needed."
        )
    [(recovery,)] = connection.execute("SELECT pg_is_in_recovery()").fetchall()
    if recovery:
        raise errors.EngineUnavailable(f"{address.public} is a standby: the engine needs the primary.")
    with connection.transaction():
        _lock(connection, address)
        known = connection.execute(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = 'state'",
            (address.schema,),
        ).fetchall()
        if not known:
            connection.execute(_script("schema.sql", address))
            connection.execute(
                sql.SQL("INSERT INTO {}.state VALUES (true, %s, %s, %s, 0, 0)").format(sql.Identifier(address.schema)),
                (VERSION, new_generation(), server_identity(connection, address).text(with_start=False)),
            )
        [(found,)] = connection.execute(
            sql.SQL("SELECT version FROM {}.state").format(sql.Identifier(address.schema))
        ).fetchall()
        mark = read_mark(connection, address)
        if mark is not None:
            mark.refuse_worker(address.public)
        if found != VERSION:
            raise errors.EngineMisconfigured(
                f"The log in {address.public} has version {found}; this release of Fanfare reads version {VERSION}. "
                "Install the release that wrote it, or name another schema."
            )
        try:
            create_functions(connection, address)
        except psycopg.errors.LockNotAvailable as error:
            raise errors.EngineUnavailable(
                "The table of pending events cannot be upgraded while a transaction that has published is open. End "
                "that transaction, or wait until it ends."
            ) from error
        _drop_old_functions(connection, address)
        check_generation(connection, address)


def _lock(connection: Connection, address: Address) -> None:
    """Take the log's lock in the open transaction. All writers wait for it, so the server ends the transaction if the
    process stops in it or is cut off. Raises psycopg.Error."""
    connection.execute(
        "SELECT set_config('idle_in_transaction_session_timeout', %s, true), pg_advisory_xact_lock(%s, %s)",
        (str(LOCK_IDLE_MS), LOCK_CLASS, address.lock_key),
    )


def create_functions(connection: Connection, address: Address) -> None:
    """Create the functions of this release, beside those of others. Raises psycopg.Error."""
    connection.execute(_script("functions.sql", address))


def _drop_old_functions(connection: Connection, address: Address) -> None:
    """Drop the functions of all but the newest forms, which processes of earlier releases may still call. Raises
    psycopg.Error."""
    old = connection.execute(
        "WITH functions AS (SELECT oid, right(proname, 8) AS form FROM pg_proc WHERE pronamespace = %s::regnamespace "
        "AND proname ~ '_[0-9a-f]{8}$' AND pg_has_role(proowner, 'USAGE')), "
        "old AS (SELECT form FROM functions WHERE form <> %s GROUP BY form ORDER BY max(oid) DESC OFFSET %s) "
        "SELECT oid::regprocedure::text FROM functions JOIN old USING (form)",
        (f'"{address.schema}"', address.form, FORMS_KEPT - 1),
    ).fetchall()
    for (function,) in old:
        connection.execute(f"DROP FUNCTION {function}".encode())


def read_mark(connection: Connection, address: Address) -> moves.Mark | None:
    """The mark of a move, of a schema that may not be there. Raises psycopg.Error."""
    [(there,)] = connection.execute("SELECT to_regclass(%s)::text", (f'"{address.schema}".moved',)).fetchall()
    if there is None:
        return None
    query = sql.SQL("SELECT mark FROM {}.moved").format(sql.Identifier(address.schema))
    rows = connection.execute(query).fetchall()
    return moves.Mark.parse(rows[0][0]) if rows else None


def failure(error: BaseException, sentence: str, address: Address) -> errors.EngineError:
    """What a failed statement means. `sentence`: where the log was not moved."""
    if isinstance(error, psycopg.Error) and error.sqlstate == MOVED_STATE:
        try:
            moves.Mark.parse(error.diag.message_primary or "").refuse_write(address.public)
        except errors.EngineError as refusal:
            return refusal
    return errors.EngineUnavailable(sentence)


def check_generation(connection: Connection, address: Address) -> None:
    """Compare the server with the one that wrote last. Raises psycopg.Error.

    After a restore, a promoted standby, or a restart of a server that acknowledges commits before it has written them,
    the newest entries may be gone and their offsets free again, so every stream gets a new epoch. The newest sessions
    may be gone too.
    """
    schema = sql.Identifier(address.schema)
    server = server_identity(connection, address)
    with connection.transaction():
        _lock(connection, address)
        [(before,)] = connection.execute(sql.SQL("SELECT server FROM {}.state").format(schema)).fetchall()
        had_start = "@" in before
        is_changed = before != server.text(with_start=had_start)
        after = server.text(with_start=server.is_lossy or (had_start and not is_changed))
        if after != before:
            connection.execute(sql.SQL("UPDATE {}.state SET server = %s").format(schema), (after,))
        if is_changed:
            connection.execute(sql.SQL("UPDATE {}.state SET generation = %s").format(schema), (new_generation(),))
        mark = read_mark(connection, address)
        is_moved = mark is not None and mark.what == moves.MOVED  # it gets no table for publications again
        if is_changed and not is_moved:
            create_functions(connection, address)  # a backup may lack them
            epoch = address.function("new_epoch")
            connection.execute(sql.SQL("UPDATE {}.streams SET epoch = {}()").format(schema, epoch))
            connection.execute(sql.SQL("SELECT {}()").format(address.function("lose_sessions")))


class Server(NamedTuple):
    """What tells a server from the one that wrote last. No part has a colon: functions.sql splits the text there.

    `timeline`: of the current WAL position; the control file follows a promotion later. `start`: when the server
    started, and when the recovery after a crash of a backend reset the statistics. `file`: of the table `state`, which
    has another one after a restore. `is_lossy`: this session acknowledges commits before they are written.
    """

    system: str
    timeline: str
    start: str
    file: str
    is_lossy: bool

    def text(self, *, with_start: bool) -> str:
        """As stored. With the start if any worker is lossy, because a start may then have lost commits."""
        return f"{self.system}:{self.timeline}{self.start if with_start else ''}:{self.file}"


def server_identity(connection: Connection, address: Address) -> Server:
    """Raises psycopg.Error."""
    [row] = connection.execute(
        "SELECT system_identifier::text, left(pg_walfile_name(pg_current_wal_lsn()), 8), "
        "'@' || extract(epoch FROM pg_postmaster_start_time()) || '@' "
        "|| (SELECT coalesce(extract(epoch FROM stats_reset), 0) FROM pg_stat_bgwriter), "
        "pg_relation_filenode(%s::regclass)::text, current_setting('synchronous_commit') = 'off' "
        "FROM pg_control_system()",
        (f'"{address.schema}".state',),
    ).fetchall()
    return Server(*row)


def new_generation() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(12))


def _script(name: str, address: Address) -> bytes:
    """One of the SQL files beside this module, with its placeholders filled in."""
    values = {
        **_constants(),
        "schema": f'"{address.schema}"',
        "topic": f"'{address.topic}'",
        "lock_key": address.lock_key,
        "form": address.form,
    }
    return re.sub(r"\{(\w+)\}", lambda found: str(values[found[1]]), _text(name)).encode()


def _form() -> str:
    """The form of the functions: a hash of their text and of the constants in it."""
    return hashlib.sha256(f"{_text('functions.sql')}{_constants()}".encode()).hexdigest()[:8]


def _text(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _constants() -> dict[str, str | int]:
    """The placeholders that have the same value in every schema."""
    kinds = interface.Kind
    return {
        "lock_class": LOCK_CLASS,
        "kind_control": kinds.CONTROL.value,
        "kind_count": kinds.COUNT.value,
        "kind_vacated": kinds.VACATED.value,
        "kind_occupied": kinds.OCCUPIED.value,
        "kind_member_added": kinds.MEMBER_ADDED.value,
        "kind_member_removed": kinds.MEMBER_REMOVED.value,
        "kind_cache_miss": kinds.CACHE_MISS.value,
        "kind_session_taken": kinds.SESSION_TAKEN.value,
        "kind_stream": kinds.STREAM.value,
        "kind_stream_end": kinds.STREAM_END.value,
        "kind_revised": kinds.REVISED.value,
        "kind_member_updated": kinds.MEMBER_UPDATED.value,
        "announce_always": interface.ANNOUNCE_ALWAYS,
        "announce_ms": interface.ANNOUNCE_SECONDS * 1000,
        "idempotency_seconds": interface.IDEMPOTENCY_SECONDS,
        "consumer_seconds": interface.CONSUMER_SECONDS,
        "taken_seconds": TAKEN_SECONDS,
        "largest_id": 2**63 - 1,
        "moved_state": f"'{MOVED_STATE}'",
        "lost_sessions": f"'{LOST_SESSIONS}'",
        "publishers": f"'{interface.PUBLISHERS}'",
        "announced_events": interface.ANNOUNCED_EVENTS,
        "late_seconds": interface.LATE_SECONDS,
        "late_sessions": interface.LATE_SESSIONS,
        "sweep_seconds": SWEEP_SECONDS,
        "position_outlives": POSITION_OUTLIVES,
        "empty_stream_seconds": EMPTY_STREAM_SECONDS,
    }
