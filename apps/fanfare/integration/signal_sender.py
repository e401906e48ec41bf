"""Sends Django's signals for entries of the log: a job of one worker of the deployment."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from asgiref.sync import sync_to_async
from django import db

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.integration import signals
from fanfare.jobs import declarations, log_consumer
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger("fanfare.integration.signals")

NAME = "signals"  # of the job and of its cursor
WAIT_S = 1.0  # for new entries, before the cursor follows those of other kinds


class SignalSender:
    def __init__(self, hub: hubs.Hub) -> None:
        self._hub = hub
        self._unreadable = LogThrottle(logger)

    def job(self) -> declarations.Job:
        return declarations.Job(NAME, self.run, "deployment")

    async def run(self) -> None:
        """Send signals until it is cancelled; without a receiver in this project, drop the cursor and return.

        Raises EngineUnavailable: the next run continues at the cursor.
        """
        consumer = log_consumer.LogConsumer(self._hub, NAME, signals.KINDS)
        if not signals.have_receivers():
            await consumer.drop()
            return
        await consumer.open()
        follow_at = 0.0
        while True:
            entries = await consumer.next(WAIT_S)
            found = [call for entry in entries if (call := self._call_of(entry)) is not None]
            if found:
                await sync_to_async(self._send)(found)
            if found or time.monotonic() >= follow_at:
                follow_at = time.monotonic() + WAIT_S
                await consumer.keep(consumer.position)

    def _call_of(self, entry: interface.Entry) -> signals.Call | None:
        try:
            return signals.call_of(entry)
        except Exception as error:  # noqa: BLE001  (an entry of a newer release must not stop those after it)
            self._hub.count("signals.unreadable")
            self._unreadable.error("Entry %d of the log cannot be sent as a signal", entry.id, error=error)
            return None

    def _send(self, calls: Sequence[signals.Call]) -> None:
        """In the job's thread."""
        try:
            for signal, arguments in calls:
                answers = signal.send_robust(sender=None, **arguments)  # logs what a receiver raises
                self._hub.count("signals.sent")
                self._hub.count("signals.failed", sum(isinstance(answer, Exception) for _, answer in answers))
        finally:
            db.connections.close_all()
