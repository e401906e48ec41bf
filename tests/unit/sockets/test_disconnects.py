"""A Channels consumer whose client is lost during a send still gets `disconnect()`, on every WebSocket class."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from typing import Any

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from uvicorn.protocols.utils import ClientDisconnected

from fanfare.sockets import asgi
from tests.harness import waiting
from tests.harness.wire import TEXT, Wire, WireFrame
from tests.unit.sockets.hosting import PATIENCE, STOCK, Hosted

SERVERS: dict[str, dict[str, Any]] = {
    "own": {"loop": "uvloop", "http": "httptools"},
    "own on asyncio and h11": {"loop": "asyncio", "http": "h11"},
    "websockets-sansio": {"ws": STOCK},
}
CLIENTS = 40


@pytest.fixture(autouse=True)
def without_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels closes the old database connections of its thread, where another test may have left one."""
    monkeypatch.setattr("channels.db.close_old_connections", lambda: None)


class Connected:
    """The consumers that have connected and not disconnected."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.ever = 0

    def add(self, n: int) -> None:
        with self.lock:
            self.now += n
            self.ever += max(0, n)


class Talkative(AsyncWebsocketConsumer):
    """Answers one message with many."""

    async def connect(self) -> None:
        self.scope["connected"].add(1)
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        for _ in range(100):
            await self.send("x" * 4_096)
            await asyncio.sleep(0)

    async def disconnect(self, code: int) -> None:
        await self.send("goodbye")  # a send here must not raise either
        self.scope["connected"].add(-1)


class TalkativeInAThread(WebsocketConsumer):
    def connect(self) -> None:
        self.scope["connected"].add(1)
        self.accept()

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        for _ in range(100):
            self.send("x" * 4_096)

    def disconnect(self, code: int) -> None:
        self.scope["connected"].add(-1)


def lose(client: Wire) -> None:
    """Close with RST, as a client that crashes."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client._reader.close()
    client.socket.close()


@pytest.mark.parametrize("consumer", [Talkative, TalkativeInAThread])
@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
def test_consumer_gets_disconnect_when_its_client_is_lost_during_a_send(
    options: dict[str, Any], consumer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connected = Connected()
    hosted = asgi.deliver_disconnect(consumer.as_asgi())

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await hosted({**scope, "connected": connected}, receive, send)

    with Hosted(application, **options) as server:
        clients = [Wire(server.port, "/") for _ in range(CLIENTS)]
        for client in clients:
            client.send(WireFrame(TEXT, b"talk"))
            for _ in range(random.randrange(3)):
                client.receive()
            lose(client)
        waiting.until(lambda: connected.ever == CLIENTS, PATIENCE, "all clients connected")
        waiting.until(lambda: connected.now == 0, PATIENCE, "every consumer has disconnected")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_exceptions_of_the_application_are_not_swallowed() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.send", "text": 7})

    async def send(message: Any) -> None:
        raise RuntimeError("Expected 'websocket.accept'")

    with pytest.raises(RuntimeError, match=r"websocket\.accept"):
        await asgi.deliver_disconnect(application)({"type": "websocket"}, None, send)


async def test_http_requests_pass_unchanged() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start"})

    async def send(message: Any) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await asgi.deliver_disconnect(application)({"type": "http"}, None, send)


async def test_consumer_that_only_sends_ends_after_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never receives the disconnect, and its sends leave the event loop to others."""
    monkeypatch.setattr(asgi, "GRACE_S", 0.05)
    sent = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        while True:
            await send({"type": "websocket.send", "text": "x"})
            sent += 1

    async def send(message: Any) -> None:
        raise ConnectionResetError

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ClientDisconnected):
            await asgi.deliver_disconnect(application)({"type": "websocket"}, None, send)
    assert sent > 1
