"""Handshakes that open a session without ASGI: which ones, and the session that they open."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest

from fanfare.protocol import direct, sessions
from fanfare.runtime.address_limit import AddressLimit
from fanfare.sockets import handshake, protocol
from tests.unit.protocol import fakes
from tests.unit.protocol.workers import Worker

TARGET = f"/app/{fakes.APPLICATION.key}?protocol=7&client=js&version=8.6.0".encode()


class Socket:
    """A connection of the WebSocket class, which records what the handler does."""

    client = ("192.0.2.7", 5000)

    def __init__(self) -> None:
        self.listener: Any = None
        self.sent: list[Any] = []
        self.logged: Any = None
        self.reads = False

    def bound(self, _max_buffer_bytes: int) -> Socket:
        return self

    def accept_for(self, listener: Any, _request: handshake.Request, client: Any) -> None:
        self.listener, self.logged = listener, client

    def send(self, body: bytes) -> bool:
        assert not self.reads, "the greeting comes before the client's frames"
        self.sent.append(orjson.loads(body))
        return False

    def read_on(self) -> None:
        self.reads = True

    def is_gone(self) -> bool:
        return True


class Deployment:
    def __init__(self, worker: Worker, place: str = "/app/", sockets_per_address: int = 0) -> None:
        self.is_open = True
        self.proxied = ""
        self._direct = direct.Direct(
            worker.hub,
            worker.registry,
            options=sessions.Options(activity_timeout=77, addresses=AddressLimit(sockets_per_address, "WebSockets")),
            owners=None,
            place=place,
            is_open=lambda: self.is_open,
            resolve=self._resolve,
        )

    def _resolve(self, scope: Any) -> None:
        if self.proxied:
            scope["client"] = (self.proxied, 0)

    def opens(self, socket: Socket, target: bytes = TARGET, *headers: tuple[bytes, bytes]) -> bool:
        request = handshake.Request(b"GET", target, list(headers))
        taken = self._direct(cast("protocol.WebSocketProtocol", socket), request)
        assert taken == (socket.listener is not None)
        return taken


async def test_accepted_client_is_greeted_before_its_frames_are_read(worker: Worker) -> None:
    socket = Socket()
    assert Deployment(worker).opens(socket)
    assert socket.reads
    (greeting,) = socket.sent
    assert greeting["event"] == "pusher:connection_established"
    (connection,) = worker.hub.connections_of(fakes.APPLICATION.id)
    assert connection.context == ("js", "8.6.0", "", "192.0.2.7")
    assert b'{"event":"pusher:ping","data":{}}' in socket.listener.answers
    socket.listener.end()
    assert not list(worker.hub.connections_of(fakes.APPLICATION.id))


async def test_client_behind_a_trusted_proxy_has_its_own_address(worker: Worker) -> None:
    deployment, socket = Deployment(worker), Socket()
    deployment.proxied = "203.0.113.9"
    assert deployment.opens(socket)
    (connection,) = worker.hub.connections_of(fakes.APPLICATION.id)
    assert (connection.context.address, socket.logged) == ("203.0.113.9", ("203.0.113.9", 0))
    socket.listener.end()


async def test_address_with_too_many_websockets_is_left_to_asgi(worker: Worker) -> None:
    deployment, socket = Deployment(worker, sockets_per_address=1), Socket()
    assert deployment.opens(socket)
    assert not deployment.opens(Socket())
    deployment.proxied = "203.0.113.9"
    other = Socket()
    assert deployment.opens(other)
    other.listener.end()
    socket.listener.end()
    deployment.proxied = ""
    again = Socket()
    assert deployment.opens(again)
    again.listener.end()


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        pytest.param(b"protocol=7&client=js&version=8.6.0", [], id="no Origin"),
        pytest.param(b"protocol=7&client=js&client=b&version=" + b"8" * 100, [(b"origin", b"http://a")], id="long"),
        pytest.param(b"protocol=5&rt=1&client=%C3%A9%20a+b&version=", [(b"origin", b"null")], id="offsets"),
        pytest.param(
            b"client=a&x=" + b"b%20+" * 1_600,
            [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"sec-websocket-protocol", b"a, b"), (b"origin", b"http://a")],
            id="query of 8 kB",
        ),
        pytest.param(b"", [(b"origin", b"http://a"), (b"origin", b"http://b")], id="no query, two Origins"),
    ],
)
async def test_client_is_the_same_as_by_asgi(worker: Worker, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """The console's data of the connection, the counters and the greeting."""
    socket = Socket()
    assert Deployment(worker).opens(socket, TARGET.partition(b"?")[0] + b"?" + query, *headers)
    (greeting,) = socket.sent
    counted = dict(worker.hub.counters)
    browser = await worker.browser(query=query, headers=headers).connected()
    direct, by_asgi = worker.hub.connections_of(fakes.APPLICATION.id)
    assert direct.context == by_asgi.context
    assert (direct.with_offsets, direct.close_frame) == (by_asgi.with_offsets, by_asgi.close_frame)
    assert worker.hub.counters == {name: 2 * n for name, n in counted.items()}
    greetings = [orjson.loads(greeting["data"]), orjson.loads(browser.frames[0]["data"])]
    assert greetings[0].pop("socket_id") == direct.socket_id != greetings[1].pop("socket_id")
    assert greetings[0] == greetings[1]
    socket.listener.end()


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(b"/app/unknown?protocol=7", id="unknown key"),
        pytest.param(TARGET.replace(b"protocol=7", b"protocol=3"), id="unsupported protocol"),
        pytest.param(b"/chat/app/" + fakes.APPLICATION.key.encode(), id="path that may be the project's"),
        pytest.param(TARGET.replace(b"/app/", b"/app/%41/app/"), id="quoted path"),
    ],
)
async def test_other_handshake_is_left_to_asgi(worker: Worker, target: bytes) -> None:
    counted = dict(worker.hub.counters)
    assert not Deployment(worker).opens(Socket(), target)
    assert worker.hub.counters == counted, "a refusal is counted once, by the ASGI application"


async def test_origin_that_is_not_allowed_is_left_to_asgi(worker: Worker) -> None:
    worker.registry.put(fakes.application(allowed_origins=("https://example.com",)))
    deployment = Deployment(worker)
    assert not deployment.opens(Socket(), TARGET, (b"origin", b"https://evil.example"))
    socket = Socket()
    assert deployment.opens(socket, TARGET, (b"origin", b"https://example.com"))
    socket.listener.end()


async def test_worker_that_is_closed_to_new_clients_leaves_them_to_asgi(worker: Worker) -> None:
    deployment = Deployment(worker)
    deployment.is_open = False
    assert not deployment.opens(Socket())


async def test_place_below_a_prefix_is_the_protocols(worker: Worker) -> None:
    deployment, socket = Deployment(worker, "/realtime/app/"), Socket()
    assert not deployment.opens(Socket())
    assert deployment.opens(socket, b"/realtime" + TARGET)
    socket.listener.end()
