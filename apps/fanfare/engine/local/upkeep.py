"""Operations: what keeps the log small, and those that consume it whole."""

from __future__ import annotations

from asyncio import AbstractEventLoop

from fanfare.engine import interface
from fanfare.engine.local import operations, streams

SWEEP_SESSIONS = 10_000  # in one transaction, which other writers wait for


class Trim(operations.WorkerOperation):
    """Forget announcements up to `upto`, record that in the same transaction, and sweep what is too old elsewhere."""

    __slots__ = ("more", "upto")

    def __init__(self, loop: AbstractEventLoop, upto: int, settled: operations.Settled) -> None:
        super().__init__(loop, settled)
        self.upto = upto
        self.more = False  # whether another sweep would find more

    def run(self, group: operations.Group) -> None:
        cursor = group.cursor
        [(trimmed_to,)] = cursor.execute("SELECT trimmed_to FROM state").fetchall()
        cursor.execute("DELETE FROM cursors WHERE moved_s < ?", (group.now_ms // 1000 - interface.CURSOR_SECONDS,))
        [(held_at,)] = cursor.execute("SELECT MIN(position) FROM cursors").fetchall()
        upto = self.upto if held_at is None else min(self.upto, held_at)
        if upto > trimmed_to:
            # Only the new part of the range: what is below holds nothing but kept entries.
            cursor.execute('DELETE FROM log WHERE id > ? AND id <= ? AND "offset" IS NULL', (trimmed_to, upto))
            cursor.execute("UPDATE state SET trimmed_to = ?", (upto,))
            trimmed_to = upto
        now_s = group.now_ms // 1000
        for table, expired_s in (
            ("cache", now_s),
            ("sessions", now_s - interface.LATE_SECONDS),
            ("idempotency", now_s),
        ):
            cursor.execute(f"DELETE FROM {table} WHERE expires_s <= ?", (expired_s,))  # noqa: S608
        self.more = streams.sweep(cursor, group.now_ms, trimmed_to)


class Session(operations.WorkerOperation):
    """A client's record, kept for a while."""

    __slots__ = ("app", "record", "seconds", "token")

    def __init__(self, loop: AbstractEventLoop, app: str, token: str, record: bytes, *, seconds: int) -> None:
        super().__init__(loop)
        self.app = app
        self.token = token
        self.record = record
        self.seconds = seconds

    def run(self, group: operations.Group) -> None:
        group.cursor.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)",
            (self.app, self.token, self.record, group.now_ms // 1000 + self.seconds),
        )


class Forget(operations.WorkerOperation):
    """Records of clients whose time was over at `expired_s`, the first `SWEEP_SESSIONS` of them."""

    __slots__ = ("expired_s",)

    def __init__(self, loop: AbstractEventLoop, expired_s: int) -> None:
        super().__init__(loop)
        self.expired_s = expired_s

    def run(self, group: operations.Group) -> None:
        group.cursor.execute(
            "DELETE FROM sessions WHERE (app, token) IN "
            "(SELECT app, token FROM sessions WHERE expires_s <= ? ORDER BY expires_s LIMIT ?)",
            (self.expired_s, SWEEP_SESSIONS),
        )


class Cursor(operations.WorkerOperation):
    """Where a consumer of the whole log stands. `position`: None only asks, and makes a new one at the present."""

    __slots__ = ("forget", "name", "position")

    def __init__(
        self, loop: AbstractEventLoop, name: str, position: int | None = None, *, forget: bool = False
    ) -> None:
        super().__init__(loop)
        self.name = name
        self.position = position
        self.forget = forget

    def run(self, group: operations.Group) -> None:
        cursor = group.cursor
        if self.forget:
            cursor.execute("DELETE FROM cursors WHERE name = ?", (self.name,))
            return
        if self.position is None:
            known = cursor.execute("SELECT position FROM cursors WHERE name = ?", (self.name,)).fetchall()
            # One that is ahead of the log belongs to a log that was deleted.
            self.position = known[0][0] if known and known[0][0] <= group.top else group.top
        cursor.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (self.name, self.position, group.now_ms // 1000)
        )


class Touch(operations.WorkerOperation):
    """Does nothing, durably: shows that what was submitted before is written, and where the log stands."""

    __slots__ = ("top",)

    def __init__(self, loop: AbstractEventLoop, settled: operations.Settled | None = None) -> None:
        super().__init__(loop, settled)
        self.top = 0

    def run(self, group: operations.Group) -> None:
        self.top = group.top
