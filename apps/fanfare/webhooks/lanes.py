"""The way to one endpoint: what is sent next, what waits, and what an attempt's end means.

The events of a channel are sent one after another, and the next one only when the last was accepted or given up; other
channels are not held up. What is under way is known to this object alone: after a crash the rows are as they were, and
are sent (again).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from django.db import Error

from fanfare.applications import database, registry
from fanfare.webhooks import breaker, courier, outbox

logger = logging.getLogger(__name__)

REQUESTS = 8  # at once, to one endpoint
WINDOW = 200  # rows that are looked at for the next requests
RUN = 20  # events of one channel that are taken at once: others get their turn
BATCH_EVENTS = 50
BATCH_BYTES = 256 * 1024
BATCH_WAIT_S = 0.05  # for more of them, where an endpoint takes batches
IDLE_S = 30.0  # without a wake-up; the deliverer looks for waiting rows more often
HEALTH_S = 5.0  # a success is noted for people at most this often
STOP_S = 3.0  # for what is under way when the worker stops

Parcel = Sequence[Sequence[outbox.Row]]
"""Requests that are made one after another."""


class Post(Protocol):
    async def __call__(
        self, application: registry.Application, webhook: registry.Webhook, payloads: Sequence[str], /
    ) -> courier.Outcome: ...


class Record(Protocol):
    async def __call__(self, *writes: Callable[[], object]) -> None: ...


Known = Callable[[int], tuple[registry.Application, registry.Webhook] | None]
"""The endpoint of this id as the registry has it now."""

Count = Callable[..., None]
"""`Hub.count`."""


class Lane:
    """`run` is its life. `retry_seconds`: how long an event is tried, counted from when it was made or, if that is
    later, from when this lane was."""

    def __init__(
        self, endpoint: int, known: Known, post: Post, record: Record, count: Count, *, retry_seconds: float
    ) -> None:
        self.endpoint = endpoint
        self._known = known
        self._post = post
        self._record = record
        self._count = count
        self._retry_seconds = retry_seconds
        self._loop = asyncio.get_running_loop()
        self._began = time.time()
        self._breaker = breaker.Breaker()
        self._wake = asyncio.Event()
        self._busy: set[str] = set()  # channels with an event under way
        self._paused: dict[str, float] = {}  # channels whose first event waits for its next attempt: until when
        self._tasks: set[asyncio.Task[None]] = set()
        self._noted = float("-inf")  # when a success was last noted for people

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def run(self) -> None:
        failures = 0
        try:
            while True:
                self._wake.clear()
                try:
                    pause = await self._fill()
                    failures = 0
                except Error as error:
                    failures += 1
                    pause = breaker.pause(failures)
                    logger.warning("The outbox cannot be read (%s). Trying again.", error)
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await self._settle()

    async def _settle(self) -> None:
        """What is under way may end; what does not is sent again by whoever comes next."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # -- what is sent next ---------------------------------------------------------------------------------------------

    async def _fill(self) -> float:
        """Start as many requests as may run. Answers in how many seconds to look again, if nothing wakes it before."""
        found = self._known(self.endpoint)
        if found is None or not found[1].enabled or not found[0].enabled:
            return IDLE_S
        now = time.monotonic()
        probing = self._breaker.is_open
        if probing and now < self._breaker.retry_at:
            return self._breaker.retry_at - now
        free = (1 if probing else REQUESTS) - len(self._tasks)
        if free <= 0:
            return IDLE_S  # the end of a request wakes it
        if found[1].batching:
            await asyncio.sleep(BATCH_WAIT_S)
        self._paused = {channel: until for channel, until in self._paused.items() if until > now}
        aside = self._busy if probing else self._busy | self._paused.keys()
        rows = await database.run(outbox.pending, self.endpoint, aside, WINDOW)
        if not probing:
            rows = self._due(rows)
        parcels = _batches(rows) if found[1].batching else _singles(rows)
        for parcel in parcels[:free]:
            self._start(parcel[:1] if probing else parcel)
        return min([IDLE_S, *(until - time.monotonic() for until in self._paused.values())])

    def _due(self, rows: Iterable[outbox.Row]) -> list[outbox.Row]:
        """Without the channels whose first event waits for its next attempt."""
        due: list[outbox.Row] = []
        seen: set[str] = set()
        for row in rows:
            wait = row.next_at - time.time()
            if row.channel not in seen and wait > 0:
                self._paused[row.channel] = time.monotonic() + min(wait, breaker.LONGEST_PAUSE_S)
            seen.add(row.channel)
            if row.channel not in self._paused:
                due.append(row)
        return due

    def _start(self, parcel: Parcel) -> None:
        channels = {row.channel for rows in parcel for row in rows}
        self._busy |= channels
        task = asyncio.create_task(self._send(parcel), name=f"webhook {self.endpoint}")
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, channels))

    def _ended(self, channels: set[str], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._busy -= channels
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._count("webhooks.crashed")
            logger.error("A delivery to webhook %d broke off", self.endpoint, exc_info=error)
            until = time.monotonic() + breaker.LONGEST_PAUSE_S
            self._paused |= dict.fromkeys(channels, until)

    # -- one request after another -------------------------------------------------------------------------------------

    async def _send(self, parcel: Parcel) -> None:
        for rows in parcel:
            found = self._known(self.endpoint)
            if found is None or not found[1].enabled:
                return
            outcome = await self._post(*found, [row.payload for row in rows])
            if not outcome.accepted:
                await self._refused(rows, outcome)
                return
            await self._accepted(rows, outcome)

    async def _accepted(self, rows: Sequence[outbox.Row], outcome: courier.Outcome) -> None:
        self._count("webhooks.requests")
        self._count("webhooks.delivered", len(rows))
        writes: list[Callable[[], object]] = [functools.partial(outbox.delivered, [row.id for row in rows], outcome)]
        was_failing, was_open = self._breaker.failures > 0, self._breaker.is_open
        self._breaker.succeeded()
        if was_open:
            self._count("webhooks.circuit_closed")
            logger.info("Webhook %d is back", self.endpoint)
            self._paused.clear()
            writes.append(functools.partial(outbox.forgive, self.endpoint))
        if was_failing or time.monotonic() - self._noted > HEALTH_S:
            self._noted = time.monotonic()
            writes.append(functools.partial(outbox.save_health, self.endpoint, outcome, 0, None))
        await self._record(*writes)

    async def _refused(self, rows: Sequence[outbox.Row], outcome: courier.Outcome) -> None:
        self._count("webhooks.requests")
        self._count("webhooks.refused")
        now, was_open = time.time(), self._breaker.is_open
        self._breaker.failed(time.monotonic())
        retry_in = self._breaker.retry_at - time.monotonic() if self._breaker.is_open else None
        if self._breaker.is_open and not was_open:
            self._count("webhooks.circuit_opened")
            logger.warning("Webhook %d fails (%s): it is only probed now", self.endpoint, outcome.error)
        writes: list[Callable[[], object]] = []
        late = [row for row in rows if now >= max(row.created, self._began) + self._retry_seconds]
        if late:
            self._given_up(len(late))
            writes.append(functools.partial(outbox.failed, [row.id for row in late], outcome))
        for row in rows:
            if row not in late:
                wait = breaker.pause(row.attempts + 1)
                self._paused[row.channel] = max(self._paused.get(row.channel, 0.0), time.monotonic() + wait)
                writes.append(functools.partial(outbox.postponed, [row.id], outcome, now + wait))
        if self._breaker.is_open and now >= self._began + self._retry_seconds:
            writes.append(functools.partial(self._give_up, now - self._retry_seconds))
        writes.append(functools.partial(outbox.save_health, self.endpoint, outcome, self._breaker.failures, retry_in))
        await self._record(*writes)

    def _give_up(self, created_before: float) -> None:
        """In the database's thread. The probe was made for all that waits: who has waited too long need not try by
        itself."""
        self._loop.call_soon_threadsafe(self._given_up, outbox.give_up(self.endpoint, created_before))

    def _given_up(self, events: int) -> None:
        if events:
            self._count("webhooks.failed", events)
            logger.warning("%d events for webhook %d were given up", events, self.endpoint)


def _singles(rows: Iterable[outbox.Row]) -> list[Parcel]:
    """One event in each request; a parcel for each channel."""
    runs: dict[str, list[list[outbox.Row]]] = {}
    for row in rows:
        run = runs.setdefault(row.channel, [])
        if len(run) < RUN:
            run.append([row])
    return list(runs.values())


def _batches(rows: Iterable[outbox.Row]) -> list[Parcel]:
    """Many events in each request, all of a channel in one parcel.

    An event that was refused before goes alone: what else was in its batch must not wait for it.
    """
    parcels: list[list[outbox.Row]] = []
    open_parcel: list[outbox.Row] = []
    where: dict[str, list[outbox.Row] | None] = {}  # by channel: its parcel, or None where no more of it may go now
    size = 0
    for row in rows:
        if row.attempts and row.channel not in where:
            parcels.append([row])
            where[row.channel] = None
            continue
        mine = where.get(row.channel, open_parcel)
        if mine is not open_parcel:
            where[row.channel] = None
            continue
        length = len(row.payload.encode())
        if open_parcel and (len(open_parcel) >= BATCH_EVENTS or size + length > BATCH_BYTES):
            parcels.append(open_parcel)
            if row.channel in where:
                where[row.channel] = None
                open_parcel, size = [], 0
                continue
            open_parcel, size = [], 0
        open_parcel.append(row)
        where[row.channel] = open_parcel
        size += length
    if open_parcel:
        parcels.append(open_parcel)
    return [[parcel] for parcel in parcels]
