"""Fakes around the protocol: an application, a clock, an engine in memory, and an ASGI server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import orjson

from fanfare.applications import registry
from fanfare.engine import errors, interface
from fanfare.hub import connections
from fanfare.hub import hub as hubs
from fanfare.protocol import effects, handshake, recovery, session_owners, sessions, signatures, state_machine
from tests.unit.hub import doubles

SOCKET_ID = "1234.1234"
APPLICATION = registry.Application(
    id="3", key="278d425bdf160c739803", secret="7ad3773142a6692b25b8", client_events=True
)
DEADLINE_S = 30  # for what happens at once unless it never happens

Fields = dict[str, Any]


def application(**changes: Any) -> registry.Application:
    """APPLICATION, with other limits too: `application(max_event_bytes=10, enabled=False)`."""
    limits = {field.name for field in dataclasses.fields(registry.Limits)}
    return dataclasses.replace(
        APPLICATION,
        limits=registry.Limits(**{name: value for name, value in changes.items() if name in limits}),
        **{name: value for name, value in changes.items() if name not in limits},
    )


def auth(channel: str, channel_data: str | None = None, *, socket_id: str = SOCKET_ID) -> str:
    return signatures.subscription_auth(APPLICATION.key, APPLICATION.secret, socket_id, channel, channel_data)


def text(frame: Any) -> str:
    return orjson.dumps(frame).decode()


def subscribe(channel: str, channel_data: str | None = None, **changes: Any) -> str:
    """The frame of a client that may subscribe, unless `changes` to its data spoil it."""
    data: Fields = {"channel": channel, "auth": auth(channel, channel_data)}
    if channel_data is not None:
        data["channel_data"] = channel_data
    return text({"event": "pusher:subscribe", "data": {**data, **changes}})


def unsubscribe(channel: str) -> str:
    return text({"event": "pusher:unsubscribe", "data": {"channel": channel}})


def signin(user_data: str, /, *, socket_id: str = SOCKET_ID, **changes: Any) -> str:
    """The frame of a client that may sign in, unless `changes` to its data spoil it."""
    signature = signatures.user_auth(APPLICATION.key, APPLICATION.secret, socket_id, user_data)
    return text({"event": "pusher:signin", "data": {"auth": signature, "user_data": user_data, **changes}})


def client_event(channel: str, data: Any = None, event: str = "client-x") -> str:
    return text({"event": event, "channel": channel, "data": data})


def member(user_id: str, info: str = "null") -> interface.Member:
    return interface.Member(user_id, info)


class Machine:
    """An open state machine, with a clock that a test sets. The effects that change subscriptions are done as the hub
    does them; its answers come when a test says so."""

    def __init__(
        self, app: registry.Application = APPLICATION, *, opened: bool = True, max_subscriptions: int = 1_000
    ) -> None:
        self.now = 0.0
        self.wall_now = 1_700_000_000.0
        self.registry = registry.Registry()
        self.registry.put(app)
        self.connection = connections.Connection(app.id, SOCKET_ID, doubles.FakeWriter(), None)  # type: ignore[arg-type]
        self.protocol = state_machine.StateMachine(
            self.registry,
            app,
            SOCKET_ID,
            self.connection.subscriptions,
            activity_timeout=120,
            clock=lambda: self.now,
            wall_clock=lambda: self.wall_now,
            max_subscriptions=max_subscriptions,
        )
        if opened:
            self.protocol.established()

    def done(self, wanted: Sequence[effects.Effect]) -> list[effects.Effect]:
        """The effects, in place of each frame that waited those that it led to."""
        found: list[effects.Effect] = []
        for effect in wanted:
            if isinstance(effect, effects.Receive):
                found += self.done(self.protocol.received(effect.text))
                continue
            found.append(effect)
            subscriptions = self.connection.subscriptions
            if isinstance(effect, effects.Subscribe) and effect.channel not in subscriptions:
                subscriptions[effect.channel] = connections.Subscription(
                    self.connection,
                    connections.Channel(self.connection.app, effect.channel),
                    effect.member,
                    effect.asked.recovery,
                    effect.asked,
                )
            elif isinstance(effect, effects.Unsubscribe):
                subscriptions.pop(effect.channel).leave()
        return found

    def all_effects(self, frame: str) -> list[effects.Effect]:
        return self.done(self.protocol.received(frame))

    def receive(self, frame: str) -> list[effects.Effect]:
        """The effects of a frame, without the counts."""
        return without_counts(self.all_effects(frame))

    def established(self) -> list[effects.Effect]:
        return self.done(self.protocol.established())

    def subscribed(self, channel: str, **answer: Any) -> list[effects.Effect]:
        """The hub answers the first subscribe."""
        subscription = self.connection.subscriptions[channel]
        subscription.go_live()
        return list(self.protocol.subscribed(subscription, interface.SubscribeResult(**answer)))

    def refreshed(self, channel: str, asked: recovery.Asked = recovery.NOTHING, **answer: Any) -> list[effects.Effect]:
        """The hub answers a repeated subscribe."""
        subscription = self.connection.subscriptions[channel]
        return list(self.protocol.refreshed(subscription, interface.SubscribeResult(**answer), asked))

    def refused(self, channel: str, refusal: interface.Refused) -> list[effects.Effect]:
        """The hub refuses a subscribe, without the counts."""
        subscription = self.connection.subscriptions[channel]
        if subscription.state is connections.State.ATTACHING:
            del self.connection.subscriptions[channel]
            subscription.leave()
        return without_counts(self.protocol.refused(subscription, refusal))

    def join(self, channel: str, channel_data: str | None = None, *members: interface.Member) -> None:
        """Subscribe, with the hub's answer."""
        self.receive(subscribe(channel, channel_data))
        if channel in self.connection.subscriptions:
            self.subscribed(channel, members=members)

    def signed_in(self, answer: interface.SubscribeResult | interface.Refused) -> list[effects.Effect]:
        return self.done(self.protocol.signed_in(answer))

    def sign_in(self, user_data: str, *online: str) -> list[effects.Effect]:
        """Sign in, with the hub's answer; the effects of the answer, without the counts."""
        self.receive(signin(user_data))
        return without_counts(self.signed_in(interface.SubscribeResult(online=online)))

    def states(self) -> dict[str, connections.State]:
        return {channel: one.state for channel, one in self.connection.subscriptions.items()}


def session(
    hub: hubs.Hub,
    app: registry.Application,
    writer: Any,
    *,
    token: str | None = None,
    owners: session_owners.SessionOwners | None = None,
    with_offsets: bool = False,
    origin: str = "",
    **options: Any,
) -> sessions.Session:
    """A session of a client that has shaken hands."""
    applications = registry.Registry()
    applications.put(app)
    client = handshake.Client("test", "", "", "192.0.2.7")
    accepted = handshake.Handshake(app, client, token, with_offsets, origin)
    return sessions.Session(hub, applications, writer, accepted, options=sessions.Options(**options), owners=owners)


def without_counts(wanted: Sequence[effects.Effect]) -> list[effects.Effect]:
    return [effect for effect in wanted if not isinstance(effect, effects.Count)]


def counts(wanted: Sequence[effects.Effect]) -> list[str]:
    return [effect.name for effect in wanted if isinstance(effect, effects.Count)]


def sent(wanted: Sequence[effects.Effect]) -> list[Fields]:
    """The frames that the client gets."""
    return [orjson.loads(effect.body) for effect in wanted if isinstance(effect, effects.Send)]


class Engine(interface.Engine):
    """A deployment of one worker, in memory. While `held`, what needs the engine waits for `release`."""

    def __init__(self) -> None:
        self.held = False
        self.down = ""  # the reason why nothing can be published or joined
        self.published: list[interface.Publication] = []
        self.last_events: dict[str, bytes] = {}  # what cache channels hold
        self._announced: dict[tuple[str, str], int] = {}
        self._present: dict[str, dict[str, interface.Member]] = {}
        self._subscribers: dict[tuple[str, str], int] = {}
        self._waiting: list[Callable[[], None]] = []
        self._deliver: interface.Deliver = lambda entries: None
        self._next_id = 1

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        self._deliver = deliver

    async def close(self) -> None:
        pass

    def health(self) -> interface.Health:
        return interface.Health(ok=not self.down, reason=self.down)

    def statistics(self) -> dict[str, int | float]:
        return {}

    def deliver(self, entries: Sequence[interface.Entry]) -> None:
        """One read of the log, as it never was."""
        self._deliver(entries)

    def release(self) -> None:
        """What is wanted meanwhile comes after what waits."""
        while self._waiting:
            self._waiting.pop(0)()
        self.held = False

    def _soon(self, act: Callable[[], None]) -> None:
        self._waiting.append(act) if self.held else act()

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        try:
            done = self.append([publication])
        except errors.EngineError as error:
            failed(str(error))
        else:
            done.add_done_callback(lambda done: failed(str(done.exception())) if done.exception() else None)

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> asyncio.Future[list[interface.Receipt]]:
        done: asyncio.Future[list[interface.Receipt]] = asyncio.get_running_loop().create_future()

        def act() -> None:
            if self.down:
                done.set_exception(errors.EngineUnavailable(self.down))
            else:
                done.set_result([self._append(publication) for publication in publications])

        self._soon(act)
        return done

    def _append(self, one: interface.Publication) -> interface.Receipt:
        self.published.append(one)
        if one.cache_seconds is not None:
            self.last_events[one.channel] = one.body
        entry = interface.Entry(self._next_id, one.kind, one.app, one.channel, None, one.user_id, one.exclude, one.body)
        self._next_id += 1
        self._deliver([entry])
        return interface.Receipt(None, duplicate=False)

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        return [self._append(publication) for publication in publications]

    def write_streams(self, *_: Any, **__: Any) -> list[interface.StreamReceipt]:
        raise NotImplementedError

    def open_channel(self, *_: Any, **__: Any) -> interface.Position:
        raise NotImplementedError

    def revise(self, *_: Any, **__: Any) -> interface.Position | None:
        raise NotImplementedError

    def update_member(self, *_: Any, **__: Any) -> bool:
        raise NotImplementedError

    def lease_member(self, *_: Any, **__: Any) -> bool | interface.Refused:
        raise NotImplementedError

    def release_member(self, *_: Any, **__: Any) -> bool:
        raise NotImplementedError

    partitions = 1
    is_open = True

    def partition(self, app: str, channel: str) -> int:
        return 0

    def listen(self, app: str, channel: str, on: bool) -> None:
        pass

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        raise NotImplementedError

    async def load_session(self, app: str, token: str) -> bytes | None:
        raise NotImplementedError

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        raise NotImplementedError

    def when_written(self, then: Callable[[], None]) -> None:
        then()

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        self._subscribers[app, channel] = count
        if announce and self._announced.get((app, channel)) != count:
            self._announced[app, channel] = count
            self._soon(lambda: self._announce(app, channel, count))

    def _announce(self, app: str, channel: str, count: int) -> None:
        self._append(interface.Publication(app, channel, str(count).encode(), interface.Kind.COUNT))

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        channel, member, limit = wanted.channel, wanted.member, wanted.member_limit

        def act() -> None:
            if self.down:
                ready(interface.Refused("engine_unavailable", self.down))
                return
            present = self._present.setdefault(channel, {})
            if member is not None:
                others = {one.user_id for one in present.values()} - {member.user_id}
                if limit is not None and len(others) >= limit:
                    ready(interface.Refused("member_limit", "full", limit, len(others)))
                    return
                if member.user_id not in {one.user_id for one in present.values()}:
                    kind, info = interface.Kind.MEMBER_ADDED, member.info.encode()
                    self._append(interface.Publication(wanted.app, channel, info, kind, member.user_id))
                present[wanted.socket_id] = member
            members = {one.user_id: one for one in present.values()}
            ready(
                interface.SubscribeResult(
                    tuple(members.values()),
                    cached=self.last_events.get(channel) if wanted.cached else None,
                    subscribers=self._subscribers[wanted.app, channel] if wanted.counted else 0,
                    online=tuple(user_id for user_id in wanted.watch if user_id in members),
                )
            )

        self._soon(act)

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        def act() -> None:
            present = self._present.get(channel, {})
            gone = present.pop(socket_id, None)
            if gone is not None and gone.user_id not in {one.user_id for one in present.values()}:
                self._append(interface.Publication(app, channel, b"", interface.Kind.MEMBER_REMOVED, gone.user_id))

        self._soon(act)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        def act() -> None:
            now = self._subscribers[app, interface.CONNECTIONS]
            if now > limit:
                ready(interface.Refused("connection_limit", "full", limit, now))
            else:
                ready(interface.SubscribeResult())

        self._soon(act)

    async def lease(self, name: str) -> interface.Lease:
        raise NotImplementedError

    async def consume(
        self,
        name: str,
        partition: int,
        kinds: frozenset[interface.Kind],
        *,
        after: int | None = None,
        transient: bool = False,
    ) -> interface.Consumer:
        raise NotImplementedError

    async def ask(self, query: Callable[[interface.Queries], Any]) -> Any:
        raise NotImplementedError

    def queries(self) -> AbstractContextManager[interface.Queries]:
        raise AssertionError("not used by a worker")

    def present(self) -> dict[tuple[str, str], str]:
        """The members: user ids by channel and socket id."""
        return {
            (channel, socket_id): member.user_id
            for channel, present in self._present.items()
            for socket_id, member in present.items()
        }

    def subscribers(self) -> dict[str, int]:
        """The number of subscribers of each channel that has any."""
        return {channel: count for (_, channel), count in self._subscribers.items() if count}

    def members(self, channel: str) -> list[interface.Member]:
        return list(self._present.get(channel, {}).values())


class Browser:
    """One WebSocket to an ASGI application, as a server below would drive it."""

    def __init__(
        self,
        application: Any,
        path: str = f"/app/{APPLICATION.key}",
        query: bytes = b"protocol=7&client=js&version=8.6.0",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.scope: Fields = {
            "type": "websocket",
            "path": path,
            "query_string": query,
            "headers": list(headers),
            "client": ("192.0.2.7", 50_000),
        }
        self.frames: list[Fields] = []
        self.closed: tuple[int, str] | None = None
        self.socket_id = ""
        self._events: asyncio.Queue[Fields] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self.say({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(application(self.scope, self._events.get, self._receive))

    async def _receive(self, message: Fields) -> None:
        async with self._changed:
            if message["type"] == "websocket.send":
                self.frames.append(orjson.loads(message["text"]))
            elif message["type"] == "websocket.close":
                self.closed = (message["code"], message["reason"])
            self._changed.notify_all()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(condition)

    async def repeats(self, counters: Mapping[str, int]) -> None:
        """Wait until the hub has repeated a request to the engine."""
        async with asyncio.timeout(DEADLINE_S):
            while not counters["subscribes.repeated"]:
                await asyncio.sleep(0.01)

    async def frame(self, event: str) -> Fields:
        """The newest frame of this event, as soon as there is one."""
        await self.until(lambda: any(frame["event"] == event for frame in self.frames))
        return next(frame for frame in reversed(self.frames) if frame["event"] == event)

    async def connected(self) -> Browser:
        frame = await self.frame("pusher:connection_established")
        self.socket_id = orjson.loads(frame["data"])["socket_id"]
        return self

    def events(self) -> list[str]:
        """The names of all frames, oldest first."""
        return [frame["event"] for frame in self.frames]

    async def drained(self) -> None:
        """All that was said until now has been answered: a ping comes back after it."""
        pongs = sum(frame["event"] == "pusher:pong" for frame in self.frames)
        self.send('{"event":"pusher:ping"}')
        await self.until(lambda: sum(frame["event"] == "pusher:pong" for frame in self.frames) > pongs)

    async def subscribe(self, channel: str, channel_data: str | None = None) -> None:
        self.send(subscribe(channel, channel_data, auth=auth(channel, channel_data, socket_id=self.socket_id)))
        await self.until(
            lambda: any(
                frame["event"] == "pusher_internal:subscription_succeeded" and frame["channel"] == channel
                for frame in self.frames
            )
        )

    async def sign_in(self, user_data: str) -> None:
        self.send(signin(user_data, socket_id=self.socket_id))
        await self.frame("pusher:signin_success")

    def send(self, frame: str) -> None:
        self.say({"type": "websocket.receive", "text": frame})

    def say(self, event: Fields) -> None:
        self._events.put_nowait(event)

    async def leave(self) -> None:
        """Gone; the application has noticed when this returns."""
        self.say({"type": "websocket.disconnect", "code": 1001})
        async with asyncio.timeout(DEADLINE_S):
            await self.task
