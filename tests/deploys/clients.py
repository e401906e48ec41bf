"""Many resuming clients in one process. Each has a token, subscribes to one channel, and reconnects like pusher-js."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from tests.harness import servers, wire
from tests.harness.deployments import Application
from tests.load import connections

CHANNEL: Final = "counts"
EVENT: Final = "counted"
AT_ONCE_CODES: Final = range(4200, 4300)
RETRY_S: Final = 1.0  # pusher-js's pause after a lost connection, and the plugin's
SPREAD_S: Final = 1.0  # of the plugin's retries
PATIENCE_S: Final = 20.0  # for a handshake


@dataclass
class Fleet:
    """All clients, and what they saw. Times are of time.monotonic()."""

    port: int
    application: Application
    channel: str = CHANNEL
    clients: list[Client] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)  # close codes, counted
    away_s: list[float] = field(default_factory=list)  # from the loss of a connection until the client is subscribed
    delays_s: list[tuple[float, float]] = field(default_factory=list)  # (when, publish to receive) of live events
    failures: list[str] = field(default_factory=list)

    async def open(self, count: int, at_once: int = 100) -> None:
        """Connect `count` more clients and wait until each is subscribed."""
        new = [Client(self) for _ in range(count)]
        self.clients += new
        gate = asyncio.Semaphore(at_once)

        async def one(client: Client) -> None:
            async with gate:
                client.connect()
                await client.live.wait()

        async with asyncio.timeout(60 + count / 50), asyncio.TaskGroup() as group:
            for client in new:
                group.create_task(one(client))

    def close(self) -> None:
        for client in self.clients:
            client.stop()

    @property
    def live(self) -> int:
        return sum(client.live.is_set() for client in self.clients)


class Client(asyncio.Protocol):
    """`received`: the numbers of events. `lost`: the reasons why the server could not resume."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.token = uuid4().hex
        self.live = asyncio.Event()
        self.received: set[int] = set()
        self.duplicates = 0
        self.lost: list[str] = []
        self.last_live_s = 0.0
        self._lost_s = 0.0
        self.closes = 0
        self._connects = 0
        self._transport: Any = None
        self._frames: connections.Frames | None = None
        self._head = b""
        self._code = 1006
        self._stopped = False
        self._task: asyncio.Task[Any] | None = None

    def connect(self) -> None:
        if not self._stopped:
            self._task = asyncio.get_running_loop().create_task(self._open())

    def stop(self) -> None:
        self._stopped = True
        if self._transport is not None:
            self._transport.abort()

    def drop(self) -> None:
        """Lose the connection, and return at once."""
        self._code = 4200
        self.live.clear()
        self._transport.abort()

    async def _open(self) -> None:
        self._frames, self._head, self._code = None, b"", 1006
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().create_connection(lambda: self, servers.HOST, self.fleet.port)
        except (OSError, TimeoutError):
            self._retry(RETRY_S)

    def _retry(self, pause_s: float) -> None:
        spread_s = random.uniform(0, SPREAD_S) if pause_s else 0.0
        asyncio.get_running_loop().call_later(pause_s + spread_s, self.connect)

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /s/{self.token}/app/{self.fleet.application.key}?protocol=7&client=js&version=8.4.0 HTTP/1.1\r\n"
            f"Host: {servers.HOST}:{self.fleet.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if self._frames is None:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head[:16]:
                self._transport.abort()
                return
            self._frames = connections.Frames()
        if not data:
            return
        at = data.find(bytes((0x80 | wire.CLOSE,)))
        try:
            payloads = self._frames.feed(data)
        except connections.errors.Lost:
            # A close frame: the code follows its two bytes. Frames before it in the same read are resent on resume.
            close = data[at + 2 : at + 4] if at >= 0 else b""
            self._code = int.from_bytes(close, "big") if len(close) == 2 else 1006
            self._transport.abort()
            return
        for payload in payloads:
            self._handle(json.loads(payload))
        pings, self._frames.pings = self._frames.pings, []
        for ping in pings:
            self._transport.write(connections.pong(ping))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stopped:
            return
        was_live = self.live.is_set()
        self.live.clear()
        if was_live:
            self.closes += 1
            self._lost_s = time.monotonic()
            self.fleet.codes[self._code] = self.fleet.codes.get(self._code, 0) + 1
        self._retry(0.0 if self._code in AT_ONCE_CODES else RETRY_S)

    # -- frames --------------------------------------------------------------------------------------------------------

    def _handle(self, frame: dict[str, Any]) -> None:
        event = frame["event"]
        if event == EVENT:
            self._count(json.loads(frame["data"]))
        elif event == "pusher:connection_established":
            self._send({"event": "pusher:subscribe", "data": {"channel": self.fleet.channel}})
        elif event == "pusher_internal:subscription_succeeded":
            self._connects += 1
            self.last_live_s = time.monotonic()
            if self._lost_s:
                self.fleet.away_s.append(self.last_live_s - self._lost_s)
                self._lost_s = 0.0
            self.live.set()
        elif event == "pusher:ping":
            self._send({"event": "pusher:pong", "data": {}})
        elif event == "pusher:resume_failed":
            self.lost.append(str(frame["data"]))
        elif event == "pusher:error":
            self._code = frame["data"].get("code") or 1006

    def _count(self, data: dict[str, Any]) -> None:
        number, sent_s = data["n"], data["at"]
        if number in self.received:
            self.duplicates += 1
            return
        self.received.add(number)
        now = time.monotonic()
        # An event that was published before this connection was subscribed is a resumed one.
        if self.live.is_set() and sent_s > self.last_live_s:
            self.fleet.delays_s.append((now, now - sent_s))

    def _send(self, frame: dict[str, Any]) -> None:
        self._transport.write(connections.text(json.dumps(frame).encode()))
