"""The outbox relay: it sends the events that the process that wrote them did not send.

One worker of the deployment runs it, with a task and a thread for each database, so that a database that is away or
slow delays only its own events. The relay looks into the outbox every few seconds, and one second after it found rows.
It sends the rows that its previous look found already: by then their process has sent and deleted them, or is late or
gone. A process that is late does no harm: the log checks the idempotency key of each row, so the event is there once.

The log knows a key for `interface.IDEMPOTENCY_SECONDS`. Whether an older row was sent before its process ended is
unknown. The relay sends it, because subscribers can handle a repeated event and not a lost one; it logs a warning and
counts `outbox_late`.

A row that cannot be sent as it is (its application was deleted, its data exceeds the limit) is marked as failed and
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
from fanfare.integration import models, outbox, publishing
from fanfare.jobs import declarations
from fanfare.runtime import supervisor, text
from fanfare.runtime.log_throttle import exception_line

logger = logging.getLogger("fanfare.integration.outbox")

NAME = "outbox"
# An empty look is one query of one index, but with SQLite also the opening of a database: a millisecond.
LOOK_S, IDLE_LOOK_S = 1.0, 5.0
TRIM_S = 60.0
# After so many refusals of one row, while the log takes others, the row itself is at fault.
REFUSALS = 5


class Row(NamedTuple):
    """A row and what it publishes. `is_late`: the log may have forgotten its key."""

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
    """The outboxes of all databases. `engine`: that of this process, opened, unless it is given."""

    def __init__(self, engine: interface.Engine | None = None) -> None:
        self._engine = engine
        self._tasks: supervisor.Supervisor | None = None

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        """One for each database."""
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
        # Rows that are in the log, and whose deletion failed. By uid: SQLite gives out ids again.
        self._sent: set[uuid.UUID] = set()
        self._refusals: Counter[uuid.UUID] = Counter()
        self._trouble = ""  # the message of the last warning
        self._trim_at = time.monotonic() + TRIM_S

    def close(self) -> None:
        self._threads.close()

    async def run(self) -> None:
        """Look again and again. Raises only what is neither the engine's nor the database's error."""
        self.status.enter(supervisor.State.RUNNING)
        while True:
            await self._look_patiently()
            await asyncio.sleep(LOOK_S if self._top else IDLE_LOOK_S)

    async def look(self) -> None:
        """Send the rows of the previous look, and remember which rows are there now.

        Raises EngineError, django.db.Error and NoApplication: the rows stay for the next look.
        """
        after: int | None = 0 if self._top else None
        seen: set[uuid.UUID] = set()
        while after is not None:
            found = await self._threads.run(self._next, after, seen)
            after = found.last
            if found.rows:
                await self._send(found.rows)
        # Rows that are gone, whichever process deleted them, need no memory.
        self._sent &= seen
        self._refusals = Counter({uid: refusals for uid, refusals in self._refusals.items() if uid in seen})
        self._top = await self._threads.run(outbox.top, self.alias)

    async def _look_patiently(self) -> None:
        """Look, and warn once about each obstacle."""
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
            logger.warning("The outbox in the database %r waits: %s", self.alias, trouble)
        if bool(trouble) != bool(self._trouble):
            self.status.enter(supervisor.State.PAUSING if trouble else supervisor.State.RUNNING)
        self._trouble = trouble

    # -- in the thread of the database ---------------------------------------------------------------------------------

    def _next(self, after: int, seen: set[uuid.UUID]) -> Found:
        """The next rows that can be sent. Rows that cannot are marked as failed."""
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
                raise  # of a query for the application: it says nothing about the row
            except Exception as error:  # noqa: BLE001  (a row that cannot be read must not stop those after it)
                self._fail(row.pk, exception_line(error))
        seen.update(row.uid for row in found)
        if done:
            self._discard([(row.pk, row.uid) for row in done])
        return Found(rows, found[-1].pk if len(found) == outbox.CHUNK else None)

    def _discard(self, rows: Sequence[tuple[int, uuid.UUID]]) -> None:
        """Delete rows that are in the log. If that fails this relay does not send them again: in a database that can be
        read and not written, rows outlive their keys."""
        uids = [uid for _, uid in rows]
        self._sent.update(uids)
        outbox.discard(self.alias, [id_ for id_, _ in rows])
        self._sent.difference_update(uids)

    def _fail(self, id_: int, reason: str) -> None:
        reason = text.clean(reason)
        outbox.fail(self.alias, id_, reason)
        publishing.count("outbox_failed")
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
        """Whether the error concerns all rows: they wait."""
        if isinstance(error, engine_errors.EngineUnavailable):
            return not (self._engine.is_open and self._engine.health().ok)
        # In remote mode NoApplication says that the other deployment refuses this project's key.
        return isinstance(error, engine_errors.EngineError | errors.NoApplication)

    async def _done(self, rows: Sequence[Row], receipts: Sequence[interface.Receipt]) -> None:
        for row in rows:
            self._refusals.pop(row.uid, None)
        new = [row for row, receipt in zip(rows, receipts, strict=True) if not receipt.duplicate]
        if new:
            publishing.count("outbox_relayed", len(new))
            logger.info("Sent %d events that their process had left in the outbox of %r", len(new), self.alias)
        late = [row for row in new if row.is_late]
        if late:
            publishing.count("outbox_late", len(late))
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
    """What publish() would send now. Raises a PublishError."""
    return publishing.restore(
        row.channel,
        row.event,
        row.data,
        app=row.app_id,
        exclude=row.exclude or None,
        idempotency_key=row.idempotency_key or outbox.key_of(row.uid),
    )
