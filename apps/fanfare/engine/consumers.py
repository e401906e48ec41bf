"""A consumer for engines whose log can be scanned by kind.

A scan skips the entries of other kinds inside the database, at 0.15 µs each in SQLite, without the interpreter's lock.
The worker's reader, which each commit wakes, signals new entries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fanfare.engine import errors, interface

SCAN_ENTRIES = 100_000  # per scan: 15 ms in SQLite
BEYOND = 2**62  # no entry has so high an id
SCAN_PAUSE_S = 0.02  # between two scans without a result: 50 a second cost 0.3 % of a core


class Scan(NamedTuple):
    """All entries of some kinds up to `read_to`. `top`: the newest id of the log."""

    log_id: str
    entries: list[interface.Entry]
    read_to: int
    top: int


class ScanningConsumer(interface.Consumer):
    """`scan(after, limit)` reads. `grown()` answers a future that is done when the reader has seen a newer entry.
    `move(position)` stores the position; None removes it."""

    def __init__(
        self,
        log_id: str,
        position: int,
        *,
        scan: Callable[[int, int], Awaitable[Scan]],
        grown: Callable[[], asyncio.Future[None]],
        move: Callable[[int | None], Awaitable[object]],
    ) -> None:
        self.log_id = log_id
        self.position = position
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
            found = await self._scan(self.position, limit)
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


async def transient(
    after: int | None,
    *,
    scan: Callable[[int, int], Awaitable[Scan]],
    grown: Callable[[], asyncio.Future[None]],
) -> ScanningConsumer:
    """A consumer without a stored position: the log has all entries for some time anyway."""

    async def move(_position: int | None) -> None:
        pass

    found = await scan(BEYOND, 1)
    return ScanningConsumer(found.log_id, found.top if after is None else after, scan=scan, grown=grown, move=move)


def mask(kinds: frozenset[interface.Kind]) -> int:
    """Bit n stands for kind n."""
    return sum(1 << kind for kind in kinds)
