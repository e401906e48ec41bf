"""From the log to Django's signals: a job that one worker of the deployment does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from asgiref.sync import sync_to_async
from django import db

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.integration import jobs, signals

logger = logging.getLogger("fanfare.integration.signals")

NAME = "signals"  # of the job, its lease, and the cursor
READ_ENTRIES = 500
POLL_S = 0.2  # an empty read takes some 50 µs
CURSOR_S = 1.0  # how often the cursor follows what is told by no signal


class Dispatcher:
    """`job` is what `runner.Runner` does."""

    def __init__(self, hub: hubs.Hub) -> None:
        self._hub = hub
        self._engine = hub.engine

    def job(self) -> jobs.Job:
        return jobs.Job(NAME, self.run if signals.are_wanted() else self.forget, "deployment")

    async def forget(self) -> None:
        """Nobody listens (any more): let the log forget."""
        await self._engine.drop_cursor(NAME)

    async def run(self) -> None:
        """Send what happens, until it is cancelled. Raises EngineUnavailable: start again, at the cursor."""
        position = await self._engine.cursor(NAME)
        follow_at = 0.0
        while True:
            entries = await self._engine.entries(position, READ_ENTRIES)
            if not entries:
                await asyncio.sleep(POLL_S)
                continue
            position = entries[-1].id
            told = [found for entry in entries if (found := self._of(entry)) is not None]
            if told:
                await sync_to_async(self._send)(told)
            if told or time.monotonic() >= follow_at:
                follow_at = time.monotonic() + CURSOR_S
                await self._engine.move_cursor(NAME, position)

    def _of(self, entry: interface.Entry) -> signals.Told | None:
        try:
            return signals.of(entry)
        except (ValueError, KeyError, TypeError):
            # One entry that a newer release wrote must not stop all that follow.
            self._hub.count("signals.unreadable")
            logger.exception("Entry %d of the log cannot be told by a signal", entry.id)
            return None

    def _send(self, told: Sequence[signals.Told]) -> None:
        """In the job's thread."""
        try:
            for signal, arguments in told:
                answers = signal.send_robust(sender=None, **arguments)  # logs what a receiver raises
                self._hub.count("signals.sent")
                self._hub.count("signals.failed", sum(isinstance(answer, Exception) for _, answer in answers))
        finally:
            db.connections.close_all()
