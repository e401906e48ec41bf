"""Leases: at most one worker of the deployment holds a name, by the clock of the store.

A lease belongs to the worker's life in the partition of its name, so the heartbeat renews it. The worker treats it as
lost a second before another worker may get it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import zlib
from collections.abc import Sequence
from typing import Final

from fanfare.engine import errors, interface
from fanfare.engine.redis import operations, scripts
from fanfare.engine.redis.partition import Partition

LEASE_POLL_S: Final = 1.0
MARGIN_S: Final = 1.0  # before the end in the store


class Lease(interface.Lease):
    lost: asyncio.Event

    def __init__(self, leases: Leases, partition: Partition, name: str, term: int) -> None:
        self.lost = asyncio.Event()
        self.partition = partition
        self.name = name
        self.term = term
        self._leases = leases

    def release(self) -> None:
        self._leases.release(self)


class Leases:
    """The leases that this worker holds."""

    def __init__(self, partitions: Sequence[Partition]) -> None:
        self._partitions = partitions
        self._held: list[Lease] = []
        self._releasing: dict[str, Partition] = {}  # leases by name that may still be this worker's in the store
        self._asked: set[str] = set()  # those whose release has no answer yet
        self._is_stopped = False

    async def acquire(self, name: str) -> Lease:
        """Wait until this worker holds `name`. Raises EngineUnavailable if the engine is closed meanwhile."""
        partition = self._partitions[zlib.crc32(name.encode()) % len(self._partitions)]
        while not self._is_stopped:
            with contextlib.suppress(errors.EngineUnavailable):
                lease = await self._ask(partition, name)
                if lease is not None:
                    return lease
            await asyncio.sleep(LEASE_POLL_S)
        raise errors.EngineUnavailable(f"The engine was closed before the lease {name} was free")

    async def _ask(self, partition: Partition, name: str) -> Lease | None:
        life = partition.life
        asked = time.monotonic()
        self._releasing.pop(name, None)
        try:
            answer = await partition.calls.ask(("e", name))
        except BaseException:  # a call without an answer may have been run
            self._give_back(name, partition)
            raise
        term = answer.results[0]
        if not term:
            return None
        # A lease lasts as long as the last beat allows, and a new life has none of the old one's leases.
        is_due = asked - partition.beaten_s < scripts.LEASE_S - MARGIN_S
        if life != partition.life or not is_due or self._is_stopped:
            self._give_back(name, partition)
            return None
        lease = Lease(self, partition, name, term)
        self._held.append(lease)
        return lease

    def release(self, lease: Lease) -> None:
        lease.lost.set()
        if lease in self._held:
            self._held.remove(lease)
            self._give_back(lease.name, lease.partition)

    def _give_back(self, name: str, partition: Partition) -> None:
        """Release a lease in the store. It is repeated until it is written: the heartbeat would renew the lease for
        ever. The release of a lease that this life does not have changes nothing."""
        if not self._is_stopped:
            self._releasing[name] = partition
            self.release_again()

    def release_again(self) -> None:
        for name, partition in list(self._releasing.items()):
            if name not in self._asked:
                self._asked.add(name)
                settled = functools.partial(self._released, name)
                partition.calls.submit(operations.Call([("r", name)], settled, frees=True))

    def _released(self, name: str, answer: operations.Answer | None, _error: errors.EngineError | None) -> None:
        self._asked.discard(name)
        if answer is not None and not isinstance(answer.results[0], Exception):
            self._releasing.pop(name, None)

    def expire(self, now: float) -> None:
        """Lose the leases whose partition has not answered a beat for too long."""
        for lease in self._held:
            if now - lease.partition.beaten_s > scripts.LEASE_S - MARGIN_S:
                lease.lost.set()

    def lose(self, partition: Partition) -> None:
        """The worker has a new life in this partition."""
        for lease in self._held:
            if lease.partition is partition:
                lease.lost.set()

    def stop(self) -> None:
        self._is_stopped = True
        for lease in self._held:
            lease.lost.set()
        self._held.clear()
