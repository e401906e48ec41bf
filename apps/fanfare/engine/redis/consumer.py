"""A consumer reads the partition's `facts`: entries of the kinds that consumers want, kept until all have read them."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from fanfare.engine import errors, interface
from fanfare.engine.consumers import mask
from fanfare.engine.redis import entries, operations
from fanfare.engine.redis.partition import Partition
from fanfare.engine.redis.worker import Worker

READ_ENTRIES: Final = 500  # in one answer
RENEW_S: Final = 3_600.0  # between two calls of a consumer that gets no entries; see `interface.CONSUMER_SECONDS`


class Consumer(interface.Consumer):
    """See `interface.Consumer`. It reads the store only after new entries were published."""

    def __init__(
        self,
        worker: Worker,
        partition: Partition,
        name: str,
        kinds: frozenset[interface.Kind],
        answer: operations.Answer,
        *,
        transient: bool,
    ) -> None:
        self.log_id = answer.generation
        self.position = position = int(answer.results[0])
        self._transient = transient
        self._worker = worker
        self._partition = partition
        self._name = name
        self._kinds = kinds
        self._kept, self._kept_s = position, time.monotonic()
        self._grown: asyncio.Future[None] | None = None  # None: there may be something to read
        self._closed = False
        partition.consume(on=True)

    async def next(self, limit: int, within_s: float) -> list[interface.Entry]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while True:
            if self._closed:
                raise errors.EngineUnavailable("The consumer is closed")
            if self._partition.generation != self.log_id:
                raise errors.EngineUnavailable("The log was replaced: its consumers begin again")
            if self._grown is None or self._grown.done():
                self._grown = self._partition.grown()  # before the read: an entry that comes during it counts as new
                found = await self._read(limit)
                if found:
                    return found
            left_s = deadline - loop.time()
            if left_s <= 0:
                return []
            if not self._grown.done():
                await asyncio.wait([self._grown], timeout=left_s)

    async def _read(self, limit: int) -> list[interface.Entry]:
        """The next entries of these kinds, passing over those of other consumers' kinds."""
        while True:
            count = limit + 1 if self._transient else max(READ_ENTRIES, limit)
            want = ("f", self.position, count)
            answer = await self._partition.calls.ask(want=want)
            if answer.generation != self.log_id:
                raise errors.EngineUnavailable("The log was replaced: its consumers begin again")
            parts = answer.found[want]
            read = entries.read_all(parts)
            self._worker.counters["entries_unknown"] += len(parts) - len(read)
            found = [entry for entry in read if entry.kind in self._kinds]
            if len(found) > limit:
                self._grown = None
                self.position = found[limit - 1].id
                return found[:limit]
            if len(parts) < count:
                self.position = max(self.position, answer.top)
                return found
            self._grown = None
            self.position = entries.sequence(parts[-1])
            if found:
                return found

    async def keep(self, position: int) -> None:
        """Also without a new position, now and then: the store forgets a consumer that does not call it."""
        now_s = time.monotonic()
        if position != self._kept or self._transient or now_s - self._kept_s > RENEW_S:
            await self._move(position, forget=False)
            self._kept, self._kept_s = position, now_s

    async def drop(self) -> None:
        await self._move(0, forget=True)

    async def _move(self, position: int, *, forget: bool) -> None:
        await self._partition.calls.ask(
            _operation(self._name, position, self._kinds, forget=forget, transient=self._transient)
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._partition.consume(on=False)
            self._partition.grow()


async def begin(
    worker: Worker,
    partition: Partition,
    name: str,
    kinds: frozenset[interface.Kind],
    after: int | None,
    *,
    transient: bool,
) -> Consumer:
    """Raises EngineUnavailable."""
    answer = await partition.calls.ask(_operation(name, after, kinds, begins=True, transient=transient))
    return Consumer(worker, partition, name, kinds, answer, transient=transient)


def _operation(
    name: str,
    position: int | None,
    kinds: frozenset[interface.Kind],
    *,
    begins: bool = False,
    forget: bool = False,
    transient: bool,
) -> operations.Operation:
    lasts_ms = interface.TRANSIENT_SECONDS * 1000 if transient else False
    return ("k", name, False if position is None else position, mask(kinds), begins, forget, lasts_ms)
