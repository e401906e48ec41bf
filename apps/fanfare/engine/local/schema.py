"""What is in the log's file, and how it is opened."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import string
from collections.abc import Iterator
from pathlib import Path

from fanfare.engine import errors
from fanfare.engine.local import liveness, place

# Old and new code meet on one file during a rolling restart: each refuses a schema that it does not know.
VERSION = 2

# The net below the queue of `writer`: only a writer that bypasses the queue is ever waited for here.
BUSY_TIMEOUT_MS = 5_000

# Checkpoints are made beside the commits (`commits.Commits.checkpoint`). If those do not keep up (80 MB of WAL), the
# one who commits makes them.
CHECKPOINT_PAGES = 20_000

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ALPHABET = string.digits + string.ascii_letters

TABLES = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    trimmed_to INTEGER NOT NULL,  -- announcements up to this id may be gone, no other row is
    boot TEXT NOT NULL,           -- the boot of the machine that last wrote
    clean INTEGER NOT NULL        -- 1 while everything is on the disk and nobody writes
);
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
);
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
) WITHOUT ROWID;
CREATE INDEX streams_sweep ON streams (sweep_s);
CREATE TABLE idempotency (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    key TEXT NOT NULL,
    id INTEGER NOT NULL,
    epoch TEXT,
    "offset" INTEGER,
    expires_s INTEGER NOT NULL,
    PRIMARY KEY (app, channel, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_expires ON idempotency (expires_s);
CREATE TABLE cache (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    body BLOB,                    -- NULL: a miss was announced and nothing was published since
    expires_s INTEGER NOT NULL,
    PRIMARY KEY (app, channel)
) WITHOUT ROWID;
CREATE INDEX cache_expires ON cache (expires_s);
CREATE TABLE announced (          -- the last COUNT entry of a channel
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    subscribers INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (app, channel)
) WITHOUT ROWID;
CREATE TABLE budgets (
    app TEXT PRIMARY KEY,
    second INTEGER NOT NULL,      -- Unix time
    spent INTEGER NOT NULL        -- publications in it
) WITHOUT ROWID;
CREATE TABLE sessions (
    app TEXT NOT NULL,
    token TEXT NOT NULL,
    record BLOB NOT NULL,
    expires_s INTEGER NOT NULL,
    PRIMARY KEY (app, token)
) WITHOUT ROWID;
CREATE INDEX sessions_expires ON sessions (expires_s);
CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,    -- everything up to this id is done with
    moved_s INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE workers (
    id TEXT PRIMARY KEY,          -- lives while it holds the lock on workers/<id>.lock
    pid INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE counts (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    worker TEXT NOT NULL,
    subscribers INTEGER NOT NULL, -- absolute, as the worker last said, no row for 0
    PRIMARY KEY (app, channel, worker)
) WITHOUT ROWID;
CREATE INDEX counts_worker ON counts (worker);
CREATE TABLE members (
    seq INTEGER PRIMARY KEY,      -- the order in which they came
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    user_id TEXT NOT NULL,
    socket_id TEXT NOT NULL,
    worker TEXT NOT NULL,
    info TEXT NOT NULL
);
CREATE UNIQUE INDEX members_socket ON members (app, channel, socket_id);
CREATE INDEX members_user ON members (app, channel, user_id);
CREATE INDEX members_worker ON members (worker);
CREATE TABLE users (              -- how many distinct users a channel has, no row for 0
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    users INTEGER NOT NULL,
    PRIMARY KEY (app, channel)
) WITHOUT ROWID;
"""

# From one version to the next, for a log that no worker of the older release has open any more.
MIGRATIONS = {
    1: """
        ALTER TABLE state DROP COLUMN top;
        CREATE TABLE users (
            app TEXT NOT NULL,
            channel TEXT NOT NULL,
            users INTEGER NOT NULL,
            PRIMARY KEY (app, channel)
        ) WITHOUT ROWID;
        INSERT INTO users SELECT app, channel, COUNT(DISTINCT user_id) FROM members GROUP BY app, channel
    """,
}

# The newest id that was given out, as an expression over `state`. It never goes back: only what is trimmed is deleted.
# Kept in a column, it would be a second page of each commit: 10 of 27 µs.
TOP = "MAX(trimmed_to, COALESCE((SELECT MAX(id) FROM log), 0))"


def connect(where: place.Place, *, create: bool = False, any_thread: bool = False) -> sqlite3.Connection:
    """Open the log, for the calling thread or for any, one at a time.

    Raises sqlite3.OperationalError where it is missing and must not be made.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        raise errors.EngineMisconfigured(
            f"SQLite {sqlite3.sqlite_version} is too old for the log: 3.35 or later is needed."
        )
    uri = f"{where.log.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000, check_same_thread=not any_thread
    )


def prepare(connection: sqlite3.Connection, where: place.Place, *, full_sync: bool) -> None:
    """Make the tables if there are none, bring those of an older release up to date, and see whether the machine went
    down under the log.

    A commit with synchronous=NORMAL survives the death of any process, but the last of them may be rolled back by a
    loss of power. Offsets would then be given out a second time. So if the machine was booted since, and nobody said
    goodbye, every stream gets a new epoch: no position from before can look like one of now. With `full_sync` nothing
    can be rolled back.

    Runs under the writers' queue. Raises EngineMisconfigured, sqlite3.Error.
    """
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    connection.execute("PRAGMA journal_size_limit=67108864")
    # This one transaction decides whether the next boot trusts the offsets: it must be on the disk before any other.
    connection.execute("PRAGMA synchronous=FULL")
    with transaction(connection):
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchall():
            for statement in TABLES.split(";"):
                connection.execute(statement)
            connection.execute("INSERT INTO state VALUES (1, ?, 0, ?, 0)", (VERSION, boot_id()))
        version, boot, clean = connection.execute("SELECT version, boot, clean FROM state").fetchone()
        if version != VERSION:
            _migrate(connection, version, where)
        if boot != boot_id() and not clean and not full_sync:
            connection.execute("UPDATE streams SET epoch = ?", (new_epoch(),))
        if boot != boot_id() or clean:
            connection.execute("UPDATE state SET boot = ?, clean = 0", (boot_id(),))
    if not full_sync:
        connection.execute("PRAGMA synchronous=NORMAL")


def _migrate(connection: sqlite3.Connection, version: int, where: place.Place) -> None:
    """Inside the transaction of `prepare`. A worker looks at the version once, so none of another release may live."""
    workers = [worker for (worker,) in connection.execute("SELECT id FROM workers").fetchall()]
    if version not in MIGRATIONS or any(liveness.is_held(where.lock_of(worker)) for worker in workers):
        raise errors.EngineMisconfigured(
            f"The log has schema {version}, this code needs {VERSION}: stop all workers of the other release first."
        )
    while version != VERSION:
        for statement in MIGRATIONS[version].split(";"):
            connection.execute(statement)
        version += 1
    connection.execute("UPDATE state SET version = ?", (VERSION,))


def is_damage(fault: BaseException) -> bool:
    """Whether SQLite found something in the file that it cannot have written itself."""
    # The low byte is the kind of an error, what is above it a detail.
    return isinstance(fault, sqlite3.DatabaseError) and getattr(fault, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def is_sound(where: place.Place) -> bool:
    """Read all of the log, on a connection of its own: what one connection took for damage may have been in its memory
    only. Takes seconds for a large one. Raises sqlite3.Error where it cannot be read for another reason.
    """
    if where.log.stat().st_size == 0:
        return False  # SQLite takes it for a new one, and waits for ever until nobody has the old one open
    try:
        with contextlib.closing(connect(where)) as connection:
            return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError as fault:
        if is_damage(fault):
            return False
        raise


def mark_clean(connection: sqlite3.Connection) -> None:
    """The last worker goes: bring everything to the disk, then say so."""
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
    """Differs after each boot of the machine; constant, and so never a reason to doubt, where the system does not
    tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def new_epoch() -> str:
    """Eight characters of base 62: 47 bits, so that two epochs of one channel never meet by chance."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))
