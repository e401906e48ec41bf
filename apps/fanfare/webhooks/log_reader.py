"""Turns entries of the log into deliveries, in the worker that holds the lease.

The position in Django's database is authoritative. The engine's position of the consumer only prevents the log from
trimming entries that are not stored yet; it is updated once a second.
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

from fanfare.applications import database, registry
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.jobs import log_consumer
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.webhooks import deliveries, errors, events

logger = logging.getLogger(__name__)

NAME = "webhooks"  # of the consumer
POSITION_S = 60.0  # how often a position without new rows is stored, so that a new leader reads few entries
LOOK_S = 1.0  # the delay until the first endpoint, or the deletion of the last one, is noticed
STORE_EVENTS = 500  # in one transaction
# The first endpoint gets the events since its creation, which is noticed some looks later.
LOOK_BACK = 2  # times LOOK_S

P = ParamSpec("P")
T = TypeVar("T")


class LogReader:
    """Reads one partition. `wake` is called with the endpoints that have pending deliveries. `full`: endpoints that
    get no new events."""

    def __init__(
        self,
        hub: hubs.Hub,
        applications: registry.Registry,
        loaded: Callable[[], bool],
        wake: Callable[[Collection[int]], None],
        full: Callable[[], Collection[int]] = tuple,
        *,
        partition: int = 0,
        debounce_seconds: float,
    ) -> None:
        self._hub = hub
        self._partition = partition
        self._registry = applications
        self._loaded = loaded
        self._wake = wake
        self._full = full
        self._debounce_seconds = debounce_seconds
        self._log_id = ""
        self._stored = 0  # the position in Django's database
        self._position_at = 0.0  # monotonic time of the next store of a position without rows
        self._release_at = 0.0  # monotonic time at which the next removal is due
        self._log = LogThrottle(logger)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Read while any application has an endpoint. Raises EngineError and Overtaken: start again."""
        while True:
            start = await self._first_endpoint()
            async with self._consumer(events.KINDS, start) as consumer:
                await self._begin(consumer, start)
                while self._has_endpoints():
                    await self._step(consumer)

    def _consumer(self, kinds: Collection[interface.Kind], after: int | None = None) -> log_consumer.LogConsumer:
        return log_consumer.LogConsumer(self._hub.engine, NAME, kinds, partition=self._partition, after=after)

    # -- whether there is an endpoint ----------------------------------------------------------------------------------

    def _has_endpoints(self) -> bool:
        return any(application.webhooks for application in self._registry.all())

    async def _first_endpoint(self) -> int:
        """Wait for the first endpoint, while the log keeps nothing for webhooks. Returns an entry from shortly before
        the endpoint was noticed, or 0 if there was one already."""
        while True:
            if self._has_endpoints():
                return 0
            if self._loaded():
                break
            await asyncio.sleep(LOOK_S)
        marks: collections.deque[int] = collections.deque(maxlen=LOOK_BACK)
        async with self._consumer(()) as consumer:  # its position follows the log, and no entry is read
            await consumer.drop()
            marks.append(consumer.position)
            while not self._has_endpoints():
                await consumer.next(0.0)
                marks.append(consumer.position)
                await asyncio.sleep(LOOK_S)
        return marks[0]

    # -- where to begin ------------------------------------------------------------------------------------------------

    async def _begin(self, consumer: log_consumer.LogConsumer, start: int) -> None:
        """Continue at the stored position. If that is of another generation of the log, continue at the consumer's: it
        is up to a second old, so the events of that second come again. A log that was never read begins at `start`."""
        self._log_id = consumer.log_id
        position = await self._patiently(deliveries.position, self._partition)
        self._stored = max(position.entry if position.log_id == self._log_id else consumer.position, start)
        consumer.position = self._stored
        await consumer.keep(at_once=True)
        await self._patiently(deliveries.start, self._partition, self._log_id, self._stored)
        self._release_at = 0.0

    # -- one step ------------------------------------------------------------------------------------------------------

    async def _step(self, consumer: log_consumer.LogConsumer) -> None:
        within_s = max(0.0, min(LOOK_S, self._release_at - time.monotonic()))
        found = self._events(await consumer.next(within_s))
        position = consumer.position
        for start in range(0, len(found), STORE_EVENTS):
            some = found[start : start + STORE_EVENTS]
            await self._store(some, position if start + STORE_EVENTS >= len(found) else some[-1].entry)
        if time.monotonic() >= self._release_at:
            await self._release()
        await self._follow(consumer)

    async def _store(self, found: Sequence[events.Event], upto: int) -> None:
        try:
            await self._try_to_store(found, upto)
        except errors.Overtaken:
            raise
        except Exception as error:  # noqa: BLE001  (the database refuses one of these events, or we have a fault)
            self._log.error("%d events for webhooks cannot be stored together", len(found), error=error)
            for event in found:
                await self._store_alone(event)
            await self._advance(upto)

    async def _try_to_store(self, found: Sequence[events.Event], upto: int) -> None:
        endpoints, cancelled = await self._patiently(
            deliveries.store,
            found,
            partition=self._partition,
            log_id=self._log_id,
            after=self._stored,
            upto=upto,
            route=self._route,
            debounce_seconds=self._debounce_seconds,
        )
        self._stored = upto
        self._hub.count("webhooks.events", len(found))
        if cancelled:
            self._hub.count("webhooks.debounced", cancelled)
        if any(event.name in events.REMOVALS for event in found):
            self._release_at = min(self._release_at, time.monotonic() + self._debounce_seconds)
        self._wake(endpoints)

    async def _store_alone(self, event: events.Event) -> None:
        """An event that cannot be stored is dropped and counted, so that later events do not wait for it."""
        try:
            await self._try_to_store([event], event.entry)
        except errors.Overtaken:
            raise
        except Exception as error:  # noqa: BLE001  (see `_store`)
            self._hub.count("webhooks.unstorable")
            self._log.error("Entry %d of the log cannot be stored for webhooks: dropped", event.entry, error=error)

    async def _release(self) -> None:
        """Turn due removals into deliveries."""
        try:
            endpoints, wait_s = await self._patiently(deliveries.release, self._route)
        except Exception as error:  # noqa: BLE001  (new events must not wait for old removals)
            self._hub.count("webhooks.unstorable")
            self._log.error("Pending removals cannot be delivered", error=error)
            endpoints, wait_s = set(), self._debounce_seconds
        self._release_at = math.inf if wait_s is None else time.monotonic() + min(wait_s, self._debounce_seconds)
        self._wake(endpoints)

    async def _follow(self, consumer: log_consumer.LogConsumer) -> None:
        """Move the consumer's position: earlier entries are stored or concern no webhook, and may be trimmed."""
        await consumer.keep()
        now = time.monotonic()
        if consumer.position > self._stored and now >= self._position_at:
            self._position_at = now + POSITION_S
            await self._advance(consumer.position)

    async def _advance(self, position: int) -> None:
        if position > self._stored:
            await self._patiently(deliveries.advance, self._partition, self._log_id, self._stored, position)
            self._stored = position

    # -- events --------------------------------------------------------------------------------------------------------

    def _events(self, entries: Sequence[interface.Entry]) -> list[events.Event]:
        """The events that any endpoint wants."""
        found = []
        for entry in entries:
            try:
                event = events.of(entry)
            except Exception as error:  # noqa: BLE001  (an entry of a newer release must not stop those after it)
                self._hub.count("webhooks.unreadable")
                self._log.error("Entry %d of the log cannot be read for webhooks", entry.id, error=error)
                continue
            if event is not None and self._is_wanted(event):
                found.append(event)
        return found

    def _is_wanted(self, event: events.Event) -> bool:
        """A removal and the event that cancels it concern the same endpoints."""
        names = {event.name}
        for cancelling, removal in events.REMOVAL_OF.items():
            if event.name in (cancelling, removal):
                names = {cancelling, removal}
        return any(self._endpoints(event.app, name, event.channel) for name in names)

    def _endpoints(self, app: str, event: str, channel: str) -> Sequence[registry.Webhook]:
        application = self._registry.by_id(app)
        if application is None or not application.webhooks:
            return ()
        return [webhook for webhook in application.webhooks if webhook.wants(event, channel)]

    def _route(self, app: str, event: str, channel: str) -> Sequence[registry.Webhook]:
        """The endpoints that get the event and are not full. In a thread of the database."""
        found, full = self._endpoints(app, event, channel), self._full()
        if not full:
            return found
        with_room = [webhook for webhook in found if webhook.id not in full]
        if dropped := len(found) - len(with_room):
            self._loop.call_soon_threadsafe(self._hub.count, "webhooks.dropped", dropped)
        return with_room

    async def _patiently(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Repeat a call until Django's database answers. Meanwhile the log keeps the entries that are not stored.

        Raises Overtaken, and the error with which the database refuses the values.
        """
        backoff = Backoff()
        while True:
            try:
                return await database.run(functools.partial(function, *args, **kwargs))
            except Exception as error:
                if database.is_refusal_of_data(error):
                    raise
                self._hub.count("webhooks.database_failed")
                if not backoff.failures:
                    logger.warning(
                        "Events for webhooks cannot be stored (%s). Trying again until it works.",
                        database.reason(error),
                    )
                await asyncio.sleep(backoff.failed())
