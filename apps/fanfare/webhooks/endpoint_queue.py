"""The queue of one endpoint: selects the next deliveries, sends them, and stores the results.

The events of a channel are sent in order: the next one when the previous one was accepted or given up. Channels do not
wait for each other. Deliveries in progress are known only in memory: after a crash their rows are still pending and are
sent again.
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
from fanfare.runtime import backoff, supervisor
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.webhooks import deliveries
from fanfare.webhooks.outcome import Outcome

logger = logging.getLogger(__name__)

REQUESTS = 8  # concurrent requests to one endpoint; 1 until its first success
WINDOW = 200  # pending deliveries per query for the next requests
CHAIN = 20  # consecutive events of one channel before other channels follow
BATCH_EVENTS = 50
BATCH_BYTES = 256 * 1024
BATCH_WAIT_S = 0.05  # for more events, if the endpoint accepts batches
MOST_EXCLUDED = 500  # channels that a query excludes; if more of them wait, all channels wait
IDLE_S = 30.0  # without a wake-up; the sender looks for pending deliveries more often
HEALTH_S = 5.0  # successes are written into EndpointHealth at most this often
STOP_S = 2.0  # for requests in progress at the stop of the worker

FIRST_PAUSE_S, LONGEST_PAUSE_S = backoff.FIRST_S, backoff.LONGEST_S  # between two attempts
# So many consecutive failures are a failure of the endpoint, and not of one event.
BREAKER_OPENS_AT = 5

Batch = Sequence[deliveries.Row]
"""The deliveries of one request."""

Chain = Sequence[Batch]
"""Requests that are made one after another."""


class Post(Protocol):
    async def __call__(
        self, application: registry.Application, webhook: registry.Webhook, payloads: Sequence[str], /
    ) -> Outcome: ...


class Write(Protocol):
    async def __call__(self, *writes: Callable[[], object]) -> None: ...


Find = Callable[[int], tuple[registry.Application, registry.Webhook] | None]
"""The endpoint of this id as the registry has it now."""

Count = Callable[..., None]
"""`Hub.count`."""

Result = Callable[[Outcome], object]
"""Writes a part of a result, in a thread of the database."""


class CircuitBreaker:
    """Open while an endpoint fails. It then gets one request at a time, after growing pauses.

    Times are seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self.failures = 0  # consecutive
        self.retry_at = 0.0  # while open: the time of the next probe

    @property
    def is_open(self) -> bool:
        return self.failures >= BREAKER_OPENS_AT

    def succeeded(self) -> None:
        self.failures = 0
        self.retry_at = 0.0

    def failed(self, now: float) -> None:
        self.failures += 1
        if self.is_open:
            self.retry_at = now + _pause_s(self.failures - BREAKER_OPENS_AT + 1)


class EndpointQueue:
    """`run` sends until it is cancelled. `retry_seconds`: how long an event is retried, from the time it was stored,
    from the creation of this queue or from the end of a pause, whichever is latest."""

    def __init__(
        self, endpoint: int, find: Find, post: Post, write: Write, count: Count, *, retry_seconds: float
    ) -> None:
        self.endpoint = endpoint
        self._find = find
        self._post = post
        self._write = write
        self._count = count
        self._retry_seconds = retry_seconds
        self._loop = asyncio.get_running_loop()
        self._began = time.time()
        self._breaker = CircuitBreaker()
        self._has_succeeded = False
        self._wake = asyncio.Event()
        self._busy: set[str] = set()  # channels with a request in progress
        self._sent: set[int] = set()  # rows whose request is in progress or whose result is not stored yet
        self._purges = 0  # how often all old events were given up; a chain that was read before ends
        self._paused: dict[str, float] = {}  # channels whose first event waits for its next attempt, with the time
        self._requests = supervisor.Supervisor(logger)
        self._health_at = float("-inf")  # time of the last success written into EndpointHealth
        self._log = LogThrottle(logger)

    def wake(self) -> None:
        """Signal that there may be a pending delivery."""
        self._wake.set()

    async def run(self) -> None:
        """Returns when the endpoint no longer exists."""
        failures = backoff.Backoff()
        try:
            while self._find(self.endpoint) is not None:
                self._wake.clear()
                try:
                    pause = await self._fill()
                    failures.succeeded()
                except Error as error:
                    pause = failures.failed()
                    self._log.warning(
                        "The deliveries of a webhook cannot be read (%s). Trying again.", database.reason(error)
                    )
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await self._settle()

    async def _settle(self) -> None:
        """Wait for requests in progress. The next worker repeats those that do not end in time."""
        try:
            async with asyncio.timeout(STOP_S):
                while self._requests.tasks:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return
        finally:
            await self._requests.stop()

    # -- what is sent next ---------------------------------------------------------------------------------------------

    async def _fill(self) -> float:
        """Start as many requests as allowed. Returns the seconds until the next look, unless `wake` is called
        before.
        """
        found = self._find(self.endpoint)
        if found is None or not found[1].enabled or not found[0].enabled:
            self._began = time.time()  # a pause does not count as time in which the events were tried
            self._breaker.retry_at = 0.0  # the end of the pause is followed by a probe: the receiver may be repaired
            return IDLE_S
        now = time.monotonic()
        probing = self._breaker.is_open
        if probing and now < self._breaker.retry_at:
            return self._breaker.retry_at - now
        free = (REQUESTS if self._has_succeeded and not probing else 1) - self._requests.tasks
        if free <= 0:
            return IDLE_S  # the end of a request wakes it
        if found[1].batching:
            await asyncio.sleep(BATCH_WAIT_S)
        self._paused = {channel: until for channel, until in self._paused.items() if until > now}
        excluded = self._busy if probing else self._busy | self._paused.keys()
        if len(excluded) <= MOST_EXCLUDED:
            purges = self._purges
            rows = await database.run(deliveries.pending, self.endpoint, excluded, WINDOW)
            if not probing:
                rows = self._due(rows)
            chains = _batches(rows) if found[1].batching else _singles(rows)
            for chain in chains[:free]:
                self._start(chain[:1] if probing else chain, purges)
        return min([IDLE_S, *(until - time.monotonic() for until in self._paused.values())])

    def _due(self, rows: Iterable[deliveries.Row]) -> list[deliveries.Row]:
        """The due deliveries, without channels whose first event waits for its next attempt."""
        due: list[deliveries.Row] = []
        seen: set[str] = set()
        for row in rows:
            wait = row.next_at - time.time()
            if row.channel not in seen and wait > 0:
                self._paused[row.channel] = time.monotonic() + min(wait, LONGEST_PAUSE_S)
            seen.add(row.channel)
            if row.channel not in self._paused:
                due.append(row)
        return due

    def _start(self, chain: Chain, purges: int) -> None:
        channels = {row.channel for batch in chain for row in batch}
        self._busy |= channels
        task = self._requests.spawn(f"request to webhook {self.endpoint}", self._send(chain, purges))
        task.add_done_callback(functools.partial(self._ended, channels))

    def _ended(self, channels: set[str], task: asyncio.Task[None]) -> None:
        self._busy -= channels
        self._wake.set()
        if not task.cancelled() and task.exception() is not None:  # the supervisor has logged it
            self._count("webhooks.crashed")
            self._paused |= dict.fromkeys(channels, time.monotonic() + LONGEST_PAUSE_S)

    # -- one request after another -------------------------------------------------------------------------------------

    async def _send(self, chain: Chain, purges: int) -> None:
        for batch in chain:
            found = self._find(self.endpoint)
            if found is None or not found[1].enabled or purges != self._purges:
                return
            rows = {row.id for row in batch}
            self._sent |= rows
            try:
                outcome = await self._request(*found, batch)
            finally:
                self._sent -= rows
            if not outcome.accepted:
                return

    async def _request(self, application: registry.Application, webhook: registry.Webhook, batch: Batch) -> Outcome:
        """Send one request and store its result."""
        outcome = await self._post(application, webhook, [row.payload for row in batch])
        self._count("webhooks.requests")
        was_open = self._breaker.is_open
        results = self._accepted(batch) if outcome.accepted else self._refused(batch, outcome.error)
        try:
            await self._store(results, outcome)
        except Exception as error:  # noqa: BLE001  (an invalid response: the result itself must be stored)
            self._count("webhooks.unstorable")
            self._log.error("A response of webhook %d cannot be stored", self.endpoint, error=error)
            reason = "" if outcome.accepted else "The response cannot be stored"
            await self._store(results, Outcome(outcome.status, reason, "", outcome.duration_ms))
        if outcome.accepted and was_open:
            self._paused.clear()  # only now: before the commit, a look finds that the rows still wait
        if outcome.accepted and not self._has_succeeded:
            self._has_succeeded = True
            self._wake.set()
        return outcome

    async def _store(self, results: Sequence[Result], outcome: Outcome) -> None:
        await self._write(*(functools.partial(result, outcome) for result in results))

    def _accepted(self, batch: Batch) -> list[Result]:
        self._count("webhooks.delivered", len(batch))
        results: list[Result] = [functools.partial(deliveries.delivered, [row.id for row in batch])]
        was_failing, was_open = self._breaker.failures > 0, self._breaker.is_open
        self._breaker.succeeded()
        if was_open:
            self._count("webhooks.circuit_closed")
            logger.info("Webhook %d accepts events again", self.endpoint)
            results.append(lambda _: deliveries.retry_now(self.endpoint))
        if was_failing or time.monotonic() - self._health_at > HEALTH_S:
            self._health_at = time.monotonic()
            results.append(functools.partial(deliveries.save_health, self.endpoint, 0, None))
        return results

    def _refused(self, batch: Batch, reason: str) -> list[Result]:
        self._count("webhooks.refused")
        now, was_open = time.time(), self._breaker.is_open
        self._breaker.failed(time.monotonic())
        failures, is_open = self._breaker.failures, self._breaker.is_open
        if is_open and not was_open:
            self._count("webhooks.circuit_opened")
            logger.warning(
                "Webhook %d failed %d times in a row (%s): one event at a time probes it now",
                self.endpoint,
                failures,
                reason,
            )
        results: list[Result] = []
        late = [row for row in batch if now >= max(row.created, self._began) + self._retry_seconds]
        if late:
            self._given_up(len(late))
            results.append(functools.partial(deliveries.failed, [row.id for row in late]))
        for row in batch:
            if row not in late:
                wait = _pause_s(row.attempts + 1)
                self._paused[row.channel] = max(self._paused.get(row.channel, 0.0), time.monotonic() + wait)
                results.append(functools.partial(deliveries.postponed, [row.id], now + wait))
        if is_open and now >= self._began + self._retry_seconds:
            self._purges += 1
            results.append(functools.partial(self._give_up, now - self._retry_seconds, frozenset(self._sent)))
        retry_in = self._breaker.retry_at - time.monotonic() if is_open else None
        results.append(functools.partial(deliveries.save_health, self.endpoint, failures, retry_in))
        return results

    def _give_up(self, created_before: float, but: frozenset[int], _: Outcome) -> None:
        """In a thread of the database. The failed probe counts for all pending events, so events that have waited for
        too long need no attempt of their own. The rows of `but` get the result of their own request."""
        self._loop.call_soon_threadsafe(self._given_up, deliveries.give_up(self.endpoint, created_before, but))

    def _given_up(self, events: int) -> None:
        if events:
            self._count("webhooks.failed", events)
            logger.warning("%d events for webhook %d were given up", events, self.endpoint)


def _pause_s(failures: int) -> float:
    return backoff.pause_s(failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)


def _singles(rows: Iterable[deliveries.Row]) -> list[Chain]:
    """One event per request; a chain per channel."""
    chains: dict[str, list[list[deliveries.Row]]] = {}
    for row in rows:
        chain = chains.setdefault(row.channel, [])
        if len(chain) < CHAIN:
            chain.append([row])
    return list(chains.values())


def _batches(rows: Iterable[deliveries.Row]) -> list[Chain]:
    """Many events per request; the events of a channel are in one batch.

    An event that was refused before is sent alone, so that other events do not wait for it.
    """
    batches: list[list[deliveries.Row]] = []
    batch: list[deliveries.Row] = []
    where: dict[
        str, list[deliveries.Row] | None
    ] = {}  # by channel: its batch, or None if no more events of it can be sent now
    size = 0
    for row in rows:
        if row.attempts and row.channel not in where:
            batches.append([row])
            where[row.channel] = None
            continue
        mine = where.get(row.channel, batch)
        if mine is not batch:
            where[row.channel] = None
            continue
        length = len(row.payload.encode())
        if batch and (len(batch) >= BATCH_EVENTS or size + length > BATCH_BYTES):
            batches.append(batch)
            batch, size = [], 0
            if row.channel in where:
                where[row.channel] = None
                continue
        batch.append(row)
        where[row.channel] = batch
        size += length
    if batch:
        batches.append(batch)
    return [[one] for one in batches]
