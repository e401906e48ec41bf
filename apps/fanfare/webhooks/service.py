"""Webhooks as a part of a worker: it waits for the lease, and does the deployment's work while it holds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.webhooks import breaker, collector, deliverer, errors, options

logger = logging.getLogger(__name__)

LEASE = "webhooks"
STEADY_S = 60.0  # a part that ran so long before it failed starts again at once


class Webhooks:
    """One per worker. `loaded`: whether the registry has ever been right; before, no endpoint means nothing."""

    def __init__(self, hub: hubs.Hub, applications: registry.Registry, loaded: Callable[[], bool]) -> None:
        self._hub = hub
        self._registry = applications
        self._loaded = loaded
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The hub must run. Returns at once; nothing that is away keeps the worker from starting."""
        self._task = asyncio.create_task(self._again("webhooks", self._hold), name="webhooks")

    async def stop(self) -> None:
        """Requests that are under way get a few seconds. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _hold(self) -> None:
        lease = await self._hub.engine.lease(LEASE)
        try:
            await self._work(lease)
        finally:
            lease.release()

    async def _work(self, lease: interface.Lease) -> None:
        chosen = options.from_settings()
        delivering = deliverer.Deliverer(self._hub, self._registry, chosen)
        collecting = collector.Collector(
            self._hub, self._registry, self._loaded, delivering.wake, debounce_seconds=chosen.debounce_seconds
        )
        parts = [
            asyncio.create_task(self._again("collector of webhooks", collecting.run), name="webhooks collector"),
            asyncio.create_task(self._again("deliverer of webhooks", delivering.run), name="webhooks deliverer"),
        ]
        try:
            await lease.lost.wait()
            logger.warning("Another worker may hold the lease of the webhooks now")
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _again(self, what: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run it, and when it breaks off, say so and run it again."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            started = loop.time()
            try:
                await run()
            except (engine_errors.EngineUnavailable, errors.Overtaken) as error:
                logger.warning("The %s starts again: %s", what, error)
            except Exception:
                logger.exception("The %s broke off and starts again", what)
            self._hub.count("webhooks.restarted")
            failures = 1 if loop.time() - started > STEADY_S else failures + 1
            await asyncio.sleep(breaker.pause(failures))
