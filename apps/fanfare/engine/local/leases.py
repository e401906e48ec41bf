"""Leader leases: the worker that holds the kernel's lock on NAME.lock is the leader. The kernel releases the lock when
the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fanfare.engine import errors, interface
from fanfare.engine.local import liveness, place

POLL_S = 1.0  # a waiting worker tries this often


class Leases:
    """The leases of one worker."""

    def __init__(self, where: place.Place) -> None:
        self._folder = where.folder / "leases"
        self._held: set[LocalLease] = set()
        self._closed = False

    async def acquire(self, name: str) -> LocalLease:
        """Wait for it. Raises EngineUnavailable when the worker closes."""
        lock = liveness.Lock(self._folder / f"{name}.lock")
        while True:
            if self._closed:
                raise errors.EngineUnavailable(f"The engine was closed before the lease {name} was free")
            try:
                self._folder.mkdir(exist_ok=True, mode=0o700)
                if lock.acquire():
                    lease = LocalLease(lock, lock.count(), self._held.discard)
                    self._held.add(lease)
                    return lease
            except OSError as error:
                lock.release(remove=False)
                raise errors.EngineUnavailable(f"The lease {name} cannot be taken: {error}") from error
            await asyncio.sleep(POLL_S)

    def check(self) -> None:
        """A lock whose file was deleted can be taken a second time: such a lease is lost."""
        for lease in list(self._held):
            if not lease.is_in_place():
                lease.release()

    def close(self) -> None:
        self._closed = True
        for lease in list(self._held):
            lease.release()


class LocalLease(interface.Lease):
    """Lost before it is released only if its file was deleted or the worker closes."""

    def __init__(self, lock: liveness.Lock, term: int, released: Callable[[LocalLease], None]) -> None:
        self.lost = self._lost = asyncio.Event()
        self.term = term
        self._lock = lock
        self._released = released

    def is_in_place(self) -> bool:
        return self._lock.is_in_place()

    def release(self) -> None:
        self._lost.set()
        self._released(self)
        self._lock.release(remove=False)
