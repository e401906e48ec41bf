"""Recovery from a channel's history: all entries after a position, or a refusal with its reason.

A recovery is complete or it is refused. It is given in chunks, each read where the reader stands, so that a long one
needs no memory: the caller sends a chunk, waits for its client, and asks for the next. The last chunk reaches the
reader's position, and delivery goes on from there.

Clients that reconnect together request the same entries. A chunk is kept for a second and serves the others.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import NamedTuple

from fanfare.engine import interface
from fanfare.engine.local import schema

CHUNK_ENTRIES = 512
CHUNK_BYTES = 256 * 1024

SHARED_SECONDS = 1.0  # clients that were cut off together are back within their second of delay
SHARED_BYTES = 8 * 1024 * 1024  # of bodies, in all channels together

_KEPT = f'SELECT {schema.ENTRY} FROM log WHERE app = ? AND channel = ? AND "offset" > ?'  # noqa: S608
_FORWARD = _KEPT + ' ORDER BY "offset" LIMIT ?'
_NEWEST = _KEPT + ' AND created_ms >= ? ORDER BY "offset" DESC LIMIT ?'


class Stream(NamedTuple):
    epoch: str
    top: int
    size: int
    seconds: int


class _Window(NamedTuple):
    """Entries of one stream, without a gap: the first one's offset is `after` + 1."""

    epoch: str
    after: int
    entries: list[interface.Entry]
    read_s: float  # monotonic


class RecoveryReader:
    """Answers recovery requests inside the reader's transactions. Raises sqlite3.Error."""

    def __init__(self) -> None:
        self.reads = 0
        self.shared = 0  # chunks that cost no read
        self.bytes = 0  # held for sharing
        self._windows: dict[tuple[str, str], _Window] = {}

    def answer(
        self, connection: sqlite3.Connection, wanted: interface.SubscribeRequest, history: interface.RecoveryRequest
    ) -> interface.RecoveryResult:
        """The answer to `history`. The stream's top is the position in any case."""
        where = (wanted.app, wanted.channel)
        stream = _stream(connection, *where)
        if stream is None:
            # Nothing was ever kept: a position can only be one of a log that is gone.
            reason = None if history.after is None else "epoch_changed"
            return interface.RecoveryResult(None, reason=reason, complete=True)
        position = interface.Position(stream.epoch, stream.top)
        if history.after is not None:
            return self._after(connection, where, history, history.after, stream)
        if history.rewind is not None:
            entries = _newest(connection, where, history.rewind, stream)
            return interface.RecoveryResult(position, entries=entries, count=len(entries), complete=True)
        return interface.RecoveryResult(position, complete=True)

    def _after(
        self,
        connection: sqlite3.Connection,
        where: tuple[str, str],
        history: interface.RecoveryRequest,
        after: interface.Position,
        stream: Stream,
    ) -> interface.RecoveryResult:
        position = interface.Position(stream.epoch, stream.top)
        missed = stream.top - after.offset
        if after.epoch != stream.epoch or missed < 0:
            return interface.RecoveryResult(position, reason="epoch_changed", complete=True)
        if missed == 0:
            return interface.RecoveryResult(position, complete=True)
        if not _is_kept(connection, where, after.offset + 1, stream):
            return interface.RecoveryResult(position, reason="position_expired", complete=True)
        if not history.continued and not _fits(connection, where, after.offset, missed, history):
            return interface.RecoveryResult(position, reason="too_many", complete=True)
        entries = self._chunk(connection, where, after.offset, stream)
        reached = entries[-1].offset if entries else after.offset
        return interface.RecoveryResult(position, entries=entries, count=missed, complete=reached == stream.top)

    def _chunk(
        self, connection: sqlite3.Connection, where: tuple[str, str], after: int, stream: Stream
    ) -> tuple[interface.Entry, ...]:
        """The next entries of the stream, from memory if another client has just asked for them."""
        now = time.monotonic()
        window = self._windows.get(where)
        if window is not None and now - window.read_s > SHARED_SECONDS:
            self._forget(where)
            window = None
        if window is not None and window.epoch == stream.epoch and window.after <= after:
            entries = window.entries[after - window.after :]
            if entries and (len(entries) >= CHUNK_ENTRIES or entries[-1].offset == stream.top):
                self.shared += 1
                return _bounded(entries)
        self.reads += 1
        rows = connection.execute(_FORWARD, (*where, after, CHUNK_ENTRIES)).fetchall()
        entries = [interface.Entry._make(row) for row in rows]
        self._share(where, _Window(stream.epoch, after, entries, now))
        return _bounded(entries)

    def _share(self, where: tuple[str, str], window: _Window) -> None:
        self._forget(where)
        weight = _weight(window)
        if self.bytes + weight > SHARED_BYTES:
            for other in list(self._windows):
                self._forget(other)
        self._windows[where] = window
        self.bytes += weight

    def _forget(self, where: tuple[str, str]) -> None:
        window = self._windows.pop(where, None)
        if window is not None:
            self.bytes -= _weight(window)

    def clean(self) -> None:
        """Drop the chunks whose time is over."""
        old = time.monotonic() - SHARED_SECONDS
        for where in [where for where, window in self._windows.items() if window.read_s < old]:
            self._forget(where)


def _stream(connection: sqlite3.Connection, app: str, channel: str) -> Stream | None:
    rows = connection.execute(
        'SELECT epoch, "offset", size, seconds FROM streams WHERE app = ? AND channel = ?', (app, channel)
    ).fetchall()
    return Stream(*rows[0]) if rows else None


def _is_kept(connection: sqlite3.Connection, where: tuple[str, str], offset: int, stream: Stream) -> bool:
    """Whether this entry, and so every later one, is still there and within its bounds."""
    if offset <= stream.top - stream.size:
        return False
    rows = connection.execute(
        'SELECT created_ms FROM log WHERE app = ? AND channel = ? AND "offset" = ?', (*where, offset)
    ).fetchall()
    return bool(rows) and rows[0][0] >= int(time.time() * 1000) - stream.seconds * 1000


def _fits(
    connection: sqlite3.Connection,
    where: tuple[str, str],
    after: int,
    missed: int,
    history: interface.RecoveryRequest,
) -> bool:
    if missed > history.max_entries:
        return False
    [(size,)] = connection.execute(
        'SELECT TOTAL(LENGTH(body)) FROM log WHERE app = ? AND channel = ? AND "offset" > ?', (*where, after)
    ).fetchall()
    return bool(size <= history.max_bytes)


def _newest(
    connection: sqlite3.Connection, where: tuple[str, str], rewind: interface.Rewind, stream: Stream
) -> tuple[interface.Entry, ...]:
    seconds = min(stream.seconds, rewind.seconds or stream.seconds)
    count = min(rewind.count or CHUNK_ENTRIES, CHUNK_ENTRIES)
    rows = connection.execute(
        _NEWEST, (*where, stream.top - stream.size, int(time.time() * 1000) - seconds * 1000, count)
    ).fetchall()
    newest = [interface.Entry._make(row) for row in rows]  # newest first: what is over the bound is the oldest
    return tuple(reversed(_bounded(newest)))


def _bounded(entries: Sequence[interface.Entry]) -> tuple[interface.Entry, ...]:
    weight = 0
    for index, entry in enumerate(entries[:CHUNK_ENTRIES]):
        weight += len(entry.body)
        if weight > CHUNK_BYTES and index:
            return tuple(entries[:index])
    return tuple(entries[:CHUNK_ENTRIES])


def _weight(window: _Window) -> int:
    return sum([len(entry.body) for entry in window.entries])
