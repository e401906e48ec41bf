"""A deployment of the model: workers with real hubs and sessions, and clients that keep positions as a plugin does."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import event_frames, hub
from fanfare.protocol import session_owners, sessions
from tests.model import store as stores
from tests.unit.hub import doubles
from tests.unit.protocol import fakes

CHANNEL = "presence-kept"
Action = tuple[str, ...]


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Bounds:
    """`events`: published at most. `kept`: events of the history. `tokens`: so many of the clients have a resume token
    and no positions. `waits`: time passes, and clients stall."""

    workers: int = 2
    clients: int = 2
    events: int = 3
    kept: int = 2
    faults: int = 1
    tokens: int = 0
    waits: bool = False


WAITS_S = ("0.3", "6", "70")  # a ping is due; the next one; a token is not refused any more


class Client:
    """One page. `last`: the number of the event that it received last, None if it may have missed events and knows."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.name = name
        self.worker: str | None = None
        self.position: dict[str, Any] | None = None  # as the plugin keeps it
        self.last: int | None = None
        self.received: list[int] = []
        self.members: set[str] = set()
        self.subscribed = False
        self.stalled = False  # frames are written to it, and it does not get them
        self._deployment = deployment
        self._read = 0

    def connect(self, worker: str) -> None:
        self.worker, self.subscribed, self.stalled, self._read, self.members = worker, False, False, 0, set()
        self.writer = doubles.FakeWriter()
        self.session = self._session(self._deployment.hubs[worker])
        self.socket_id = self.session._connection.socket_id
        self.session.open()
        data = orjson.dumps({"user_id": self.name}).decode()
        auth = fakes.auth(CHANNEL, data, socket_id=self.socket_id)
        more = {} if self.position is None else {"resume": self.position}
        self.session.received(fakes.subscribe(CHANNEL, data, auth=auth, **more))

    def _session(self, hub_: hub.Hub) -> sessions.Session:
        return fakes.session(hub_, self._deployment.application, self.writer, with_offsets=True)

    def drop(self) -> None:
        self.hear()
        self.session.end()
        self.worker = None

    def hear(self) -> None:
        """Handle the frames that came."""
        if self.worker is None or self.stalled:
            return
        frames = [orjson.loads(body) for body in self.writer.bodies[self._read :]]
        self._read = len(self.writer.bodies)
        for frame in frames:
            self._handle(frame)
        if self.writer.closed is not None:
            self.session.end()
            self.worker = None

    def _handle(self, frame: dict[str, Any]) -> None:
        event = frame["event"]
        data = frame.get("data")
        fields = orjson.loads(data) if isinstance(data, str) and data.startswith("{") else {}
        if event == "pusher_internal:subscription_succeeded":
            self.subscribed = True
            self.members = set(fields["presence"]["ids"])
        elif event == "pusher:stream":
            self._stream(fields)
        elif event == "pusher:stream_reset":
            self.last = None
            self.position = {"epoch": fields["epoch"], "offset": fields["offset"]} if "epoch" in fields else None
        elif event == "pusher_internal:member_added":
            self.members.add(fields["user_id"])
        elif event == "pusher_internal:member_removed":
            self.members.discard(fields["user_id"])
        elif event == "counted":
            self._event(int(frame["data"]), frame)

    def _stream(self, fields: dict[str, Any]) -> None:
        if fields["recovered"]:
            if self.position is None or fields["epoch"] != self.position["epoch"]:
                raise Violation(f"{self.name}: false `recovered`: {fields} after {self.position}")
            return
        self.last = None
        self.position = None if fields["epoch"] is None else {"epoch": fields["epoch"], "offset": fields["offset"]}

    def _event(self, number: int, frame: dict[str, Any]) -> None:
        offset = frame["offset"]
        if not self.subscribed:
            raise Violation(f"{self.name}: event {number} came before the answer to the subscribe")
        if number in self.received:
            raise Violation(f"{self.name}: event {number} came twice")
        if self.last is not None:
            missed = self._missed(self.last, number)
            if number < self.last or missed:
                raise Violation(f"{self.name}: after event {self.last} came {number}, and {missed} were not reported")
        if self.position is None or offset != self.position["offset"] + 1:
            raise Violation(f"{self.name}: offset {offset} came after {self.position}")
        self.position = {**self.position, "offset": offset}
        self.last = number
        self.received.append(number)

    def _missed(self, last: int, number: int) -> list[int]:
        """The events between these that the store still has."""
        store = self._deployment.store
        return [one for one in range(last + 1, number) if one in store.acknowledged and one not in store.lost]


class TokenClient(Client):
    """A page with a resume token. After a reconnect it may get events again, each once for each connection.

    Nothing is promised before its first record is stored: a socket that comes back sooner is that of a new page.
    """

    def __init__(self, deployment: Deployment, name: str) -> None:
        super().__init__(deployment, name)
        self.token = f"token-of-the-page-{name}"

    def connect(self, worker: str) -> None:
        self.received = []
        super().connect(worker)

    def _session(self, hub_: hub.Hub) -> sessions.Session:
        application, owners = self._deployment.application, self._deployment.owners[self.worker or ""]
        return fakes.session(hub_, application, self.writer, token=self.token, owners=owners)

    def _handle(self, frame: dict[str, Any]) -> None:
        if frame["event"] == "pusher:ping":
            self.session.received(fakes.text({"event": "pusher:pong", "data": {}}))
        elif frame["event"] == "pusher:resume_failed":
            self.last = None
        else:
            super()._handle(frame)

    def _event(self, number: int, frame: dict[str, Any]) -> None:
        if not self.subscribed:
            raise Violation(f"{self.name}: event {number} came before the answer to the subscribe")
        if self.received and number <= self.received[-1]:
            raise Violation(f"{self.name}: event {number} came after {self.received[-1]} in one connection")
        missed = self._missed(self.last, number) if self.last is not None else []
        if missed:
            raise Violation(f"{self.name}: after event {self.last} came {number}, and {missed} were not reported")
        self.received.append(number)
        if self.last is not None or CHANNEL in self._deployment.store.positions_of(self.token):
            self.last = max(number, self.last or 0)


class Deployment:
    """`act` does one step; `actions` are those that are possible."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.store = stores.Store(bounds.kept)
        rule = rules.Rule("presence-kept*", history_size=bounds.kept, history_seconds=60)
        self.application = fakes.application(rules=rules.Rules((rule,)))
        self.engines = {name: stores.Engine(self.store, name) for name in self._names("w", bounds.workers)}
        self.hubs = {name: hub.Hub(engine) for name, engine in self.engines.items()}
        self.owners = {name: session_owners.SessionOwners(one, time.time) for name, one in self.hubs.items()}
        names = self._names("c", bounds.clients)
        with_positions = bounds.clients - bounds.tokens
        self.clients = {name: Client(self, name) for name in names[:with_positions]}
        self.clients |= {name: TokenClient(self, name) for name in names[with_positions:]}
        self._pause_s = 0.0
        self.faults = 0
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
            if client.worker is not None:
                client.session.end()
        for one in self.hubs.values():
            await one.stop()

    # -- actions -------------------------------------------------------------------------------------------------------

    def actions(self) -> Iterator[Action]:
        if self.store.counter < self.bounds.events:
            yield ("publish",)
        for name, client in self.clients.items():
            if client.worker is None:
                yield from (("connect", name, worker) for worker in self.engines)
            else:
                yield ("drop", name)
                if self.bounds.waits and not client.stalled:
                    yield ("stall", name)
        for name, engine in self.engines.items():
            if engine.writes:
                yield ("commit", name)
            if engine.is_behind:
                yield ("read", name)
        if self.bounds.waits:
            yield from (("wait", seconds) for seconds in WAITS_S)
        if self.faults >= self.bounds.faults:
            return
        if any(entry.kind == interface.Kind.EVENT for entry in self.store.log):
            yield ("lose tail",)
        if self.store.trimmed_to < self.store.top:
            yield ("trim",)
        for name, engine in self.engines.items():
            if engine.writes:
                yield ("fail", name)
                yield ("commit without answer", name)
                yield ("commit twice", name)

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
            case "lose tail", []:
                self._fault(self.store.lose_tail)
            case "trim", []:
                self._fault(self.store.trim)
            case "fail", [worker]:
                self._fault(self.engines[worker].fail)
            case "commit without answer", [worker]:
                self._fault(lambda: self.engines[worker].commit(answered=False))
            case "commit twice", [worker]:
                self._fault(lambda: self.engines[worker].commit(times=2))
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
        pause_s, self._pause_s = self._pause_s, 0.0
        await asyncio.sleep(pause_s)
        for _ in range(5):
            await asyncio.sleep(0)
        for client in self.clients.values():
            client.hear()

    def _publish(self) -> None:
        self.store.counter += 1
        number = self.store.counter
        body = event_frames.event("counted", CHANNEL, str(number))
        self.store.append(interface.Kind.EVENT, CHANNEL, body)
        self.store.acknowledged.add(number)

    def _fault(self, cause: Callable[[], None]) -> None:
        self.faults += 1
        cause()

    # -- the end of a run ----------------------------------------------------------------------------------------------

    async def quiesce(self) -> None:
        """Without faults and without new actions, everything comes to its end; then the deployment agrees."""
        for client in self.clients.values():
            client.stalled = False
        await self.settle()
        for _ in range(200):
            busy = [engine for engine in self.engines.values() if engine.writes or engine.is_behind]
            if not busy:
                break
            for engine in busy:
                if engine.writes:
                    engine.commit()
                if engine.is_behind:
                    engine.read()
                await self.settle()
        else:
            raise Violation("the deployment does not come to rest")
        live = {client.name for client in self.clients.values() if client.worker is not None and client.subscribed}
        stored = {member.user_id for member in self.store.members.values()}
        if stored != live:
            raise Violation(f"members in the store: {sorted(stored)}, live clients: {sorted(live)}")
        newest = max(self.store.acknowledged - self.store.lost, default=0)
        for client in self.clients.values():
            if client.name not in live:
                continue
            if client.members != live:
                raise Violation(f"{client.name} sees {sorted(client.members)}, live clients: {sorted(live)}")
            if client.last is not None and client.last < newest:
                raise Violation(f"{client.name} has {client.last} and not {newest}, which was not reported")

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
            tuple(
                (engine.position, engine.generation, tuple(what for what, *_ in engine.writes), len(engine.waiting))
                for engine in self.engines.values()
            ),
            tuple(
                (
                    client.worker,
                    client.subscribed,
                    client.last,
                    tuple(client.received),
                    tuple((client.position or {}).items()),
                    tuple(sorted(client.members)),
                    self._state(client),
                )
                for client in self.clients.values()
            ),
        )

    def _state(self, client: Client) -> Any:
        if client.worker is None:
            return None
        subscription = client.session._connection.subscriptions.get(CHANNEL)
        return None if subscription is None else (subscription.state, subscription.sent)


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
