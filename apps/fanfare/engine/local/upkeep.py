"""Operations: what keeps the log small, and those that consume it whole."""

from __future__ import annotations

import json
import logging
import sqlite3
from asyncio import AbstractEventLoop
from collections.abc import Sequence
from typing import NamedTuple

from fanfare.engine import interface
from fanfare.engine.local import operations, streams

logger = logging.getLogger(__name__)

SWEEP_SESSIONS = 10_000  # in one transaction, which other writers wait for
TAKEN_SECONDS = 600  # how long a session without a record is kept; a page that is connected saves one within seconds
END = 2**63 - 1  # no id is larger


class Trim(operations.WorkerOperation):
    """Delete entries up to `upto`, but for those that are kept or held for a consumer, and expired rows elsewhere."""

    __slots__ = ("more", "upto")

    def __init__(self, loop: AbstractEventLoop, upto: int, settled: operations.Settled) -> None:
        super().__init__(loop, settled)
        self.upto = upto
        self.more = False  # whether another sweep would find more

    def run(self, group: operations.Group) -> None:
        cursor = group.cursor
        now_s = group.now_ms // 1000
        held = self._held(cursor, now_s)
        trimmed_to, held_from = self._trim(cursor, held)
        for table, expired_s in (
            ("cache", now_s),
            ("sessions", now_s - interface.LATE_SECONDS),
            ("idempotency", now_s),
        ):
            cursor.execute(f"DELETE FROM {table} WHERE expires_s <= ?", (expired_s,))  # noqa: S608
        deletable = f"(id <= {trimmed_to} AND (id <= {held_from} OR {held.is_free}))"
        self.more = streams.sweep(cursor, group.now_ms, deletable)

    def _held(self, cursor: sqlite3.Cursor, now_s: int) -> Held:
        late = cursor.execute(
            "DELETE FROM cursors WHERE moved_s < ? RETURNING name", (now_s - interface.CONSUMER_SECONDS,)
        ).fetchall()
        for (name,) in late:
            logger.error("The consumer %s did not move for a day: entries are not held for it any more", name)
        cursors = cursor.execute("SELECT position, kinds FROM cursors").fetchall()
        return Held.of(cursors)

    def _trim(self, cursor: sqlite3.Cursor, held: Held) -> tuple[int, int]:
        """Answers `trimmed_to` and `held_from`."""
        [(trimmed_to, held_from)] = cursor.execute("SELECT trimmed_to, held_from FROM state").fetchall()
        upto = max(trimmed_to, min(self.upto, held.all_from))
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
    """Entries after `position` of some kinds are held for consumers; after `all_from` those of all kinds."""

    position: int
    all_from: int
    is_free: str  # a condition on a row of the log: it is of another kind

    @classmethod
    def of(cls, cursors: Sequence[tuple[int, int]]) -> Held:
        """`cursors`: the position and the kinds (see `schema`) of each."""
        position = min((position for position, _ in cursors), default=END)
        all_from = min((position for position, kinds in cursors if not kinds), default=END)
        kinds = [str(kind.value) for kind in interface.Kind if any(mask >> kind & 1 for _, mask in cursors)]
        return cls(position, all_from, f"kind NOT IN ({', '.join(kinds)})" if kinds else "1")


class Session(operations.WorkerOperation):
    """A page's record, kept for a while. Without `holder` it is written in any case."""

    __slots__ = ("app", "holder", "record", "release", "seconds", "token")

    def __init__(
        self,
        loop: AbstractEventLoop,
        app: str,
        token: str,
        record: bytes,
        *,
        seconds: int,
        holder: str = "",
        release: bool = False,
    ) -> None:
        super().__init__(loop)
        self.app = app
        self.token = token
        self.record = record
        self.seconds = seconds
        self.holder = holder
        self.release = release

    def run(self, group: operations.Group) -> None:
        expires_s = group.now_ms // 1000 + self.seconds
        if self.holder:
            worker, holder = ("", "") if self.release else (group.worker, self.holder)
            group.cursor.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (app, token) DO UPDATE "
                "SET record = excluded.record, expires_s = excluded.expires_s, worker = excluded.worker, "
                "holder = excluded.holder WHERE holder IN ('', ?)",
                (self.app, self.token, self.record, expires_s, worker, holder, self.holder),
            )
        else:
            group.cursor.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, '', '', 0) ON CONFLICT (app, token) DO UPDATE "
                "SET record = excluded.record, expires_s = excluded.expires_s",
                (self.app, self.token, self.record, expires_s),
            )


class TakeSession(operations.WorkerOperation):
    """A page came with a token: its socket holds the session from now on."""

    __slots__ = ("app", "holder", "taken", "token")

    def __init__(self, loop: AbstractEventLoop, app: str, token: str, holder: str) -> None:
        super().__init__(loop)
        self.app = app
        self.token = token
        self.holder = holder
        self.taken = interface.Taken(None, None, None)

    def run(self, group: operations.Group) -> None:
        now_s = group.now_ms // 1000
        rows = group.cursor.execute(
            "SELECT record, expires_s, worker, holder, taken_ms, EXISTS (SELECT 1 FROM workers WHERE id = worker) "
            "FROM sessions WHERE app = ? AND token = ?",
            (self.app, self.token),
        ).fetchall()
        record, expires_s, worker, holder, taken_ms, is_alive = rows[0] if rows else (b"", 0, "", "", 0, False)
        changed_s = (group.now_ms - taken_ms) / 1000 if taken_ms else None
        before = holder if holder and is_alive and holder != self.holder else None
        if before is not None:
            body = json.dumps({"token": self.token, "changed_s": changed_s}).encode()
            group.log(interface.Kind.SESSION_TAKEN, self.app, mailbox_of(worker), body, user_id=before)
            taken_ms = group.now_ms
        is_kept = record and expires_s > now_s - interface.LATE_SECONDS
        self.taken = interface.Taken(record if is_kept else None, before, changed_s)
        group.cursor.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (app, token) DO UPDATE SET "
            "record = excluded.record, expires_s = excluded.expires_s, worker = excluded.worker, "
            "holder = excluded.holder, taken_ms = excluded.taken_ms",
            (
                self.app,
                self.token,
                record if is_kept else b"",
                max(expires_s, now_s + TAKEN_SECONDS),
                group.worker,
                self.holder,
                taken_ms,
            ),
        )


def mailbox_of(worker: str) -> str:
    """The channel of the entries for one worker."""
    return f"#worker-{worker}"


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
    """The position of a consumer. None asks for it, and puts a new consumer at the newest entry. `kinds`: see
    `schema`."""

    __slots__ = ("forget", "kinds", "log_id", "name", "position")

    def __init__(
        self,
        loop: AbstractEventLoop,
        name: str,
        position: int | None = None,
        *,
        kinds: int = 0,
        forget: bool = False,
    ) -> None:
        super().__init__(loop)
        self.name = name
        self.position = position
        self.kinds = kinds
        self.forget = forget
        self.log_id = ""

    def run(self, group: operations.Group) -> None:
        cursor = group.cursor
        if self.forget:
            cursor.execute("DELETE FROM cursors WHERE name = ?", (self.name,))
            return
        if self.position is None:
            known = cursor.execute("SELECT position FROM cursors WHERE name = ?", (self.name,)).fetchall()
            # A position above the newest entry belongs to a log that was deleted.
            self.position = known[0][0] if known and known[0][0] <= group.top else group.top
        cursor.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?)",
            (self.name, self.position, group.now_ms // 1000, self.kinds),
        )
        [(self.log_id,)] = cursor.execute("SELECT log_id FROM state").fetchall()


class Touch(operations.WorkerOperation):
    """Does nothing, durably: shows that what was submitted before is written, and where the log stands."""

    __slots__ = ("top",)

    def __init__(self, loop: AbstractEventLoop, settled: operations.Settled | None = None) -> None:
        super().__init__(loop, settled)
        self.top = 0

    def run(self, group: operations.Group) -> None:
        self.top = group.top
