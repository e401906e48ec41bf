"""Webhooks: a job of one worker of the deployment, which turns log entries into deliveries and sends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.hub import hub as hubs
from fanfare.jobs import declarations, log_consumer
from fanfare.runtime import supervisor
from fanfare.webhooks import errors, log_reader, options, sender

logger = logging.getLogger(__name__)

NAME = "webhooks"
EXPECTED = (engine_errors.EngineUnavailable, errors.Overtaken)


class Webhooks:
    """One per worker. `loaded`: whether the registry was loaded; before that, an empty registry means nothing."""

    def __init__(self, hub: hubs.Hub, applications: registry.Registry, loaded: Callable[[], bool]) -> None:
        self._hub = hub
        self._registry = applications
        self._loaded = loaded
        self._tasks: supervisor.Supervisor | None = None
        self._sender: sender.Sender | None = None

    def job(self) -> declarations.Job:
        return declarations.Job(NAME, self.run, "deployment", parts=lambda: self.statuses)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        """The statuses of the tasks in the worker that holds the lease."""
        return () if self._tasks is None or self._sender is None else (*self._tasks.statuses, *self._sender.statuses)

    async def run(self) -> None:
        """Runs until it is cancelled. Requests in progress then have `endpoint_queue.STOP_S` seconds to end."""
        chosen = options.from_settings()
        sending = self._sender = sender.Sender(self._hub, self._registry, chosen)
        tasks = self._tasks = supervisor.Supervisor(logger, count=self._hub.count)
        readers = [
            log_reader.LogReader(
                self._hub,
                self._registry,
                self._loaded,
                sending.wake,
                lambda: sending.full,
                partition=partition,
                debounce_seconds=chosen.debounce_seconds,
            )
            for partition in range(self._hub.engine.partitions)
        ]
        log_consumer.run_partitions(
            tasks, "webhook log reader", len(readers), lambda partition: readers[partition].run(), EXPECTED
        )
        tasks.run("webhook sender", sending.run, expected=EXPECTED)
        try:
            await asyncio.Event().wait()
        finally:
            await tasks.stop(sender.QUEUES_STOP_S + 0.3)
            self._tasks = self._sender = None
