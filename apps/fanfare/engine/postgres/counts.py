"""The numbers of subscribers of one worker: written soon and together, and announced above a bound at intervals."""

from __future__ import annotations

import asyncio
import collections
from typing import Final

from fanfare.engine import errors
from fanfare.engine.postgres import operations
from fanfare.engine.postgres.writer import Writer

WRITE_S: Final = 0.02  # numbers without a waiting caller are written this much later, with others


class SubscriberCounts:
    """The numbers of this worker that are not in the database yet. A number whose write failed is written again, unless
    a newer one of its channel waits."""

    def __init__(self, writer: Writer, counters: collections.Counter[str]) -> None:
        self._writer = writer
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._unwritten: dict[tuple[str, str], tuple[int, bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing = 0  # writes under way
        self._announcing: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._is_stopped = False

    def are_written(self) -> bool:
        return not self._unwritten and not self._writing

    def set(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        self._unwritten[app, channel] = (count, announce)
        if self._timer is None:
            self._timer = self._loop.call_later(WRITE_S, self.write)

    def stop(self) -> None:
        self._is_stopped = True
        for timer in (self._timer, *self._announcing.values()):
            if timer is not None:
                timer.cancel()

    def write(self) -> None:
        """Submit the unwritten numbers now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._unwritten or self._is_stopped:
            return
        counts, self._unwritten = self._unwritten, {}
        self._writing += 1
        wanted = [
            operations.Operation("counts", *key, n=count, size=int(announce))
            for key, (count, announce) in counts.items()
        ]

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            self._writing -= 1
            if error is None:
                for key, row in zip(counts, (rows[index] for index in range(len(wanted))), strict=True):
                    self._announce_later(key, row.actual)
            else:
                self._counters["counts_retried"] += 1
                self._unwritten = {**counts, **self._unwritten}

        self._writer.submit(operations.Call(wanted, settled))

    def _announce_later(self, channel: tuple[str, str], wait_ms: int | None) -> None:
        if wait_ms and channel not in self._announcing:
            self._announcing[channel] = self._loop.call_later(wait_ms / 1000, self._announce, channel)

    def _announce(self, channel: tuple[str, str]) -> None:
        del self._announcing[channel]

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if error is None:
                self._announce_later(channel, rows[0].actual)

        self._writer.submit(operations.Call([operations.Operation("announce", *channel)], settled))
