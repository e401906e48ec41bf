"""Sends Django's signals for entries of the log: a job of one worker of the deployment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from asgiref.sync import sync_to_async
from django import db

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.integration import signals
from fanfare.jobs import declarations, log_consumer
from fanfare.runtime import supervisor
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger("fanfare.integration.signals")

NAME = "signals"  # of the job and of its consumer
WAIT_S = 1.0  # for new entries, before the stored position moves past entries of other kinds


class SignalSender:
    def __init__(self, hub: hubs.Hub) -> None:
        self._hub = hub
        self._tasks: supervisor.Supervisor | None = None
        self._unreadable = LogThrottle(logger)

    def job(self) -> declarations.Job:
        return declarations.Job(NAME, self.run, "deployment", parts=lambda: self.statuses)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        return () if self._tasks is None else self._tasks.statuses

    async def run(self) -> None:
        """Send signals until it is cancelled. If no signal has a receiver, drop the consumer's position and return.

        Raises EngineUnavailable: the next run continues at the kept position.
        """
        partitions = self._hub.engine.partitions
        if not signals.have_receivers():
            for partition in range(partitions):
                async with self._consumer(partition) as consumer:
                    await consumer.drop()
            return
        self._tasks = supervisor.Supervisor(logger, count=self._hub.count)
        log_consumer.run_partitions(
            self._tasks, "signals of the log", partitions, self._consume, (engine_errors.EngineUnavailable,)
        )
        try:
            await asyncio.Event().wait()
        finally:
            await self._tasks.stop()

    def _consumer(self, partition: int) -> log_consumer.LogConsumer:
        return log_consumer.LogConsumer(self._hub.engine, NAME, signals.KINDS, partition=partition)

    async def _consume(self, partition: int) -> None:
        async with self._consumer(partition) as consumer:
            while True:
                entries = await consumer.next(WAIT_S)
                found = [call for entry in entries if (call := self._call_of(entry)) is not None]
                if found:
                    await sync_to_async(self._send)(found)
                await consumer.keep(at_once=bool(found))

    def _call_of(self, entry: interface.Entry) -> signals.Call | None:
        try:
            return signals.call_of(entry)
        except Exception as error:  # noqa: BLE001  (an entry of a newer release must not stop those after it)
            self._hub.count("signals.unreadable")
            self._unreadable.error("Entry %d of the log cannot be sent as a signal", entry.id, error=error)
            return None

    def _send(self, calls: Sequence[signals.Call]) -> None:
        """Runs in the job's thread."""
        try:
            for signal, arguments in calls:
                answers = signal.send_robust(sender=None, **arguments)  # logs what a receiver raises
                self._hub.count("signals.sent")
                self._hub.count("signals.failed", sum(isinstance(answer, Exception) for _, answer in answers))
        finally:
            db.connections.close_all()
