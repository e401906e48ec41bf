"""The clients of the model: with positions as the plugin keeps them, with a resume token, and of Server-Sent Events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from fanfare.hub import hub
from fanfare.protocol import sessions
from fanfare.sse import cursors
from tests.model import store as stores
from tests.unit.hub import doubles
from tests.unit.protocol import fakes
from tests.unit.sse import clients as event_streams

if TYPE_CHECKING:
    from tests.model.deployment import Deployment

CHANNEL = stores.CHANNEL


class Violation(AssertionError):
    """An invariant does not hold."""


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

    async def end(self) -> None:
        if self.worker is not None:
            self.session.end()

    def hear(self) -> None:
        """Handle the frames that came."""
        if self.worker is None or self.stalled:
            return
        frames = [orjson.loads(body) for body in self.writer.bodies[self._read :]]
        self._read = len(self.writer.bodies)
        for frame in frames:
            self._handle(frame)
        if self.writer.closed is not None:
            self._closed(*self.writer.closed)
            self.session.end()
            self.worker = None

    def _closed(self, code: int, reason: str) -> None:
        of_partition = {None, stores.PARTITIONS[CHANNEL]} & self._deployment.engines[self.worker or ""].gaps
        if reason.startswith("Events may have been missed") and not of_partition:
            raise Violation(f"{self.name}: closed with {code} because of a gap in another partition")

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

    def check_at_rest(self, newest: int) -> None:
        """`newest`: the last event that the store still has."""
        store = self._deployment.store
        if self.last is not None and self.last < newest:
            raise Violation(f"{self.name} has {self.last} and not {newest}, which was not reported")
        if self.position is not None and self.position != {"epoch": store.epoch, "offset": store.offset}:
            raise Violation(f"{self.name} is at {self.position}, the store at {store.epoch}:{store.offset}")

    @property
    def state(self) -> Any:
        """For `Deployment.fingerprint`."""
        position = tuple((self.position or {}).items())
        return (self.last, tuple(self.received), position, tuple(sorted(self.members)))


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


class StreamClient:
    """An EventSource on two channels. It reconnects with the `id:` of the last event that it handled."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.name = name
        self.worker: str | None = None
        self.subscribed = False
        self.cursor: str | None = None
        self.last: dict[str, int | None] = dict.fromkeys(stores.STREAMED)
        self.received: dict[str, list[int]] = {channel: [] for channel in stores.STREAMED}
        self._deployment = deployment
        self._response = event_streams.Response()
        self._tasks: list[asyncio.Future[None]] = []  # the requests
        self._read = 0

    @property
    def stalled(self) -> bool:
        return not self._response.reads.is_set()

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._response.reads.clear() if stalled else self._response.reads.set()

    def connect(self, worker: str) -> None:
        self.worker, self.subscribed, self._read = worker, False, 0
        self._response = event_streams.Response()
        more = {} if self.cursor is None else {"last_event_id": self.cursor}
        scope = event_streams.scope(
            f"channels={','.join(stores.STREAMED)}", key=fakes.APPLICATION.key, accept="text/event-stream", **more
        )
        application = self._deployment.event_streams[worker]
        self._tasks.append(asyncio.ensure_future(application(scope, self._response.receive, self._response.send)))

    def drop(self) -> None:
        self.hear()
        self._hang_up()
        self.worker = None

    def _hang_up(self) -> None:
        self._response.hang_up()
        self._response.reads.set()

    def hear(self) -> None:
        if self.worker is None or self.stalled:
            return
        events = self._response.events
        new, self._read = events[self._read :], len(events)
        for event in new:
            self._handle(event)
        if self._response.complete:
            self.worker = None

    def _handle(self, event: event_streams.Event) -> None:
        before = self._positions()
        self.cursor = event.id or self.cursor
        if event.name == "stream":
            self.subscribed = True
            for channel, stated in event.data["channels"].items():
                self._stated(channel, stated, before)
        elif event.name == "message":
            self._event(event, before)

    def _stated(self, channel: str, stated: dict[str, Any], before: dict[str, Any]) -> None:
        if not stated["recovered"]:
            self.last[channel] = None
        elif before.get(channel) is None or before[channel] != self._positions()[channel]:
            raise Violation(f"{self.name}: false `recovered` of {channel}: {self.cursor} after {before}")

    def _event(self, event: event_streams.Event, before: dict[str, Any]) -> None:
        channel, number = event.data["channel"], int(event.data["data"])
        last, received = self.last[channel], self.received[channel]
        if not self.subscribed:
            raise Violation(f"{self.name}: event {number} came before the report of the recovery")
        if number in received:
            raise Violation(f"{self.name}: event {number} of {channel} came twice")
        if last is not None:
            missed = [one for one in range(last + 1, number) if one in self._kept()]
            if number < last or missed:
                raise Violation(f"{self.name}: after event {last} came {number}, and {missed} were not reported")
        expected = before | {channel: before[channel]._replace(offset=before[channel].offset + 1)}
        if event.id is None or self._positions() != expected:
            raise Violation(f"{self.name}: the id of event {number} of {channel} is {event.id} after {before}")
        self.last[channel] = number
        received.append(number)

    def _positions(self) -> dict[str, Any]:
        if self.cursor is None:
            return {}
        return dict(zip(stores.STREAMED, cursors.parse(self.cursor, len(stores.STREAMED)), strict=True))

    def _kept(self) -> set[int]:
        return self._deployment.store.acknowledged - self._deployment.store.lost

    def check_at_rest(self, newest: int) -> None:
        store = self._deployment.store
        for channel, last in self.last.items():
            if last is not None and last < newest:
                raise Violation(f"{self.name} has {last} of {channel} and not {newest}, which was not reported")
        if self.subscribed and set(self._positions().values()) != {(store.epoch, store.offset)}:
            raise Violation(f"{self.name} is at {self.cursor}, the store at {store.epoch}:{store.offset}")

    @property
    def state(self) -> Any:
        """For `Deployment.fingerprint`."""
        received = tuple(tuple(numbers) for numbers in self.received.values())
        return (tuple(self.last.values()), received, self.cursor, self._response.status, len(self._response.events))

    async def end(self) -> None:
        self._hang_up()
        await asyncio.gather(*self._tasks)
