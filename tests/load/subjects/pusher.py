"""The client for all servers with the Pusher protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.harness import deployments, signing
from tests.load import connections, errors, events, processes, publishers, subjects

# More than all connections carry together, so that the server has a next request while the subscribers read; and 10 kB
# per subscriber, far below the 1 MiB at which Fanfare disconnects a slow one.
WINDOW = 64

SUBSCRIBE = connections.text(json.dumps({"event": "pusher:subscribe", "data": {"channel": events.CHANNEL}}).encode())


class Running:
    """One server process with one application that allows client events."""

    def __init__(self, process: processes.Process, application: deployments.Application) -> None:
        self.pid = process.pid
        self.port = process.port
        self.application = application
        self.target = f"/app/{application.key}?protocol=7&client=js&version=8.4.0&flash=false"

    def greeting(self) -> connections.Dialogue:
        yield from connected()

    def joining(self) -> connections.Dialogue:
        yield from connected()
        expect((yield SUBSCRIBE), "pusher_internal:subscription_succeeded")

    def room_target(self, room: str) -> str:
        return self.target

    def joining_room(self, room: str) -> connections.Dialogue:
        yield from connected()
        subscribe = json.dumps({"event": "pusher:subscribe", "data": {"channel": room}})
        expect((yield connections.text(subscribe.encode())), "pusher_internal:subscription_succeeded")

    def room_request(self, room: str, number: int) -> bytes:
        body = json.dumps({**_event(number), "channels": [room]}).encode()
        route = f"/apps/{self.application.id}/events"
        return publishers.post(signing.path(self.application, "POST", route, body), body)

    def ways(self) -> Mapping[str, subjects.Way]:
        return {"POST events, 16 connections": subjects.Way(lambda: self.http(16), WINDOW)}

    def requests(self, batch: int) -> Callable[[int, int], bytes]:
        return requests(self.application, batch)

    def http(self, connections: int, batch: int = 1) -> publishers.Http:
        return publishers.Http(self.port, requests(self.application, batch), connections, batch)


def requests(application: deployments.Application, batch: int = 1) -> Callable[[int, int], bytes]:
    """A function that makes signed requests to `events`, or to `batch_events` if `batch` is more than 1."""
    route = f"/apps/{application.id}/{'events' if batch == 1 else 'batch_events'}"

    def request(first: int, count: int) -> bytes:
        body = json.dumps(_event(first) if batch == 1 else _batch(first, count)).encode()
        return publishers.post(signing.path(application, "POST", route, body), body)

    return request


def connected() -> connections.Dialogue:
    expect((yield b""), "pusher:connection_established")


def expect(payload: bytes, event: str) -> Any:
    """The data of a message, which must be this event. Raises Lost."""
    message = json.loads(payload)
    if message.get("event") != event:
        raise errors.Lost(f"expected {event}, received {payload!r}")
    return message.get("data")


def _event(number: int) -> dict[str, Any]:
    return {"name": events.NAME, "channels": [events.CHANNEL], "data": events.data(number)}


def _batch(first: int, count: int) -> dict[str, Any]:
    numbers = range(first, first + count)
    return {"batch": [{"name": events.NAME, "channel": events.CHANNEL, "data": events.data(one)} for one in numbers]}
