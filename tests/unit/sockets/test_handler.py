"""Handshakes that a handler opens without an ASGI application."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fanfare.hub import on_uvicorn
from fanfare.hub.writers import Batch
from fanfare.sockets import accept_gate, frames, handshake, http_limits, protocol
from tests.harness import servers, waiting
from tests.harness.wire import CLOSE, TEXT, Wire, WireFrame
from tests.unit.sockets.hosting import PATIENCE, Hosted, ask

UPGRADE = (
    b"GET /mine HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

Handle = Callable[[protocol.WebSocketProtocol, handshake.Request], bool]
Serve = Callable[..., Hosted]


class Echo:
    """A listener that greets, and echoes each message."""

    def __init__(self, connection: protocol.WebSocketProtocol) -> None:
        self.answers: dict[bytes, bytes] = {}
        self.connection = connection
        self.ended = 0

    def received(self, text: str) -> None:
        self.connection.send(text.encode())

    def received_binary(self) -> None: ...

    def restart(self) -> None: ...

    def end(self) -> None:
        self.ended += 1


class Writes:
    """A transport that records what is written to it."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.all: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.all.append(data)
        self.transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def greet(connection: protocol.WebSocketProtocol) -> None:
    connection.send(b"greeting")


class Handler:
    """Takes targets below "/mine" only. `fails`: before or after the accept. `begins`: what it does before it reads."""

    def __init__(self, fails: str = "", begins: Callable[[protocol.WebSocketProtocol], object] = greet) -> None:
        self.fails = fails
        self.begins = begins
        self.listeners: list[Echo] = []
        self.writes: list[bytes] = []  # of the last connection, until it reads

    def __call__(self, connection: protocol.WebSocketProtocol, request: handshake.Request) -> bool:
        if not request.target.startswith(b"/mine"):
            return False
        if self.fails == "before":
            raise LookupError
        transport = connection._transport
        connection._transport = writes = Writes(transport)
        self.listeners.append(Echo(connection))
        connection.accept_for(self.listeners[-1], request, connection.client)
        if self.fails == "after":
            raise LookupError
        self.begins(connection)
        connection.read_on()
        connection._transport, self.writes = transport, writes.all
        return True


async def denying(scope: Any, receive: Any, send: Any) -> None:
    """The application answers a handshake that the handler has not taken."""
    await receive()
    await send({"type": "websocket.close"})


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(handler: Handler, gate: accept_gate.AcceptGate | None = None) -> Hosted:
            hosted = Hosted(denying, ws_ping_interval=None)
            setattr(hosted.server.config, protocol.HANDLER, handler)
            setattr(hosted.server.config, accept_gate.GATE, gate)
            return stack.enter_context(hosted)

        yield start


def test_handled_connection_is_served_without_a_task(serve: Serve) -> None:
    handler = Handler()
    hosted = serve(handler)
    with Wire(hosted.port, "/mine") as client:
        client.send(WireFrame(TEXT, b"one"))
        assert [client.receive() for _ in range(2)] == [WireFrame(TEXT, b"greeting"), WireFrame(TEXT, b"one")]
        assert hosted.tasks() == 0
    waiting.until(lambda: handler.listeners[0].ended, PATIENCE, "the listener was told of the end")
    waiting.until(lambda: hosted.connections() == 0, PATIENCE, "the connection was forgotten")
    assert handler.listeners[0].ended == 1


@pytest.mark.parametrize(
    ("begins", "frame"),
    [
        pytest.param(greet, frames.text(b"greeting"), id="frame"),
        pytest.param(lambda one: one.write(Batch([b"greeting"])), frames.text(b"greeting"), id="batch"),
        pytest.param(lambda _: None, b"", id="nothing"),
    ],
)
def test_answer_to_the_handshake_and_the_first_frame_are_one_write(serve: Serve, begins: Any, frame: bytes) -> None:
    handler = Handler(begins=begins)
    with Wire(serve(handler).port, "/mine") as client:
        client.send(WireFrame(TEXT, b"one"))
        if frame:
            assert client.receive() == WireFrame(TEXT, b"greeting")
        assert client.receive() == WireFrame(TEXT, b"one")
    written = handler.writes[0]
    assert written.startswith(b"HTTP/1.1 101 ")
    assert written.partition(b"\r\n\r\n")[2] == frame
    assert handler.writes[1:] in ([], [frames.text(b"one")])


def test_close_before_the_first_frame_follows_the_answer_to_the_handshake(serve: Serve) -> None:
    handler = Handler(begins=lambda one: one.close(4100, "full"))
    with Wire(serve(handler).port, "/mine") as client:
        assert client.receive() == WireFrame(CLOSE, (4100).to_bytes(2, "big") + b"full")
    waiting.until(lambda: handler.listeners[0].ended, PATIENCE, "the listener was told of the end")


@pytest.mark.parametrize(
    ("target", "logged"),
    [
        ("/mine?protocol=7", "/mine?protocol=7"),
        ("/mine?", "/mine"),
        ('/mine/"a:b"%2f%41', "/mine/%22a%3Ab%22/A"),
        ("/mine/s/abcdefghijklmnopqrst/app/key", "/mine/s/…/app/key"),
    ],
)
def test_each_handled_accept_is_logged_as_by_uvicorn(
    serve: Serve, caplog: pytest.LogCaptureFixture, target: str, logged: str
) -> None:
    """The path is quoted in one way, and a resume token is not logged."""
    on_uvicorn.install_log_filters()
    caplog.set_level(logging.INFO, "uvicorn.error")
    with Wire(serve(Handler()).port, target) as client:
        address = f"{servers.HOST}:{client.local_port}"
        assert client.receive() == WireFrame(TEXT, b"greeting")

    def lines() -> list[str]:
        return [record.getMessage() for record in list(caplog.records) if "WebSocket" in record.msg]

    waiting.until(lambda: bool(lines()), PATIENCE, "the handshake is logged")
    assert lines() == [f'{address} - "WebSocket {logged}" [accepted]']


def test_other_handshake_goes_to_the_application(serve: Serve) -> None:
    handler = Handler()
    assert ask(serve(handler).port, "/another")[0] == 403
    assert not handler.listeners


def test_handler_that_fails_before_the_accept_is_answered_with_500(serve: Serve) -> None:
    assert ask(serve(Handler("before")).port, "/mine")[0] == 500


def test_handler_that_fails_after_the_accept_closes_with_1011(serve: Serve) -> None:
    handler = Handler("after")
    with Wire(serve(handler).port, "/mine") as client:
        closed = client.receive()
        assert closed is not None
        assert closed.opcode == CLOSE
        assert closed.payload[:2] == frames.INTERNAL_ERROR.to_bytes(2, "big")
    waiting.until(lambda: handler.listeners[0].ended, PATIENCE, "the listener was told of the end")


@pytest.mark.parametrize("parser", ["first bytes", "uvicorn"])
def test_offers_of_the_client_are_not_accepted(parser: str) -> None:
    """As through ASGI: neither an extension nor a subprotocol, but the server's own headers."""
    options: dict[str, Any] = {"ws_ping_interval": None}
    if parser == "first bytes":
        config = SimpleNamespace(http_protocol_class=HttpToolsProtocol)
        assert http_limits.install(config, http_limits.HttpLimits(), lambda _: None)
        options["http"] = config.http_protocol_class
    hosted = Hosted(denying, **options)
    setattr(hosted.server.config, protocol.HANDLER, Handler())
    offers = {"Sec_WebSocket_Extensions": "permessage-deflate", "Sec_WebSocket_Protocol": "a, b", "Cookie": "a=1"}
    with hosted:
        status, headers, _ = ask(hosted.port, "/mine?a=" + "b" * 8_000, **offers)
        assert ask(hosted.port, "/another", **offers)[0] == 403
    assert status == 101
    assert headers["sec-websocket-accept"]
    assert headers["server"] == "uvicorn"
    assert headers.keys() == {"upgrade", "connection", "sec-websocket-accept", "date", "server"}


def test_handshake_that_waits_at_the_gate_while_the_server_stops_is_closed_with_1012(serve: Serve) -> None:
    """pusher-js waits for 15 s after a handshake that was refused, and for 1 s after this code."""
    now = [0.0]
    gate = accept_gate.AcceptGate(
        per_second=1, connections=0, memory_bytes=0, count=lambda _: None, clock=lambda: now[0]
    )
    handler = Handler()
    hosted = serve(handler, gate)
    with Wire(hosted.port, "/mine") as first, socket.create_connection((servers.HOST, hosted.port), PATIENCE) as client:
        assert first.receive() == WireFrame(TEXT, b"greeting")
        client.sendall(UPGRADE)
        waiting.until(lambda: gate.waiting == 1, PATIENCE, "the second handshake waits")

        def shut_down() -> None:
            for connection in list(hosted.server.server_state.connections):
                if getattr(connection, "is_connecting", False):
                    connection.shutdown()

        hosted.call(shut_down)
        answer = b""
        while not answer.endswith(b"\r\n\r\n" + frames.close(frames.SERVICE_RESTART)):
            answer += client.recv(65_536) or pytest.fail(f"the server sent only {answer!r}")
        assert answer.startswith(b"HTTP/1.1 101 ")
        now[0] = 100.0
        waiting.until(lambda: gate.waiting == 0, PATIENCE, "the gate has dropped the handshake")
    assert len(handler.listeners) == 1


def test_handshake_that_waits_at_the_gate_is_handled_in_its_turn(serve: Serve) -> None:
    """A message that the client sends meanwhile comes after the greeting."""
    now = [0.0]
    gate = accept_gate.AcceptGate(
        per_second=1, connections=0, memory_bytes=0, count=lambda _: None, clock=lambda: now[0]
    )
    hosted = serve(Handler(), gate)
    with ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.create_connection((servers.HOST, hosted.port), PATIENCE))
            client.sendall(UPGRADE)
        waiting.until(lambda: gate.waiting == 1, PATIENCE, "the second handshake waits")
        client.sendall(b"\x81\x83\0\0\0\0two")
        now[0] = 100.0
        received = b""
        while not received.endswith(b"two"):
            received += client.recv(65_536)
        assert received.endswith(frames.text(b"greeting") + frames.text(b"two"))
