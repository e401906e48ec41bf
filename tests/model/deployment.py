"""A deployment of the model: workers with real hubs, sessions and event streams, and their clients."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fanfare.applications import registry, rules
from fanfare.engine import errors, interface
from fanfare.hub import attempts, event_frames, hub
from fanfare.protocol import session_owners
from fanfare.sse import asgi
from tests.model import clients
from tests.model import store as stores
from tests.model.clients import Violation
from tests.unit.protocol import fakes

Action = tuple[str, ...]


@dataclass(frozen=True)
class Bounds:
    """`events`: published at most. `kept`: events of the history. `tokens`: so many of the clients have a resume token
    and no positions, and `streams` of them read event streams. `waits`: time passes, and clients stall. `moves`: of the
    log to a new store. `stages`: other steps come between those of a worker that goes over."""

    workers: int = 2
    clients: int = 2
    events: int = 3
    kept: int = 2
    faults: int = 1
    tokens: int = 0
    streams: int = 0
    waits: bool = False
    moves: int = 0
    stages: bool = False


WAITS_S = ("0.3", "6", "70")  # a ping is due; the next one; a token is not refused any more


class Deployment:
    """`act` does one step; `actions` are those that are possible."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.store = stores.Store(bounds.kept)
        self.channels = (stores.CHANNEL, *stores.STREAMED) if bounds.streams else (stores.CHANNEL,)
        rule = rules.Rule("*kept*", history_size=bounds.kept, history_seconds=60)
        self.application = fakes.application(rules=rules.Rules((rule,)))
        applications = registry.Registry()
        applications.put(self.application)
        self.engines = {name: stores.Engine(self.store, name) for name in self._names("w", bounds.workers)}
        self.hubs = {name: hub.Hub(engine) for name, engine in self.engines.items()}
        self.owners = {name: session_owners.SessionOwners(one, time.time) for name, one in self.hubs.items()}
        self.event_streams = {name: asgi.Sse(one, applications) for name, one in self.hubs.items()}
        with_positions = bounds.clients - bounds.tokens - bounds.streams
        kinds: list[type[clients.Client | clients.StreamClient]] = [
            *[clients.Client] * with_positions,
            *[clients.TokenClient] * bounds.tokens,
            *[clients.StreamClient] * bounds.streams,
        ]
        names = self._names("c", bounds.clients)
        self.clients = {name: kind(self, name) for name, kind in zip(names, kinds, strict=True)}
        self._pause_s = 0.0
        self._goes_over: str | None = None  # the worker that switches to the new store in this step
        # Workers between two stages of that: the new engine, and the call that leaves the old one.
        self._going: dict[str, tuple[stores.Engine, asyncio.Future[None] | None]] = {}
        self.faults = self.moves = 0
        self.state: Any = None  # before the end of a run

    @staticmethod
    def _names(prefix: str, number: int) -> list[str]:
        return [f"{prefix}{index}" for index in range(number)]

    async def start(self) -> None:
        random.seed(0)  # pings are spread at random
        for one in self.hubs.values():
            await one.start()

    async def stop(self) -> None:
        for client in self.clients.values():
            await client.end()
        for worker in list(self._going):
            await self._arrive(worker)
        for one in self.hubs.values():
            await one.stop()

    # -- actions -------------------------------------------------------------------------------------------------------

    def actions(self) -> Iterator[Action]:
        if self.store.counter < self.bounds.events:
            yield ("publish",)
        for name, client in self.clients.items():
            if client.worker is None:
                yield from (("connect", name, worker) for worker in self.engines if worker not in self._going)
            else:
                yield ("drop", name)
                if self.bounds.waits and not client.stalled:
                    yield ("stall", name)
        for name, engine in self.engines.items():
            if engine.writes:
                yield ("commit", name)
            if engine.is_behind:
                yield ("read", name)
            if name in self._going:
                yield ("arrive", name)
            elif engine.store.is_moved:
                yield ("go over", name)
                if self.bounds.stages and not engine.knows_move:
                    yield ("notice", name)
        if self.bounds.waits:
            yield from (("wait", seconds) for seconds in WAITS_S)
        if self.moves < self.bounds.moves:
            yield ("move",)
        if self.faults >= self.bounds.faults:
            return
        if any(entry.kind == interface.Kind.EVENT for entry in self.store.log):
            yield ("lose tail",)
        if self.store.expired_to < self.store.offset:
            yield ("expire",)
        if self.store.trimmed_to < self.store.top:
            yield ("trim",)
        for name, engine in self.engines.items():
            if engine.writes:
                yield ("fail", name)
                yield ("commit without answer", name)
                yield ("commit twice", name)
            if name in self._going:
                yield ("refuse", name)
            if self.bounds.streams and engine.can_miss:
                yield from (("miss", name, partition) for partition in ("0", "1"))

    def act(self, action: Action) -> None:
        name, *arguments = action
        match name, arguments:
            case "publish", []:
                self._publish()
            case "connect", [client, worker]:
                self.clients[client].connect(worker)
            case "drop", [client]:
                self.clients[client].drop()
            case "commit", [worker]:
                self.engines[worker].commit()
            case "read", [worker]:
                self.engines[worker].read()
            case "move", []:
                self.moves += 1
                self.store = self.store.moved()
            case "go over" | "arrive", [worker]:
                self._goes_over = worker
            case "notice", [worker]:
                self.engines[worker].notice()
            case "refuse", [worker]:
                self._goes_over, self._going[worker][0].refuses_open = worker, True
                self.faults += 1
            case "lose tail", []:
                self._fault(self.store.lose_tail)
            case "expire", []:
                self._fault(self.store.expire)
            case "trim", []:
                self._fault(self.store.trim)
            case "fail", [worker]:
                self._fault(self.engines[worker].fail)
            case "commit without answer", [worker]:
                self._fault(lambda: self.engines[worker].commit(answered=False))
            case "commit twice", [worker]:
                self._fault(lambda: self.engines[worker].commit(times=2))
            case "miss", [worker, partition]:
                self._fault(lambda: self.engines[worker].miss(int(partition)))
            case "stall", [client]:
                self.clients[client].stalled = True
            case "wait", [seconds]:
                self._pause_s = float(seconds)
                for one in self.clients.values():
                    if one.stalled and one.worker is not None and self._pause_s > 1:
                        one.drop()  # the WebSocket's own ping is not answered
            case _:
                raise ValueError(action)

    async def settle(self) -> None:
        """Let the loop run what the action has started, and the clients handle their frames."""
        if self._goes_over is not None:
            await self._go_over(self._goes_over)
            self._goes_over = None
        pause_s, self._pause_s = self._pause_s, 0.0
        await asyncio.sleep(pause_s)
        for _ in range(5 if not self.bounds.streams else 12):
            await asyncio.sleep(0)
        for client in self.clients.values():
            client.hear()

    async def _go_over(self, worker: str) -> None:
        """In stages, other steps come between the two parts."""
        if worker not in self._going:
            await self._depart(worker)
            if self.bounds.stages:
                return
        await self._arrive(worker)

    async def _depart(self, worker: str) -> None:
        """The sockets that do not stall end while the worker closes them, the others later."""
        before = self.engines[worker]
        following = stores.Engine(self.store, worker)
        following.gaps = before.gaps
        if self.bounds.stages:
            before.closing = asyncio.get_running_loop().create_future()
        self._going[worker] = following, asyncio.ensure_future(self.hubs[worker].go_over(following))
        await asyncio.sleep(0)
        for client in self.clients.values():
            if client.worker == worker:
                client.hear()

    async def _arrive(self, worker: str) -> None:
        following, going = self._going[worker]
        before, self.engines[worker] = self.engines[worker], following
        following.store = self.store  # which may have been moved once more
        if before.closing is not None and not before.closing.done():
            before.closing.set_result(None)
        try:
            await (going or self.hubs[worker].go_over(following))
        except errors.EngineUnavailable:
            self._going[worker] = following, None
        else:
            del self._going[worker]

    def _publish(self) -> None:
        self.store.counter += 1
        number = self.store.counter
        self.store.publish({channel: event_frames.event("counted", channel, str(number)) for channel in self.channels})
        self.store.acknowledged.add(number)

    def _fault(self, cause: Callable[[], None]) -> None:
        self.faults += 1
        cause()

    # -- the end of a run ----------------------------------------------------------------------------------------------

    async def quiesce(self) -> None:
        """Without faults and without new actions, everything comes to its end; then the deployment agrees."""
        for client in self.clients.values():
            client.stalled = False
        for worker in self.engines:
            while worker in self._going or self.engines[worker].store.is_moved:
                self._goes_over = worker
                await self.settle()
        await self.settle()
        for _ in range(200):
            busy = [engine for engine in self.engines.values() if engine.writes or engine.is_behind]
            if not busy:
                # A request that the engine refused may be repeated.
                self._pause_s = 2 * attempts.LONGEST_PAUSE_S
                await self.settle()
                if not any(engine.writes or engine.is_behind for engine in self.engines.values()):
                    break
                continue
            for engine in busy:
                if engine.writes:
                    engine.commit()
                if engine.is_behind:
                    engine.read()
                await self.settle()
        else:
            raise Violation("the deployment does not come to rest")
        connected = [client for client in self.clients.values() if client.worker is not None and client.subscribed]
        members = [client for client in connected if isinstance(client, clients.Client)]
        live = {client.name for client in members}
        stored = {member.user_id for member in self.store.members.values()}
        if stored != live:
            raise Violation(f"members in the store: {sorted(stored)}, live clients: {sorted(live)}")
        newest = max(self.store.acknowledged - self.store.lost, default=0)
        for client in members:
            if client.members != live:
                raise Violation(f"{client.name} sees {sorted(client.members)}, live clients: {sorted(live)}")
        for client in connected:
            client.check_at_rest(newest)

    def fingerprint(self) -> Any:
        """Equal for states from which the same can follow."""
        store = self.store
        return (
            store.counter,
            store.generation,
            store.trimmed_to,
            store.expired_to,
            tuple((entry.id, entry.kind, entry.user_id, entry.offset) for entry in store.log),
            tuple(store.lost),
            tuple(member.user_id for member in store.members.values()),
            self.faults,
            self.moves,
            tuple((engine.store.is_moved, engine.knows_move, engine.is_open) for engine in self.engines.values()),
            tuple(self._going),
            tuple(
                (engine.position, engine.generation, tuple(what for what, *_ in engine.writes), len(engine.waiting))
                for engine in self.engines.values()
            ),
            tuple((client.worker, client.subscribed, client.state) for client in self.clients.values()),
            tuple(
                tuple((one.channel.name, one.state, one.sent) for one in connection.subscriptions.values())
                for hub_ in self.hubs.values()
                for connection in hub_.by_socket.values()
            ),
        )


def play(
    on: asyncio.AbstractEventLoop, bounds: Bounds, actions: Sequence[Action], *, skip: bool = False
) -> tuple[Deployment, list[Action]]:
    """Do these actions, then bring the deployment to rest; the state before that, and what was possible there.

    `skip`: pass over actions that are not possible, as in a shrunk run. Raises Violation.
    """
    deployment = Deployment(bounds)
    possible: list[Action] = []

    async def run() -> None:
        await deployment.start()
        try:
            for action in actions:
                if skip and action not in set(deployment.actions()):
                    continue
                deployment.act(action)
                await deployment.settle()
            possible.extend(deployment.actions())
            deployment.state = deployment.fingerprint()
            await deployment.quiesce()
        finally:
            await deployment.stop()

    on.run_until_complete(run())
    return deployment, possible
