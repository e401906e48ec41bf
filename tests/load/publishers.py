"""Publishers: one interface for each method of publishing, driven by the loop that reads the subscribers.

The publisher shares the client's core. It saturates the server but does not run ahead of the subscribers: the loop
limits the number of events in flight.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from fanfare.engine import interface
from fanfare.engine.local import engine
from fanfare.hub import event_frames
from tests.harness import servers, wire
from tests.load import errors, events, subscribers


class Publisher(Protocol):
    def publish(self, first: int, room: int) -> int:
        """Start to publish at most `room` events, numbered from `first`. Returns how many it started, maybe 0."""

    def watched(self) -> Mapping[int, subscribers.Ready]:
        """The functions to call when these file descriptors are readable."""

    def close(self) -> None: ...


class Http:
    """One request at a time per connection. `request(first, count)` makes the bytes for `count` events from `first`."""

    def __init__(self, port: int, request: Callable[[int, int], bytes], connections: int, batch: int = 1) -> None:
        self._request = request
        self._batch = batch
        self._connections = [HttpConnection(port) for _ in range(connections)]

    def publish(self, first: int, room: int) -> int:
        begun = 0
        for connection in self._connections:
            count = min(self._batch, room - begun)
            if not count:
                break
            if not connection.busy:
                connection.send(self._request(first + begun, count))
                begun += count
        return begun

    def watched(self) -> Mapping[int, subscribers.Ready]:
        return {one.fileno(): one.ready for one in self._connections}

    def close(self) -> None:
        for one in self._connections:
            one.close()


def post(target: str, body: bytes) -> bytes:
    """A POST request."""
    head = f"POST {target} HTTP/1.1\r\nHost: {servers.HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class HttpConnection:
    """A keep-alive connection; reconnects if the server closes it after a response, or while it is idle."""

    def __init__(self, port: int) -> None:
        self.busy = False
        self._port = port
        self._answer = b""
        self._poll = select.epoll(1)  # stays valid when the socket changes
        self._connect()

    def fileno(self) -> int:
        return self._poll.fileno()

    def send(self, request: bytes) -> None:
        self.socket.sendall(request)
        self.busy = True

    def ready(self) -> None:
        """Read a part of the response. Raises Refused unless its status is 200 or 201."""
        received = self.socket.recv(65_536)
        if not received and not self.busy:
            self._reconnect()
            return
        self._answer += received
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not received or (end and b" 20" not in head[:16]):
            raise errors.Refused(f"the server refused a publication: {self._answer[:500]!r}")
        if end and len(body) >= _content_length(head):
            self._answer = b""
            self.busy = False
            if b"connection: close" in head.lower():
                self._reconnect()

    def close(self) -> None:
        self._poll.close()
        self.socket.close()

    def _reconnect(self) -> None:
        self.socket.close()
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection((servers.HOST, self._port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll.register(self.socket, select.EPOLLIN)


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise errors.Refused(f"response without Content-Length: {head!r}")


class Log:
    """Appends to the log from this process, as a task worker would. The server does the fan-out only."""

    GROUP = 10  # events per append

    def __init__(self, folder: Path, app: str) -> None:
        self._app = app
        self._engine = engine.LocalEngine(folder / "engine")

    def publish(self, first: int, room: int) -> int:
        count = min(self.GROUP, room)
        publications = [
            interface.Publication(
                self._app, events.CHANNEL, event_frames.event(events.NAME, events.CHANNEL, events.data(number))
            )
            for number in range(first, first + count)
        ]
        if publications:
            self._engine.append_blocking(publications)
        return count

    def watched(self) -> Mapping[int, subscribers.Ready]:
        return {}

    def close(self) -> None:
        asyncio.run(self._engine.close())


class WebSocket:
    """One WebSocket; the server publishes each text frame."""

    def __init__(self, port: int, target: str) -> None:
        self._wire = wire.Wire(port, target)

    def publish(self, first: int, room: int) -> int:
        self._wire.send(*(wire.WireFrame(wire.TEXT, events.body(number)) for number in range(first, first + room)))
        return room

    def watched(self) -> Mapping[int, subscribers.Ready]:
        return {self._wire.socket.fileno(): self._ready}

    def close(self) -> None:
        self._wire.__exit__()

    def _ready(self) -> None:
        frame = self._wire.receive()
        if frame is None or frame.opcode != wire.PING:
            raise errors.Refused(f"the publishing WebSocket received {frame}")
        self._wire.send(wire.WireFrame(wire.PONG, frame.payload))
