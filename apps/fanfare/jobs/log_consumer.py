"""Consumers of the log: they get each entry of some kinds in order, in any worker."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from typing import Self

from fanfare.engine import interface
from fanfare.runtime.supervisor import Expected, Supervisor

READ_ENTRIES = 500
KEEP_S = 1.0  # between two writes of the position


class LogConsumer:
    """One partition of the log. Use it as an async context manager, while holding the lease of its job.

    `position`: all entries up to this id were returned by `next`, or are of other kinds. It may be set.
    """

    def __init__(
        self,
        engine: interface.Engine,
        name: str,
        kinds: Collection[interface.Kind],
        *,
        partition: int = 0,
        after: int | None = None,
    ) -> None:
        self._engine = engine
        self._name = name
        self._kinds = frozenset(kinds)
        self._partition = partition
        self._after = after
        self._keep_at = 0.0  # monotonic time of the next write of the position
        self._consumer: interface.Consumer

    async def __aenter__(self) -> Self:
        """Begins at the stored position; a new consumer begins after the entry `after`, by default at the newest one.
        Raises EngineUnavailable."""
        self._consumer = await self._engine.consume(self._name, self._partition, self._kinds, after=self._after)
        return self

    async def __aexit__(self, *_: object) -> None:
        """The stored position stays."""
        self._consumer.close()

    @property
    def log_id(self) -> str:
        """Changes when ids start again, because the log is new or lost its newest entries."""
        return self._consumer.log_id

    @property
    def position(self) -> int:
        return self._consumer.position

    @position.setter
    def position(self, position: int) -> None:
        self._consumer.position = position

    async def next(self, within_s: float) -> list[interface.Entry]:
        """The next entries; waits up to `within_s` for the first one, and may return none.

        Raises EngineUnavailable, also when the log was replaced: begin again.
        """
        return await self._consumer.next(READ_ENTRIES, within_s)

    async def keep(self, *, at_once: bool = False) -> None:
        """Store the position: entries up to it are processed, and the log may trim them.

        Without `at_once` at most every `KEEP_S`, so after a crash the entries of the last second are repeated.
        """
        now = time.monotonic()
        if at_once or now >= self._keep_at:
            self._keep_at = now + KEEP_S
            await self._consumer.keep(self.position)

    async def drop(self) -> None:
        """Remove the stored position: the log then keeps nothing for this consumer."""
        await self._consumer.drop()


def run_partitions(
    tasks: Supervisor, name: str, partitions: int, consume: Callable[[int], Awaitable[None]], expected: Expected
) -> None:
    """Start `consume(partition)` for each partition of the log as a task."""

    def started(partition: int) -> Callable[[], Awaitable[None]]:
        return lambda: consume(partition)

    for partition in range(partitions):
        tasks.run(name if partitions == 1 else f"{name}, partition {partition}", started(partition), expected=expected)
