"""Writing results to Django's database: what comes in while one transaction runs goes into the next one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from django.db import Error, transaction

from fanfare.applications import database
from fanfare.webhooks import breaker

logger = logging.getLogger(__name__)

Write = Callable[[], object]


class Recorder:
    """`run` does the writing, until it is cancelled."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Write, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def record(self, *writes: Write) -> None:
        """Return when these are committed, in this order, however long the database is away."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting += [(write, done) for write in writes]
        self._wake.set()
        await done

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            group, self._waiting = self._waiting, []
            await self._commit([write for write, _ in group])
            for _, done in group:
                if not done.done():
                    done.set_result(None)

    async def _commit(self, writes: Sequence[Write]) -> None:
        failures = 0
        while True:
            try:
                await database.run(_all, writes)
            except Error as error:
                failures += 1
                if failures == 1:
                    logger.warning("Results of webhooks cannot be written (%s). Trying again until it works.", error)
                await asyncio.sleep(breaker.pause(failures))
            else:
                return


def _all(writes: Sequence[Write]) -> None:
    with transaction.atomic():
        for write in writes:
            write()
