"""The server of each partition: the one of the address, the one that the sentinels name, or one of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from fanfare.engine import errors
from fanfare.engine.redis import link, sentinels
from fanfare.engine.redis.address import slot_of
from fanfare.engine.redis.partition import Partition, Phase
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)

RELOCATE_S: Final = 0.2  # between two looks at the cluster's slots
SENTINELS_S: Final = 1.0  # between two questions to the sentinels

Server = tuple[str, int]


class Owner(link.Owner, Protocol):
    """The methods of the worker that the topology calls."""

    all: list[Partition]


class Topology:
    """`links`: by server in a cluster, otherwise one with the key None."""

    def __init__(self, worker: Owner, supervisor: Supervisor) -> None:
        self.links: dict[Server | None, link.Link] = {}
        self._worker = worker
        self._address = worker.address
        self._supervisor = supervisor
        self._sentinels = sentinels.Sentinels(worker.address) if worker.address.form == "sentinel" else None
        self._moved = asyncio.Event()

    async def find(self) -> None:
        """Make the links, without connecting them. Raises EngineUnavailable."""
        if self._address.form == "cluster":
            self._assign(await asyncio.to_thread(self._address.slots))
        else:
            single = self.links[None] = link.Link(self._worker, self._locate)
            single.partitions.update(self._worker.all)

    def follow(self) -> None:
        """Keep all links connected, and follow failovers and slots that move."""
        for each in list(self.links.values()):
            self._keep(each)
        if self._address.form == "cluster":
            self._supervisor.run("The cluster's slots", self._follow_slots)
        elif self._sentinels is not None:
            self._supervisor.run("The sentinels", self._follow_sentinels)

    def relocate(self) -> None:
        """A slot may have moved."""
        self._moved.set()

    def close(self) -> None:
        for each in self.links.values():
            each.close()
        if self._sentinels is not None:
            self._sentinels.close()

    def _keep(self, kept: link.Link) -> None:
        self._supervisor.run(f"The connection {id(kept)}", kept.run)

    # -- one server ----------------------------------------------------------------------------------------------------

    async def _locate(self) -> Server:
        if self._sentinels is not None:
            return await asyncio.to_thread(self._sentinels.primary)
        return self._address.hosts[0] if self._address.hosts else ("", 0)

    async def _follow_sentinels(self) -> None:
        """Leave a primary that was replaced, and that may answer and take writes until a sentinel demotes it."""
        [followed] = self.links.values()
        while True:
            await asyncio.sleep(SENTINELS_S)
            with contextlib.suppress(errors.EngineUnavailable):
                primary = await self._locate()
                if followed.wire is not None and followed.server != primary:
                    self._worker.counters["primaries_left"] += 1
                    followed.leave("The sentinels have promoted another server: {}:{}".format(*primary))

    # -- the cluster ---------------------------------------------------------------------------------------------------

    async def _follow_slots(self) -> None:
        while True:
            if any(each.phase is Phase.AWAY for each in self._worker.all):
                self._moved.set()
            await self._moved.wait()
            self._moved.clear()
            known = tuple(each for each in self.links if each is not None)
            with contextlib.suppress(errors.EngineUnavailable):
                self._assign(await asyncio.to_thread(self._address.slots, known))
            await asyncio.sleep(RELOCATE_S)

    def _assign(self, slots: Sequence[tuple[int, int, Server]]) -> None:
        for partition in self._worker.all:
            slot = slot_of(partition.prefix.partition("{")[2].partition("}")[0])
            server = next(each for first, last, each in slots if first <= slot <= last)
            wanted = self.links.get(server)
            if wanted is None:
                wanted = self.links[server] = link.Link(self._worker, functools.partial(_same, server))
                if not self._worker.is_opening:
                    self._keep(wanted)
            present = next((each for each in self.links.values() if partition in each.partitions), None)
            if present is wanted:
                if partition.wire is None:
                    wanted.adopt(partition)
                continue
            if present is not None:
                present.release(partition)
            wanted.adopt(partition)


async def _same(server: Server) -> Server:
    return server
