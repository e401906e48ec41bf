"""The entries of the log that webhooks tell of, in order and without a gap, from any position on.

What is old is read from the log. Once the reading has caught up with this worker's own tail, the entries are taken from
there as they are delivered: most of a busy log is events that no webhook tells of, and reading those twice would cost
more than everything else here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from fanfare.engine import interface
from fanfare.webhooks import events

READ_ENTRIES = 500
MOST_WAITING = 10_000  # entries; a collector that is further behind reads them from the log again

Read = Callable[[int, int], Awaitable[list[interface.Entry]]]
"""`interface.Engine.entries`."""


class Feed:
    """Give it to the hub as its observer. `position`: everything up to this id was given out by `next`."""

    def __init__(self, read: Read, position: int) -> None:
        self.position = position
        self._read = read
        self._tail: int | None = None  # the newest id that the tail has delivered; None: it has not said yet
        self._live = False  # whether what comes after `position` and up to `_tail` is all in `_waiting`
        self._waiting: list[interface.Entry] = []
        self._wake = asyncio.Event()

    # -- the hub's observer --------------------------------------------------------------------------------------------

    def delivered(self, entries: Sequence[interface.Entry]) -> None:
        self._tail = entries[-1].id
        if not self._live:
            self._wake.set()
            return
        found = [entry for entry in entries if entry.kind in events.KINDS]
        if found:
            self._waiting += found
            self._wake.set()
            if len(self._waiting) > MOST_WAITING:
                self.gap_detected()

    def gap_detected(self) -> None:
        """The tail may have missed entries: read them from the log."""
        self._live = False
        self._waiting = []
        self._tail = None
        self._wake.set()

    # -- the collector -------------------------------------------------------------------------------------------------

    async def next(self, within: float) -> list[interface.Entry]:
        """The next entries that webhooks tell of, maybe none; waits so many seconds for them. Raises
        EngineUnavailable."""
        if not self._live:
            return await self._catch_up(within)
        await self._woken(within)
        return self._take()

    def _take(self) -> list[interface.Entry]:
        if not self._live:  # a fence came meanwhile
            return []
        entries, self._waiting = [entry for entry in self._waiting if entry.id > self.position], []
        # Everything up to here was seen, and what was not kept is told by no webhook.
        self.position = max(self.position, self._tail or 0)
        return entries

    async def _catch_up(self, within: float) -> list[interface.Entry]:
        self._wake.clear()
        entries = await self._read(self.position, READ_ENTRIES)
        if entries:
            self.position = entries[-1].id
        if self._tail is not None and self.position >= self._tail:
            self._live = True  # no await between the comparison and this
        elif not entries:
            await self._woken(within)
        return [entry for entry in entries if entry.kind in events.KINDS]

    async def _woken(self, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            if self._live:
                self._wake.clear()
