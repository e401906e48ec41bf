"""Write operations that delete rows over their time or bounds, shrink the file, and keep the positions of consumers."""

from __future__ import annotations

import logging
import sqlite3
from asyncio import AbstractEventLoop
from collections.abc import Sequence
from typing import NamedTuple

from fanfare.engine import interface
from fanfare.engine.local import streams
from fanfare.engine.local.transactions import (
    FULL_SWEEP_SECONDS,
    POSITION_OUTLIVES,
    Settled,
    Transaction,
    WorkerOp,
)

logger = logging.getLogger(__name__)

# In one transaction, which other writers wait for.
TRIM_ENTRIES = 20_000
SWEEP_STREAMS = 100
EVICT_ENTRIES = 2_000
SHRINK_PAGES = 250  # 4 ms

# Unused pages are given back to the disk where they are more than this, and more than a quarter of the file.
UNUSED_PAGES = 2_048  # 8 MB
UNUSED_SHARE = 4

END = 2**63 - 1  # no id is larger


class Trim(WorkerOp):
    """Delete entries up to `upto`, but for those that are kept or held for a consumer, and expired rows elsewhere.

    `evict`: bytes of kept entries, the oldest of all channels, that are deleted before their time as well. `more`:
    another run would find more to delete. `evicted`: how many kept entries were deleted before their time.
    """

    __slots__ = ("evict", "evicted", "more", "upto")

    def __init__(self, loop: AbstractEventLoop, upto: int, settled: Settled, *, evict: int = 0) -> None:
        super().__init__(loop, settled)
        self.upto = upto
        self.evict = evict
        self.evicted = 0
        self.more = False

    def run(self, transaction: Transaction) -> None:
        cursor = transaction.cursor
        now_s = transaction.now_ms // 1000
        transaction.frees_space = True
        held = _held(cursor, now_s)
        trimmed_to, held_from = self._trim(cursor, held)
        for table, expired_s in (
            ("cache", now_s),
            ("sessions", now_s - interface.LATE_SECONDS),
            ("idempotency", now_s),
        ):
            cursor.execute(f"DELETE FROM {table} WHERE expires_s <= ?", (expired_s,))  # noqa: S608
        streams.forget_ended(cursor, transaction.now_ms)
        was_read = f"(id <= {trimmed_to} AND (id <= {held_from} OR {held.is_free}))"
        self.more |= _sweep(cursor, transaction.now_ms, was_read)
        self.evicted = _evict(cursor, self.evict, was_read) if self.evict > 0 else 0

    def _trim(self, cursor: sqlite3.Cursor, held: Held) -> tuple[int, int]:
        """Answers `trimmed_to` and `held_from`, see `schema`."""
        [(trimmed_to, held_from)] = cursor.execute("SELECT trimmed_to, held_from FROM state").fetchall()
        upto = max(trimmed_to, min(self.upto, trimmed_to + TRIM_ENTRIES))
        self.more = upto < self.upto
        # Only the new part of each range: below it are only kept entries, and between the two those that are held.
        if upto > trimmed_to:
            cursor.execute(
                f'DELETE FROM log WHERE id > ? AND id <= ? AND "offset" IS NULL AND (id <= ? OR {held.is_free})',  # noqa: S608
                (trimmed_to, upto, held.position),
            )
        released = max(held_from, min(upto, held.position))
        if released > held_from:
            cursor.execute('DELETE FROM log WHERE id > ? AND id <= ? AND "offset" IS NULL', (held_from, released))
        if (upto, released) != (trimmed_to, held_from):
            cursor.execute("UPDATE state SET trimmed_to = ?, held_from = ?", (upto, released))
        return upto, released


class Held(NamedTuple):
    """Entries after `position` of some kinds are held for consumers."""

    position: int
    is_free: str  # a condition on a row of the log: it is of another kind


def _held(cursor: sqlite3.Cursor, now_s: int) -> Held:
    late = cursor.execute(
        "DELETE FROM cursors WHERE moved_s < ? RETURNING name", (now_s - interface.CONSUMER_SECONDS,)
    ).fetchall()
    for (name,) in late:
        logger.error("The consumer %s has read nothing for a day: entries are no longer kept for it", name)
    cursors: Sequence[tuple[int, int]] = cursor.execute("SELECT position, kinds FROM cursors").fetchall()
    position = min((position for position, _ in cursors), default=END)
    kinds = [str(kind.value) for kind in interface.Kind if any(mask >> kind & 1 for _, mask in cursors)]
    return Held(position, f"kind NOT IN ({', '.join(kinds)})" if kinds else "1")


def _sweep(cursor: sqlite3.Cursor, now_ms: int, was_read: str) -> bool:
    """Delete the entries over the bounds of the streams that are due. True: there are more of them.

    `was_read`: a condition on a row of the log: every worker and consumer has had the time to read it.
    """
    now_s = now_ms // 1000
    due = cursor.execute(
        'SELECT app, channel, "offset", kept_from, size, seconds FROM streams '
        "WHERE sweep_s <= ? ORDER BY sweep_s LIMIT ?",
        (now_s, SWEEP_STREAMS),
    ).fetchall()
    for app, channel, top, kept_before, size, seconds in due:
        if kept_before > top and not _has_subscribers(cursor, app, channel):
            # It was empty a sweep ago, and nothing was appended since: its position has been kept long enough.
            cursor.execute("DELETE FROM streams WHERE app = ? AND channel = ?", (app, channel))
            continue
        young = cursor.execute(
            'SELECT "offset" FROM log WHERE app = ? AND channel = ? AND "offset" > ? AND created_ms >= ? '
            'ORDER BY "offset" LIMIT 1',
            (app, channel, top - size, now_ms - seconds * 1000),
        ).fetchall()
        keep_from = young[0][0] if young else top + 1
        cursor.execute(
            f'DELETE FROM log WHERE app = ? AND channel = ? AND "offset" < ? AND {was_read}',  # noqa: S608
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


def _has_subscribers(cursor: sqlite3.Cursor, app: str, channel: str) -> bool:
    return bool(cursor.execute("SELECT 1 FROM counts WHERE app = ? AND channel = ? LIMIT 1", (app, channel)).fetchall())


def _evict(cursor: sqlite3.Cursor, count: int, was_read: str) -> int:
    """Delete the oldest kept entries, about `count` bytes of them. Each stream loses its oldest entries, so a recovery
    that would need one of them is refused as expired. Answers how many."""
    rows = cursor.execute(
        f'SELECT id, LENGTH(body) FROM log WHERE "offset" IS NOT NULL AND {was_read} ORDER BY id LIMIT ?',  # noqa: S608
        (EVICT_ENTRIES,),
    ).fetchall()
    last, size = 0, 0
    for entry_id, length in rows:
        if size >= count:
            break
        last, size = entry_id, size + length
    cursor.execute(f'DELETE FROM log WHERE id <= ? AND "offset" IS NOT NULL AND {was_read}', (last,))  # noqa: S608
    return cursor.rowcount


class Shrink(WorkerOp):
    """Give unused pages back to the disk, up to `SHRINK_PAGES` of them, if they are many or `must`. `did`: there were
    any. `more`: there are still."""

    __slots__ = ("did", "more", "must")

    def __init__(self, loop: AbstractEventLoop, settled: Settled, *, must: bool) -> None:
        super().__init__(loop, settled)
        self.must = must
        self.did = self.more = False

    def run(self, transaction: Transaction) -> None:
        [(unused,)] = transaction.cursor.execute("PRAGMA freelist_count").fetchall()
        [(pages,)] = transaction.cursor.execute("PRAGMA page_count").fetchall()
        left = 0 if self.must else max(UNUSED_PAGES, pages // UNUSED_SHARE)
        count = min(unused - left, SHRINK_PAGES)
        for _ in range(count):  # the statement yields after each page, and the module runs one step of it
            transaction.cursor.execute("PRAGMA incremental_vacuum(1)").fetchall()
        self.did, self.more = count > 0, unused - left > SHRINK_PAGES
        transaction.frees_space |= self.did


class StoreCursor(WorkerOp):
    """The position of a consumer. None asks for it, and puts a new consumer after the entry `first`, or at the newest
    one without it. `kinds`: see `schema`."""

    __slots__ = ("first", "forget", "kinds", "log_id", "name", "position")

    def __init__(
        self,
        loop: AbstractEventLoop,
        name: str,
        position: int | None = None,
        *,
        kinds: int,
        first: int | None = None,
        forget: bool = False,
    ) -> None:
        super().__init__(loop)
        self.name = name
        self.position = position
        self.first = first
        self.kinds = kinds
        self.forget = forget
        self.log_id = ""

    def run(self, transaction: Transaction) -> None:
        cursor = transaction.cursor
        if self.forget:
            cursor.execute("DELETE FROM cursors WHERE name = ?", (self.name,))
            return
        if self.position is None:
            known = cursor.execute("SELECT position FROM cursors WHERE name = ?", (self.name,)).fetchall()
            position = known[0][0] if known else self.first
            # A position above the newest entry belongs to a log that was deleted.
            self.position = transaction.top if position is None else min(position, transaction.top)
        cursor.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?)",
            (self.name, self.position, transaction.now_ms // 1000, self.kinds),
        )
        [(self.log_id,)] = cursor.execute("SELECT log_id FROM state").fetchall()
