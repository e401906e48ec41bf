"""Leases: at most one worker of the deployment holds a name, by the clock of the database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from psycopg import sql

from fanfare.engine import errors, interface
from fanfare.engine.postgres import database
from fanfare.engine.postgres.writer import Writer
from fanfare.runtime.supervisor import Supervisor

LEASE_S: Final = 10  # a worker that has not renewed for so long is dead
LEASE_POLL_S: Final = 1.0


class Lease(interface.Lease):
    """Lost a second before the database may give it to another worker."""

    lost: asyncio.Event

    def __init__(self, leases: Leases, name: str, term: int) -> None:
        self.lost = asyncio.Event()
        self.name = name
        self.term = term
        self._leases = leases

    def release(self) -> None:
        self._leases.release(self)


class Leases:
    """The leases that this worker holds. Each beat of the worker renews all of them in the database."""

    def __init__(self, address: database.Address, writer: Writer, supervisor: Supervisor) -> None:
        self._address = address
        self._writer = writer
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._held: list[Lease] = []
        self._releasing: set[str] = set()  # leases that are still this worker's in the database
        self._end: asyncio.Handle | None = None
        self._ends_at = 0.0  # monotonic; the handle of uvloop has no time if it was due at once
        self._is_stopped = False

    async def acquire(self, name: str) -> Lease:
        """Wait until this worker holds `name`. Raises EngineUnavailable if the engine is closed meanwhile."""
        while not self._is_stopped:
            with contextlib.suppress(errors.EngineUnavailable):
                lease = await self._ask(name)
                if lease is not None:
                    return lease
            await asyncio.sleep(LEASE_POLL_S)
        raise errors.EngineUnavailable(f"The engine was closed before the lease {name} was free")

    async def _ask(self, name: str) -> Lease | None:
        await self._release(name)
        worker, asked_s = self._writer.worker, time.monotonic()
        query = sql.SQL("SELECT {}(%s, %s, %s)").format(self._address.function("lease"))
        try:
            [(term,)] = await self._writer.ask(query, (name, worker, LEASE_S))
        except BaseException:  # a statement without an answer may have been committed
            self._give_back(name)
            raise
        # The heartbeat renews no lease of an earlier id, and none after the stop.
        if term is None or worker != self._writer.worker or self._is_stopped:
            return None
        if self._ends_at <= time.monotonic():  # no beat was answered for so long
            self.lose_all()
            self.renewed(asked_s)
        lease = Lease(self, name, term)
        self._held.append(lease)
        return lease

    def release(self, lease: Lease) -> None:
        lease.lost.set()
        if lease in self._held:
            self._held.remove(lease)
            self._give_back(lease.name)

    def _give_back(self, name: str) -> None:
        """Release a lease in the database. The heartbeat tries again: it would renew the lease for ever."""
        if not self._is_stopped:
            self._releasing.add(name)
            self._supervisor.spawn("The release of a lease", self._release(name), expected=database.RETRIED)

    async def _release(self, name: str) -> None:
        if name not in self._releasing:
            return
        query = sql.SQL(
            "UPDATE {}.leases SET worker = '', until = '-infinity' WHERE name = %s AND worker = %s RETURNING 1"
        ).format(sql.Identifier(self._address.schema))
        await self._writer.ask(query, (name, self._writer.worker))
        self._releasing.discard(name)

    async def release_again(self) -> None:
        for name in list(self._releasing):
            await self._release(name)

    def renewed(self, sent_s: float) -> None:
        """The database renewed the leases on a call that was sent at `sent_s`. They end a second before it gives them
        to others."""
        if self._end is not None:
            self._end.cancel()
        self._ends_at = sent_s + LEASE_S - 1.0
        self._end = self._loop.call_later(max(0.0, self._ends_at - time.monotonic()), self.lose_all)

    def lose_all(self) -> None:
        for lease in self._held:
            lease.lost.set()

    def stop(self) -> None:
        self._is_stopped = True
        if self._end is not None:
            self._end.cancel()
        self.lose_all()
