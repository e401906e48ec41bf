"""Consumers read the entries of some kinds from the log, in the thread for queries.

A scan passes the other entries inside SQLite, at 0.15 µs each and without the interpreter's lock. The worker's reader,
which is woken by each commit, says when there is something new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fanfare.engine import errors, interface
from fanfare.engine.local import queries

SCAN_PAUSE_S = 0.02  # between two scans that found nothing more: 50 in a second cost 0.3 % of a core

Ask = Callable[[Callable[[queries.Queries], queries.Found]], Awaitable[queries.Found]]


class LocalConsumer(interface.Consumer):
    """`scan` runs a query. `grown()` answers a future that is done when the reader has seen a newer entry.
    `move(position)` writes the position, None removes it."""

    def __init__(
        self,
        kinds: frozenset[interface.Kind],
        log_id: str,
        position: int,
        *,
        scan: Ask,
        grown: Callable[[], asyncio.Future[None]],
        move: Callable[[int | None], Awaitable[object]],
    ) -> None:
        self.log_id = log_id
        self.position = position
        self._kinds = kinds
        self._scan = scan
        self._grown = grown
        self._move = move
        self._kept = position
        self._closed = False

    async def next(self, limit: int, within_s: float) -> list[interface.Entry]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while True:
            if self._closed:
                raise errors.EngineUnavailable("The consumer is closed")
            grown = self._grown()  # before the scan: an entry that comes during it must wake this consumer
            found = await self._scan(lambda asked: asked.entries_of(self._kinds, self.position, limit))
            if found.log_id != self.log_id:
                raise errors.EngineUnavailable("The log was replaced: its consumers begin again")
            self.position = max(self.position, found.read_to)
            left_s = deadline - loop.time()
            if found.entries or left_s <= 0:
                return found.entries
            if found.read_to < found.top:
                continue  # a long part without entries of these kinds
            await asyncio.wait([grown], timeout=left_s)
            await asyncio.sleep(max(0.0, min(SCAN_PAUSE_S, deadline - loop.time())))

    async def keep(self, position: int) -> None:
        if position != self._kept:
            await self._move(position)
            self._kept = position

    async def drop(self) -> None:
        await self._move(None)

    def close(self) -> None:
        self._closed = True
