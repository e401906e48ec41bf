"""Writes the results of requests into Django's database, many in one transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from django.db import transaction

from fanfare.applications import database
from fanfare.runtime.backoff import Backoff
from fanfare.webhooks import deliveries

logger = logging.getLogger(__name__)

GROUP = 500  # results per transaction: on SQLite, other writers wait for it

Write = Callable[[], object]


class _Result:
    def __init__(self, writes: Sequence[Write]) -> None:
        self.writes = writes
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class ResultWriter:
    """`run` writes until it is cancelled. Results that arrive during a transaction share the next one."""

    def __init__(self) -> None:
        self._waiting: list[_Result] = []
        self._wake = asyncio.Event()

    async def write(self, *writes: Write) -> None:
        """Write in this order in one transaction, and return after the commit. Waits for an unavailable database.

        Raises the error with which the database refuses the values.
        """
        result = _Result(writes)
        self._waiting.append(result)
        self._wake.set()
        await result.done

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group = self._waiting[:GROUP]
                await self._commit(group)
                del self._waiting[: len(group)]

    async def _commit(self, group: Sequence[_Result]) -> None:
        try:
            await self._patiently([write for result in group for write in result.writes])
        except Exception as error:  # noqa: BLE001  (the request that waits for this result gets it)
            if len(group) == 1:
                _finish(group[0], error)
                return
            # An invalid result must not prevent the others from being written.
            for result in group:
                await self._commit([result])
        else:
            for result in group:
                _finish(result, None)

    async def _patiently(self, writes: Sequence[Write]) -> None:
        backoff = Backoff()
        while True:
            try:
                return await database.run(_all, writes)
            except Exception as error:
                if database.is_refusal_of_data(error):
                    raise
                if not backoff.failures:
                    logger.warning(
                        "Results of webhooks cannot be written (%s). Trying again until it works.",
                        database.reason(error),
                    )
                await asyncio.sleep(backoff.failed())


def _finish(result: _Result, error: Exception | None) -> None:
    if result.done.done():  # its request was cancelled
        return
    if error is None:
        result.done.set_result(None)
    else:
        result.done.set_exception(error)


def _all(writes: Sequence[Write]) -> None:
    with transaction.atomic(using=deliveries.using()):
        for write in writes:
            write()
