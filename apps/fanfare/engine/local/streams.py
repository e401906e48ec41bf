"""The kept entries of channels: positions are given out here, and entries that are too many or too old go here.

An append only gives out the next offset. What is over the bounds goes in sweeps, and never before the tail of the log
was trimmed past it: an entry is an announcement first, and a worker may not have read it yet. A read applies both
bounds exactly.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from fanfare.engine import interface
from fanfare.engine.local import schema

# A stream's position outlives its entries this many times, so that an expired history does not look like another epoch.
POSITION_OUTLIVES = 10

SWEEP_STREAMS = 100  # in one transaction, which other writers wait for

# How long a stream that keeps nothing yet waits for its first entry after the last subscriber has gone.
EMPTY_SECONDS = 3600

FULL_SWEEP_SECONDS = 5  # until a stream that is over its size is swept: a few seconds of extra rows, and few sweeps


class Streams:
    """The streams that one transaction touches."""

    def __init__(self, cursor: sqlite3.Cursor, now_ms: int) -> None:
        self._cursor = cursor
        self._now_s = now_ms // 1000
        self._touched: dict[tuple[str, str], _Stream] = {}

    def advance(self, app: str, channel: str, retention: interface.Retention) -> interface.Position:
        """The next position of a stream."""
        stream = self._touched.get((app, channel))
        if stream is None:
            stream = self._touched[app, channel] = self._load(app, channel)
        stream.retention = retention
        stream.offset += 1
        return interface.Position(stream.epoch, stream.offset)

    def open(self, app: str, channel: str) -> None:
        """Give a stream its epoch before its first entry: somebody is about to wait for it."""
        if (app, channel) not in self._touched:
            self._cursor.execute(
                "INSERT OR IGNORE INTO streams VALUES (?, ?, ?, 0, 1, 1, ?, ?)",
                (app, channel, schema.new_epoch(), EMPTY_SECONDS // POSITION_OUTLIVES, self._now_s + EMPTY_SECONDS),
            )

    def finish(self) -> None:
        for (app, channel), stream in self._touched.items():
            size, seconds = stream.retention
            if stream.offset - stream.kept_from >= size + max(16, size // 10):
                stream.sweep_s = min(stream.sweep_s, self._now_s + FULL_SWEEP_SECONDS)
            self._cursor.execute(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (app, channel, stream.epoch, stream.offset, stream.kept_from, size, seconds, stream.sweep_s),
            )

    def _load(self, app: str, channel: str) -> _Stream:
        rows = self._cursor.execute(
            'SELECT epoch, "offset", kept_from, sweep_s FROM streams WHERE app = ? AND channel = ?', (app, channel)
        ).fetchall()
        return _Stream(*rows[0]) if rows else _Stream(schema.new_epoch(), 0, 1, self._now_s)


class _Stream:
    __slots__ = ("epoch", "kept_from", "offset", "retention", "sweep_s")

    def __init__(self, epoch: str, offset: int, kept_from: int, sweep_s: int) -> None:
        self.epoch = epoch
        self.offset = offset
        self.kept_from = kept_from
        self.sweep_s = sweep_s
        self.retention = interface.Retention(1, 1)


_KEPT = (
    'SELECT id, kind, app, channel, "offset", user_id, exclude, body FROM log WHERE app = ? AND channel = ? '
    'AND "offset" > ? AND "offset" < ? AND created_ms >= ? ORDER BY "offset"'
)
_OLDEST = _KEPT + " LIMIT ?"
_NEWEST = _KEPT + " DESC LIMIT ?"


class Page(NamedTuple):
    """Which entries of a stream are read: `after` < offset < `before`, at most `limit`."""

    after: int
    before: int | None
    limit: int
    newest_first: bool


def read(
    connection: sqlite3.Connection, app: str, channel: str, page: Page, now_ms: int
) -> tuple[list[interface.Entry], interface.Position | None]:
    """Kept entries within both bounds of the stream, and its top. One read transaction, so that they agree."""
    connection.execute("BEGIN")
    try:
        rows = connection.execute(
            'SELECT epoch, "offset", size, seconds FROM streams WHERE app = ? AND channel = ?', (app, channel)
        ).fetchall()
        if not rows:
            return [], None
        epoch, top, size, seconds = rows[0]
        before = top + 1 if page.before is None else page.before
        entries = connection.execute(
            _NEWEST if page.newest_first else _OLDEST,
            (app, channel, max(page.after, top - size), before, now_ms - seconds * 1000, page.limit),
        ).fetchall()
    finally:
        connection.execute("COMMIT")
    return [interface.Entry._make(row) for row in entries], interface.Position(epoch, top)


def sweep(cursor: sqlite3.Cursor, now_ms: int, deletable: str) -> bool:
    """Delete what is over the bounds in the streams whose time has come. True: there are more of them.

    `deletable`: a condition on a row of the log: every worker and consumer has had the time to read it.
    """
    now_s = now_ms // 1000
    due = cursor.execute(
        'SELECT app, channel, "offset", kept_from, size, seconds FROM streams '
        "WHERE sweep_s <= ? ORDER BY sweep_s LIMIT ?",
        (now_s, SWEEP_STREAMS),
    ).fetchall()
    for app, channel, top, kept_before, size, seconds in due:
        if kept_before > top and not _is_awaited(cursor, app, channel):
            # It was empty a sweep ago, and nobody appended since: its position has been kept long enough.
            cursor.execute("DELETE FROM streams WHERE app = ? AND channel = ?", (app, channel))
            continue
        young = cursor.execute(
            'SELECT "offset" FROM log WHERE app = ? AND channel = ? AND "offset" > ? AND created_ms >= ? '
            'ORDER BY "offset" LIMIT 1',
            (app, channel, top - size, now_ms - seconds * 1000),
        ).fetchall()
        keep_from = young[0][0] if young else top + 1
        cursor.execute(
            f'DELETE FROM log WHERE app = ? AND channel = ? AND "offset" < ? AND {deletable}',  # noqa: S608
            (app, channel, keep_from),
        )
        [(oldest,)] = cursor.execute(
            'SELECT MIN("offset") FROM log WHERE app = ? AND channel = ? AND "offset" IS NOT NULL', (app, channel)
        ).fetchall()
        kept_from = top + 1 if oldest is None else oldest
        again_s = seconds * POSITION_OUTLIVES if oldest is None else max(FULL_SWEEP_SECONDS, seconds // 4)
        cursor.execute(
            "UPDATE streams SET kept_from = ?, sweep_s = ? WHERE app = ? AND channel = ?",
            (kept_from, now_s + again_s, app, channel),
        )
    return len(due) == SWEEP_STREAMS


def _is_awaited(cursor: sqlite3.Cursor, app: str, channel: str) -> bool:
    """Whether somebody is on the channel, whose position must go on being one."""
    return bool(cursor.execute("SELECT 1 FROM counts WHERE app = ? AND channel = ? LIMIT 1", (app, channel)).fetchall())
