"""Redis alone, with Sentinel and as a cluster, Valkey alone, and their failures.

In a round without `failover` the store keeps what it acknowledged, under one run id: no event may be lost. In a round
with it a server dies, is replaced or is emptied; what is lost then must be reported. Each act ends when the store is
whole again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from fanfare.engine.redis import address
from fanfare.engine.redis import engine as redis_engine
from tests.harness import postgresql, redisserver, waiting
from tests.kills import chaos
from tests.kills.stores import AWAY_S, FREEZE, KILL, Store

DISCONNECT, PAUSE, FULL, FLUSH = "CLIENT KILL", "CLIENT PAUSE for 1.5 s", "full memory for 1 s", "FLUSHALL"
REPLACE, DEMOTE = "SIGKILL to the primary", "freeze of the primary until it is replaced"
SWITCH = "planned failover"
RESHARD, KILL_REPLICA = "move of a slot", "SIGKILL to a replica"

PAUSE_MS: Final = 1_500
FULL_S: Final = 1.0
FAILOVER_S: Final = 6.0  # a replica gives up a planned failover after 5 s
WHOLE_S: Final = 60.0  # until a failover is done and the former primary is a replica: a sentinel waits 10 s

DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "everysec")
QUIET: Final = (chaos.KILL, DISCONNECT, chaos.STOP, PAUSE, chaos.TERM, FREEZE, FULL, chaos.KILL, DISCONNECT)

Act = Callable[[], Awaitable[None]]
Primary = Callable[[], redisserver.Server]


@contextlib.asynccontextmanager
async def single(*, failover: bool, **options: bool) -> AsyncIterator[Store]:
    with contextlib.ExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, redisserver.running(*DURABLE, **options))
        acts = {**_quiet(lambda: server), KILL: _act(_restart, server), FLUSH: _act(_flush, server)}
        order = (KILL, chaos.KILL, FLUSH, chaos.STOP, KILL, FLUSH) if failover else QUIET
        yield await _store(stack, server.url(), acts, order)


valkey = functools.partial(single, is_valkey=True)


@contextlib.asynccontextmanager
async def sentinel(*, failover: bool) -> AsyncIterator[Store]:
    with contextlib.ExitStack() as stack:
        watched = await asyncio.to_thread(stack.enter_context, redisserver.watched())
        acts = {
            **_quiet(watched.primary),
            SWITCH: _act(_switch, watched),
            REPLACE: _act(_replace, watched),
            DEMOTE: _act(_demote, watched),
        }
        order = (SWITCH, chaos.KILL, REPLACE, SWITCH, DEMOTE, chaos.STOP) if failover else _without(FREEZE)
        yield await _store(stack, watched.url(), acts, order)


@contextlib.asynccontextmanager
async def cluster(*, failover: bool) -> AsyncIterator[Store]:
    """The acts concern the partition of the channel `counts` of the first application."""
    with contextlib.ExitStack() as stack:
        servers = await asyncio.to_thread(stack.enter_context, redisserver.cluster())
        partition = address.partition_of("1", "counts", redis_engine.PARTITIONS)
        prefix = address.key_prefix(address.DEFAULT_PREFIX, partition, redis_engine.PARTITIONS)
        slot = address.slot_of(prefix.partition("{")[2].partition("}")[0])
        acts = {
            **_quiet(lambda: servers.server_of(slot)),
            SWITCH: _act(_switch_in_cluster, servers, slot),
            REPLACE: _act(_replace_in_cluster, servers, slot),
            DEMOTE: _act(_demote_in_cluster, servers, slot),
            RESHARD: _act(_reshard, servers, slot),
            KILL_REPLICA: _act(_kill_replica, servers),
        }
        order = (SWITCH, chaos.KILL, REPLACE, RESHARD, SWITCH, KILL_REPLICA, DEMOTE, chaos.STOP)
        if not failover:
            order = _without(FREEZE)
        yield await _store(stack, servers.url(), acts, order)


def _without(act: str) -> tuple[str, ...]:
    """Its sentinels or its peers would replace a server that is frozen for long."""
    return tuple(each for each in QUIET if each != act)


async def _store(stack: contextlib.ExitStack, url: str, acts: dict[str, Act], order: tuple[str, ...]) -> Store:
    database = await asyncio.to_thread(stack.enter_context, postgresql.running())
    await asyncio.to_thread(database.create, "django")
    environment = {
        "FANFARE_ENGINE": url,
        "FANFARE_SECRET_KEY": "the same on every node of a kill test " * 2,
        "DATABASE_URL": database.url("django"),
    }
    return Store(environment, acts, order)


def _act(function: Callable[..., None], *arguments: object) -> Act:
    """In a thread: the acts block."""
    return lambda: asyncio.to_thread(function, *arguments)


# -- a primary that stays ----------------------------------------------------------------------------------------------


def _quiet(primary: Primary) -> dict[str, Act]:
    return {
        DISCONNECT: _act(_disconnect, primary),
        PAUSE: _act(_pause, primary),
        FULL: lambda: _full(primary),
        FREEZE: lambda: _freeze(primary),
    }


def _disconnect(primary: Primary) -> None:
    with primary().client() as client:
        for kind in ("pubsub", "normal"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind)


def _pause(primary: Primary) -> None:
    with primary().client() as client:
        client.execute_command("CLIENT", "PAUSE", PAUSE_MS, "ALL")


async def _full(primary: Primary) -> None:
    server = await asyncio.to_thread(primary)
    with server.client() as client:
        await asyncio.to_thread(client.config_set, "maxmemory", 1)
        try:
            await asyncio.sleep(FULL_S)
        finally:
            await asyncio.to_thread(client.config_set, "maxmemory", 0)


async def _freeze(primary: Primary) -> None:
    server = await asyncio.to_thread(primary)
    server.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(chaos.STOPPED_S)
    finally:
        server.signal(signal.SIGCONT)


# -- losses ------------------------------------------------------------------------------------------------------------


def _restart(server: redisserver.Server) -> None:
    server.kill()
    time.sleep(AWAY_S)
    server.start()


def _flush(server: redisserver.Server) -> None:
    with server.client() as client:
        client.flushall()


def _switch(watched: redisserver.Watched) -> None:
    """SENTINEL FAILOVER. The sentinels do not wait until the replica has everything."""
    before = watched.primary()
    waiting.until(watched.fail_over, WHOLE_S, "a sentinel begins the failover")
    waiting.until(lambda: watched.primary() is not before, WHOLE_S, "the promotion")
    _until_replicated(watched)


def _replace(watched: redisserver.Watched) -> None:
    before = watched.primary()
    before.kill()
    waiting.until(lambda: watched.primary() is not before, WHOLE_S, "the promotion")
    before.start()
    _until_replicated(watched)


def _demote(watched: redisserver.Watched) -> None:
    before = watched.primary()
    before.signal(signal.SIGSTOP)
    try:
        waiting.until(lambda: watched.primary() is not before, WHOLE_S, "the promotion")
    finally:
        before.signal(signal.SIGCONT)
    _until_replicated(watched)


def _until_replicated(watched: redisserver.Watched) -> None:
    def is_whole() -> bool:
        with watched.primary().client() as client:
            replica = client.info("replication").get("slave0")
            return bool(replica) and replica["state"] == "online"

    waiting.until(is_whole, WHOLE_S, "the former primary is a replica")


def _switch_in_cluster(cluster: redisserver.Cluster, slot: int) -> None:
    """CLUSTER FAILOVER: the primary takes no writes until its replica has everything."""
    before = cluster.server_of(slot)
    asked_s = float("-inf")

    def is_switched() -> bool:
        nonlocal asked_s
        if _owner(cluster, slot, but=before) is not None:
            return True
        if time.monotonic() - asked_s > FAILOVER_S:
            asked_s = time.monotonic()
            cluster.fail_over(before)
        return False

    waiting.until(is_switched, WHOLE_S, "the planned failover")
    waiting.until(cluster.is_whole, WHOLE_S, "the cluster is whole")


def _replace_in_cluster(cluster: redisserver.Cluster, slot: int) -> None:
    before = cluster.server_of(slot)
    before.kill()
    waiting.until(lambda: _owner(cluster, slot, but=before) is not None, WHOLE_S, "the failover")
    before.start()
    waiting.until(cluster.is_whole, WHOLE_S, "the cluster is whole")


def _demote_in_cluster(cluster: redisserver.Cluster, slot: int) -> None:
    before = cluster.server_of(slot)
    before.signal(signal.SIGSTOP)
    try:
        waiting.until(lambda: _owner(cluster, slot, but=before) is not None, WHOLE_S, "the failover")
    finally:
        before.signal(signal.SIGCONT)
    waiting.until(cluster.is_whole, WHOLE_S, "the cluster is whole")


def _owner(cluster: redisserver.Cluster, slot: int, *, but: redisserver.Server) -> redisserver.Server | None:
    found = cluster.server_of(slot, but=but)
    return None if found is but else found


def _reshard(cluster: redisserver.Cluster, slot: int) -> None:
    source = cluster.server_of(slot)
    target = random.choice([each for each in cluster.primaries() if each is not source])
    cluster.move_slot(source, target, slot)


def _kill_replica(cluster: redisserver.Cluster) -> None:
    primaries = cluster.primaries()
    replica = next(each for each in cluster.servers if each not in primaries)
    replica.kill()
    time.sleep(AWAY_S)
    replica.start()
    waiting.until(cluster.is_whole, WHOLE_S, "the cluster is whole")
