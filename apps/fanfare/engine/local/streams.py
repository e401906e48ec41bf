"""Write operations and reads of streams: messages that grow.

An append costs one update and two rows: the part, and the entry of the log that delivers it. The parts are put together
where a subscriber asks for the text, so an append does not depend on the length of the stream.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from fanfare.engine import interface
from fanfare.engine.local.transactions import BlockingOp, Transaction

OPEN = interface.StreamState.OPEN

_ADVANCE = (  # the lease is renewed with it
    "UPDATE texts SET seq = ?, size = ?, until_ms = ? "
    "WHERE app = ? AND channel = ? AND id = ? AND seq = ? AND state = 0"
)
_FIND = 'SELECT state, seq, size, "offset" FROM texts WHERE app = ? AND channel = ? AND id = ?'
_COLUMNS = 'id, state, seq, size, head, body, "offset"'


class WriteStreams(BlockingOp):
    """Changes of streams, each with its own receipt."""

    def __init__(self, writes: Sequence[interface.StreamWrite]) -> None:
        super().__init__()
        self.writes = writes
        self.receipts: list[interface.StreamReceipt] = []

    def run(self, transaction: Transaction) -> None:
        self.receipts = []
        self.refused = transaction.full
        if self.refused is None:
            self.receipts = [_write(transaction, write) for write in self.writes]


def _write(transaction: Transaction, write: interface.StreamWrite) -> interface.StreamReceipt:
    cursor, where = transaction.cursor, (write.app, write.channel, write.id)
    until_ms = transaction.now_ms + write.seconds * 1000
    if write.head is None and write.state == OPEN:
        cursor.execute(_ADVANCE, (write.seq, write.size, until_ms, *where, write.after))
        if cursor.rowcount != 1:
            return _as_it_is(cursor, where)
        _add_part(transaction, write)
        return interface.StreamReceipt(True, OPEN, write.seq, write.size)
    found = cursor.execute(_FIND, where).fetchall()
    if write.head is not None:
        return _open(transaction, write, write.head, until_ms, is_known=bool(found))
    if not found or found[0][:2] != (OPEN, write.after):
        return _as_it_is(cursor, where)
    return _end(transaction, write, until_ms, earlier=found[0][3])


def _open(
    transaction: Transaction, write: interface.StreamWrite, head: bytes, until_ms: int, *, is_known: bool
) -> interface.StreamReceipt:
    cursor, where = transaction.cursor, (write.app, write.channel, write.id)
    now = _as_it_is(cursor, where)
    if is_known and (now.state not in interface.RESUMABLE or now.seq != write.after):
        return now
    for limit, query, values in (
        (write.max_in_channel, "app = ? AND channel = ?", where[:2]),
        (write.max_in_app, "app = ?", where[:1]),
    ):
        if limit is not None:
            [(count,)] = cursor.execute(
                f"SELECT COUNT(*) FROM texts INDEXED BY texts_open WHERE state = 0 AND {query}",  # noqa: S608
                values,
            ).fetchall()
            if count >= limit:
                return now._replace(limit=limit, actual=count)
    cursor.execute(
        "INSERT INTO texts VALUES (?, ?, ?, 0, ?, ?, ?, NULL, ?, NULL) ON CONFLICT (app, channel, id) DO UPDATE SET "
        "state = 0, seq = excluded.seq, size = excluded.size, until_ms = excluded.until_ms, head = excluded.head, "
        "body = NULL",
        (*where, write.seq, write.size, until_ms, bytearray(head)),
    )
    cursor.execute("DELETE FROM parts WHERE app = ? AND channel = ? AND id = ?", where)
    _add_part(transaction, write)
    return interface.StreamReceipt(True, OPEN, write.seq, write.size)


def _add_part(transaction: Transaction, write: interface.StreamWrite) -> None:
    where = (write.app, write.channel, write.id)
    if write.replaces:
        transaction.cursor.execute("DELETE FROM parts WHERE app = ? AND channel = ? AND id = ?", where)
    if write.part:
        transaction.cursor.execute(
            "INSERT INTO parts VALUES (?, ?, ?, ?, ?)", (*where, write.seq, bytearray(write.part))
        )
    if write.body:
        transaction.log(interface.Kind.STREAM, write.app, write.channel, write.body, user_id=write.id)


def _end(
    transaction: Transaction, write: interface.StreamWrite, until_ms: int, *, earlier: int | None
) -> interface.StreamReceipt:
    cursor, where = transaction.cursor, (write.app, write.channel, write.id)
    position = None
    if write.retention is not None:
        position = transaction.advance(write.app, write.channel, write.retention)
    if earlier is not None:  # the end of an earlier try, which this one replaces
        cursor.execute(
            "UPDATE log SET body = x'' WHERE app = ? AND channel = ? AND \"offset\" = ?", (*where[:2], earlier)
        )
    offset = None if position is None else position.offset
    transaction.log(interface.Kind.STREAM_END, write.app, write.channel, write.body, offset=offset, user_id=write.id)
    cursor.execute(
        'UPDATE texts SET state = ?, seq = ?, size = ?, until_ms = ?, body = ?, "offset" = ? '
        "WHERE app = ? AND channel = ? AND id = ?",
        (write.state.value, write.seq, write.size, until_ms, bytearray(write.body), offset, *where),
    )
    if not write.keeps_parts:
        cursor.execute("DELETE FROM parts WHERE app = ? AND channel = ? AND id = ?", where)
    return interface.StreamReceipt(True, write.state, write.seq, write.size)


def _as_it_is(cursor: sqlite3.Cursor, where: tuple[str, str, str]) -> interface.StreamReceipt:
    found = cursor.execute(_FIND, where).fetchall()
    if not found:
        return interface.StreamReceipt(False, None)
    state, seq, size, _ = found[0]
    return interface.StreamReceipt(False, interface.StreamState(state), seq, size)


class OpenChannel(BlockingOp):
    """`position`: of a channel's stream, which is opened if it is new."""

    def __init__(self, app: str, channel: str) -> None:
        super().__init__()
        self.where = (app, channel)
        self.position = interface.Position("", 0)

    def run(self, transaction: Transaction) -> None:
        self.position = transaction.position(*self.where)


class Revise(BlockingOp):
    """A new version of a kept message. `position`: of the notice."""

    def __init__(self, revision: interface.Revision) -> None:
        super().__init__()
        self.revision = revision
        self.position: interface.Position | None = None

    def run(self, transaction: Transaction) -> None:
        self.position = None
        self.refused = transaction.full
        if self.refused is not None:
            return
        revision, cursor = self.revision, transaction.cursor
        where = (revision.app, revision.channel)
        rows = cursor.execute(
            'SELECT size, seconds FROM streams WHERE app = ? AND channel = ? AND epoch = ? AND "offset" >= ?',
            (*where, revision.position.epoch, revision.position.offset),
        ).fetchall()
        if not rows:
            return
        cursor.execute(
            "UPDATE log SET body = ? WHERE app = ? AND channel = ? AND \"offset\" = ? AND body <> x'' AND kind <> ?",
            (bytearray(revision.body), *where, revision.position.offset, interface.Kind.REVISED.value),
        )
        if cursor.rowcount == 1:
            self.position = transaction.advance(*where, interface.Retention(*rows[0]))
            transaction.log(interface.Kind.REVISED, *where, revision.notice, offset=self.position.offset)


def of_channel(
    connection: sqlite3.Connection, app: str, channel: str, stream_id: str | None = None
) -> list[interface.Streamed]:
    """The streams of a channel, or one of them. Called inside a transaction. Raises sqlite3.Error."""
    one, values = ("", (app, channel)) if stream_id is None else (" AND id = ?", (app, channel, stream_id))
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM texts WHERE app = ? AND channel = ?{one}",  # noqa: S608
        values,
    ).fetchall()
    if not rows:
        return []
    parts: dict[str, list[bytes]] = {}
    for stream, part in connection.execute(
        f"SELECT id, part FROM parts WHERE app = ? AND channel = ?{one} ORDER BY id, seq",  # noqa: S608
        values,
    ).fetchall():
        parts.setdefault(stream, []).append(part)
    return [
        interface.Streamed(
            stream, interface.StreamState(state), seq, size, head, tuple(parts.get(stream, ())), body, offset
        )
        for stream, state, seq, size, head, body, offset in rows
    ]


def forget_ended(cursor: sqlite3.Cursor, now_ms: int) -> None:
    """Delete the streams whose time is over."""
    rows = cursor.execute(
        "DELETE FROM texts WHERE state > 0 AND until_ms <= ? RETURNING app, channel, id", (now_ms,)
    ).fetchall()
    cursor.executemany("DELETE FROM parts WHERE app = ? AND channel = ? AND id = ?", rows)
