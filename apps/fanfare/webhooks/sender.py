"""Sends pending deliveries: a queue per endpoint, one writer of results, and the maintenance of the tables."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from django.db import Error

from fanfare.applications import database, registry
from fanfare.hub import activity, telemetry
from fanfare.hub import hub as hubs
from fanfare.runtime import supervisor
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.webhooks import deliveries, endpoint_queue, options, outcome, result_writer

if TYPE_CHECKING:
    from fanfare.webhooks import http_client

logger = logging.getLogger(__name__)

LOOK_S = 2.0  # the delay until deliveries of another process (a redelivery in the admin) are noticed
IDLE_LOOK_S = 10.0  # the same if no application has an endpoint; a look takes a millisecond
UPKEEP_S = 10.0  # between two counts of the pending deliveries
TRIM_S = 60.0
QUEUES_STOP_S = endpoint_queue.STOP_S + 0.3


class Sender:
    def __init__(self, hub: hubs.Hub, applications: registry.Registry, chosen: options.Options) -> None:
        self.full: frozenset[int] = frozenset()  # endpoints with too many pending deliveries, which get no new events
        self._hub = hub
        self._registry = applications
        self._options = chosen
        self._queues: dict[int, endpoint_queue.EndpointQueue] = {}
        self._queue_tasks = supervisor.Supervisor(logger, count=hub.count)
        self._writer_tasks = supervisor.Supervisor(logger, count=hub.count)
        self._woken: set[int] = set()
        self._wake = asyncio.Event()
        self._look_at = self._upkeep_at = self._trim_at = 0.0
        self._log = LogThrottle(logger)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        return (*self._writer_tasks.statuses, *self._queue_tasks.statuses)

    def wake(self, endpoints: Collection[int]) -> None:
        """Signal that these endpoints have pending deliveries."""
        if endpoints:
            self._woken.update(endpoints)
            self._wake.set()

    async def run(self) -> None:
        """Send until it is cancelled."""
        writer = result_writer.ResultWriter()
        self._trim_at = time.monotonic() + TRIM_S
        try:
            async with contextlib.AsyncExitStack() as clients:
                self._writer_tasks.run("webhook results", writer.run)
                try:
                    await self._dispatch(clients, writer)
                finally:
                    await self._queue_tasks.stop(QUEUES_STOP_S)  # before the writer, which stores their last results
        finally:
            await self._writer_tasks.stop()
            self._queues.clear()

    async def _dispatch(self, clients: contextlib.AsyncExitStack, writer: result_writer.ResultWriter) -> None:
        client: http_client.HttpClient | None = None
        backoff = Backoff()
        while True:
            try:
                await self._look()
                backoff.succeeded()
            except Error as error:
                self._look_at = time.monotonic() + backoff.failed()
                self._log.warning(
                    "The deliveries cannot be read (%s). Trying again until it works.", database.reason(error)
                )
            self._wake.clear()
            endpoints, self._woken = self._woken, set()
            if endpoints:
                if client is None:
                    client = await clients.enter_async_context(self._new_client())
                for endpoint in endpoints:
                    self._queue(endpoint, client, writer).wake()
            try:
                async with asyncio.timeout(max(0.0, self._look_at - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Read and maintain the tables, as far as it is due."""
        now = time.monotonic()
        if now >= self._look_at:
            self._woken.update(await database.run(deliveries.waiting_endpoints))
            self._look_at = now + (LOOK_S if self._is_used() else IDLE_LOOK_S)
        if now >= self._upkeep_at and self._is_used():
            self._upkeep_at = now + UPKEEP_S
            await self._count_pending()
        if now >= self._trim_at:
            self._trim_at = now + TRIM_S
            deleted = await database.run(deliveries.trim, self._options.keep_seconds, self._options.keep_rows)
            if deleted:
                self._hub.count("webhooks.trimmed", deleted)
                self._log.info("Deleted %d finished deliveries", deleted)
            if deleted == deliveries.TRIM_ROWS:  # there may be more
                self._trim_at = now

    async def _count_pending(self) -> None:
        counts = await database.run(deliveries.pending_counts)
        full = frozenset(endpoint for endpoint, pending in counts.items() if pending >= self._options.max_pending)
        for endpoint in full - self.full:
            logger.error(
                "Webhook %d has %d pending deliveries; FANFARE_WEBHOOKS_MAX_PENDING allows %d. New events for it are "
                "dropped until it accepts some.",
                endpoint,
                counts[endpoint],
                self._options.max_pending,
            )
        for endpoint in self.full - full:
            logger.info("Webhook %d has room for new events again", endpoint)
        self.full = full

    def _new_client(self) -> http_client.HttpClient:
        from fanfare.webhooks import http_client  # most deployments have no endpoint: see `outcome`

        return http_client.HttpClient(
            timeout_seconds=self._options.timeout_seconds, allow_private=self._options.allow_private
        )

    def _is_used(self) -> bool:
        return bool(self._queues) or any(application.webhooks for application in self._registry.all())

    def _queue(
        self, endpoint: int, client: http_client.HttpClient, writer: result_writer.ResultWriter
    ) -> endpoint_queue.EndpointQueue:
        known = self._queues.get(endpoint)
        if known is not None:
            return known
        queue = self._queues[endpoint] = endpoint_queue.EndpointQueue(
            endpoint,
            self._registry.webhook,
            functools.partial(self._post, client),
            writer.write,
            self._hub.count,
            retry_seconds=self._options.retry_seconds,
        )
        name = f"webhook {endpoint}"
        task = self._queue_tasks.run(name, queue.run)
        task.add_done_callback(lambda _: self._ended(endpoint, name))
        return queue

    async def _post(
        self,
        client: http_client.HttpClient,
        application: registry.Application,
        webhook: registry.Webhook,
        payloads: Sequence[str],
        /,
    ) -> outcome.Outcome:
        spans = telemetry.here
        span = None
        if spans is not None:
            span = spans.begin_webhook(
                {
                    "fanfare.application": application.id,
                    "fanfare.events": len(payloads),
                    "url.full": webhook.url.partition("?")[0],  # the query may be a secret
                }
            )
        found = await client.post(application, webhook, payloads, {} if span is None else span.headers)
        if spans is not None and span is not None:
            spans.end_webhook(span, found.status, found.error)
        if self._hub.activity.tap is not None:
            self._hub.activity.noted(
                activity.WEBHOOK,
                application.id,
                endpoint=webhook.id,
                url=webhook.url,
                events=len(payloads),
                code=found.status,
                text=found.error or "accepted",
                duration_ms=found.duration_ms,
            )
        return found

    def _ended(self, endpoint: int, name: str) -> None:
        """The endpoint was deleted, or the worker stops."""
        self._queues.pop(endpoint, None)
        self._queue_tasks.forget(name)
