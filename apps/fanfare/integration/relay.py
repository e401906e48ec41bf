"""The relay of the outbox: it sends what the process that wrote it did not.

One worker of the deployment does it. It looks at each database every few seconds, a second after it has seen something
there, and sends the rows that were there at the last look already: by then the process that wrote them has sent and
deleted them, or it is late or dead. One that is late does no harm: the log checks the row's idempotency key, so the
event is there once.

The log knows a key for `interface.IDEMPOTENCY_SECONDS`. Of a row that is older nobody can tell whether it was sent
before its process died. It is sent, because an event that comes twice can be mended and a lost one cannot; it is
logged, and counted as `outbox_late`.

A row that cannot be sent as it is (its application is gone, its data is over the limit by now) is marked as failed and
holds up nobody.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from django.db import Error
from django.utils import timezone

from fanfare import conf
from fanfare.applications import database
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.integration import errors, jobs, models, outbox, publishing

logger = logging.getLogger("fanfare.integration.outbox")

# An empty look is one query of one index, but with SQLite also the opening of a database: a millisecond.
LOOK_S, IDLE_LOOK_S = 1.0, 5.0
TRIM_S = 60.0
# A row that the log refuses so often, while it takes others, is at fault itself.
REFUSALS = 5


class Row(NamedTuple):
    """A row that is sent now. `is_late`: the log may have forgotten it."""

    id: int
    publication: interface.Publication
    is_late: bool


class Found(NamedTuple):
    """One step through a database. `last`: the id to go on after; None at the end."""

    rows: list[Row]
    last: int | None


@jobs.background
async def relay_outbox() -> None:
    """What a worker does."""
    await Relay(current.current()).run()


class Relay:
    """`run` is its life. `engine`: that of a worker, opened."""

    def __init__(self, engine: interface.Engine) -> None:
        self._engine = engine
        self._tops: dict[str, int] = {}  # by database: the newest row of the last look
        self._sent: dict[str, set[int]] = {}  # rows that are in the log, and whose deletion failed
        self._refusals: Counter[tuple[str, int]] = Counter()
        self._troubles: dict[str, str] = {}  # by database: what was said about it last
        self._trim_at = time.monotonic() + TRIM_S

    async def run(self) -> None:
        while True:
            trim = time.monotonic() >= self._trim_at
            if trim:
                self._trim_at = time.monotonic() + TRIM_S
            for alias in outbox.databases():
                await self._patiently(alias, trim)
            await asyncio.sleep(LOOK_S if any(self._tops.values()) else IDLE_LOOK_S)

    async def look(self, alias: str) -> None:
        """Send what was there at the last look, and remember what is there now.

        Raises EngineUnavailable and django.db.Error: what is left waits for the next look.
        """
        after: int | None = 0 if self._tops.get(alias) else None
        while after is not None:
            rows, after = await database.run(self._next, alias, after)
            if rows:
                await self._send(alias, rows)
        self._tops[alias] = await database.run(outbox.top, alias)

    async def _patiently(self, alias: str, trim: bool) -> None:
        """Look, and say once what is in the way."""
        trouble = ""
        try:
            await self.look(alias)
            if trim:
                await self._trim(alias)
        except (engine_errors.EngineUnavailable, Error) as error:
            trouble = str(error).strip()
        if trouble and trouble != self._troubles.get(alias):
            logger.warning("The outbox in the database %r waits: %s", alias, trouble)
        self._troubles[alias] = trouble

    # -- in a thread of the database -----------------------------------------------------------------------------------

    def _next(self, alias: str, after: int) -> Found:
        """The next rows, as what would be published now. Those that cannot be are marked."""
        found = outbox.waiting(alias, after, self._tops[alias])
        forgotten = timezone.now() - dt.timedelta(seconds=interface.IDEMPOTENCY_SECONDS)
        rows, done = [], []
        for row in found:
            if row.pk in self._sent.get(alias, ()):
                done.append(row.pk)
                continue
            try:
                rows.append(Row(row.pk, _publication(row), row.created_at < forgotten))
            except errors.PublishError as error:
                _fail(alias, row.pk, f"{error} ({error.code})")
        if done:
            self._discard(alias, done)
        return Found(rows, found[-1].pk if len(found) == outbox.CHUNK else None)

    def _discard(self, alias: str, ids: Sequence[int]) -> None:
        """Whatever becomes of it, these are never sent again by this relay: in a database that can be read and not
        written they outlive their keys."""
        sent = self._sent.setdefault(alias, set())
        sent.update(ids)
        outbox.discard(alias, ids)
        sent.difference_update(ids)

    # -- to the log ----------------------------------------------------------------------------------------------------

    async def _send(self, alias: str, rows: Sequence[Row]) -> None:
        try:
            receipts = await self._engine.append([row.publication for row in rows])
        except engine_errors.EngineUnavailable:
            if not self._engine.health().ok:
                raise
            await self._send_each(alias, rows)  # one of them may be the reason
        else:
            await self._done(alias, rows, receipts)

    async def _send_each(self, alias: str, rows: Sequence[Row]) -> None:
        for row in rows:
            try:
                receipts = await self._engine.append([row.publication])
            except engine_errors.EngineUnavailable as error:
                if not self._engine.health().ok:
                    raise
                self._refusals[alias, row.id] += 1
                if self._refusals[alias, row.id] >= REFUSALS:
                    await database.run(_fail, alias, row.id, f"{error} ({error.code})")
                    del self._refusals[alias, row.id]
            else:
                await self._done(alias, [row], receipts)

    async def _done(self, alias: str, rows: Sequence[Row], receipts: Sequence[interface.Receipt]) -> None:
        new = [row for row, receipt in zip(rows, receipts, strict=True) if not receipt.duplicate]
        if new:
            publishing.count("outbox_relayed", len(new))
            logger.info("Sent %d events that their process had left in the outbox of %r", len(new), alias)
        late = [row for row in new if row.is_late]
        if late:
            publishing.count("outbox_late", len(late))
            logger.warning(
                "%d events of the outbox of %r, ids %d to %d, waited for more than %d seconds. If their process died "
                "between sending and deleting them, they were sent twice.",
                len(late),
                alias,
                late[0].id,
                late[-1].id,
                interface.IDEMPOTENCY_SECONDS,
            )
        await database.run(self._discard, alias, [row.id for row in rows])

    async def _trim(self, alias: str) -> None:
        gone = await database.run(outbox.trim, alias, conf.settings.OUTBOX_KEEP_SECONDS)
        if gone:
            logger.info("Forgot %d failed events of the outbox of %r", gone, alias)


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


def _fail(alias: str, id_: int, reason: str) -> None:
    outbox.fail(alias, id_, reason)
    publishing.count("outbox_failed")
    logger.error("Event %d of the outbox of %r cannot be sent: %s", id_, alias, reason)
