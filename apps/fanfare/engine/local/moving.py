"""The local engine as the old or the new store of a move.

The mark lies in the place of the log: one rename puts it there, and every process notices another file at the log's
path before it acknowledges anything more. The log itself is kept beside it. A log that was moved here has its mark in a
file of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from fanfare.engine import errors, interface, moves
from fanfare.engine.local import locks, log_file, schema
from fanfare.engine.local.paths import SIDE_FILES, LogPaths

LOCK_S: Final = 5.0
_MOVED: Final = ".moved-"
_NEW: Final = ".arriving"

_STREAM: Final = 'app, channel, epoch, "offset", kept_from, size, seconds'


class LocalStore(moves.Store):
    partitions = 1

    def __init__(self, folder: Path) -> None:
        self._paths = LogPaths(folder)
        self._connection: sqlite3.Connection | None = None
        self._next = 1  # id, where the old ones are not kept
        self.public = f"local ({folder})"

    def mark(self) -> moves.Mark | None:
        mark = self._paths.mark()
        if mark is None and self._paths.identity() is not None:
            with contextlib.suppress(OSError, ValueError, TypeError):
                return moves.Mark.parse(self._arrived.read_bytes())
        return mark

    def workers(self) -> int:
        if self._paths.mark() is not None or self._paths.identity() is None:
            return 0
        rows = self._read().execute("SELECT id FROM workers").fetchall()
        return sum(locks.is_held(self._paths.worker_lock(worker)) for (worker,) in rows)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- the old store -------------------------------------------------------------------------------------------------

    def streams(self) -> moves.Streams:
        connection = self._read()
        connection.execute("DROP TABLE IF EXISTS temp.listed")
        connection.execute(
            f"CREATE TEMP TABLE listed ({_STREAM}, PRIMARY KEY (app, channel)) WITHOUT ROWID"  # what `streams` answered
        )
        return self._list("SELECT * FROM streams")

    def changed(self) -> moves.Streams | None:
        return self._list(
            "SELECT s.* FROM streams s LEFT JOIN temp.listed l ON l.app = s.app AND l.channel = s.channel "
            'WHERE (l.epoch, l."offset", l.size, l.seconds) IS NOT (s.epoch, s."offset", s.size, s.seconds)'
        )

    def _list(self, query: str) -> moves.Streams:
        connection = self._read()
        rows = connection.execute(f"SELECT {_STREAM} FROM ({query})").fetchall()  # noqa: S608
        connection.execute("BEGIN")  # it locks the table of this connection alone
        connection.executemany("INSERT OR REPLACE INTO temp.listed VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
        return {(row[0], row[1]): moves.Stream._make(row) for row in rows}

    def kept(self, wanted: Sequence[tuple[moves.Stream, int]]) -> Iterator[tuple[moves.Stream, list[interface.Entry]]]:
        connection = self._read()
        for stream, after in wanted:
            rows = connection.execute(
                f'SELECT {schema.ENTRY} FROM log WHERE app = ? AND channel = ? AND "offset" > ? AND "offset" <= ? '  # noqa: S608
                'ORDER BY "offset"',
                (stream.app, stream.channel, after, stream.offset),
            )
            yield stream, [interface.Entry._make(row) for row in rows]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Holds the write lock, which the kernel releases with the process."""
        with self._locked():
            yield

    def rest(self) -> moves.Rest:
        read = self._read().execute
        [(log_id, top)] = read(f"SELECT log_id, {schema.TOP} FROM state").fetchall()  # noqa: S608
        readings = [moves.Reading(name, 0, *row) for name, *row in read("SELECT name, position, kinds FROM cursors")]
        unread: list[interface.Entry] = []
        if readings:
            kinds = [str(kind.value) for kind in interface.Kind if any(one.kinds >> kind & 1 for one in readings)]
            rows = read(
                f"SELECT {schema.ENTRY} FROM log WHERE id > ? AND kind IN ({', '.join(kinds)}) ORDER BY id",  # noqa: S608
                (min(one.position for one in readings),),
            )
            unread = [interface.Entry._make(row) for row in rows]
        parts: dict[tuple[str, str, str], list[tuple[int, bytes]]] = {}
        for app, channel, stream, seq, part in read("SELECT app, channel, id, seq, part FROM parts ORDER BY seq"):
            parts.setdefault((app, channel, stream), []).append((seq, part))
        texts = 'SELECT app, channel, id, state, seq, size, until_ms, "offset", head, body FROM texts'
        return moves.Rest(
            keys=[
                moves.Key(app, channel, key, interface.Position(epoch, offset) if epoch else None, expires_s * 1000)
                for app, channel, key, epoch, offset, expires_s in read(
                    'SELECT app, channel, key, epoch, "offset", expires_s FROM idempotency'
                )
            ],
            cached=[
                moves.CachedEvent(app, channel, body, expires_s * 1000)
                for app, channel, body, expires_s in read("SELECT app, channel, body, expires_s FROM cache")
            ],
            sessions=[
                moves.Session(app, token, record, expires_s * 1000, taken_ms)
                for app, token, record, expires_s, taken_ms in read(
                    "SELECT app, token, record, expires_s, taken_ms FROM sessions WHERE record <> x''"
                )
            ],
            texts=[moves.Text._make((*row, tuple(parts.get((row[0], row[1], row[2]), ())))) for row in read(texts)],
            readings=readings,
            unread=[unread],
            log_id=log_id,
            top=top,
        )

    def leave(self, mark: moves.Mark) -> None:
        self._read().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self.close()
        log = self._paths.log
        aside = log.with_name(f"{log.name}{_MOVED}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(mark.at))}")
        os.link(log, aside)
        self._replace(mark)
        for path in self._paths.files()[1:]:
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(path.name.replace(log.name, aside.name, 1)))

    def left(self, mark: moves.Mark) -> None:
        """The mark is written in one step."""

    # -- the new store -------------------------------------------------------------------------------------------------

    def begin(self, mark: moves.Mark) -> None:
        self._paths.prepare()
        with self._locked():
            if moves.is_in_use(self.mark()) and self._paths.identity() is not None:
                read = self._read().execute
                [(used,)] = read("SELECT (SELECT COUNT(*) FROM streams) + (SELECT COUNT(*) FROM log)").fetchall()
                if used or self.workers():
                    raise errors.EngineMisconfigured(
                        f"{self.public} has a log of its own, or workers: move into an empty data folder."
                    )
            self.close()
            self._replace(mark)
            self._paths.remove_side_files()
            for suffix in ("", *SIDE_FILES):
                self._new.with_name(self._new.name + suffix).unlink(missing_ok=True)
        self._connection = sqlite3.connect(self._new, isolation_level=None)
        schema.prepare(self._connection, self._paths, full_sync=True, high_water=0)

    def put(self, batch: moves.Batch, *, keeps_ids: bool) -> None:
        connection = self._opened()
        sweep_s = int(time.time()) + 5
        with schema.transaction(connection):
            for stream, entries in batch:
                connection.execute("INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*stream, sweep_s))
                self._insert(entries, keeps_ids=keeps_ids)

    def _insert(self, entries: Iterable[interface.Entry], *, keeps_ids: bool) -> None:
        rows = []
        for entry in entries:
            if not keeps_ids:
                entry = entry._replace(id=self._next)  # noqa: PLW2901
                self._next += 1
            rows.append(entry)
        self._opened().executemany("INSERT OR IGNORE INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, streams: Iterable[tuple[str, str]]) -> None:
        connection = self._opened()
        with schema.transaction(connection):
            for name in streams:
                connection.execute("DELETE FROM streams WHERE app = ? AND channel = ?", name)
                connection.execute("DELETE FROM log WHERE app = ? AND channel = ?", name)

    def finish(self, rest: moves.Rest, mark: moves.Mark) -> list[moves.Start]:
        connection = self._opened()
        write = connection.executemany
        now_s = int(time.time())
        with schema.transaction(connection):
            keeps_ids = rest.log_id is not None
            start, readings = moves.begin_reading(rest, self._next - 1)
            unread = [entry for part in rest.unread for entry in part]
            self._insert([entry if keeps_ids else entry._replace(offset=None) for entry in unread], keeps_ids=keeps_ids)
            top = rest.top if keeps_ids else self._next - 1
            connection.execute("UPDATE state SET trimmed_to = ?, held_from = ?", (top, start))
            if rest.log_id is not None:
                connection.execute("UPDATE state SET log_id = ?", (rest.log_id,))
            write("INSERT INTO cursors VALUES (?, ?, ?, ?)", [(name, at, now_s, mask) for name, at, mask in readings])
            write(
                "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)",
                [(*one[:3], *(one.position or (None, None)), one.expires_ms // 1000) for one in rest.keys],
            )
            write("INSERT INTO cache VALUES (?, ?, ?, ?)", [(*one[:3], one.expires_ms // 1000) for one in rest.cached])
            write(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, '', '', ?)",
                [(*one[:3], one.expires_ms // 1000, one.taken_ms) for one in rest.sessions],
            )
            write("INSERT INTO texts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [one[:10] for one in rest.texts])
            write(
                "INSERT INTO parts VALUES (?, ?, ?, ?, ?)",
                [(*one[:3], *part) for one in rest.texts for part in one.parts],
            )
        schema.mark_clean(connection)
        [(log_id,)] = connection.execute("SELECT log_id FROM state").fetchall()
        self.close()
        return [] if rest.log_id is not None else [moves.Start(0, log_id, start)]

    def open(self, mark: moves.Mark) -> None:
        with self._locked():
            high_water = log_file.HighWaterMark(self._paths.high_water)
            high_water.reset()
            high_water.close()
            self._write(self._arrived, mark)
            self._new.replace(self._paths.log)
            _sync_folder(self._paths.folder)

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def _new(self) -> Path:
        return self._paths.log.with_name(self._paths.log.name + _NEW)

    @property
    def _arrived(self) -> Path:
        return self._paths.log.with_name(self._paths.log.name + ".arrived")

    def _read(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._paths.identity() is None:
                raise errors.EngineMisconfigured(f"{self.public} has no log.")
            self._connection = schema.connect(self._paths)
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise errors.EngineUnavailable("The new log was not begun")
        return self._connection

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._paths.write_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise errors.EngineUnavailable(
                            f"The write lock {self._paths.write_lock} was not free for {LOCK_S:g} s."
                        ) from None
                    time.sleep(0.0005)
            yield
        finally:
            os.close(lock)

    def _replace(self, mark: moves.Mark) -> None:
        """Put the mark in the place of the log, in one step."""
        self._write(self._paths.log, mark)
        self._arrived.unlink(missing_ok=True)
        _sync_folder(self._paths.folder)

    def _write(self, path: Path, mark: moves.Mark) -> None:
        new = self._paths.log.with_name(self._paths.log.name + ".mark")
        with new.open("w") as file:
            file.write(mark.text())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
