"""Two nodes and a store in a network namespace. The network between one node and the store is cut, and heals.

The node stays reachable for its clients meanwhile; a load balancer sends new connections to nodes that are ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from tests.harness import namespaces, postgresql, redisserver
from tests.kills import chaos
from tests.kills.redis_stores import DURABLE
from tests.kills.stores import Store

NODES: Final = 2
SHORT, LONG = "cut for 3 s", "cut for 15 s"
CUTS_S: Final = {SHORT: 3.0, LONG: 15.0}  # shorter, and longer than a lease (10 s)
ORDER: Final = (SHORT, chaos.KILL, LONG, SHORT, chaos.TERM)
SECRET_KEY: Final = "the same on every node of a kill test " * 2


@contextlib.asynccontextmanager
async def postgres(*, failover: bool) -> AsyncIterator[Store]:
    """The database of Django is cut off too."""
    with contextlib.ExitStack() as stack:
        networks = await asyncio.to_thread(stack.enter_context, namespaces.networks(NODES))
        cluster = await asyncio.to_thread(stack.enter_context, postgresql.running(networks.under))
        await asyncio.to_thread(cluster.create, "realtime")
        urls = [f"postgres://{postgresql.SUPERUSER}@{networks.address(node)}/realtime" for node in range(1, NODES + 1)]
        nodes = [{"FANFARE_ENGINE": url, "DATABASE_URL": url} for url in urls]
        yield Store({"FANFARE_SECRET_KEY": SECRET_KEY}, _acts(networks), ORDER, nodes=nodes)


@contextlib.asynccontextmanager
async def redis(*, failover: bool) -> AsyncIterator[Store]:
    with contextlib.ExitStack() as stack:
        networks = await asyncio.to_thread(stack.enter_context, namespaces.networks(NODES))
        database = await asyncio.to_thread(stack.enter_context, postgresql.running())
        await asyncio.to_thread(database.create, "django")
        running = redisserver.running(*DURABLE, under=networks.under, host=networks.address(0))
        server = await asyncio.to_thread(stack.enter_context, running)
        nodes = [{"FANFARE_ENGINE": server.url(host=networks.address(node))} for node in range(1, NODES + 1)]
        environment = {"FANFARE_SECRET_KEY": SECRET_KEY, "DATABASE_URL": database.url("django")}
        yield Store(environment, _acts(networks), ORDER, nodes=nodes)


def _acts(networks: namespaces.Networks) -> dict[str, Callable[[], Awaitable[None]]]:
    nodes = itertools.cycle(range(1, networks.nodes + 1))

    async def cut(seconds: float) -> None:
        node = next(nodes)
        networks.cut(node)
        try:
            await asyncio.sleep(seconds)
        finally:
            networks.heal(node)

    return {name: lambda seconds=seconds: cut(seconds) for name, seconds in CUTS_S.items()}
