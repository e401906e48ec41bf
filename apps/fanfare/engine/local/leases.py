"""Who does what only one may do: whoever has the kernel's lock on a file of that name. It passes on with the holder's
death."""

from __future__ import annotations

import asyncio

from fanfare.engine import interface
from fanfare.engine.local import liveness, place

POLL_S = 1.0  # how soon after the holder's death another one takes over


class LocalLease(interface.Lease):
    """Never lost before it is released: the kernel gives it to nobody else."""

    def __init__(self, lock: liveness.Lock) -> None:
        self.lost = asyncio.Event()
        self._lock = lock

    def release(self) -> None:
        self._lock.release(remove=False)


async def acquire(where: place.Place, name: str) -> LocalLease:
    """Wait for it."""
    folder = where.folder / "leases"
    folder.mkdir(exist_ok=True, mode=0o700)
    lock = liveness.Lock(folder / f"{name}.lock")
    while not lock.acquire():  # noqa: ASYNC110 - the kernel wakes nobody up who does not block
        await asyncio.sleep(POLL_S)
    return LocalLease(lock)
