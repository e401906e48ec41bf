"""From the log to the outbox: one worker of the deployment does it, whoever holds the lease.

Django's database is the truth about how far that went; the engine's cursor only keeps the log from forgetting what is
still needed, and follows once a second.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import ParamSpec, TypeVar

from django.db import Error

from fanfare.applications import database, registry
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.webhooks import breaker, events, feed, outbox

logger = logging.getLogger(__name__)

CURSOR = "webhooks"
CURSOR_S = 1.0  # how often the cursor follows
NOTE_S = 60.0  # how often a position without rows is stored, so that a new holder need not read all that was passed
LOOK_S = 1.0  # how soon the first endpoint is noticed, and the end of the last one
# The stream whose epoch names the log: a new log has another. An entry a month old is as good as a new one.
NAMEPLATE = "#webhooks"
NAMEPLATE_RETENTION = interface.Retention(1, 30 * 86_400)
# Who makes the first endpoint expects to hear of what happens from then on, not from when it was noticed.
LOOK_BACK = 2  # times LOOK_S

P = ParamSpec("P")
T = TypeVar("T")


class Collector:
    """`run` is its life. `wake` is called with the endpoints that have something to deliver."""

    def __init__(
        self,
        hub: hubs.Hub,
        applications: registry.Registry,
        loaded: Callable[[], bool],
        wake: Callable[[Collection[int]], None],
        *,
        debounce_seconds: float,
    ) -> None:
        self._hub = hub
        self._engine = hub.engine
        self._registry = applications
        self._loaded = loaded
        self._wake = wake
        self._debounce_seconds = debounce_seconds
        self._log = ""  # the epoch that names the log
        self._stored = 0  # the position in Django's database
        self._kept = 0  # the position of the engine's cursor
        self._follow_at = 0.0  # when the cursor may follow again, in monotonic time
        self._note_at = 0.0  # when the position may be stored without rows again, in monotonic time
        self._due = 0.0  # when the next departure must be looked at, in monotonic time

    async def run(self) -> None:
        """Collect while any application has an endpoint. Raises EngineError, Overtaken: start again."""
        while True:
            start = await self._wanted()
            await self._begin(start)
            position = feed.Feed(self._engine.entries, self._stored)
            self._hub.observe(position)
            try:
                while self._is_wanted():
                    await self._step(position)
            finally:
                self._hub.observe(None)

    # -- whether anybody wants to know ---------------------------------------------------------------------------------

    def _is_wanted(self) -> bool:
        return any(application.webhooks for application in self._registry.all())

    async def _wanted(self) -> int | None:
        """Wait for the first endpoint, and let the log forget meanwhile. Answers an entry from shortly before; None:
        the cursor knows better."""
        if self._is_wanted():
            return None
        marks: collections.deque[int] = collections.deque(maxlen=LOOK_BACK)
        while not self._is_wanted():
            if self._loaded():
                marks.append(self._engine.present() or await self._present())
            await asyncio.sleep(LOOK_S)
        return marks[0] if marks else None

    async def _present(self) -> int:
        """The newest entry of the log, which is held back for nobody."""
        await self._engine.drop_cursor(CURSOR)
        present = await self._engine.cursor(CURSOR)
        await self._engine.drop_cursor(CURSOR)
        return present

    # -- where to begin ------------------------------------------------------------------------------------------------

    async def _begin(self, start: int | None) -> None:
        """Go on where the last holder's rows end; in a log that was never collected, with the oldest that it has."""
        self._log = await self._nameplate()
        stored = await self._patiently(outbox.position)
        known = stored.entry if stored.log == self._log else 0
        self._stored = max(known, start or 0)
        self._kept = self._stored
        if await self._engine.cursor(CURSOR) != self._kept:
            await self._engine.move_cursor(CURSOR, self._kept)
        await self._patiently(outbox.start, self._log, self._stored)
        self._due = 0.0

    async def _nameplate(self) -> str:
        _, top = await self._engine.read("", NAMEPLATE, 0, 1)
        if top is None:
            plate = interface.Publication("", NAMEPLATE, b"{}", retention=NAMEPLATE_RETENTION)
            [receipt] = await self._engine.append([plate])
            top = receipt.position
        return top.epoch if top is not None else ""

    # -- one step ------------------------------------------------------------------------------------------------------

    async def _step(self, entries: feed.Feed) -> None:
        within = max(0.0, min(LOOK_S, self._due - time.monotonic()))
        found = self._events(await entries.next(within))
        if found:
            await self._store(found, entries.position)
        if time.monotonic() >= self._due:
            endpoints, wait = await self._patiently(outbox.release, self._route)
            self._due = math.inf if wait is None else time.monotonic() + min(wait, self._debounce_seconds)
            self._wake(endpoints)
        await self._follow(entries.position)

    async def _store(self, found: Sequence[events.Event], upto: int) -> None:
        endpoints, taken_back = await self._patiently(
            outbox.collect,
            found,
            log=self._log,
            after=self._stored,
            upto=upto,
            route=self._route,
            debounce_seconds=self._debounce_seconds,
        )
        self._stored = upto
        self._hub.count("webhooks.events", len(found))
        if taken_back:
            self._hub.count("webhooks.debounced", taken_back)
        if any(event.name in events.DEPARTURES for event in found):
            self._due = min(self._due, time.monotonic() + self._debounce_seconds)
        self._wake(endpoints)

    async def _follow(self, position: int) -> None:
        """Let the log forget. Whatever is up to `position` is stored, or told by no webhook."""
        now = time.monotonic()
        if position > self._kept and now >= self._follow_at:
            self._follow_at = now + CURSOR_S
            await self._engine.move_cursor(CURSOR, position)
            self._kept = position
        if position > self._stored and now >= self._note_at:
            self._note_at = now + NOTE_S
            await self._patiently(outbox.advance, self._log, self._stored, position)
            self._stored = position

    def _events(self, entries: Sequence[interface.Entry]) -> list[events.Event]:
        """Those that anybody wants to be told of."""
        found = []
        for entry in entries:
            try:
                event = events.of(entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                # One entry that a newer release wrote must not stop all that follow.
                self._hub.count("webhooks.unreadable")
                logger.exception("Entry %d of the log cannot be told to webhooks", entry.id)
                continue
            if event is not None and self._matters(event):
                found.append(event)
        return found

    def _matters(self, event: events.Event) -> bool:
        """A departure matters to who is told of returns, and the other way round."""
        names = {event.name}
        for back, gone in events.DEPARTURE_OF.items():
            if event.name in (back, gone):
                names = {back, gone}
        return any(self._route(event.app, name, event.channel) for name in names)

    def _route(self, app: str, event: str, channel: str) -> Sequence[registry.Webhook]:
        application = self._registry.by_id(app)
        if application is None or not application.webhooks:
            return ()
        return [webhook for webhook in application.webhooks if webhook.wants(event, channel)]

    async def _patiently(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask Django's database until it answers: meanwhile the log holds back what is not stored."""
        failures = 0
        while True:
            try:
                return await database.run(functools.partial(function, *args, **kwargs))
            except Error as error:
                failures += 1
                self._hub.count("webhooks.database_failed")
                if failures == 1:
                    logger.warning("Webhooks cannot be stored (%s). Trying again until it works.", error)
                await asyncio.sleep(breaker.pause(failures))
