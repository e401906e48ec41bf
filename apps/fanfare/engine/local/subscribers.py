"""How many subscribers this worker has on each channel: absolute numbers, written soon and together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fanfare.engine import errors
from fanfare.engine.local import occupancy, operations

# Numbers that nobody waits for are written at most this often: 3,000 clients a second that come back to one channel are
# 50 upserts.
WRITE_S = 0.02


class Subscribers:
    """The numbers that are not in the log yet. One that could not be written is kept, unless a newer one was said."""

    def __init__(self, loop: asyncio.AbstractEventLoop, submit: Callable[[operations.WorkerOperation], None]) -> None:
        self.writing = 0  # operations under way
        self.retried = 0
        self._loop = loop
        self._submit = submit
        self._unwritten: dict[tuple[str, str], occupancy.Count] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._announcing: dict[tuple[str, str], asyncio.TimerHandle] = {}

    def set(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        self._unwritten[app, channel] = occupancy.Count(count, announce)
        if self._timer is None:
            self._timer = self._loop.call_at(max(self._loop.time(), self._due), self.write)

    def write(self) -> None:
        """Submit what there is, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unwritten:
            counts, self._unwritten = self._unwritten, {}
            self._due = self._loop.time() + WRITE_S
            self.writing += 1
            self._submit(occupancy.Counts(self._loop, counts, self._written))

    def stop(self) -> None:
        for timer in (self._timer, *self._announcing.values()):
            if timer is not None:
                timer.cancel()

    def _written(self, operation: occupancy.Counts, error: errors.EngineError | None) -> None:
        self.writing -= 1
        if error is None:
            self._announce_later(operation.due)
        else:
            self.retried += 1
            self._unwritten = {**operation.counts, **self._unwritten}

    def _announce_later(self, due: dict[tuple[str, str], int]) -> None:
        """Above the bound of subscribers a channel hears of them now and then; the last change must not stay
        unheard."""
        for channel, wait_ms in due.items():
            if channel not in self._announcing:
                self._announcing[channel] = self._loop.call_later(wait_ms / 1000, self._announce, channel)

    def _announce(self, channel: tuple[str, str]) -> None:
        del self._announcing[channel]
        self._submit(occupancy.Announce(self._loop, [channel], self._announced))

    def _announced(self, operation: occupancy.Announce, error: errors.EngineError | None) -> None:
        # Where it could not be written, the next change announces.
        if error is None:
            self._announce_later(operation.due)
