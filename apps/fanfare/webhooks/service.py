"""Webhooks: a job of one worker of the deployment, which turns log entries into deliveries and sends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.hub import hub as hubs
from fanfare.jobs import declarations
from fanfare.runtime import supervisor
from fanfare.webhooks import collector, deliverer, errors, options

logger = logging.getLogger(__name__)

NAME = "webhooks"
EXPECTED = (engine_errors.EngineUnavailable, errors.Overtaken)


class Webhooks:
    """One per worker. `loaded`: whether the registry was ever loaded; before that, an empty one says nothing."""

    def __init__(self, hub: hubs.Hub, applications: registry.Registry, loaded: Callable[[], bool]) -> None:
        self._hub = hub
        self._registry = applications
        self._loaded = loaded
        self._tasks: supervisor.Supervisor | None = None

    def job(self) -> declarations.Job:
        return declarations.Job(NAME, self.run, "deployment", parts=lambda: self.statuses)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        """Of the tasks of the worker that holds the lease."""
        return () if self._tasks is None else self._tasks.statuses

    async def run(self) -> None:
        """Work until it is cancelled. Requests in progress then have a few seconds to end."""
        chosen = options.from_settings()
        delivering = deliverer.Deliverer(self._hub, self._registry, chosen)
        collecting = collector.Collector(
            self._hub, self._registry, self._loaded, delivering.wake, debounce_seconds=chosen.debounce_seconds
        )
        tasks = self._tasks = supervisor.Supervisor(logger, count=self._hub.count, prefix="webhooks")
        tasks.run("webhooks collector", collecting.run, expected=EXPECTED)
        tasks.run("webhooks deliverer", delivering.run, expected=EXPECTED)
        try:
            await asyncio.Event().wait()
        finally:
            await tasks.stop(supervisor.STOP_S + 1.0)
            self._tasks = None
