"""The numbers of subscribers of one worker: written soon and together, and announced above a bound at intervals."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from typing import Final

from fanfare.engine import errors, interface
from fanfare.engine.redis import operations
from fanfare.engine.redis.partition import Partition

WRITE_S: Final = 0.02  # numbers without a waiting caller are written this much later, with others

_Channel = tuple[str, str]
_Count = tuple[int, bool]  # subscribers, and whether a change is announced


class SubscriberCounts:
    """The numbers of this worker that are not in the store yet. A number whose write failed is written again, unless a
    newer one of its channel waits."""

    def __init__(
        self,
        partitions: Sequence[Partition],
        of: Callable[[str, str], Partition],
        counters: collections.Counter[str],
    ) -> None:
        self._partitions = partitions
        self._of = of
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._unwritten: list[dict[_Channel, _Count]] = [{} for _ in partitions]
        self._connections: list[dict[_Channel, _Count]] = [{} for _ in partitions]  # of applications
        self._timer: asyncio.TimerHandle | None = None
        self._announcing: dict[_Channel, asyncio.TimerHandle] = {}

    def are_written(self) -> bool:
        return not any(self._unwritten)

    def set(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        index = self._of(app, channel).index
        key = (app, channel)
        if channel == interface.CONNECTIONS:
            kept = self._connections[index]
            if count:
                kept[key] = (count, announce)
            else:
                kept.pop(key, None)
        self._unwritten[index][key] = (count, announce)
        if self._timer is None:
            self._timer = self._loop.call_later(WRITE_S, self.write)

    def forgotten(self, partition: Partition) -> None:
        """The store may have lost the numbers of connections: `write` writes them again. The hub sets those of channels
        again when the clients have reconnected."""
        for key, count in self._connections[partition.index].items():
            self._unwritten[partition.index].setdefault(key, count)

    def stop(self) -> None:
        for timer in (self._timer, *self._announcing.values()):
            if timer is not None:
                timer.cancel()

    def write(self) -> None:
        """Submit the unwritten numbers now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for partition, counts in zip(self._partitions, self._unwritten, strict=True):
            if counts:
                self.write_of(partition)

    def write_of(self, partition: Partition) -> None:
        counts, self._unwritten[partition.index] = self._unwritten[partition.index], {}
        for frees in (True, False):
            some = {key: count for key, count in counts.items() if (count[0] == 0) is frees}
            if some:
                self._submit(partition, some, frees=frees)

    def _submit(self, partition: Partition, counts: dict[_Channel, _Count], *, frees: bool) -> None:
        def settled(answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            if answer is None:
                self._counters["counts_retried"] += 1
                self._unwritten[partition.index] = {**counts, **self._unwritten[partition.index]}
                return
            for key, wait_ms in zip(counts, answer.results, strict=True):
                if not isinstance(wait_ms, Exception):
                    self._announce_later(key, wait_ms)

        wanted = [
            ("n", operations.identity(app, channel), app, channel, count, announce)
            for (app, channel), (count, announce) in counts.items()
        ]
        partition.calls.submit(operations.Call(wanted, settled, frees=frees))

    # -- announcements -------------------------------------------------------------------------------------------------

    def _announce_later(self, channel: _Channel, wait_ms: int) -> None:
        if wait_ms and channel not in self._announcing:
            self._announcing[channel] = self._loop.call_later(wait_ms / 1000, self._announce, channel)

    def _announce(self, channel: _Channel) -> None:
        del self._announcing[channel]

        def settled(answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
            # If it could not be written, the next change announces.
            if answer is not None and not isinstance(answer.results[0], Exception):
                self._announce_later(channel, answer.results[0])

        call = operations.Call([("c", operations.identity(*channel), *channel)], settled)
        self._of(*channel).calls.submit(call)
