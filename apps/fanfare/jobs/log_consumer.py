"""Reads the entries of some kinds from the log, in order and without a gap, and remembers how far it came.

The cursor is kept in the engine under the consumer's name: the log does not trim what a cursor has not passed, for
`interface.CURSOR_SECONDS`. Old entries are read from the log. After that the consumer takes its entries from the
deliveries that this worker reads anyway: most of a busy log are events, which no consumer wants, and reading those
twice would cost more than everything else here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from fanfare.engine import interface
from fanfare.hub import hub as hubs

READ_ENTRIES = 500
MOST_BUFFERED = 10_000  # entries; a consumer that is further behind reads them from the log again
POLL_S = 0.2  # between two reads of a consumer that does not observe the hub; an empty read takes some 50 µs


class LogConsumer:
    """`position`: all entries up to this id were returned by `next`, or are of other kinds.

    `observe`: take entries from the deliveries of this worker. The hub has one observer at a time.
    """

    def __init__(self, hub: hubs.Hub, name: str, kinds: Collection[int], *, observe: bool = False) -> None:
        self.name = name
        self.position = 0
        self._hub = hub
        self._engine = hub.engine
        self._kinds = frozenset(kinds)
        self._observe = observe
        self._kept = 0  # the position of the cursor in the engine
        self._delivered: int | None = None  # the newest id that was delivered; None: nothing since the last gap
        self._live = False  # whether all wanted entries between `position` and `_delivered` are in `_buffer`
        self._buffer: list[interface.Entry] = []
        self._wake = asyncio.Event()

    async def open(self, after: int | None = None) -> None:
        """Begin after the entry `after`; by default at the cursor, which is the newest entry for a new consumer.

        Raises EngineUnavailable.
        """
        self._kept = await self._engine.cursor(self.name)
        self.position = self._kept if after is None else after
        if self.position != self._kept:
            await self._move(self.position)
        if self._observe:
            self._hub.observe(self)

    def close(self) -> None:
        """Stop observing. The cursor stays. Idempotent."""
        if self._observe:
            self._hub.observe(None)

    async def keep(self, position: int) -> None:
        """Everything up to `position` is done: the log may trim it, and the next consumer of this name begins there."""
        if position > self._kept:
            await self._move(position)

    async def drop(self) -> None:
        """Remove the cursor: the log holds nothing back for this consumer."""
        await self._engine.drop_cursor(self.name)

    async def _move(self, position: int) -> None:
        await self._engine.move_cursor(self.name, position)
        self._kept = position

    # -- the hub's observer --------------------------------------------------------------------------------------------

    def delivered(self, entries: Sequence[interface.Entry]) -> None:
        self._delivered = entries[-1].id
        if not self._live:
            self._wake.set()
            return
        found = [entry for entry in entries if entry.kind in self._kinds]
        if found:
            self._buffer += found
            self._wake.set()
            if len(self._buffer) > MOST_BUFFERED:
                self.gap_detected()

    def gap_detected(self) -> None:
        """Deliveries may have left out entries: read them from the log."""
        self._live = False
        self._buffer = []
        self._delivered = None
        self._wake.set()

    # -- reading -------------------------------------------------------------------------------------------------------

    async def next(self, within_s: float) -> list[interface.Entry]:
        """The next entries of the wanted kinds; waits up to `within_s` for them, and may return none.

        Raises EngineUnavailable.
        """
        if not self._live:
            return await self._catch_up(within_s)
        await self._woken(within_s)
        return self._take()

    def _take(self) -> list[interface.Entry]:
        if not self._live:  # a gap was detected in the meantime
            return []
        entries, self._buffer = [entry for entry in self._buffer if entry.id > self.position], []
        self.position = max(self.position, self._delivered or 0)
        return entries

    async def _catch_up(self, within_s: float) -> list[interface.Entry]:
        self._wake.clear()
        entries = await self._engine.entries(self.position, READ_ENTRIES)
        if entries:
            self.position = entries[-1].id
        if self._delivered is not None and self.position >= self._delivered:
            self._live = True  # no await between the comparison and this
        elif not entries:
            await self._woken(within_s if self._observe else min(within_s, POLL_S))
        return [entry for entry in entries if entry.kind in self._kinds]

    async def _woken(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            if self._live:
                self._wake.clear()
