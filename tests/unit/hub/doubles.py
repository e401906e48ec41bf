"""A writer that records its frames, and an engine that answers when the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fanfare.engine import interface
from fanfare.hub import connections, event_frames, writers
from fanfare.hub import hub as hubs

APP = "1"


class FakeWriter:
    """Keeps what it is given. `full`: answer that too much is buffered."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.writes = 0
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self.gone = False  # the server below has given up
        self.full = False
        self.waiting = 0  # bytes that the client has not read

    def write(self, batch: writers.Batch) -> bool:
        assert self.closed is None, "nothing is written after a close"
        self.writes += 1
        self.bodies += batch.bodies
        return self.full

    def send(self, body: bytes) -> bool:
        return self.write(writers.Batch([body]))

    def close(self, code: int, reason: str = "") -> None:
        self.closed = self.closed or (code, reason)

    def abort(self) -> None:
        self.aborted = True

    def buffered(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.gone or self.closed is not None

    def is_gone(self) -> bool:
        return self.aborted


class ScriptedEngine(interface.Engine):
    """Attachments wait in `attaching` until the test answers them."""

    def __init__(self) -> None:
        self.attaching: list[tuple[interface.SubscribeRequest, interface.Ready]] = []
        self.admitting: list[tuple[int, interface.Ready]] = []
        self.left: list[tuple[str, str]] = []
        self.counts: dict[str, int] = {}
        self.appended: list[interface.Publication] = []
        self.deliver: interface.Deliver
        self.on_gap: interface.OnGap
        self.slow_to_write = False
        self.writing: list[Callable[[], None]] = []  # what waits for that
        self.listening: set[tuple[str, str]] = set()
        self._id = 0

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        self.deliver, self.on_gap = deliver, on_gap

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        self.attaching.append((wanted, ready))

    def answer(self, *members: interface.Member, **more: Any) -> None:
        """Settle the oldest attachment."""
        _, ready = self.attaching.pop(0)
        ready(interface.SubscribeResult(members, **more))

    def refuse(self, code: str) -> None:
        _, ready = self.attaching.pop(0)
        ready(interface.Refused(code, "no"))

    def entry(self, channel: str, body: bytes, **more: Any) -> interface.Entry:
        self._id += 1
        fields = {"kind": 0, "app": APP, "offset": None, "user_id": None, "exclude": None, **more}
        return interface.Entry(id=self._id, channel=channel, body=body, **fields)

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        self.left.append((channel, socket_id))

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        self.admitting.append((limit, ready))

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        self.counts[channel] = count

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        self.appended.append(publication)

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        self.appended += publications
        done: asyncio.Future[list[interface.Receipt]] = asyncio.get_running_loop().create_future()
        done.set_result([interface.Receipt(None, duplicate=False)] * len(publications))
        return done

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        raise AssertionError("the hub never blocks")

    def write_streams(self, *_: Any, **__: Any) -> list[interface.StreamReceipt]:
        raise NotImplementedError

    def revise(self, *_: Any, **__: Any) -> interface.Position | None:
        raise NotImplementedError

    def open_channel(self, *_: Any, **__: Any) -> interface.Position:
        raise NotImplementedError

    def update_member(self, *_: Any, **__: Any) -> bool:
        raise NotImplementedError

    def lease_member(self, *_: Any, **__: Any) -> bool | interface.Refused:
        raise NotImplementedError

    def release_member(self, *_: Any, **__: Any) -> bool:
        raise NotImplementedError

    async def close(self) -> None:
        return

    def health(self) -> interface.Health:
        return interface.Health(True, "ok")

    def statistics(self) -> dict[str, int | float]:
        return {"position": self._id}

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        raise NotImplementedError

    async def load_session(self, app: str, token: str) -> bytes | None:
        raise NotImplementedError

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        raise NotImplementedError

    def when_written(self, then: Callable[[], None]) -> None:
        self.writing.append(then) if self.slow_to_write else then()

    partitions = 1
    is_open = True

    def partition(self, app: str, channel: str) -> int:
        return 0

    def listen(self, app: str, channel: str, on: bool) -> None:
        (self.listening.add if on else self.listening.discard)((app, channel))

    async def ask(self, query: Callable[[interface.Queries], Any]) -> Any:
        raise AssertionError("not used by the hub")

    def queries(self) -> AbstractContextManager[interface.Queries]:
        raise AssertionError("not used by the hub")

    async def lease(self, name: str) -> interface.Lease:
        raise AssertionError("not used by the hub")

    async def consume(
        self,
        name: str,
        partition: int,
        kinds: frozenset[interface.Kind],
        *,
        after: int | None = None,
        transient: bool = False,
    ) -> interface.Consumer:
        raise AssertionError("not used by the hub")


class Client:
    """A connection with a fake writer, and the answers that it got."""

    def __init__(self, hub: hubs.Hub, socket_id: str, app: str = APP, *, with_offsets: bool = False) -> None:
        self.hub = hub
        self.writer = FakeWriter()
        self.answers: list[tuple[str, interface.SubscribeResult | interface.Refused]] = []
        self.refreshed_answers: list[tuple[connections.State, interface.SubscribeResult]] = []
        self.other_answers: list[interface.SubscribeResult | interface.Refused] = []
        self.lost: list[str] = []  # the reasons of recoveries that broke off
        self.cached: list[bytes | None] = []  # what came with them
        self.moved: list[str] = []  # channels that were watched and moved
        self.connection = hubs.Connection(
            app,
            socket_id,
            self.writer,
            self,
            close_frame=lambda code, text: b"bye %d" % code,
            with_offsets=with_offsets,
        )
        hub.connect(self.connection)

    def subscribe(self, channel: str, user_id: str | None = None, **more: Any) -> None:
        member = None if user_id is None else interface.Member(user_id, "null")
        self.hub.subscribe(self.connection, channel, member=member, **more)

    def unsubscribe(self, channel: str) -> None:
        self.hub.unsubscribe(self.connection, channel)

    def subscription(self, channel: str) -> connections.Subscription:
        return self.connection.subscriptions[channel]

    def state(self, channel: str) -> connections.State:
        subscription = self.connection.subscriptions.get(channel)
        return connections.State.LEFT if subscription is None else subscription.state

    def position(self, channel: str) -> interface.Position | None:
        return self.subscription(channel).position

    @property
    def got(self) -> list[bytes]:
        return self.writer.bodies

    # -- calls of the hub ----------------------------------------------------------------------------------------------

    def admitted(self, answer: interface.SubscribeResult | interface.Refused) -> None:
        self.other_answers.append(answer)

    signed_in = admitted

    def subscribed(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> None:
        self.answers.append((subscription.channel.name, answer))
        self.connection.send(event_frames.event("subscribed", subscription.channel.name, None))

    def refreshed(self, subscription: connections.Subscription, answer: interface.SubscribeResult, _: Any) -> None:
        self.refreshed_answers.append((subscription.state, answer))
        self.connection.send(event_frames.event("subscribed", subscription.channel.name, "again"))

    def refused(self, subscription: connections.Subscription, refusal: interface.Refused) -> None:
        self.answers.append((subscription.channel.name, refusal))

    def recovery_failed(self, subscription: connections.Subscription, reason: str, cached: bytes | None) -> None:
        self.lost.append(reason)
        self.cached.append(cached)

    def event_sent(self, subscription: connections.Subscription) -> None:
        self.moved.append(subscription.channel.name)


def subscribed(channel: str) -> bytes:
    """The frame with which `Client` answers its subscribe."""
    return event_frames.event("subscribed", channel, None)


def subscribed_again(channel: str) -> bytes:
    return event_frames.event("subscribed", channel, "again")
