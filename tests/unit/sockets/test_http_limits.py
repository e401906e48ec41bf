"""The limits of HTTP connections, with both of uvicorn's parsers."""

from __future__ import annotations

import asyncio
import collections
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fanfare.hub import on_uvicorn
from fanfare.sockets import http_limits, opening
from tests.harness import servers, waiting
from tests.unit.sockets.hosting import PATIENCE, Hosted, ask

PARSERS = {"httptools": HttpToolsProtocol, "h11": H11Protocol}
LIMITS = http_limits.HttpLimits(line_bytes=4_000, head_bytes=8_000, headers=40, head_seconds=1.0, waiting=10)
HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
UPGRADE = (
    b"connection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)

Serve = Callable[..., Hosted]


class Counting:
    """Servers with limits, and their counters."""

    def __init__(self, parser: type, stack: ExitStack) -> None:
        self.counters: collections.Counter[str] = collections.Counter()
        self.parser = parser
        self._stack = stack

    def __call__(self, limits: http_limits.HttpLimits = LIMITS, application: Any = None) -> Hosted:
        config = SimpleNamespace(http_protocol_class=self.parser)
        assert http_limits.install(config, limits, lambda name: self.counters.update([name]))
        hosted = Hosted(application or answer, http=config.http_protocol_class)
        return self._stack.enter_context(hosted)


@pytest.fixture(params=PARSERS)
def serve(request: pytest.FixtureRequest) -> Iterator[Counting]:
    with ExitStack() as stack:
        yield Counting(PARSERS[request.param], stack)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and answer with its size. A WebSocket is accepted and stays open."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    size = 0
    while (message := await receive())["type"] == "http.request":
        size += len(message["body"])
        if not message["more_body"]:
            break
    await respond(send, str(size).encode())


async def respond(send: Any, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def open_client(hosted: Hosted) -> socket.socket:
    client = socket.create_connection((servers.HOST, hosted.port), timeout=PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read_response(client: socket.socket) -> None:
    """Read one answer of `answer`; its head and its body may arrive apart."""
    response = HTTPResponse(client)
    response.begin()
    assert (response.status, response.read()) == (200, b"0")


def read_all(client: socket.socket) -> bytes:
    """Until the server closes or resets."""
    received = b""
    try:
        while piece := client.recv(65_536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def flood(client: socket.socket, first: bytes, piece: bytes, total: int = 4_000_000) -> tuple[bytes, int]:
    """Send `first` and then `piece` repeatedly until the server answers. Returns the answer and the bytes sent."""
    client.sendall(first)
    sent = len(first)
    client.settimeout(0.001)
    while sent < total:
        try:
            sent += client.send(piece)
            if answered := client.recv(65_536):
                client.settimeout(PATIENCE)
                return answered + read_all(client), sent
        except TimeoutError:
            continue
        except OSError:
            break
    client.settimeout(PATIENCE)
    return read_all(client), sent


def is_served(hosted: Hosted) -> bool:
    with open_client(hosted) as client:
        client.sendall(HEAD + b"connection: close\r\n\r\n")
        return read_all(client).startswith(OK)


def status(answered: bytes) -> int:
    assert answered, "there is no answer"
    return int(answered.split(b" ", 2)[1])


# -- the head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "piece", "expected", "reason"),
    [
        (HEAD + b"x: ", b"a" * 1_000, 431, "head_bytes"),
        (HEAD, b"a: b\r\n" * 10, 431, "headers"),
        (HEAD, b"a: " + b"b" * 990 + b"\r\n", 431, "head_bytes"),
        (b"GET /", b"a" * 500, 414, "line_bytes"),
        (b"GET /?", b"a=b&" * 100, 414, "line_bytes"),
        (HEAD + b"upgrade: websocket\r\nconnection: upgrade\r\n", b"a: b\r\n" * 10, 431, "headers"),
    ],
)
def test_endless_head_is_refused_with_both_numbers(
    serve: Counting, first: bytes, piece: bytes, expected: int, reason: str
) -> None:
    hosted = serve()
    with open_client(hosted) as client:
        answered, sent = flood(client, first, piece)
    assert sent < 400_000
    if serve.parser is H11Protocol:  # it parses nothing of a head before its end
        reason, expected = "head_bytes", 431
    assert status(answered) == expected
    limit = {"head_bytes": LIMITS.head_bytes, "headers": LIMITS.headers, "line_bytes": LIMITS.line_bytes}[reason]
    assert str(limit).encode() in answered
    assert serve.counters[f"http.refused.{reason}"] == 1
    assert is_served(hosted)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (HEAD + b"x: " + b"a" * 8_000 + b"\r\n\r\n", 431),
        (HEAD + b"a: b\r\n" * 40 + b"\r\n", 431),
        (b"GET /" + b"a" * 4_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    ],
)
def test_complete_head_over_a_limit_is_refused(serve: Counting, head: bytes, expected: int) -> None:
    with open_client(serve()) as client:
        client.sendall(head)
        answered = read_all(client)
    assert status(answered) == expected
    assert b"are allowed" in answered


@pytest.mark.parametrize("end", [b"\r\n", UPGRADE + b"\r\n"])
@pytest.mark.parametrize("hosts", [0, 2])
def test_request_without_exactly_one_host_gets_400(serve: Counting, hosts: int, end: bytes) -> None:
    with open_client(serve()) as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + b"host: x\r\n" * hosts + end)
        assert status(read_all(client)) == 400
    assert serve.counters["http.refused.invalid"] == 1


def test_request_of_http_1_0_needs_no_host(serve: Counting) -> None:
    with open_client(serve()) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert status(read_all(client)) == 200


def test_head_within_the_limits_is_served(serve: Counting) -> None:
    hosted = serve()
    with open_client(hosted) as client:
        client.sendall(b"GET /" + b"a" * 3_900 + b" HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 38 + b"\r\n")
        assert client.recv(65_536).startswith(OK)


def test_bodies_and_pipelined_requests_are_not_limited_by_the_head(serve: Counting) -> None:
    body = b"x" * 500_000
    chunked = b"".join(b"1\r\nx\r\n" for _ in range(20_000)) + b"0\r\ntrailer: a\r\n\r\n"
    with open_client(serve()) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert read_until(client, b"500000")
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunked)
        assert read_until(client, b"20000")
        client.sendall((HEAD + b"\r\n") * 30)
        received = b""
        while received.count(OK) < 30:
            received += client.recv(65_536)


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        piece = client.recv(65_536)
        assert piece, received
        received += piece
    return received


def test_endless_trailers_are_cut_off(serve: Counting) -> None:
    hosted = serve()
    first = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    with open_client(hosted) as client:
        _, sent = flood(client, first, b"trailer: " + b"a" * 500 + b"\r\n")
    assert sent < 1_000_000
    assert is_served(hosted)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"transfer-encoding: chunked", b"zz\r\nx\r\n0\r\n\r\n"),
        (b"transfer-encoding: chunked\r\nexpect: 100-continue", b"1\r\nx\r\nzz\r\n"),
        (b"transfer-encoding: xchunked", b"1\r\nx\r\n0\r\n\r\n"),
    ],
    ids=["chunk", "second chunk", "encoding"],
)
def test_invalid_body_is_refused_and_is_a_disconnect_for_the_application(
    serve: Counting, head: bytes, body: bytes
) -> None:
    ended: list[str] = []

    async def read(scope: Any, receive: Any, send: Any) -> None:
        await never(scope, receive, send)
        ended.append(scope["path"])
        await respond(send, b"too late")

    with open_client(serve(application=read)) as client:
        client.sendall(b"POST /a HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n")
        client.sendall(body)
        answered = read_all(client).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert status(answered) == 400
    assert answered.count(b"HTTP/1.1") == 1
    assert serve.counters["http.refused.invalid"] == 1
    if b"xchunked" not in head:  # h11 refuses it with the head, before the application is called
        waiting.until(lambda: ended == ["/a"], PATIENCE, "the application has got a disconnect")


def test_invalid_body_is_not_answered_after_the_response_has_begun(serve: Counting) -> None:
    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await never(scope, receive, send)

    with open_client(serve(application=hasty)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        received = client.recv(65_536)
        client.sendall(b"zz\r\n")
        received += read_all(client)
    assert received.startswith(OK)
    assert received.count(b"HTTP/1.1") == 1


def test_flood_of_pipelined_requests_is_cut_off() -> None:
    """h11 stops reading after the first one."""
    with ExitStack() as stack:
        serve = Counting(HttpToolsProtocol, stack)
        hosted = serve(application=never)
        with open_client(hosted) as client:
            client.sendall((HEAD + b"\r\n") * 200)
            read_all(client)
        assert serve.counters["http.refused.pipelined"] == 1


async def never(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# -- time --------------------------------------------------------------------------------------------------------------


def test_silent_connection_is_closed_without_an_answer(serve: Counting) -> None:
    with open_client(serve()) as client:
        started = time.monotonic()
        assert read_all(client) == b""
    assert 0.5 < time.monotonic() - started < PATIENCE / 2
    assert serve.counters["http.evicted.silent"] == 1
    assert "http.refused.head_timeout" not in serve.counters, "browsers open connections before they need them"


def test_slow_head_gets_408_however_often_bytes_arrive(serve: Counting) -> None:
    hosted = serve()
    with open_client(hosted) as client:
        client.sendall(HEAD)
        client.settimeout(0.1)
        started = time.monotonic()
        answered = b""
        while not answered and time.monotonic() - started < PATIENCE:
            try:
                client.sendall(b"a: b\r\n")
                answered = client.recv(65_536)
            except TimeoutError:
                continue
    assert status(answered) == 408
    assert b"within 1 s" in answered


def test_slow_head_of_a_second_request_gets_408(serve: Counting) -> None:
    with open_client(serve()) as client:
        client.sendall(HEAD + b"\r\n")
        assert client.recv(65_536).startswith(OK)
        client.sendall(HEAD)
        assert status(read_all(client)) == 408


def test_idle_connection_between_requests_keeps_uvicorns_time(serve: Counting) -> None:
    with open_client(serve()) as client:
        client.sendall(HEAD + b"\r\n")
        assert client.recv(65_536).startswith(OK)
        time.sleep(2 * LIMITS.head_seconds)
        client.sendall(HEAD + b"\r\n")
        assert client.recv(65_536).startswith(OK)


def test_body_that_follows_the_response_without_end_is_closed(serve: Counting) -> None:
    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"done")

    with open_client(serve(application=hasty)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nx")
        client.settimeout(0.1)
        started, received, closed = time.monotonic(), b"", False
        while not closed and time.monotonic() - started < PATIENCE:
            try:
                client.sendall(b"x")
                piece = client.recv(65_536)
                closed, received = not piece, received + piece
            except TimeoutError:
                continue
            except OSError:
                closed = True
    assert closed
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("pieces", [1, 2])
def test_websocket_outlives_the_time_of_its_head(serve: Counting, pieces: int) -> None:
    hosted = serve()
    upgrade = (
        HEAD + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with open_client(hosted) as client:
        if pieces == 2:
            client.sendall(upgrade[:20])
            time.sleep(LIMITS.head_seconds / 10)  # so that the server reads both; one piece is served, too
        client.sendall(upgrade[20:] if pieces == 2 else upgrade)
        assert status(client.recv(65_536)) == 101
        time.sleep(2 * LIMITS.head_seconds)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert ask(hosted.port)[0] == 101


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_silent_connections_above_the_ceiling_push_out_the_oldest(serve: Counting) -> None:
    hosted = serve(http_limits.HttpLimits(waiting=10))
    with ExitStack() as stack:
        clients = [stack.enter_context(open_client(hosted)) for _ in range(30)]
        waiting.until(lambda: serve.counters["http.evicted.waiting"] == 20, PATIENCE, "20 connections were closed")
        assert is_served(hosted)
        assert read_all(clients[0]) == b""
        clients[-1].sendall(HEAD + b"\r\n")
        assert clients[-1].recv(65_536).startswith(OK)


def test_idle_connections_above_the_ceiling_push_out_the_oldest(serve: Counting) -> None:
    hosted = serve(http_limits.HttpLimits(waiting=10))
    with ExitStack() as stack:
        clients = []
        for _ in range(12):
            clients.append(stack.enter_context(open_client(hosted)))
            clients[-1].sendall(HEAD + b"\r\n")
            assert clients[-1].recv(65_536).startswith(OK)
        assert read_all(clients[0]) == b""
        clients[-1].sendall(HEAD + b"\r\n")
        assert clients[-1].recv(65_536).startswith(OK)


def test_connections_above_the_ceiling_push_out_waiting_ones_or_get_503(serve: Counting) -> None:
    hosted = serve(http_limits.HttpLimits(connections=8, waiting=100), application=never)
    with ExitStack() as stack:
        for _ in range(7):
            busy = stack.enter_context(open_client(hosted))
            busy.sendall(HEAD + b"\r\n")
        waiting.until(lambda: hosted.tasks() == 7, PATIENCE, "seven requests are in progress")
        silent = stack.enter_context(open_client(hosted))
        busy = stack.enter_context(open_client(hosted))
        assert read_all(silent) == b""
        busy.sendall(HEAD + b"\r\n")
        waiting.until(lambda: hosted.tasks() == 8, PATIENCE, "an eighth request is in progress")
        answered = read_all(stack.enter_context(open_client(hosted)))
        assert status(answered) == 503
        assert b"9 connections; 8 are allowed" in answered
        assert b"retry-after: 1" in answered
    assert serve.counters["http.evicted.connections"] == 1
    assert serve.counters["http.refused.connections"] == 1


def test_limits_leave_descriptors_for_the_worker_itself() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = http_limits.HttpLimits(waiting=10**9).within_descriptors()
    assert limits.connections <= soft - 64
    assert limits.waiting <= limits.connections // 4
    assert http_limits.HttpLimits(connections=50).within_descriptors().connections == 50


def test_refusals_are_one_line_in_the_log_and_not_one_per_try(
    serve: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    hosted = serve()
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            with open_client(hosted) as client:
                client.sendall(HEAD + b"a: b\r\n" * 60 + b"\r\n")
                read_all(client)
    lines = [record.getMessage() for record in caplog.records if record.name == http_limits.__name__]
    assert len(lines) == 1
    assert "headers; 40 are allowed. (from 127.0.0.1)" in lines[0]
    assert serve.counters["http.refused.headers"] == 20


def test_invalid_requests_are_one_line_in_the_log(serve: Counting, caplog: pytest.LogCaptureFixture) -> None:
    hosted = serve()
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            with open_client(hosted) as client:
                client.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
                assert status(read_all(client)) == 400
    lines = [record.getMessage() for record in caplog.records if "Invalid HTTP request" in record.getMessage()]
    assert lines == ["HTTP request refused: Invalid HTTP request received. (from 127.0.0.1)"]
    assert serve.counters["http.refused.invalid"] == 20


def test_unknown_http_class_is_reported_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Other:
        pass

    config = SimpleNamespace(http_protocol_class=Other)
    assert not http_limits.install(config, LIMITS, lambda name: None)
    assert config.http_protocol_class is Other
    assert "has no limits" in caplog.text


def test_limits_can_be_installed_again() -> None:
    config = SimpleNamespace(http_protocol_class=H11Protocol)
    for headers in (10, 20):
        assert http_limits.install(config, http_limits.HttpLimits(headers=headers), lambda name: None)
        assert config.http_protocol_class.gate.limits.headers == headers
    assert config.http_protocol_class.__bases__ == (http_limits.LimitedH11,)
    assert config.http_protocol_class.__module__ == H11Protocol.__module__
    assert config.http_protocol_class.__name__ == H11Protocol.__name__


# -- the stop of the server --------------------------------------------------------------------------------------------


def test_flood_of_chunks_is_read_with_pauses(serve: Counting) -> None:
    with open_client(serve()) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        client.sendall(b"1\r\nx\r\n" * 3_000)
        client.sendall(b"0\r\n\r\n")
        assert read_all(client).endswith(b"3000")
    assert serve.counters["http.paused"] > 0


class Reading:
    """A transport that is read or not."""

    def __init__(self) -> None:
        self.is_on = True
        self.closed = False

    def pause_reading(self) -> None:
        self.is_on = False

    def resume_reading(self) -> None:
        self.is_on = True

    def is_closing(self) -> bool:
        return self.closed


async def test_application_does_not_end_a_pause() -> None:
    flow = http_limits._Flow(transport := Reading())
    flow.rest(0.01)
    flow.rest(0.01)
    flow.pause_reading()
    flow.resume_reading()
    assert not transport.is_on
    while not transport.is_on:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("has_ended", [False, True], ids=["the application is busy", "the connection has ended"])
async def test_reading_does_not_go_on_after_a_pause_if(has_ended: bool) -> None:
    flow = http_limits._Flow(transport := Reading())
    flow.rest(0.0)
    transport.closed = has_ended
    if not has_ended:
        flow.pause_reading()
    await asyncio.sleep(0.02)
    assert not transport.is_on


def test_body_of_ordinary_chunks_is_read_without_a_pause(serve: Counting) -> None:
    with open_client(serve()) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        client.sendall((b"2000\r\n" + b"x" * 0x2000 + b"\r\n") * 30 + b"0\r\n\r\n")
        assert read_all(client).endswith(b"%d" % (30 * 0x2000))
    assert not serve.counters


def stop_connections(hosted: Hosted) -> None:
    """What uvicorn does with its connections when it stops."""

    def shut_down() -> None:
        for connection in list(hosted.server.server_state.connections):
            connection.shutdown()

    hosted.call(shut_down)


@pytest.mark.parametrize("is_first", [True, False], ids=["first request", "second request"])
def test_request_on_its_way_at_the_stop_is_answered(
    serve: Counting, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    monkeypatch.setattr(opening, "STOP_S", 2 * PATIENCE)
    hosted = serve()
    with open_client(hosted) as client:
        if not is_first:
            client.sendall(HEAD + b"\r\n")
            read_response(client)
        waiting.until(lambda: hosted.connections() == 1, PATIENCE, "the server has the connection")
        stop_connections(hosted)
        client.sendall(HEAD)
        client.sendall(b"\r\n")
        answered = read_all(client)
    assert answered.startswith(OK)


def test_idle_connection_is_closed_soon_after_the_stop(serve: Counting) -> None:
    hosted = serve()
    with open_client(hosted) as unused, open_client(hosted) as used:
        used.sendall(HEAD + b"\r\n")
        assert used.recv(65_536).startswith(OK)
        waiting.until(lambda: hosted.connections() == 2, PATIENCE, "the server has both connections")
        stop_connections(hosted)
        assert read_all(unused) == b""
        assert read_all(used) == b""


def test_websocket_on_its_way_at_the_stop_is_refused(serve: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "STOP_S", 2 * PATIENCE)
    hosted = serve()
    with open_client(hosted) as client:
        waiting.until(lambda: hosted.connections() == 1, PATIENCE, "the server has the connection")
        stop_connections(hosted)
        client.sendall(
            HEAD + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
            b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        answered = read_all(client)
    assert status(answered) == 503


def test_stream_that_begins_after_the_stop_ends(serve: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn notifies its connections once, before this request arrives."""
    monkeypatch.setattr(opening, "STOP_S", 2 * PATIENCE)

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        stopped = asyncio.Event()
        assert on_uvicorn.at_shutdown(send, stopped.set)
        await stopped.wait()
        await respond(send, b"stopped")

    hosted = serve(application=stream)
    with open_client(hosted) as client:
        waiting.until(lambda: hosted.connections() == 1, PATIENCE, "the server has the connection")
        stop_connections(hosted)
        client.sendall(HEAD + b"\r\n")
        assert read_all(client).endswith(b"stopped")
    waiting.until(lambda: hosted.connections() == 0, PATIENCE, "no connection keeps the server")
