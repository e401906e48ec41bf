"""The stores of the engines, and their failures."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.harness import postgresql, redisserver
from tests.kills import chaos

AWAY_S = 1.0  # between the end of a store and its start

CRASH = "crash of the store (SIGQUIT)"
KILL = "SIGKILL to the store"
FREEZE = "store SIGSTOP and SIGCONT"
PROMOTE = "promotion of the standby"


@dataclass
class Store:
    """`environment`: of all nodes. `acts`: the store's own failures. `order`: of all failures of a round.
    `places`: values of FANFARE_ENGINE to which the log is moved, in turn."""

    environment: Mapping[str, str] = field(default_factory=dict)
    acts: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    order: tuple[str, ...] = chaos.ORDER
    places: tuple[str, ...] = ()


@contextlib.asynccontextmanager
async def local(*, failover: bool) -> AsyncIterator[Store]:
    yield Store()


@contextlib.asynccontextmanager
async def postgres(*, failover: bool) -> AsyncIterator[Store]:
    """`failover`: with a standby, which is promoted once."""
    with contextlib.ExitStack() as stack:
        primary = await asyncio.to_thread(stack.enter_context, postgresql.running())
        await asyncio.to_thread(primary.create, "realtime")
        folders = [primary.folder]
        standby = None
        if failover:
            standby = await asyncio.to_thread(stack.enter_context, postgresql.standby(primary))
            folders.append(standby.folder)
        hosts = ",".join(str(one) for one in folders)
        url = f"postgres://{postgresql.SUPERUSER}@/realtime?host={quote(hosts, safe='')}"
        if failover:
            url += "&target_session_attrs=read-write"
        yield Store(
            {
                "FANFARE_ENGINE": url,
                "FANFARE_SECRET_KEY": "the same on every node of a kill test " * 2,
                "DATABASE_URL": url,
            },
            {
                CRASH: lambda: _restarted(primary, signal.SIGQUIT),
                KILL: lambda: _restarted(primary, signal.SIGKILL),
                FREEZE: lambda: _frozen(primary),
                PROMOTE: lambda: _promoted(primary, standby),
            },
            (chaos.KILL, PROMOTE, chaos.STOP, chaos.TERM, chaos.KILL, chaos.KILL)
            if failover
            else (chaos.KILL, CRASH, chaos.STOP, KILL, chaos.TERM, FREEZE, CRASH, chaos.KILL, KILL),
        )


@contextlib.asynccontextmanager
async def moves(*, failover: bool) -> AsyncIterator[Store]:
    """Begins with the local engine."""
    with contextlib.ExitStack() as stack:
        cluster = await asyncio.to_thread(stack.enter_context, postgresql.running())
        await asyncio.to_thread(cluster.create, "realtime")
        server = await asyncio.to_thread(stack.enter_context, redisserver.running("--appendonly", "yes"))
        places = (cluster.url("realtime"), server.url(), cluster.url("realtime", schema="second"), "local")
        yield Store(
            {
                "FANFARE_ENGINE_NEXT": places[0],
                "FANFARE_SECRET_KEY": "the same on every node of a kill test " * 2,
                "DATABASE_URL": cluster.url("realtime"),
            },
            order=(chaos.MOVE,),
            places=places,
        )


async def _restarted(cluster: postgresql.Cluster, number: signal.Signals) -> None:
    await asyncio.to_thread(cluster.kill if number == signal.SIGKILL else lambda: cluster.stop(number))
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(cluster.start)


async def _frozen(cluster: postgresql.Cluster) -> None:
    cluster.freeze()
    try:
        await asyncio.sleep(chaos.STOPPED_S)
    finally:
        cluster.thaw()


async def _promoted(primary: postgresql.Cluster, standby: postgresql.Cluster | None) -> None:
    """Once: the standby is the primary afterwards, and the primary stays away."""
    if standby is not None and primary.is_running:
        await asyncio.to_thread(primary.stop, signal.SIGQUIT)
        await asyncio.to_thread(standby.promote)
