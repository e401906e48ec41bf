"""How many subscribers this worker has on each channel: absolute numbers, written soon and together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from apps.engine import errors
from apps.engine.local import operations

# Numbers that nobody waits for are written at most this often: 3,000 clients a second that come back to one channel are
# 50 upserts.
WRITE_S = 0.02


class Subscribers:
    """The numbers that are not in the log yet. One that could not be written is kept, unless a newer one was said."""

    def __init__(self, loop: asyncio.AbstractEventLoop, submit: Callable[[operations.Counts], None]) -> None:
        self.writing = 0  # operations under way
        self.retried = 0
        self._loop = loop
        self._submit = submit
        self._unwritten: dict[tuple[str, str], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def set(self, app: str, channel: str, count: int) -> None:
        self._unwritten[app, channel] = count
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
            self._submit(operations.Counts(self._loop, counts, self._written))

    def _written(self, operation: operations.Counts, error: errors.EngineError | None) -> None:
        self.writing -= 1
        if error is not None:
            self.retried += 1
            self._unwritten = {**operation.counts, **self._unwritten}
