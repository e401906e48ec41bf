"""The failures, one after the other, at regular intervals."""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tests.harness import proxies, servers

KILL, TERM, STOP, RELOAD = "worker SIGKILL", "worker SIGTERM", "worker SIGSTOP and SIGCONT", "gunicorn SIGHUP"
MOVE = "move to another store"
RESTART, CRASH = "restart of the server", "SIGKILL to all processes"

ORDER = (KILL, STOP, TERM, RESTART, KILL, RELOAD, STOP, CRASH)

LOG_SECONDS = 1  # how long the log is kept; it is trimmed every 2 s
READY_LOOK_S = 0.5  # between two checks of which nodes are ready
STOPPED_S = 4.0  # longer than both, so that a stopped worker has a gap and must detect it


class RestartableServer:
    """A server that tests restart: `server` is the running one, and it has another port after each restart. `others`:
    further nodes, which are not restarted. Connections go to the nodes that are ready."""

    def __init__(self, fleet: servers.Fleet, server: servers.Server, others: Sequence[servers.Server] = ()) -> None:
        self.server = server
        self._others = others
        self._ready: list[servers.Server] = []  # of several nodes
        self._fleet = fleet

    @property
    def nodes(self) -> list[servers.Server]:
        return [self.server, *self._others]

    def proxy(self, life_s: tuple[float, float] | None = None) -> proxies.TcpProxy:
        """A new proxy to this server, which follows its restarts. `life_s`: see TcpProxy."""
        return proxies.TcpProxy(lambda: random.choice(self._ready or self.nodes).port, life_s)

    async def watch(self) -> None:
        """Look which of several nodes are ready, as a load balancer does, until cancelled."""
        while self._others:
            nodes = self.nodes
            ready = await asyncio.gather(*(asyncio.to_thread(node.is_ready) for node in nodes))
            self._ready = [node for node, is_ready in zip(nodes, ready, strict=True) if is_ready]
            await asyncio.sleep(READY_LOOK_S)

    def workers_of(self, ports: Sequence[int]) -> dict[int, int]:
        """See Server.workers_of."""
        return {port: pid for node in self.nodes for port, pid in node.workers_of(ports).items()}

    async def restart(self, end: Callable[[servers.Server], None]) -> None:
        command, deployment = self.server.command, self.server.deployment
        await asyncio.to_thread(end, self.server)
        self.server = await asyncio.to_thread(self._fleet.start, command, deployment)

    async def move(self, to: str, then: str) -> None:
        """Move the log while all run, and some time later restart with the new settings, as a deploy does. `then`:
        where the next move goes."""
        deployment = self.server.deployment
        await asyncio.to_thread(deployment.manage, "fanfare", "engine", "move", "--to", to)
        await asyncio.sleep(STOPPED_S)
        deployment.use(FANFARE_ENGINE=to, FANFARE_ENGINE_NEXT=then)
        await self.restart(servers.Server.stop)


class Chaos:
    """`victims`: the clients' proxies. Signals go to a worker that holds a connection of one of them. `more`: failures
    of the store. `places`: values of FANFARE_ENGINE to which the log is moved, in turn."""

    def __init__(
        self,
        restartable: RestartableServer,
        victims: Sequence[proxies.TcpProxy],
        more: Mapping[str, Callable[[], Awaitable[None]]] | None = None,
        places: Sequence[str] = (),
    ) -> None:
        self.done: collections.Counter[str] = collections.Counter()
        self._server = restartable
        self._victims = victims
        self._places = itertools.cycle(itertools.pairwise([*places, *places[:1]]))
        self._acts: dict[str, Callable[[], Awaitable[None]]] = {
            KILL: lambda: self._signal(signal.SIGKILL),
            TERM: lambda: self._signal(signal.SIGTERM),
            STOP: self._stop_and_continue,
            RELOAD: self._reload,
            RESTART: lambda: self._server.restart(servers.Server.stop),
            CRASH: lambda: self._server.restart(servers.Server.kill),
            MOVE: self._move,
            **(more or {}),
        }

    async def run(self, every_s: float, order: Sequence[str] = ORDER) -> None:
        """Cause the failures in `order`, again and again, until cancelled."""
        while True:
            for act in order:
                await asyncio.sleep(every_s)
                await self._acts[act]()
                self.done[act] += 1

    async def _signal(self, number: signal.Signals) -> None:
        os.kill(await self._victim(), number)

    async def _stop_and_continue(self) -> None:
        worker = await self._victim()
        os.kill(worker, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_S)
        finally:
            os.kill(worker, signal.SIGCONT)

    async def _move(self) -> None:
        await self._server.move(*next(self._places))

    async def _reload(self) -> None:
        self._server.server.send_signal(signal.SIGHUP)

    async def _victim(self) -> int:
        ports = [one.upstream_ports[-1] for one in self._victims if one.upstream_ports]
        found = await asyncio.to_thread(self._server.workers_of, ports)
        return random.choice(list(found.values()) or await asyncio.to_thread(self._server.server.workers))
