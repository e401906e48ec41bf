"""The class under a real uvicorn, and uvicorn's own class beside it: applications observe the same behaviour.

Tests of one class alone use the fixture `own`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols import utils
from websockets.sync.client import connect, unix_connect

from fanfare.sockets import protocol
from tests.harness import servers, waiting
from tests.harness.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Wire, WireFrame, encode
from tests.unit.sockets.hosting import PATIENCE, STOCK, Hosted, ask

SERVERS: dict[str, dict[str, Any]] = {
    "own": {"loop": "uvloop", "http": "httptools"},
    "own on asyncio and h11": {"loop": "asyncio", "http": "h11"},
    "stock": {"ws": STOCK, "loop": "uvloop", "http": "httptools"},
}


@pytest.fixture(scope="module", params=SERVERS)
def hosted(request: pytest.FixtureRequest) -> Iterator[Hosted]:
    with Hosted(ws_max_size=100_000, **SERVERS[request.param]) as server:
        yield server


@pytest.fixture(scope="module", params=["own", "own on asyncio and h11"])
def own(request: pytest.FixtureRequest) -> Iterator[Hosted]:
    with Hosted(ws_max_size=100_000, **SERVERS[request.param]) as server:
        yield server


class Application:
    """Accepts, records the messages, and runs `talk`."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.scope: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.over = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        try:
            await self.answer(receive, send)
            await self.talk(receive, send)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.over.set()

    async def answer(self, receive: Any, send: Any) -> None:
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})

    async def talk(self, receive: Any, send: Any) -> None:
        """Until the end."""
        while not self.received or self.received[-1]["type"] != "websocket.disconnect":
            self.received.append(await receive())

    def ended(self) -> dict[str, Any]:
        """The last message, once the application is over."""
        assert self.over.wait(PATIENCE)
        return self.received[-1]


def on(hosted: Hosted, application: Application) -> Wire:
    """A client of this application."""
    hosted.application = application
    return Wire(hosted.port, "/")


def close_frame(code: int, reason: bytes = b"") -> WireFrame:
    return WireFrame(CLOSE, code.to_bytes(2, "big") + reason)


def reset(client: Wire) -> None:
    """Close with RST, as a lost client does."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client._reader.close()
    client.socket.close()


def none_left(hosted: Hosted) -> None:
    waiting.until(
        lambda: not hosted.connections() and not hosted.tasks(), PATIENCE, "no connection and no task is left"
    )


# -- the handshake -----------------------------------------------------------------------------------------------------


def test_accept_sends_its_subprotocol_and_headers(hosted: Hosted) -> None:
    class Choosing(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            await send(
                {"type": "websocket.accept", "subprotocol": "b", "headers": [(b"x-one", b"1"), (b"x-two", b"2")]}
            )

    hosted.application = Choosing()
    status, headers, _ = ask(hosted.port, Sec_WebSocket_Protocol="a, b")
    assert status == 101
    assert headers["sec-websocket-protocol"] == "b"
    assert (headers["x-one"], headers["x-two"]) == ("1", "2")
    assert headers["server"] == "uvicorn"
    assert "sec-websocket-extensions" not in headers
    none_left(hosted)


def test_each_accept_is_logged(hosted: Hosted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    hosted.application = Application()
    with Wire(hosted.port, "/a%20b?c=d") as client:
        address = f"{servers.HOST}:{client.local_port}"
    none_left(hosted)
    lines = [record.getMessage() for record in caplog.records if "WebSocket" in record.msg]
    assert lines == [f'{address} - "WebSocket /a%20b?c=d" [accepted]']


def test_connections_are_not_logged_without_an_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    with Hosted(Application(), access_log=False) as server:
        assert ask(server.port)[0] == 101
        none_left(server)
    assert not [record for record in caplog.records if "WebSocket" in record.msg]


def test_scope_describes_the_request(hosted: Hosted) -> None:
    application = hosted.application = Application()
    assert ask(hosted.port, "/caf%C3%A9/%2F?a=b%20c", Sec_WebSocket_Protocol="a, b", X_More="1")[0] == 101
    scope = application.scope
    assert scope["type"] == "websocket"
    assert scope["asgi"]["spec_version"] == "2.4"
    assert (scope["scheme"], scope["http_version"]) == ("ws", "1.1")
    assert (scope["path"], scope["raw_path"]) == ("/café//", b"/caf%C3%A9/%2F")
    assert (scope["query_string"], scope["root_path"]) == (b"a=b%20c", "")
    assert scope["subprotocols"] == ["a", "b"]
    assert (b"x-more", b"1") in scope["headers"]
    assert scope["server"] == (servers.HOST, hosted.port)
    assert scope["client"][0] == servers.HOST
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert scope["state"] == {}
    none_left(hosted)


def test_close_before_accept_is_a_403(hosted: Hosted) -> None:
    class Refusing(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.close"})

    application = hosted.application = Refusing()
    assert ask(hosted.port)[0] == 403
    assert application.ended() == {"type": "websocket.disconnect", "code": 1006} | application.received[-1]
    none_left(hosted)


def test_denial_may_be_any_response(hosted: Hosted) -> None:
    class Denying(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            headers = [(b"www-authenticate", b"Basic"), (b"content-type", b"text/plain")]
            await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": b"who ", "more_body": True})
            await send({"type": "websocket.http.response.body", "body": b"are you?"})

    application = hosted.application = Denying()
    status, headers, body = ask(hosted.port)
    assert (status, body) == (401, b"who are you?")
    assert (headers["www-authenticate"], headers["content-length"]) == ("Basic", "12")
    assert application.ended()["type"] == "websocket.disconnect"
    none_left(hosted)


@pytest.mark.parametrize("fault", ["raises", "returns"])
def test_application_that_returns_without_an_answer_is_a_500(
    hosted: Hosted, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            if fault == "raises":
                raise RuntimeError("a fault of the application")

        async def talk(self, receive: Any, send: Any) -> None:
            return

    hosted.application = Failing()
    assert ask(hosted.port)[0] == 500
    none_left(hosted)
    said = [record.levelname for record in caplog.records if record.name == "uvicorn.error"]
    assert [level for level in said if level != "INFO"] == ["ERROR"], said


def test_invalid_handshake_is_refused_before_the_application(hosted: Hosted) -> None:
    application = hosted.application = Application()
    assert ask(hosted.port, Sec_WebSocket_Version="8")[0] in (426, 400)  # 400: uvicorn's class
    assert application.scope == {}
    none_left(hosted)


def test_target_that_is_not_ascii_leaves_no_task(own: Hosted) -> None:
    """uvicorn's class raises here, and its server counts the connection for ever."""
    own.application = Application()
    with socket.create_connection((servers.HOST, own.port), PATIENCE) as client:
        client.sendall(
            b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.recv(4_096).startswith(b"HTTP/1.1 400 ")
    none_left(own)


def test_accept_with_a_line_break_in_a_header_raises_in_the_application(own: Hosted) -> None:
    class Injecting(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept", "headers": [(b"x", b"1\r\nset-cookie: a=b")]})

    own.application = Injecting()
    status, headers, _ = ask(own.port)
    assert status == 500
    assert "set-cookie" not in headers
    none_left(own)


# -- messages ----------------------------------------------------------------------------------------------------------


class Echo(Application):
    async def talk(self, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        self.received.append(message)


def test_messages_are_relayed_unchanged_in_both_directions(hosted: Hosted) -> None:
    with on(hosted, Echo()) as client:
        sent = [WireFrame(TEXT, "κόσμε".encode()), WireFrame(BINARY, b"\x00\xff"), WireFrame(TEXT, b"")]
        client.send(*sent)
        assert [client.receive() for _ in sent] == sent
    none_left(hosted)


def test_message_sent_before_the_accept_is_received_after_it(hosted: Hosted) -> None:
    gate = threading.Event()

    class Late(Echo):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            await asyncio.to_thread(gate.wait, PATIENCE)
            await send({"type": "websocket.accept"})

    hosted.application = Late()
    with socket.create_connection((servers.HOST, hosted.port), PATIENCE) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        waiting.until(hosted.tasks, PATIENCE, "the application runs")
        client.sendall(b"\x81\x82\0\0\0\0hi\x81\x85\0\0\0\0there")
        gate.set()
        with client.makefile("rb") as reader:
            while reader.readline() != b"\r\n":
                continue
            assert reader.read(4 + 7) == b"\x81\x02hi\x81\x05there"
    none_left(hosted)


def test_message_over_the_limit_closes_with_1009(hosted: Hosted) -> None:
    with on(hosted, Echo()) as client:
        client.send(WireFrame(TEXT, b"x" * 100_000))
        assert client.receive() == WireFrame(TEXT, b"x" * 100_000)
        client.send(WireFrame(TEXT, b"x" * 60_000, fin=False), WireFrame(CONTINUATION, b"x" * 40_001))
        closed = client.receive()
        assert closed is not None
        assert (closed.opcode, closed.payload[:2]) == (CLOSE, (1009).to_bytes(2, "big"))
    none_left(hosted)


def test_message_in_single_bytes_is_one_message(hosted: Hosted) -> None:
    sent = encode(WireFrame(TEXT, b"hello"))
    with on(hosted, Echo()) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(len(sent)):
            client.send_bytes(sent[n : n + 1])
        assert client.receive() == WireFrame(TEXT, b"hello")
    none_left(hosted)


def test_busy_application_pauses_reading_after_one_message(hosted: Hosted) -> None:
    gate = threading.Event()
    size, count = 50_000, 400

    class Busy(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            await asyncio.to_thread(gate.wait, PATIENCE)
            await super().talk(receive, send)

    application = Busy()
    with on(hosted, application) as client:
        message = b"\x82\xfe" + size.to_bytes(2, "big") + bytes(4 + size)
        sender = threading.Thread(target=client.send_bytes, args=(message * count,))
        sender.start()
        client.socket.settimeout(PATIENCE)
        sender.join(0.3)
        assert sender.is_alive(), "20 MB were taken from the client, and nobody had received a message"
        gate.set()
        sender.join(PATIENCE)
        client.send(close_frame(1000))
        application.ended()
        assert [len(message["bytes"]) for message in application.received[:-1]] == [size] * count
    none_left(hosted)


def test_send_waits_while_the_client_does_not_read(hosted: Hosted) -> None:
    size, count = 100_000, 200
    sent: list[int] = []

    class Sending(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            for n in range(count):
                await send({"type": "websocket.send", "bytes": bytes(size)})
                sent.append(n)

    hosted.application = Sending()
    with Wire(hosted.port, "/", receive_buffer=4_096) as client:
        waiting.until(lambda: sent, PATIENCE, "the application sends")
        steady(lambda: len(sent))
        assert len(sent) < count
        for _ in range(count):
            frame = client.receive()
            assert frame is not None
            assert len(frame.payload) == size
    none_left(hosted)


def steady(count: Any) -> int:
    """Its value once two looks in a row, some time apart, give the same."""
    seen: list[int] = []

    def same() -> bool:
        seen.append(count())
        return len(seen) > 10 and len(set(seen[-10:])) == 1

    waiting.until(same, PATIENCE, "it stands still")
    return seen[-1]


@pytest.mark.parametrize("how", ["reset", "end"])
def test_waiting_send_raises_when_the_client_is_gone(hosted: Hosted, how: str) -> None:
    class Sending(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(100_000)})

    application = hosted.application = Sending()
    client = Wire(hosted.port, "/", receive_buffer=4_096)
    assert client.receive() is not None
    if how == "reset":
        reset(client)
    else:
        client.__exit__()
    assert application.over.wait(PATIENCE)
    assert isinstance(application.error, OSError)
    none_left(hosted)


def test_send_works_after_a_cancelled_send(own: Hosted) -> None:
    """uvicorn's class passes too; ours once kept a future, which was then cancelled for all."""
    outcomes: list[str] = []

    class Impatient(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            while not outcomes:
                try:
                    await asyncio.wait_for(send({"type": "websocket.send", "bytes": bytes(100_000)}), 0.1)
                except TimeoutError:
                    outcomes.append("waited")
            await send({"type": "websocket.send", "text": "last"})
            outcomes.append("sent")

    own.application = Impatient()
    with Wire(own.port, "/", receive_buffer=4_096) as client:
        waiting.until(lambda: outcomes, PATIENCE, "a send was given up")
        while (frame := client.receive()) is not None and frame.opcode != TEXT:
            continue
        assert frame == WireFrame(TEXT, b"last")
    none_left(own)
    assert outcomes == ["waited", "sent"]


def test_cancelled_receive_loses_no_message(hosted: Hosted) -> None:
    class Twice(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            first = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            first.cancel()
            await send({"type": "websocket.send", "text": "ready"})
            self.received.append(await receive())
            await super().talk(receive, send)

    application = Twice()
    with on(hosted, application) as client:
        assert client.receive() == WireFrame(TEXT, b"ready")
        client.send(WireFrame(TEXT, b"hello"), close_frame(1000))
        assert application.ended()["type"] == "websocket.disconnect"
    assert application.received[0] == {"type": "websocket.receive", "text": "hello"}
    none_left(hosted)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_close_of_the_client_is_delivered_and_answered(hosted: Hosted) -> None:
    application = Application()
    with on(hosted, application) as client:
        client.send(close_frame(3001, b"enough"))
        answer = client.receive()
        assert answer is not None
        assert (answer.opcode, answer.payload[:2]) == (CLOSE, (3001).to_bytes(2, "big"))
        assert client.receive() is None
    assert application.ended() == {"type": "websocket.disconnect", "code": 3001, "reason": "enough"}
    none_left(hosted)


def test_close_of_the_application_sends_its_code_and_reason(hosted: Hosted) -> None:
    class Closing(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            await send({"type": "websocket.close", "code": 3002, "reason": "done"})
            with pytest.raises((RuntimeError, OSError)):
                await send({"type": "websocket.send", "text": "late"})
            await super().talk(receive, send)

    application = Closing()
    with on(hosted, application) as client:
        assert client.receive() == close_frame(3002, b"done")
        client.send(WireFrame(TEXT, b"unread"), close_frame(3002))
        assert client.receive() is None
    assert application.ended() == {"type": "websocket.disconnect", "code": 3002, "reason": "done"}
    none_left(hosted)


def test_close_is_sent_while_a_message_waits_for_the_application(hosted: Hosted) -> None:
    """The client's answer is behind that message."""

    class Deaf(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            await asyncio.to_thread(gate.wait, PATIENCE)
            await send({"type": "websocket.close", "code": 3002})

    gate = threading.Event()
    with on(hosted, Deaf()) as client:
        client.send(WireFrame(TEXT, b"1"), WireFrame(TEXT, b"2"))
        gate.set()
        assert client.receive() == close_frame(3002)
        client.send(close_frame(3002))
        assert client.receive() is None
    none_left(hosted)


@pytest.mark.parametrize(("fault", "code"), [("raises", 1011), ("returns", 1000), ("is cancelled", 1011)])
def test_connection_is_closed_when_its_application_returns(own: Hosted, fault: str, code: int) -> None:
    """uvicorn's class drops the transport, and the client learns nothing."""

    class Leaving(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            if fault == "raises":
                raise RuntimeError("a fault of the application")
            if fault == "is cancelled":
                raise asyncio.CancelledError

    with on(own, Leaving()) as client:
        closed = client.receive()
        assert closed is not None
        assert (closed.opcode, closed.payload) == (CLOSE, code.to_bytes(2, "big"))
        client.send(close_frame(code))
        assert client.receive() is None
    none_left(own)


@pytest.mark.parametrize("how", ["reset", "end", "half"])
def test_lost_client_is_delivered_as_1006(hosted: Hosted, how: str) -> None:
    application = Application()
    client = on(hosted, application)
    if how == "reset":
        reset(client)
    elif how == "end":
        client.__exit__()
    else:
        client.socket.shutdown(socket.SHUT_WR)
    assert application.ended()["code"] in (1005, 1006)  # uvicorn's class: 1005 after the accept
    client.__exit__()
    none_left(hosted)


def test_end_without_a_close_frame_is_delivered_as_1006(own: Hosted) -> None:
    application = Application()
    reset(on(own, application))
    assert application.ended() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


@pytest.mark.parametrize("reads", [True, False])
def test_half_closed_connection_is_closed(own: Hosted, reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With uvicorn's class a client that sends FIN and does not read stays, as long as something is to be read."""
    monkeypatch.setattr(protocol, "FLUSH_S", 0.3)

    class Sending(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            if not reads:
                with pytest.raises(utils.ClientDisconnected):
                    while True:
                        await send({"type": "websocket.send", "bytes": bytes(100_000)})
            await super().talk(receive, send)

    application = own.application = Sending()
    client = Wire(own.port, "/", receive_buffer=4_096)
    client.socket.shutdown(socket.SHUT_WR)
    assert application.ended()["code"] == 1006
    none_left(own)
    client.__exit__()


def test_send_raises_for_a_lost_client_without_a_receive(hosted: Hosted) -> None:
    left = threading.Event()

    class Deaf(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})

        async def talk(self, receive: Any, send: Any) -> None:
            await asyncio.to_thread(left.wait, PATIENCE)
            while True:
                await send({"type": "websocket.send", "text": "is anybody there?"})
                await asyncio.sleep(0)

    application = Deaf()
    with on(hosted, application) as client:
        client.send(WireFrame(PING, b"answered by the server"))
        assert client.receive() == WireFrame(PONG, b"answered by the server")
        client.send(close_frame(1000))
        assert client.receive() == close_frame(1000)
    left.set()
    assert application.over.wait(PATIENCE)
    assert isinstance(application.error, OSError)
    none_left(hosted)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "websocket.accept"},
        {"type": "websocket.close", "code": 1005 + 1},
        {"type": "websocket.close", "code": 70_000},
        {"type": "http.response.start"},
    ],
)
def test_message_that_asgi_does_not_allow_raises_in_the_application(own: Hosted, message: dict[str, Any]) -> None:
    class Wrong(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            with pytest.raises(RuntimeError):
                await send(message)
            await send({"type": "websocket.send", "text": "still open"})

    with on(own, Wrong()) as client:
        assert client.receive() == WireFrame(TEXT, b"still open")
    none_left(own)


# -- keepalive ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["own", "stock"])
def pinging(request: pytest.FixtureRequest) -> Iterator[Hosted]:
    with Hosted(ws_ping_interval=0.25, ws_ping_timeout=0.25, **SERVERS[request.param]) as server:
        yield server


def test_unanswered_ping_is_counted() -> None:
    server = Hosted(ws_ping_interval=0.25, ws_ping_timeout=0.25, **SERVERS["own"])
    counted: list[str] = []
    setattr(server.server.config, protocol.COUNT, counted.append)
    with server, on(server, Application()) as client:
        while client.receive() is not None:
            pass
    assert counted == ["closed.by_server"]


def test_client_without_a_pong_is_closed_with_1011(pinging: Hosted) -> None:
    application = Application()
    with on(pinging, application) as client:
        ping = client.receive()
        assert ping is not None
        assert ping.opcode == PING
        assert client.receive() == close_frame(1011, b"keepalive ping timeout")
        assert client.receive() is None
    application.ended()
    none_left(pinging)


def test_client_with_pongs_is_pinged_again(pinging: Hosted) -> None:
    with on(pinging, Echo()) as client:
        for _ in range(4):
            ping = client.receive()
            assert ping is not None
            assert ping.opcode == PING
            client.send(WireFrame(PONG, ping.payload))
        client.send(WireFrame(TEXT, b"alive"))
        while (frame := client.receive()) is not None and frame.opcode == PING:
            client.send(WireFrame(PONG, frame.payload))
        assert frame == WireFrame(TEXT, b"alive")
    none_left(pinging)


def test_busy_application_does_not_time_its_client_out() -> None:
    """The client's pongs are behind a message that the application has not received: uvicorn's class closes here."""
    gate = threading.Event()

    class Busy(Echo):
        async def talk(self, receive: Any, send: Any) -> None:
            await asyncio.to_thread(gate.wait, PATIENCE)
            await super().talk(receive, send)

    with (
        Hosted(ws_ping_interval=0.25, ws_ping_timeout=0.25) as server,
        on(server, Busy()) as client,
    ):
        client.send(WireFrame(TEXT, b"taken late"))
        for _ in range(3):
            ping = client.receive()
            assert ping is not None
            assert ping.opcode == PING
            client.send(WireFrame(PONG, ping.payload))
        gate.set()
        while (frame := client.receive()) is not None and frame.opcode == PING:
            client.send(WireFrame(PONG, frame.payload))
        assert frame == WireFrame(TEXT, b"taken late")
        client.send(close_frame(1000))


@pytest.mark.parametrize("interval", [0, None, -1.0])
def test_without_an_interval_no_ping_is_sent(interval: float | None) -> None:
    with Hosted(ws_ping_interval=interval) as server, on(server, Echo()) as client:
        server.call(lambda: None)
        [connection] = server.server.server_state.connections
        assert isinstance(connection, protocol.WebSocketProtocol)
        assert connection.slot is None
        client.send(close_frame(1000))
        assert client.receive() == close_frame(1000)


# -- the server's stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
def test_server_stop_closes_with_1012_on_both_sides(options: dict[str, Any]) -> None:
    application = Application()
    server = Hosted(**options)
    with server, on(server, application) as client:
        client.send(WireFrame(TEXT, b"hello"))
        waiting.until(lambda: application.received, PATIENCE, "the application runs")
        server.stop()
        assert client.receive() == close_frame(1012)
        assert client.receive() is None
        assert application.ended()["code"] == 1012


def test_server_stop_answers_pending_handshakes_with_503() -> None:
    began = threading.Event()

    class Waiting(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            began.set()
            self.received.append(await receive())

        async def talk(self, receive: Any, send: Any) -> None:
            with pytest.raises(utils.ClientDisconnected):
                await send({"type": "websocket.accept"})

    application = Waiting()
    with Hosted(application) as server:
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(ask(server.port)[0]))
        asking.start()
        assert began.wait(PATIENCE)
        server.stop()
        asking.join(PATIENCE)
    assert answers == [503]
    assert application.ended()["code"] == 1006


def test_handshake_without_an_answer_is_a_503(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent(Application):
        async def answer(self, receive: Any, send: Any) -> None:
            await receive()
            self.received.append(await receive())

        async def talk(self, receive: Any, send: Any) -> None:
            return

    monkeypatch.setattr(protocol, "HANDSHAKE_S", 0.05)
    counted: list[str] = []
    server = Hosted(Silent())
    setattr(server.server.config, protocol.COUNT, counted.append)
    with server:
        assert [ask(server.port)[0] for _ in range(3)] == [503] * 3
    assert counted == ["sockets.refused.handshake_timeout"] * 3
    [record] = [record for record in caplog.records if "handshake" in record.getMessage()]
    assert record.getMessage() == "A WebSocket handshake was refused: the application has not answered within 0.05 s"


def test_task_that_outlives_the_graceful_timeout_is_cancelled() -> None:
    class Stubborn(Application):
        async def talk(self, receive: Any, send: Any) -> None:
            await asyncio.Event().wait()

    application = Stubborn()
    server = Hosted(application, timeout_graceful_shutdown=1)
    with server, Wire(server.port, "/") as client:
        server.stop()
        assert client.receive() == close_frame(1012)
    assert isinstance(application.error, asyncio.CancelledError)


# -- other transports --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_unix_socket_works(tmp_path: Path, loop: str) -> None:
    path = tmp_path / "s"
    application = Echo()
    with Hosted(application, uds=str(path), loop=loop), unix_connect(str(path)) as client:
        client.send("hello")
        assert client.recv() == "hello"
    assert application.scope["client"] is None
    assert application.scope["server"] == (str(path), None)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed one for the loopback address, with its key in the same file."""
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(servers.HOST))])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(made.public_bytes(encoding) + key.private_bytes(encoding, form, serialization.NoEncryption()))
    return path


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_tls_works(certificate: Path, loop: str) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate))
    application = Echo()
    with (
        Hosted(application, ssl_certfile=str(certificate), ssl_keyfile=str(certificate), loop=loop) as server,
        connect(f"wss://{servers.HOST}:{server.port}/", ssl=trusted) as client,
    ):
        assert application.scope["scheme"] == "wss"
        for size in (5, 100_000):
            client.send("x" * size)
            assert client.recv() == "x" * size
        client.close(1000)
        assert application.ended()["code"] == 1000
        none_left(server)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_violation_over_tls_is_closed_with_its_code(certificate: Path, loop: str) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate))
    application = Application()
    with (
        Hosted(application, ssl_certfile=str(certificate), ssl_keyfile=str(certificate), loop=loop) as server,
        socket.create_connection((servers.HOST, server.port), PATIENCE) as plain,
        trusted.wrap_socket(plain, server_hostname=servers.HOST) as client,
    ):
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        with client.makefile("rb") as reader:
            while reader.readline() != b"\r\n":
                continue
            client.sendall(b"\x83\x80\0\0\0\0")  # opcode 3
            assert reader.read()[2:4] == (1002).to_bytes(2, "big")
        assert application.ended()["code"] == 1002
