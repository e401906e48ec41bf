"""The stores of the engines, and their failures."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg

from tests.harness import deployments, postgresql, redisserver
from tests.kills import chaos

AWAY_S = 1.0  # between the end of a store and its start

CRASH = "crash of the store (SIGQUIT)"
KILL = "SIGKILL to the store"
FREEZE = "store SIGSTOP and SIGCONT"
PROMOTE = "crash of the primary and promotion of the standby"
SWITCH = "planned failover"
PUBLISHER = "publisher SIGSTOP and SIGCONT"

PUBLISHING_S = (0.0, 0.5)  # for so long a publisher publishes before it is stopped
PUBLISHED_S = 60.0  # a continued publisher ends within this time


@dataclass
class Store:
    """`environment`: of all nodes. `acts`: the store's own failures. `order`: of all failures of a round.
    `places`: values of FANFARE_ENGINE to which the log is moved, in turn. `nodes`: the environment of each of several
    nodes, in addition."""

    environment: Mapping[str, str] = field(default_factory=dict)
    acts: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    order: tuple[str, ...] = chaos.ORDER
    places: tuple[str, ...] = ()
    nodes: Sequence[Mapping[str, str]] = ({},)


@contextlib.asynccontextmanager
async def local(*, failover: bool) -> AsyncIterator[Store]:
    yield Store()


@contextlib.asynccontextmanager
async def postgres(*, failover: bool) -> AsyncIterator[Store]:
    """`failover`: with a standby. A transaction holds an old snapshot of the first primary open."""
    with contextlib.ExitStack() as stack:
        primary = await asyncio.to_thread(stack.enter_context, postgresql.running())
        await asyncio.to_thread(primary.create, "realtime")
        folders = [primary.folder]
        promotions = {}
        if failover:
            pair = Pair(primary, await asyncio.to_thread(stack.enter_context, postgresql.standby(primary)))
            folders.append(pair.standby.folder)
            promotions = {
                SWITCH: lambda: asyncio.to_thread(pair.switch, signal.SIGINT),
                PROMOTE: lambda: asyncio.to_thread(pair.switch, signal.SIGQUIT),
            }
        hosts = ",".join(str(one) for one in folders)
        url = f"postgres://{postgresql.SUPERUSER}@/realtime?host={quote(hosts, safe='')}"
        if failover:
            url += "&target_session_attrs=read-write"
        snapshot = stack.enter_context(Snapshot(primary))
        environment = {
            "FANFARE_ENGINE": url,
            "FANFARE_SECRET_KEY": "the same on every node of a kill test " * 2,
            "DATABASE_URL": url,
        }
        yield Store(
            environment,
            {
                CRASH: lambda: _restarted(primary, signal.SIGQUIT, snapshot),
                KILL: lambda: _restarted(primary, signal.SIGKILL, snapshot),
                FREEZE: lambda: _frozen(primary),
                **promotions,
                PUBLISHER: lambda: _frozen_publisher(primary.folder / "publisher", environment),
            },
            (chaos.KILL, SWITCH, chaos.STOP, PROMOTE, chaos.TERM)
            if failover
            else (chaos.KILL, CRASH, PUBLISHER, chaos.STOP, KILL, chaos.TERM, FREEZE, CRASH, chaos.KILL, KILL),
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


class Pair:
    """A primary and its standby, which change places."""

    def __init__(self, primary: postgresql.Cluster, standby: postgresql.Cluster) -> None:
        self.primary = primary
        self.standby = standby

    def switch(self, number: signal.Signals) -> None:
        """End the primary and promote the standby. On SIGINT the primary first sends the standby everything; SIGQUIT
        is a crash. The former primary becomes the standby, with a new copy of the data."""
        self.primary.stop(number)
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        self.standby.follow(self.primary)


class Snapshot:
    """A transaction that keeps its snapshot while its server runs, so that vacuum removes no row deleted since."""

    def __init__(self, cluster: postgresql.Cluster) -> None:
        self._cluster = cluster
        self._connection: psycopg.Connection[Any] | None = None

    def take(self) -> None:
        """Begin the transaction; the one of a server that ended is over."""
        self.close()
        self._connection = self._cluster.connect("realtime")
        self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        self._connection.execute("SELECT count(*) FROM pg_class")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _restarted(cluster: postgresql.Cluster, number: signal.Signals, snapshot: Snapshot) -> None:
    await asyncio.to_thread(cluster.kill if number == signal.SIGKILL else lambda: cluster.stop(number))
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(cluster.start)
    await asyncio.to_thread(snapshot.take)


async def _frozen_publisher(folder: Path, environment: Mapping[str, str]) -> None:
    """Stop a process that publishes without a pause. It must publish again when it is continued."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.kills.steady_publisher",
        env=deployments.environment_of(folder, {**environment, "DJANGO_SETTINGS_MODULE": "myproject.settings"}),
        cwd=deployments.REPOSITORY,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline(), "the publisher ended before it had published"
        await asyncio.sleep(random.uniform(*PUBLISHING_S))
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(chaos.STOPPED_S)
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PUBLISHED_S):
            assert await process.wait() == 0, "the continued publisher could not publish"
    finally:
        if process.returncode is None:
            process.kill()


async def _frozen(cluster: postgresql.Cluster) -> None:
    cluster.freeze()
    try:
        await asyncio.sleep(chaos.STOPPED_S)
    finally:
        cluster.thaw()
