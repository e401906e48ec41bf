"""Attacks of clients: each exceeds a limit of docs/reference/limits.md, at a server with low limits."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any, Final, NamedTuple

from prometheus_client import parser

from fanfare.console import metrics
from tests.harness import calls, deployments, servers, signing, waiting, wire

# Low limits, so that they are exceeded in a moment.
SETTINGS: Final = {
    "FANFARE_MAX_REQUEST_LINE_BYTES": "20000",
    "FANFARE_MAX_HEAD_BYTES": "24000",
    "FANFARE_MAX_HEADERS": "50",
    "FANFARE_HEAD_TIMEOUT": "1",
    "FANFARE_MAX_WAITING_CONNECTIONS": "20",
    "FANFARE_MAX_CONNECTIONS": "200",
    "FANFARE_MAX_PAGE_BODY_BYTES": "100000",
    "FANFARE_MAX_SUBSCRIPTIONS": "20",
    "FANFARE_BUFFER_BYTES": "65536",
    "FANFARE_SSE_STREAMS_PER_ADDRESS": "5",
    "FANFARE_SOCKETS_PER_ADDRESS": "120",
    "FANFARE_SUBSCRIBES_PER_SECOND": "30",
    "FANFARE_HISTORY_PAGES_PER_SECOND": "5",
    "FANFARE_LOGIN_ATTEMPTS": "3",
}
HEAD: Final = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n"
PATIENCE: Final = 20.0  # seconds


class Limited:
    """A server with low limits, `SETTINGS`."""

    def __init__(self, port: int, application: deployments.Application) -> None:
        self.port = port
        self.application = application

    def connect(self) -> socket.socket:
        client = socket.create_connection((servers.HOST, self.port), timeout=PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def ask(self, data: bytes) -> bytes:
        """The whole answer to these bytes."""
        with self.connect() as client:
            with contextlib.suppress(OSError):
                client.sendall(data)
            return read_all(client)

    def refused(self, status: int, data: bytes, *numbers: str) -> None:
        """Send a request whose answer has this status and these numbers."""
        answer = self.ask(data)
        assert answer.startswith(b"HTTP/1.1 %d" % status), answer[:500]
        for number in numbers:
            assert number.encode() in answer, answer[-500:]

    def signed(self, method: str, route: str, body: bytes = b"", **options: Any) -> bytes:
        path = f"/apps/{self.application.id}/{route}"
        target = signing.path(self.application, method, path, body, **options)
        head = (
            f"{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def websocket(self) -> wire.Wire:
        return wire.Wire(self.port, f"/app/{self.application.key}?protocol=7")

    def counter(self, name: str) -> float:
        family = next(family for family in (*metrics.COUNTERS, metrics.OTHER) if family.has(name))
        label = name.removeprefix(family.source)
        found = parser.text_string_to_metric_families(self._metrics())
        return sum(
            sample.value
            for metric in found
            for sample in metric.samples
            if sample.name == f"fanfare_{family.name}_total"
            and (not family.label or sample.labels[family.label] == label)
        )

    def _metrics(self) -> str:
        request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        answers: list[bytes] = []

        def is_answered() -> bool:  # after an attack on the number of connections, a moment later
            answers.append(self.ask(request))
            return answers[-1].startswith(b"HTTP/1.1 200")

        waiting.until(is_answered, PATIENCE, "the server shows its counters")
        return answers[-1].decode().partition("\r\n\r\n")[2]

    def has_socket_frame(self, client: wire.Wire, text: str) -> None:
        """Read frames until one contains the text."""
        while (frame := client.receive()) is not None:
            if text.encode() in frame.payload:
                return
        raise AssertionError(f"no frame with {text!r}")


def read_all(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65_536):
            received += piece
    return received


def text(event: str, **data: Any) -> wire.WireFrame:
    return wire.WireFrame(wire.TEXT, json.dumps({"event": event, **data}).encode())


class Attack(NamedTuple):
    """`run` exceeds the limit once and asserts the refusal. `log`: what the server's log says of it."""

    run: Callable[[Limited], None]
    log: str


def long_line(server: Limited) -> None:
    server.refused(414, b"GET /?" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", "20002", "20000")


def long_head(server: Limited) -> None:
    server.refused(431, HEAD + b"x: " + b"a" * 25_000 + b"\r\n\r\n", "24000")


def many_headers(server: Limited) -> None:
    server.refused(431, HEAD + b"a: b\r\n" * 60 + b"\r\n", "51", "50")


def slow_head(server: Limited) -> None:
    server.refused(408, HEAD, "1 s")


def silent_connections(server: Limited) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(25)]
        assert read_all(clients[0]) == b""


def idle_connections(server: Limited) -> None:
    with ExitStack() as stack:
        clients = []
        for _ in range(25):
            clients.append(stack.enter_context(server.connect()))
            clients[-1].sendall(HEAD + b"\r\n")
            response = HTTPResponse(clients[-1])
            response.begin()
            response.read()  # head and body may arrive apart
            assert response.status == 200
        assert read_all(clients[0]) == b""


def too_many_connections(server: Limited) -> None:
    upgrade = (
        f"GET /app/{server.application.key}?protocol=7 HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n"
        "connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        for _ in range(210):
            client = stack.enter_context(server.connect())
            client.sendall(upgrade)
            answer = client.recv(65_536)
            if not answer.startswith(b"HTTP/1.1 101"):
                break
        assert answer.startswith(b"HTTP/1.1 503"), answer
        assert b"200 are allowed" in answer


def large_api_body(server: Limited) -> None:
    body = json.dumps({"name": "e", "channel": "c", "data": "x" * 102_401}).encode()
    server.refused(413, server.signed("POST", "events", body), "102401", "102400")


def many_parameters(server: Limited) -> None:
    target = f"/apps/{server.application.id}/channels?" + "&".join(["a=b"] * 300)
    server.refused(400, f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode(), "300", "256")


def late_signature(server: Limited) -> None:
    late = str(int(time.time()) - 700)
    server.refused(401, server.signed("GET", "channels", auth_timestamp=late), " s behind", "600 s")


def large_page_body(server: Limited) -> None:
    head = b"POST /admin/login/ HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100001\r\n\r\n"
    server.refused(413, head + b"x" * 1_000, "100001", "100000")


def invalid_chunk(server: Limited) -> None:
    head = b"POST /admin/login/ HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    server.refused(400, head + b"zz\r\nx\r\n")


def many_chunks(server: Limited) -> None:
    """A body in chunks of one byte, which the server's parser passes on one by one."""
    head = b"POST /admin/login/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = server.ask(head + b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4"), answer[:500]  # without a CSRF token, or too many attempts


def large_frame(server: Limited) -> None:
    with server.websocket() as client:
        client.send(wire.WireFrame(wire.TEXT, b"x" * 131_073))
        server.has_socket_frame(client, "131072")


def slow_reader(server: Limited) -> None:
    with wire.Wire(server.port, f"/app/{server.application.key}?protocol=7", receive_buffer=4_096) as client:
        client.send(text("pusher:subscribe", data={"channel": "flood"}))
        server.has_socket_frame(client, "subscription_succeeded")
        before = server.counter("closed.slow")

        def is_closed() -> bool:
            calls.publish(server, "flood", "e", "x" * 90_000)
            return server.counter("closed.slow") > before

        waiting.until(is_closed, PATIENCE, "the slow reader was disconnected")


def many_sockets(server: Limited) -> None:
    with ExitStack() as stack:
        for _ in range(121):
            client = stack.enter_context(server.websocket())
            frame = client.receive()
            if frame is not None and b"120 WebSockets of this address are open; 120 are allowed" in frame.payload:
                return
    raise AssertionError("all 121 WebSockets were opened")


def many_subscriptions(server: Limited) -> None:
    with server.websocket() as client:
        client.send(*[text("pusher:subscribe", data={"channel": f"c{number}"}) for number in range(25)])
        server.has_socket_frame(client, "The connection has 20 subscriptions; 20 are allowed")


def many_subscribes(server: Limited) -> None:
    """Subscribe and unsubscribe in turn: there is never more than one subscription."""
    with server.websocket() as client:
        pair = [text(f"pusher:{verb}", data={"channel": "c"}) for verb in ("subscribe", "unsubscribe")]
        client.send(*pair * 60)
        server.has_socket_frame(client, "more than 30 times at once; 30 subscribes a second are allowed")


def joined(server: Limited, client: wire.Wire) -> None:
    """Subscribe to `presence-demo`, which keeps its events."""
    greeting = client.receive()
    assert greeting is not None
    socket_id = json.loads(json.loads(greeting.payload)["data"])["socket_id"]
    member = json.dumps({"user_id": "attacker"})
    auth = signing.subscription(server.application, socket_id, "presence-demo", member)
    client.send(text("pusher:subscribe", data={"channel": "presence-demo", "auth": auth, "channel_data": member}))
    server.has_socket_frame(client, "subscription_succeeded")


def many_pages_of_history(server: Limited) -> None:
    with server.websocket() as client:
        joined(server, client)
        for rid in range(27):
            client.send(text("pusher:history", data={"channel": "presence-demo", "rid": rid}))
            server.has_socket_frame(client, f'"rid\\":{rid},')


def pages_of_history_at_once(server: Limited) -> None:
    with server.websocket() as client:
        joined(server, client)
        client.send(*[text("pusher:history", data={"channel": "presence-demo"})] * 10)
        server.has_socket_frame(client, "Another page of history is being read")


def many_logins(server: Limited) -> None:
    head = b"POST /admin/login/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    answers = [server.ask(head) for _ in range(5)]
    assert answers[-1].startswith(b"HTTP/1.1 429"), answers[-1][:200]
    assert b"3 a minute are allowed" in answers[-1]


def many_errors(server: Limited) -> None:
    with server.websocket() as client:
        client.send(*[wire.WireFrame(wire.TEXT, b"no JSON")] * 50, text("pusher:ping", data={}))
        server.has_socket_frame(client, "pusher:pong")


def flood(server: Limited) -> None:
    """Invalid frames as fast as the server reads them, from several connections."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.websocket()) for _ in range(10)]
        for client in clients:
            client.send(*[wire.WireFrame(wire.TEXT, b"no JSON")] * 200)
        for client in clients:
            client.send(text("pusher:ping", data={}))
            server.has_socket_frame(client, "pusher:pong")


def flood_of_large_frames(server: Limited) -> None:
    """Valid frames of many keys, which are slow to parse. They are read with pauses and get an answer."""
    keys = {str(number): 0 for number in range(10_000)}
    with server.websocket() as client:
        client.send(*[text("pusher:ping", data=keys)] * 20)
        for _ in range(20):
            server.has_socket_frame(client, "pusher:pong")


def many_streams(server: Limited) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            stream = stack.enter_context(server.connect())
            stream.sendall(f"GET /sse/{server.application.key}?channels=a HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert stream.recv(65_536).startswith(b"HTTP/1.1 200")
        refused(server, 503, "channels=a", "5 SSE connections of this address are open; 5 are allowed")


def refused(server: Limited, status: int, query: str, *numbers: str) -> None:
    target = f"/sse/{server.application.key}?{query}"
    server.refused(status, f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode(), *numbers)


ATTACKS: Final = {
    "http.refused.line_bytes": Attack(long_line, r"request line has at least \d+ bytes; 20000 are allowed"),
    "http.refused.head_bytes": Attack(long_head, r"head has at least \d+ bytes; 24000 are allowed"),
    "http.refused.headers": Attack(many_headers, "at least 51 headers; 50 are allowed"),
    "http.refused.head_timeout": Attack(slow_head, "did not arrive within 1 s"),
    "http.refused.invalid": Attack(invalid_chunk, "Invalid HTTP request received"),
    "http.evicted.waiting": Attack(silent_connections, r"\d+ connections \(waiting\), \d+ are allowed"),
    "http.evicted.idle": Attack(idle_connections, r"\d+ connections \(idle\), \d+ are allowed"),
    "http.refused.connections": Attack(too_many_connections, r"worker has \d+ connections; 200 are allowed"),
    "http.refused.body_bytes": Attack(large_page_body, "at least 100001 bytes; 100000 are allowed"),
    "http.paused": Attack(many_chunks, ""),
    "api.refused.413": Attack(large_api_body, r"API request refused: event_too_large \(413\)"),
    "api.refused.400": Attack(many_parameters, r"API request refused: too_many_parameters \(400\)"),
    "api.refused.401": Attack(late_signature, r"API request refused: expired_timestamp \(401\)"),
    "sockets.violations.1009": Attack(large_frame, r"closed with 1009: The message has 131073 bytes; 131072"),
    "sockets.refused.address": Attack(many_sockets, "120 WebSockets of this address are open; 120 are allowed"),
    "closed.slow": Attack(slow_reader, "slow"),
    "pusher.subscription_refused.too_many_subscriptions": Attack(
        many_subscriptions, "20 subscriptions; 20 are allowed"
    ),
    "pusher.subscription_refused.too_many_subscribes": Attack(many_subscribes, "30 subscribes a second are allowed"),
    "pusher.history_delayed": Attack(many_pages_of_history, "more than 25 pages at once, and 5 a second are allowed"),
    "pusher.history_refused.busy": Attack(pages_of_history_at_once, ""),
    "http.refused.login_attempts": Attack(many_logins, "more than 3 attempts a minute"),
    "pusher.error.rate_limited": Attack(many_errors, ""),
    "pusher.slowed": Attack(flood, "read more slowly: more than 100 of its frames a second are refused"),
    "sockets.paused": Attack(flood_of_large_frames, "sends more than 64 frames or 65536 bytes at once"),
    "sse.refused.too_many_streams": Attack(many_streams, "5 SSE connections of this address are open; 5 are allowed"),
    "sse.refused.too_many_channels": Attack(
        lambda server: refused(server, 400, "channels=" + ",".join(map(str, range(17))), "17", "16"), "17 channels"
    ),
    "sse.refused.query_too_long": Attack(
        lambda server: refused(server, 400, "channels=" + "a" * 16_384, "16393", "16384"), "16393 bytes"
    ),
    "sse.refused.invalid_token": Attack(
        lambda server: refused(server, 401, "channels=private-a&token=" + "a" * 4_097, "4097", "4096"), "4097 bytes"
    ),
}
