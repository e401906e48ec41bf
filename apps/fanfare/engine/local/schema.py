"""The tables of the log, how the file is opened, and whether it is damaged."""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import string
from collections.abc import Iterator
from pathlib import Path

from fanfare.engine import errors
from fanfare.engine.local import locks
from fanfare.engine.local.paths import LogPaths

logger = logging.getLogger(__name__)

# Old and new code meet on one file during a rolling restart: each refuses a format that it does not know.
VERSION = 5

OLDEST_SQLITE = (3, 37)  # the first with STRICT tables, whose types the integrity check compares

# The safety net below the write lock: only a writer that bypasses the lock, such as a shell, is waited for here. With
# the timeout of an append this stays below the 5 s after which the SDKs give up.
BUSY_TIMEOUT_MS = 1_000

# Checkpoints are made beside the commits (`log_file.LogFile.checkpoint`). If those do not keep up (80 MB of WAL), the
# process that commits makes one.
CHECKPOINT_PAGES = 20_000

PAGE_BYTES = 4_096
MAX_ID = 2**62  # no id or offset of a sound log is larger

# Reasons outside of the file's content: it is locked, full, read-only or not there, or memory is short.
_NOT_DAMAGE = frozenset(
    [
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_AUTH,
    ]
)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ALPHABET = string.digits + string.ascii_letters

_STREAM_TABLES = """
CREATE TABLE texts (              -- streams: messages that grow
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    id TEXT NOT NULL,
    state INTEGER NOT NULL,       -- see interface.StreamState
    seq INTEGER NOT NULL,
    size INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,    -- open: end of the lease, ended: when it is forgotten
    "offset" INTEGER,             -- of its kept entry
    head BLOB NOT NULL,
    body BLOB,                    -- ended: the frame with the whole text
    PRIMARY KEY (app, channel, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX texts_open ON texts (app, channel) WHERE state = 0;
CREATE INDEX texts_ended ON texts (until_ms) WHERE state > 0;
CREATE TABLE parts (              -- of open streams
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    part BLOB NOT NULL,
    PRIMARY KEY (app, channel, id, seq)
) STRICT, WITHOUT ROWID;
"""

TABLES = (
    """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,     -- the same as PRAGMA user_version
    trimmed_to INTEGER NOT NULL,  -- entries up to this id that are not kept may be gone, no other entry is
    boot TEXT NOT NULL,           -- the boot of the machine that last wrote
    clean INTEGER NOT NULL,       -- 1 while everything is on the disk and no process writes
    log_id TEXT NOT NULL,         -- changes when ids may be given out again
    held_from INTEGER NOT NULL    -- entries up to this id that were held for consumers may be gone
) STRICT;
CREATE TABLE log (
    id INTEGER PRIMARY KEY,       -- given by the writer, one after TOP: gapless, in the order of commits
    kind INTEGER NOT NULL,
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    "offset" INTEGER,             -- the position in the channel's stream, NULL: not kept
    user_id TEXT,
    exclude TEXT,
    body BLOB NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX log_stream ON log (app, channel, "offset") WHERE "offset" IS NOT NULL;
CREATE TABLE streams (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    epoch TEXT NOT NULL,
    "offset" INTEGER NOT NULL,    -- of the newest entry
    kept_from INTEGER NOT NULL,   -- entries before this offset are gone
    size INTEGER NOT NULL,        -- the retention of the newest publication
    seconds INTEGER NOT NULL,
    sweep_s INTEGER NOT NULL,     -- when to look for entries that are too old, Unix time
    PRIMARY KEY (app, channel)
) STRICT, WITHOUT ROWID;
CREATE INDEX streams_sweep ON streams (sweep_s);
CREATE TABLE idempotency (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    key TEXT NOT NULL,
    epoch TEXT,
    "offset" INTEGER,
    expires_s INTEGER NOT NULL,
    PRIMARY KEY (app, channel, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_expires ON idempotency (expires_s);
CREATE TABLE cache (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    body BLOB,                    -- NULL: a miss was announced and nothing was published since
    expires_s INTEGER NOT NULL,
    PRIMARY KEY (app, channel)
) STRICT, WITHOUT ROWID;
CREATE INDEX cache_expires ON cache (expires_s);
CREATE TABLE announced (          -- the last COUNT entry of a channel
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    subscribers INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (app, channel)
) STRICT, WITHOUT ROWID;
CREATE TABLE budgets (
    app TEXT PRIMARY KEY,
    second INTEGER NOT NULL,      -- Unix time
    spent INTEGER NOT NULL        -- publications in it
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    app TEXT NOT NULL,
    token TEXT NOT NULL,
    record BLOB NOT NULL,         -- empty: taken, and nothing saved yet
    expires_s INTEGER NOT NULL,
    worker TEXT NOT NULL,         -- of the holder
    holder TEXT NOT NULL,         -- empty: released
    taken_ms INTEGER NOT NULL,    -- when it was last taken from a holder that was alive, 0: never
    PRIMARY KEY (app, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_expires ON sessions (expires_s);
CREATE TABLE cursors (            -- of consumers
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,    -- everything up to this id is processed
    moved_s INTEGER NOT NULL,
    kinds INTEGER NOT NULL        -- the entries that are held for it: bit n for kind n
) STRICT, WITHOUT ROWID;
CREATE TABLE workers (
    id TEXT PRIMARY KEY,          -- alive while it holds the lock on workers/<id>.lock
    pid INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE counts (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    worker TEXT NOT NULL,
    subscribers INTEGER NOT NULL, -- absolute, as the worker last wrote, no row for 0
    PRIMARY KEY (app, channel, worker)
) STRICT, WITHOUT ROWID;
CREATE INDEX counts_worker ON counts (worker);
CREATE TABLE members (
    seq INTEGER PRIMARY KEY,      -- the order in which they joined
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    user_id TEXT NOT NULL,
    socket_id TEXT NOT NULL,
    worker TEXT NOT NULL,
    info TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX members_socket ON members (app, channel, socket_id);
CREATE INDEX members_user ON members (app, channel, user_id);
CREATE INDEX members_worker ON members (worker);
CREATE TABLE users (              -- how many distinct users a channel has, no row for 0
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    users INTEGER NOT NULL,
    PRIMARY KEY (app, channel)
) STRICT, WITHOUT ROWID;
"""
    + _STREAM_TABLES
)

# From one format to the next, for a log that no worker of the older release has open any more.
MIGRATIONS: dict[int, str] = {4: _STREAM_TABLES}

# The newest id that was given out, as an expression over `state`. It never goes back: only trimmed entries are deleted.
# Kept in a column, it would be a second page of each commit: 10 of 27 µs.
TOP = "MAX(trimmed_to, COALESCE((SELECT MAX(id) FROM log), 0))"

# The columns of `log` in the order of the fields of `interface.Entry`.
ENTRY = 'id, kind, app, channel, "offset", user_id, exclude, body, created_ms'


def connect(paths: LogPaths, *, create: bool = False, any_thread: bool = False) -> sqlite3.Connection:
    """Open the log, for the calling thread or for any, one at a time.

    Raises sqlite3.OperationalError where it is missing and must not be created.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise errors.EngineMisconfigured(
            f"SQLite {sqlite3.sqlite_version} is too old for the log: {'.'.join(map(str, OLDEST_SQLITE))} or later is "
            "needed."
        )
    uri = f"{paths.log.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000, check_same_thread=not any_thread
    )


def prepare(connection: sqlite3.Connection, paths: LogPaths, *, full_sync: bool, high_water: int | None) -> None:
    """Create the tables if there are none, convert those of an older release, and give every stream a new epoch if
    acknowledged entries may be gone.

    A commit with synchronous=NORMAL survives the end of any process, but the newest ones may be rolled back by a loss
    of power. Offsets would then be given out a second time. So if the machine was booted since and the log was not
    closed, no position from before may look like one of now. With `full_sync` nothing can be rolled back. `high_water`
    is the newest id that was committed, as noted outside of the file: a log that ends before it lost commits in another
    way (its WAL was damaged, or an older copy was put in its place). None: nothing was noted, because the file comes
    from a backup, and the entries after the backup are gone.

    Runs while the write lock is held. Raises EngineMisconfigured, EngineUnavailable, sqlite3.Error.
    """
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before the first table; later it does nothing
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    # Some builds overwrite what is deleted, which writes each trimmed page once more.
    connection.execute("PRAGMA secure_delete=OFF")
    # This one transaction decides whether the next boot trusts the offsets: it must be on the disk before any other.
    connection.execute("PRAGMA synchronous=FULL")
    with transaction(connection):
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchall():
            for statement in TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("INSERT INTO state VALUES (1, ?, 0, ?, 0, ?, 0)", (VERSION, boot_id(), new_epoch()))
            high_water = 0
        [(version, boot, clean, top)] = connection.execute(
            f"SELECT version, boot, clean, {TOP} FROM state"  # noqa: S608
        ).fetchall()
        if version != VERSION:
            _migrate(connection, version, paths)
        was_booted = boot != boot_id()
        is_short = high_water is None or top < high_water
        if is_short or (was_booted and not clean and not full_sync):
            connection.execute("UPDATE streams SET epoch = ?", (new_epoch(),))
            connection.execute("UPDATE state SET log_id = ?", (new_epoch(),))
        if high_water is None:
            logger.warning("The log was copied from elsewhere. Clients that reconnect get the reason epoch_changed.")
        elif is_short:
            logger.error(
                "The log ends at entry %d, but entry %d was committed: the newest entries are lost. Clients that "
                "reconnect get the reason epoch_changed.",
                top,
                high_water,
            )
        if was_booted or clean:
            connection.execute("UPDATE state SET boot = ?, clean = 0", (boot_id(),))
    if not full_sync:
        connection.execute("PRAGMA synchronous=NORMAL")


def _migrate(connection: sqlite3.Connection, version: int, paths: LogPaths) -> None:
    """Inside the transaction of `prepare`. A worker reads the version once, so no worker of another release may run."""
    [(user_version,)] = connection.execute("PRAGMA user_version").fetchall()
    if not _agree(version, user_version):
        raise sqlite3.DatabaseError(f"The log has format {version} in its table and {user_version} in its header")
    if version > VERSION:
        raise errors.EngineMisconfigured(
            f"The log {paths.log} has format {version}, which a newer release of Fanfare wrote; this release reads "
            f"format {VERSION}. Run the newer release, or stop all workers and move the file away: then histories, "
            "positions and resume tokens are lost, and clients that reconnect get the reason epoch_changed."
        )
    if version not in MIGRATIONS:
        raise errors.EngineMisconfigured(
            f"The log {paths.log} has format {version}; this release reads the formats from "
            f"{min(MIGRATIONS, default=VERSION)} on. Stop all workers and move the file away: then histories, "
            "positions and resume tokens are lost."
        )
    running = [
        str(pid)
        for worker, pid in connection.execute("SELECT id, pid FROM workers").fetchall()
        if locks.is_held(paths.worker_lock(worker))
    ]
    if running:  # a worker of a rolling restart tries again until they have ended
        raise errors.EngineUnavailable(
            f"The log has format {version}, and workers of the release that wrote it still run (processes "
            f"{', '.join(running)}): this release converts it to format {VERSION} when they have stopped."
        )
    while version != VERSION:
        for statement in MIGRATIONS[version].split(";"):
            connection.execute(statement)
        version += 1
    connection.execute("UPDATE state SET version = ?", (VERSION,))
    connection.execute(f"PRAGMA user_version={VERSION}")


def _agree(version: int, user_version: int) -> bool:
    """Whether the formats in the table and in the file's header are the same; the oldest had none in the header."""
    return user_version == version or (user_version == 0 and version < min(MIGRATIONS))


# -- damage ------------------------------------------------------------------------------------------------------------


def may_be_damage(fault: BaseException) -> bool:
    """Whether an error can come from bytes in the file that SQLite did not write. `is_sound` knows for certain.

    Text that is no UTF-8 raises UnicodeDecodeError where SQLite put it into a message. Damage in the schema makes
    tables and columns unknown, and damage in a row gives values of another type.
    """
    if isinstance(fault, sqlite3.Error):
        # The low byte is the kind of an error, what is above it a detail. Errors of the module itself have no code.
        return getattr(fault, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _NOT_DAMAGE
    return isinstance(fault, (UnicodeError, ValueError, TypeError, OverflowError))


def corrupt(why: str) -> sqlite3.DatabaseError:
    """Damage that SQLite does not notice itself."""
    fault = sqlite3.DatabaseError(why)
    fault.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return fault


def is_sound(paths: LogPaths) -> bool:
    """Read all of the log on a new connection: an open one may have the damage only in its memory.

    Takes seconds for a large log. Raises sqlite3.Error where it cannot be read for another reason.
    """
    if paths.log.stat().st_size == 0:
        return False  # SQLite takes it for a new one, and then waits until no process has the old one open
    try:
        with contextlib.closing(connect(paths)) as connection:
            problems = connection.execute("PRAGMA integrity_check(1)").fetchall()
            return problems == [("ok",)] and _is_readable(connection)
    except (sqlite3.Error, UnicodeError, ValueError, TypeError, OverflowError) as fault:
        if may_be_damage(fault):
            return False
        raise


def _is_readable(connection: sqlite3.Connection) -> bool:
    """Whether the tables are those of the format, all text is UTF-8, and there is room for more ids."""
    [(version, top)] = connection.execute(f"SELECT version, {TOP} FROM state").fetchall()  # noqa: S608
    [(user_version,)] = connection.execute("PRAGMA user_version").fetchall()
    if not _agree(version, user_version) or not 0 <= top < MAX_ID:
        return False
    if version != VERSION:
        return True  # the tables of another format are unknown here
    if _definitions(connection) != _expected_definitions():
        return False
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for _ in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608 - decodes the text of each row
            pass
    [(largest,)] = connection.execute('SELECT COALESCE(MAX("offset"), 0) FROM streams').fetchall()
    return bool(largest < MAX_ID)


def _definitions(connection: sqlite3.Connection) -> set[tuple[str, str | None]]:
    return set(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())


def _expected_definitions() -> set[tuple[str, str | None]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        return _definitions(connection)


# -- the end -----------------------------------------------------------------------------------------------------------


def mark_clean(connection: sqlite3.Connection) -> None:
    """The last worker closes: write everything to the disk, then note that. Raises sqlite3.Error."""
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.execute("UPDATE state SET clean = 1")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction; rolled back if its body raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def boot_id() -> str:
    """Differs after each boot of the machine; constant, and so never a reason for new epochs, where the system has
    none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def new_epoch() -> str:
    """Eight characters of base 62: 47 bits, so that two epochs of one channel never meet by chance."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))
