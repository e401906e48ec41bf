"""Leader leases: the worker that holds the lease of a name does the work of that name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fanfare.engine import interface
from fanfare.jobs import errors
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def held(engine: interface.Engine, name: str) -> AsyncIterator[interface.Lease]:
    """Wait for the lease, and hold it for the block.

    Raises LeaseLost if another worker may get the lease before the block ends; the block is cancelled then. The lease
    is released after the block with its cleanup has ended, so that two workers never do the work at the same time.
    Raises EngineUnavailable.
    """
    lease = await engine.lease(name)
    tasks = Supervisor(logger)
    try:
        async with asyncio.timeout(None) as block:
            tasks.spawn(f"watch over the lease {name}", _cancel_when_lost(lease, block))
            yield lease
    except TimeoutError as error:
        if not lease.lost.is_set() or not block.expired():
            raise
        raise errors.LeaseLost(f"Another worker may hold the lease {name!r} now") from error
    finally:
        lease.release()
        await tasks.stop()


async def _cancel_when_lost(lease: interface.Lease, block: asyncio.Timeout) -> None:
    await lease.lost.wait()
    block.reschedule(asyncio.get_running_loop().time())
