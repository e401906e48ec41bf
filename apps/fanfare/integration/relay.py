"""The outbox relay: sends the events that the processes that wrote them did not send.

One worker of the deployment runs it, with a task and a thread for each database, so that an unavailable or slow
database delays only its own events. The relay reads the outbox every few seconds, and one second after it found rows.
It sends the rows that were already there at the previous read: the process that wrote them had time to send and delete
them. If that process is only slow, the event is still published once, because the log checks the idempotency key.

The log keeps a key for `interface.IDEMPOTENCY_SECONDS`. An older row may have been sent before its process ended. The
relay sends it, because subscribers can handle a repeated event but not a lost one, logs a warning and counts
`outbox_late`.

A row that cannot be sent (its application was deleted, its data exceeds the limit) is marked as failed and
delays no other row.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from django.db import Error
from django.utils import timezone

from fanfare import conf, errors
from fanfare.applications import database
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.integration import appending, models, outbox, publishing
from fanfare.jobs import declarations
from fanfare.runtime import supervisor, text
from fanfare.runtime.log_throttle import exception_line

logger = logging.getLogger("fanfare.integration.outbox")

NAME = "outbox"
# An empty read is one index query, with SQLite also the opening of the database: a millisecond.
LOOK_S, IDLE_LOOK_S = 1.0, 5.0
TRIM_S = 60.0
# A row that was refused so often, while others were written, is itself at fault.
REFUSALS = 5


class Row(NamedTuple):
    """A row and its publication. `is_late`: the log may have dropped its key."""

    id: int
    uid: uuid.UUID
    publication: interface.Publication
    is_late: bool


class Found(NamedTuple):
    """One step through an outbox. `last`: the id after which the next step begins; None at the end."""

    rows: list[Row]
    last: int | None


def job() -> declarations.Job:
    relay = Relay()
    return declarations.Job(NAME, relay.run, "deployment", parts=lambda: relay.statuses)


class Relay:
    """The outboxes of all databases. `engine`: by default the engine of this process, opened."""

    def __init__(self, engine: interface.Engine | None = None) -> None:
        self._engine = engine
        self._tasks: supervisor.Supervisor | None = None

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        """The status of the task of each database."""
        return () if self._tasks is None else self._tasks.statuses

    async def run(self) -> None:
        """Relay until it is cancelled."""
        self._tasks = supervisor.Supervisor(logger)
        engine = self._engine or current.current()
        outboxes = [Outbox(engine, alias) for alias in outbox.databases()]
        try:
            for one in outboxes:
                self._tasks.run(one.status.name, one.run, status=one.status)
            await asyncio.Event().wait()
        finally:
            await self._tasks.stop()
            for one in outboxes:
                one.close()


class Outbox:
    """The outbox of one database."""

    def __init__(self, engine: interface.Engine, alias: str) -> None:
        self.alias = alias
        self.status = supervisor.Status(f"outbox of {alias!r}")
        self._engine = engine
        self._threads = database.Threads(1, f"fanfare-outbox-{alias}")
        self._top = 0  # the id of the newest row of the previous look
        # Rows that are in the log and could not be deleted, by uid: SQLite reuses ids.
        self._sent: set[uuid.UUID] = set()
        self._refusals: Counter[uuid.UUID] = Counter()
        self._trouble = ""  # the message of the last warning
        self._trim_at = time.monotonic() + TRIM_S

    def close(self) -> None:
        self._threads.close()

    async def run(self) -> None:
        """Read the outbox periodically. Errors of the engine and the database are logged; others are raised."""
        self.status.enter(supervisor.State.RUNNING)
        while True:
            await self._look_patiently()
            await asyncio.sleep(LOOK_S if self._top else IDLE_LOOK_S)

    async def look(self) -> None:
        """Send the rows of the previous read, and note the rows that exist now.

        Raises EngineError, django.db.Error and NoApplication: the rows stay for the next read.
        """
        after: int | None = 0 if self._top else None
        seen: set[uuid.UUID] = set()
        while after is not None:
            found = await self._threads.run(self._next, after, seen)
            after = found.last
            if found.rows:
                await self._send(found.rows)
        # Rows that were deleted, by any process, need not be remembered.
        self._sent &= seen
        self._refusals = Counter({uid: refusals for uid, refusals in self._refusals.items() if uid in seen})
        self._top = await self._threads.run(outbox.top, self.alias)

    async def _look_patiently(self) -> None:
        """Call `look`, and log each new error once."""
        trouble = ""
        self.status.runs += 1
        try:
            await self.look()
            if time.monotonic() >= self._trim_at:
                self._trim_at = time.monotonic() + TRIM_S
                await self._trim()
        except (engine_errors.EngineError, errors.NoApplication, Error) as error:
            trouble = database.reason(error)
            self.status.failed(error)
        if trouble and trouble != self._trouble:
            logger.warning("The relay cannot send the outbox of %r now, and tries again: %s", self.alias, trouble)
        if bool(trouble) != bool(self._trouble):
            self.status.enter(supervisor.State.PAUSING if trouble else supervisor.State.RUNNING)
        self._trouble = trouble

    # -- in the thread of the database ---------------------------------------------------------------------------------

    def _next(self, after: int, seen: set[uuid.UUID]) -> Found:
        """The next rows that can be sent. Other rows are marked as failed."""
        found = outbox.waiting(self.alias, after, self._top)
        forgotten = timezone.now() - dt.timedelta(seconds=interface.IDEMPOTENCY_SECONDS)
        rows, done = [], []
        for row in found:
            if row.uid in self._sent:
                done.append(row)
                continue
            try:
                rows.append(Row(row.pk, row.uid, _publication(row), row.created_at < forgotten))
            except errors.PublishError as error:
                self._fail(row.pk, f"{error} ({error.code})")
            except Error:
                raise  # from the query for the application, so the row is not at fault
            except Exception as error:  # noqa: BLE001  (a row that cannot be read must not stop those after it)
                self._fail(row.pk, exception_line(error))
        seen.update(row.uid for row in found)
        if done:
            self._discard([(row.pk, row.uid) for row in done])
        return Found(rows, found[-1].pk if len(found) == outbox.CHUNK else None)

    def _discard(self, rows: Sequence[tuple[int, uuid.UUID]]) -> None:
        """Delete rows that are in the log. If the deletion fails, this relay does not send them again: in a read-only
        database, rows outlive their keys."""
        uids = [uid for _, uid in rows]
        self._sent.update(uids)
        outbox.discard(self.alias, [id_ for id_, _ in rows])
        self._sent.difference_update(uids)

    def _fail(self, id_: int, reason: str) -> None:
        reason = text.clean(reason)
        outbox.fail(self.alias, id_, reason)
        appending.count("outbox_failed")
        logger.error("Event %d of the outbox of %r cannot be sent: %s", id_, self.alias, reason)

    # -- to the log ----------------------------------------------------------------------------------------------------

    async def _send(self, rows: Sequence[Row]) -> None:
        try:
            receipts = await self._append(rows)
        except Exception as error:
            if self._is_away(error):
                raise
            for row in rows:
                await self._send_one(row)
        else:
            await self._done(rows, receipts)

    async def _send_one(self, row: Row) -> None:
        try:
            receipts = await self._append([row])
        except Exception as error:
            if self._is_away(error):
                raise
            self._refusals[row.uid] += 1
            if self._refusals[row.uid] >= REFUSALS or isinstance(error, errors.PublishError):
                code = getattr(error, "code", type(error).__name__)
                await self._threads.run(self._fail, row.id, f"{error} ({code})")
                del self._refusals[row.uid]
        else:
            await self._done([row], receipts)

    async def _append(self, rows: Sequence[Row]) -> list[interface.Receipt]:
        publications = [row.publication for row in rows]
        if self._engine.is_open:
            return await self._engine.append(publications)
        return await self._threads.run(self._engine.append_blocking, publications)  # this process is no worker

    def _is_away(self, error: Exception) -> bool:
        """Whether the error concerns all rows, which then wait."""
        if isinstance(error, engine_errors.EngineUnavailable):
            return not (self._engine.is_open and self._engine.health().ok)
        # In remote mode, NoApplication means that the other deployment refuses this project's key.
        return isinstance(error, engine_errors.EngineError | errors.NoApplication)

    async def _done(self, rows: Sequence[Row], receipts: Sequence[interface.Receipt]) -> None:
        for row in rows:
            self._refusals.pop(row.uid, None)
        new = [row for row, receipt in zip(rows, receipts, strict=True) if not receipt.duplicate]
        if new:
            appending.count("outbox_relayed", len(new))
            logger.info("Sent %d events that their process had left in the outbox of %r", len(new), self.alias)
        late = [row for row in new if row.is_late]
        if late:
            appending.count("outbox_late", len(late))
            logger.warning(
                "%d events of the outbox of %r, ids %d to %d, waited for more than %d seconds. If their process ended "
                "between sending and deleting them, they were sent twice.",
                len(late),
                self.alias,
                late[0].id,
                late[-1].id,
                interface.IDEMPOTENCY_SECONDS,
            )
        await self._threads.run(self._discard, [(row.id, row.uid) for row in rows])

    async def _trim(self) -> None:
        deleted = await self._threads.run(outbox.trim, self.alias, conf.settings.OUTBOX_KEEP_SECONDS)
        if deleted:
            logger.info("Deleted %d failed events from the outbox of %r", deleted, self.alias)


def _publication(row: models.OutboxEvent) -> interface.Publication:
    """The publication that publish() would make now. Raises PublishError."""
    return publishing.restore(
        row.channel,
        row.event,
        row.data,
        app=row.app_id,
        exclude=row.exclude or None,
        idempotency_key=row.idempotency_key or outbox.key_of(row.uid),
    )
