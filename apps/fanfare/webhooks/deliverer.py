"""From the outbox to the endpoints: a lane for each, a recorder for all, and the upkeep of the log of deliveries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection

from django.db import Error

from fanfare.applications import database, registry
from fanfare.hub import hub as hubs
from fanfare.webhooks import breaker, courier, lanes, options, outbox, recorder

logger = logging.getLogger(__name__)

LOOK_S = 2.0  # how soon what somebody else put into the outbox (a redelivery) is noticed
IDLE_LOOK_S = 10.0  # the same where no application has an endpoint: a look takes a millisecond
TRIM_S = 60.0


class Deliverer:
    """`run` is its life."""

    def __init__(self, hub: hubs.Hub, applications: registry.Registry, chosen: options.Options) -> None:
        self._hub = hub
        self._registry = applications
        self._options = chosen
        self._lanes: dict[int, tuple[lanes.Lane, asyncio.Task[None]]] = {}
        self._woken: set[int] = set()
        self._wake = asyncio.Event()

    def wake(self, endpoints: Collection[int]) -> None:
        """These have something to deliver."""
        if endpoints:
            self._woken.update(endpoints)
            self._wake.set()

    async def run(self) -> None:
        records = recorder.Recorder()
        writing = asyncio.create_task(records.run(), name="webhooks recorder")
        try:
            async with courier.Courier(
                timeout_seconds=self._options.timeout_seconds, allow_private=self._options.allow_private
            ) as posting:
                try:
                    await self._look_after(posting, records)
                finally:
                    await self._end_lanes()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _look_after(self, posting: courier.Courier, records: recorder.Recorder) -> None:
        failures, look_at, trim_at = 0, 0.0, time.monotonic() + TRIM_S
        while True:
            try:
                if time.monotonic() >= look_at:
                    self._woken.update(await database.run(outbox.waiting_endpoints))
                    look_at = time.monotonic() + (LOOK_S if self._is_used() else IDLE_LOOK_S)
                if time.monotonic() >= trim_at:
                    more = await database.run(outbox.trim, self._options.keep_seconds, self._options.keep_rows)
                    trim_at = time.monotonic() + (LOOK_S if more else TRIM_S)
                failures = 0
            except Error as error:
                failures += 1
                look_at = time.monotonic() + breaker.pause(failures)
                if failures == 1:
                    logger.warning("The outbox cannot be read (%s). Trying again until it works.", error)
            self._wake.clear()
            endpoints, self._woken = self._woken, set()
            for endpoint in endpoints:
                self._lane(endpoint, posting, records).wake()
            try:
                async with asyncio.timeout(max(0.0, look_at - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _is_used(self) -> bool:
        return bool(self._lanes) or any(application.webhooks for application in self._registry.all())

    def _lane(self, endpoint: int, posting: courier.Courier, records: recorder.Recorder) -> lanes.Lane:
        known = self._lanes.get(endpoint)
        if known is not None and not known[1].done():
            return known[0]
        if known is not None:
            self._hub.count("webhooks.crashed")
            logger.error("The lane of webhook %d broke off", endpoint, exc_info=known[1].exception())
        lane = lanes.Lane(
            endpoint,
            self._known,
            posting.post,
            records.record,
            self._hub.count,
            retry_seconds=self._options.retry_seconds,
        )
        self._lanes[endpoint] = lane, asyncio.create_task(lane.run(), name=f"lane of webhook {endpoint}")
        return lane

    def _known(self, endpoint: int) -> tuple[registry.Application, registry.Webhook] | None:
        for application in self._registry.all():
            for webhook in application.webhooks:
                if webhook.id == endpoint:
                    return application, webhook
        return None

    async def _end_lanes(self) -> None:
        tasks = [task for _, task in self._lanes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()
