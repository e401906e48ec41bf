"""Write operations: the sessions of pages, for their reconnects."""

from __future__ import annotations

import json
from asyncio import AbstractEventLoop

from fanfare.engine import interface
from fanfare.engine.local.transactions import Settled, Transaction, WorkerOp

TAKEN_SECONDS = 600  # how long a session without a record is kept; a connected page saves one within seconds
SWEEP_SESSIONS = 10_000  # in one transaction, which other writers wait for


class SaveSession(WorkerOp):
    """A page's record. Without `holder` it is written in any case."""

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

    def run(self, transaction: Transaction) -> None:
        expires_s = transaction.now_ms // 1000 + self.seconds
        if self.holder:
            worker, holder = ("", "") if self.release else (transaction.worker, self.holder)
            transaction.cursor.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (app, token) DO UPDATE "
                "SET record = excluded.record, expires_s = excluded.expires_s, worker = excluded.worker, "
                "holder = excluded.holder WHERE holder IN ('', ?)",
                (self.app, self.token, self.record, expires_s, worker, holder, self.holder),
            )
        else:
            transaction.cursor.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, '', '', 0) ON CONFLICT (app, token) DO UPDATE "
                "SET record = excluded.record, expires_s = excluded.expires_s",
                (self.app, self.token, self.record, expires_s),
            )


class TakeSession(WorkerOp):
    """A page came with a token: its socket holds the session from now on."""

    __slots__ = ("app", "holder", "taken", "token")

    def __init__(self, loop: AbstractEventLoop, app: str, token: str, holder: str) -> None:
        super().__init__(loop)
        self.app = app
        self.token = token
        self.holder = holder
        self.taken = interface.Taken(None, None, None)

    def run(self, transaction: Transaction) -> None:
        now_s = transaction.now_ms // 1000
        rows = transaction.cursor.execute(
            "SELECT record, expires_s, worker, holder, taken_ms, EXISTS (SELECT 1 FROM workers WHERE id = worker) "
            "FROM sessions WHERE app = ? AND token = ?",
            (self.app, self.token),
        ).fetchall()
        record, expires_s, worker, holder, taken_ms, is_alive = rows[0] if rows else (b"", 0, "", "", 0, False)
        changed_s = (transaction.now_ms - taken_ms) / 1000 if taken_ms else None
        before = holder if holder and is_alive and holder != self.holder else None
        if before is not None:
            body = json.dumps({"token": self.token, "changed_s": changed_s}).encode()
            transaction.log(interface.Kind.SESSION_TAKEN, self.app, mailbox_of(worker), body, user_id=before)
            taken_ms = transaction.now_ms
        is_kept = bool(record) and expires_s > now_s - interface.LATE_SECONDS
        self.taken = interface.Taken(record if is_kept else None, before, changed_s)
        transaction.cursor.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (app, token) DO UPDATE SET "
            "record = excluded.record, expires_s = excluded.expires_s, worker = excluded.worker, "
            "holder = excluded.holder, taken_ms = excluded.taken_ms",
            (
                self.app,
                self.token,
                record if is_kept else b"",
                max(expires_s, now_s + TAKEN_SECONDS),
                transaction.worker,
                self.holder,
                taken_ms,
            ),
        )


class DropLateSessions(WorkerOp):
    """Delete records whose time was over at `expired_s`, the first `SWEEP_SESSIONS` of them. `dropped`: how many."""

    __slots__ = ("dropped", "expired_s")

    def __init__(self, loop: AbstractEventLoop, expired_s: int, settled: Settled) -> None:
        super().__init__(loop, settled)
        self.expired_s = expired_s
        self.dropped = 0

    def run(self, transaction: Transaction) -> None:
        self.dropped = transaction.cursor.execute(
            "DELETE FROM sessions WHERE (app, token) IN "
            "(SELECT app, token FROM sessions WHERE expires_s <= ? ORDER BY expires_s LIMIT ?)",
            (self.expired_s, SWEEP_SESSIONS),
        ).rowcount


def mailbox_of(worker: str) -> str:
    """The channel of the entries for one worker."""
    return f"#worker-{worker}"
