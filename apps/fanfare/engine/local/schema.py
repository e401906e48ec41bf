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
VERSION = 3

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
    trimmed_to INTEGER NOT NULL,  -- entries up to this id that are not kept may be gone, no other row is
    boot TEXT NOT NULL,           -- the boot of the machine that last wrote
    clean INTEGER NOT NULL,       -- 1 while everything is on the disk and no process writes
    log_id TEXT NOT NULL,         -- changes when ids may be given out again
    held_from INTEGER NOT NULL    -- entries up to this id that were held for consumers may be gone
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
    record BLOB NOT NULL,         -- empty: taken, and nothing saved yet
    expires_s INTEGER NOT NULL,
    worker TEXT NOT NULL,         -- of the holder
    holder TEXT NOT NULL,         -- empty: released
    taken_ms INTEGER NOT NULL,    -- when it was last taken from a holder that was alive, 0: never
    PRIMARY KEY (app, token)
) WITHOUT ROWID;
CREATE INDEX sessions_expires ON sessions (expires_s);
CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,    -- everything up to this id is processed
    moved_s INTEGER NOT NULL,
    kinds INTEGER NOT NULL        -- the entries that are held for it: bit n for kind n, 0: all
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
    2: """
        ALTER TABLE state ADD COLUMN log_id TEXT NOT NULL DEFAULT '';
        ALTER TABLE state ADD COLUMN held_from INTEGER NOT NULL DEFAULT 0;
        UPDATE state SET log_id = lower(hex(randomblob(6))), held_from = trimmed_to;
        ALTER TABLE sessions ADD COLUMN worker TEXT NOT NULL DEFAULT '';
        ALTER TABLE sessions ADD COLUMN holder TEXT NOT NULL DEFAULT '';
        ALTER TABLE sessions ADD COLUMN taken_ms INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE cursors ADD COLUMN kinds INTEGER NOT NULL DEFAULT 0
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
            connection.execute("INSERT INTO state VALUES (1, ?, 0, ?, 0, ?, 0)", (VERSION, boot_id(), new_epoch()))
        version, boot, clean = connection.execute("SELECT version, boot, clean FROM state").fetchone()
        if version != VERSION:
            _migrate(connection, version, where)
        if boot != boot_id() and not clean and not full_sync:
            connection.execute("UPDATE streams SET epoch = ?", (new_epoch(),))
            connection.execute("UPDATE state SET log_id = ?", (new_epoch(),))
        if boot != boot_id() or clean:
            connection.execute("UPDATE state SET boot = ?, clean = 0", (boot_id(),))
    if not full_sync:
        connection.execute("PRAGMA synchronous=NORMAL")


def _migrate(connection: sqlite3.Connection, version: int, where: place.Place) -> None:
    """Inside the transaction of `prepare`. A worker reads the version once, so no worker of another release may run."""
    if version > VERSION:
        raise errors.EngineMisconfigured(
            f"The log {where.log} has format {version}, which a newer release of Fanfare wrote; this release reads "
            f"format {VERSION}. Run the newer release, or stop all workers and move the file away: then histories, "
            "positions and resume tokens are lost, and clients that come back get that answer."
        )
    if version not in MIGRATIONS:
        raise errors.EngineMisconfigured(
            f"The log {where.log} has format {version}; this release reads the formats from {min(MIGRATIONS)} on. Stop "
            "all workers and move the file away: then histories, positions and resume tokens are lost."
        )
    running = [
        str(pid)
        for worker, pid in connection.execute("SELECT id, pid FROM workers").fetchall()
        if liveness.is_held(where.lock_of(worker))
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
