"""The upkeep of the log, by each worker: it trims the log, moves late publications into it, and removes members whose
time is over and the members and counts of dead workers."""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from psycopg import sql

from fanfare.engine.postgres import database, pending
from fanfare.engine.postgres.reader import Reader
from fanfare.engine.postgres.writer import Writer

logger = logging.getLogger(__name__)

TRIM_S: Final = 2.0
TRIM_ROWS: Final = 5_000
MEASURE_S: Final = 30.0


class Upkeep:
    """`run` is a task of its own; the heartbeat calls the other methods. They raise EngineUnavailable. `measure`: the
    sizes of the log's tables."""

    def __init__(
        self,
        address: database.Address,
        writer: Writer,
        reader: Reader,
        counters: collections.Counter[str],
        measure: Callable[[], Awaitable[dict[str, int]]],
        *,
        log_seconds: float,
    ) -> None:
        self.sizes: dict[str, int] = {}
        self._address = address
        self._writer = writer
        self._reader = reader
        self._counters = counters
        self._measure = measure
        self._log_seconds = log_seconds
        self._samples: collections.deque[tuple[float, int]] = collections.deque()  # (monotonic time, the log's top)

    def restart(self) -> None:
        """Forget the ages of the entries before a gap."""
        self._samples.clear()

    async def run(self) -> None:
        """Trim the log in small deletes, and measure it."""
        trim = sql.SQL("SELECT * FROM {}(%s, %s)").format(self._address.function("trim"))
        measured_s = float("-inf")
        while True:
            await asyncio.sleep(TRIM_S)
            if not self._reader.following:
                continue
            now = time.monotonic()
            self._samples.append((now, self._reader.top))
            upto = 0
            while self._samples and self._samples[0][0] <= now - self._log_seconds:
                upto = self._samples.popleft()[1]
            [(more, dropped)] = await self._writer.ask(trim, (upto, TRIM_ROWS))
            self._counters["sessions_dropped"] += dropped
            if more and upto:
                self._samples.appendleft((now - self._log_seconds, upto))
            if now - measured_s >= MEASURE_S:
                measured_s = now
                self.sizes = await self._measure()

    async def move_pending(self) -> None:
        """Publications of transactions whose process ended after the commit."""
        moved = pending.MOVE_ROWS
        while moved == pending.MOVE_ROWS:
            [(moved,)] = await self._writer.ask(pending.move_query(self._address), (pending.MOVE_ROWS,))
            self._counters["pending_moved"] += moved
            if moved:
                self._reader.hint()

    async def expire_members(self) -> None:
        query = sql.SQL("SELECT {}()").format(self._address.function("expire_members"))
        [(expired,)] = await self._writer.ask(query)
        if expired:
            self._reader.hint()

    async def reap(self, worker: str) -> None:
        query = sql.SQL("SELECT {}(%s)").format(self._address.function("reap"))
        [(removed,)] = await self._writer.ask(query, (worker,))
        if removed:
            self._counters["reaped"] += 1
            logger.warning("Worker %s is dead: its members and counts were removed", worker)
            self._reader.hint()
