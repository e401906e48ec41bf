"""A handed-over connection: each message is a call, the end is one call, and scope and task are freed."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fanfare.sockets import asgi, frames, protocol
from tests.harness import waiting
from tests.harness.wire import BINARY, CLOSE, PING, TEXT, Wire, WireFrame
from tests.unit.sockets.hosting import END, PATIENCE, Handing, Hosted, on, socket_of

OPTIONS: dict[str, dict[str, Any]] = {
    "uvloop": {"loop": "uvloop", "http": "httptools"},
    "asyncio": {"loop": "asyncio", "http": "h11"},
}
INTERVALS = {"ws_ping_interval": 0.25, "ws_ping_timeout": 0.25}


@pytest.fixture(scope="module", params=OPTIONS)
def hosted(request: pytest.FixtureRequest) -> Iterator[Hosted]:
    with Hosted(ws_max_size=10_000, **OPTIONS[request.param]) as server:
        yield server


def close_frame(code: int) -> WireFrame:
    return WireFrame(CLOSE, code.to_bytes(2, "big"))


def test_each_message_is_a_call_of_the_listener(hosted: Hosted) -> None:
    application = Handing()
    with on(hosted, application) as client:
        client.send(WireFrame(TEXT, "κόσμε".encode()), WireFrame(BINARY, b"\xff"), WireFrame(TEXT, b""))
        application.until("κόσμε", None, "")


def test_text_with_a_ready_answer_is_answered_without_a_call(hosted: Hosted) -> None:
    application = Handing()
    application.answers = {b"ping": frames.text(b"pong")}
    with on(hosted, application) as client:
        client.send(WireFrame(TEXT, b"ping"), WireFrame(TEXT, b"pin"), WireFrame(BINARY, b"ping"))
        assert client.receive() == WireFrame(TEXT, b"pong")
        application.until("pin", None)


def test_client_that_does_not_read_gets_no_ready_answers(hosted: Hosted) -> None:
    application = Handing()
    application.answers = {b"ping": frames.text(b"pong")}
    with on(hosted, application) as client:
        application.socket.is_paused = True  # as the transport says it
        client.send(WireFrame(TEXT, b"ping"))
        application.until("ping")


def test_messages_from_before_the_hand_over_are_delivered_first(hosted: Hosted) -> None:
    gate = threading.Event()

    class Late(Handing):
        async def before(self, receive: Any) -> None:
            await asyncio.to_thread(gate.wait, PATIENCE)

    application = hosted.application = Late()
    with Wire(hosted.port, "/") as client:
        client.send(WireFrame(TEXT, b"1"), WireFrame(BINARY, b"2"), WireFrame(TEXT, b"3"))
        waiting.until(lambda: held(hosted), PATIENCE, "the first message waits")
        gate.set()
        client.send(WireFrame(TEXT, b"4"))
        application.until("1", None, "3", "4")


def held(hosted: Hosted) -> bool:
    return any(one._held for one in list(hosted.server.server_state.connections))  # type: ignore[union-attr]


@pytest.mark.parametrize("message_first", [True, False])
def test_end_is_called_for_a_client_that_left_before_the_hand_over(hosted: Hosted, message_first: bool) -> None:
    gate = threading.Event()

    class Late(Handing):
        async def before(self, receive: Any) -> None:
            await asyncio.to_thread(gate.wait, PATIENCE)
            if not message_first:
                assert (await receive())["type"] == "websocket.disconnect"

    application = hosted.application = Late()
    with Wire(hosted.port, "/") as client:
        frames = [WireFrame(TEXT, b"1")] if message_first else []
        client.send(*frames, close_frame(1000))
        gate.set()
        assert client.receive() == close_frame(1000)
    application.until(*(["1"] if message_first else []), END)


def test_only_an_accepted_connection_can_be_handed_over_and_only_once(hosted: Hosted) -> None:
    class Early(Handing):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            with pytest.raises(asgi.UnexpectedMessage):
                socket_of(send).listen(self)
            await super().__call__(scope, receive, send)
            with pytest.raises(asgi.UnexpectedMessage):
                socket_of(send).listen(self)

    application = Early()
    with on(hosted, application) as client:
        client.send(WireFrame(TEXT, b"1"))
        application.until("1")


# -- the end: one call, whichever side closes --------------------------------------------------------------------------


def vanish(client: Wire, _: Handing) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client._reader.close()
    client.socket.close()


ENDS: dict[str, Callable[[Wire, Handing], None]] = {
    "a close frame": lambda client, _: client.send(close_frame(1000)),
    "two close frames": lambda client, _: client.send(close_frame(1000), close_frame(1001)),
    "the end of its bytes": lambda client, _: client.socket.shutdown(socket.SHUT_WR),
    "a reset": vanish,
    "a violation": lambda client, _: client.send(WireFrame(3, b"")),
    "text that is none": lambda client, _: client.send(WireFrame(TEXT, b"\xff")),
    "a message that is too big": lambda client, _: client.send(WireFrame(TEXT, b"x" * 10_001)),
}


@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_close_of_the_client_calls_end_once(hosted: Hosted, how: Callable[[Wire, Handing], None]) -> None:
    application = Handing()
    client = on(hosted, application)
    how(client, application)
    gone(hosted, client)
    application.until(END)


def gone(hosted: Hosted, client: Wire) -> None:
    """Both sides have ended, and the loop has turned once more."""
    client.__exit__()
    waiting.until(lambda: not hosted.connections(), PATIENCE, "the connection has ended")
    hosted.call(lambda: None)


def raising(_: protocol.WebSocketProtocol) -> None:
    raise LookupError("a fault of the listener")


DURING: dict[str, Callable[[protocol.WebSocketProtocol], None]] = {
    "closes": lambda of: of.close(4000, "enough"),
    "closes twice": lambda of: (of.close(4000), of.close(4001))[0],
    "aborts": lambda of: of.abort(),
    "closes and aborts": lambda of: (of.close(4000), of.abort())[0],
    "raises": raising,
}


@pytest.mark.parametrize("act", DURING.values(), ids=DURING)
def test_listener_may_close_while_it_is_called(hosted: Hosted, act: Callable[[Any], None]) -> None:
    application = Handing()
    application.on_message = act
    client = on(hosted, application)
    client.send(WireFrame(TEXT, b"1"), WireFrame(TEXT, b"2"), WireFrame(TEXT, b"3"))
    gone(hosted, client)
    application.until("1", END)


@pytest.mark.parametrize("act", DURING.values(), ids=DURING)
def test_listener_may_close_over_a_message_from_before_the_hand_over(
    hosted: Hosted, act: Callable[[Any], None]
) -> None:
    gate = threading.Event()

    class Late(Handing):
        async def before(self, receive: Any) -> None:
            await asyncio.to_thread(gate.wait, PATIENCE)

    application = hosted.application = Late()
    application.on_message = act
    client = Wire(hosted.port, "/")
    client.send(WireFrame(TEXT, b"1"), WireFrame(TEXT, b"2"))
    waiting.until(lambda: held(hosted), PATIENCE, "the first message waits")
    gate.set()
    assert application.handed_over.wait(PATIENCE)
    gone(hosted, client)
    application.until("1", END)


def test_exception_of_a_listener_closes_with_1011(hosted: Hosted, caplog: pytest.LogCaptureFixture) -> None:
    application = Handing()
    application.on_message = raising
    with on(hosted, application) as client:
        client.send(WireFrame(TEXT, b"1"))
        assert client.receive() == close_frame(1011)
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


def test_server_close_waits_for_the_clients_close_frame(hosted: Hosted) -> None:
    """What comes before it is dropped, though there be more than a turn's frames."""
    application = Handing()
    application.on_message = lambda of: of.close(4000)
    with on(hosted, application) as client:
        client.send(*[WireFrame(TEXT, b"x")] * 1_000, close_frame(4000))
        assert client.receive() == close_frame(4000)
        assert client.receive() is None
    application.until("x", END)


def test_silent_client_is_disconnected() -> None:
    application = Handing()
    with Hosted(**INTERVALS) as server, on(server, application) as client:
        while (frame := client.receive()) is not None and frame.opcode == PING:
            continue
        assert frame is not None
        assert frame.payload[:2] == (1011).to_bytes(2, "big")
        application.until(END)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_server_stop_closes_with_1012_and_does_not_wait(options: dict[str, Any]) -> None:
    application = Handing()
    with Hosted(application, timeout_graceful_shutdown=PATIENCE, **options) as server:
        clients = [Wire(server.port, "/") for _ in range(20)]
        waiting.until(lambda: server.connections() == 20 and not server.tasks(), PATIENCE, "all were handed over")
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < PATIENCE / 4
        for client in clients:
            with client:
                assert client.receive() == close_frame(1012)
                assert client.receive() is None
    assert application.calls == [END] * 20


def test_server_stop_waits_two_seconds_for_a_client_that_does_not_read() -> None:
    application = Handing()
    with (
        Hosted(application, timeout_graceful_shutdown=PATIENCE) as server,
        Wire(server.port, "/", receive_buffer=4_096),
    ):
        assert application.handed_over.wait(PATIENCE)
        server.call(lambda: application.socket.send(bytes(10_000_000)))
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < protocol.LINGER_S + PATIENCE / 4
    assert application.calls == [END]


# -- what it costs -----------------------------------------------------------------------------------------------------


class Marker:
    """Something of the scope, or of a task's context, that a test can look for."""


def test_scope_and_task_are_freed_after_the_hand_over(hosted: Hosted) -> None:
    kept: list[weakref.ref[Any]] = []

    class Marking(Handing):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["headers"].append(marker := Marker())
            task = asyncio.current_task()
            assert task is not None
            kept.extend(map(weakref.ref, (marker, task)))
            await super().__call__(scope, receive, send)

    application = Marking()
    with on(hosted, application) as client:
        waiting.until(lambda: not hosted.tasks(), PATIENCE, "the task is over")
        hosted.call(lambda: None)
        gc.collect()
        assert [reference() for reference in kept] == [None, None]
        assert not any(isinstance(held, asgi.AsgiConnection) for held in gc.get_referents(application.socket))
        client.send(WireFrame(TEXT, b"still heard"))
        application.until("still heard")


def test_closed_connection_is_freed(hosted: Hosted) -> None:
    application = Handing()
    client = on(hosted, application)
    kept, application.socket = weakref.ref(application.socket), None
    gone(hosted, client)

    def collected() -> bool:
        gc.collect()
        return kept() is None

    waiting.until(collected, PATIENCE, "it is collected")


def test_write_reports_a_slow_client_and_never_blocks(hosted: Hosted) -> None:
    application = hosted.application = Handing()
    bound = 1 << 20
    with Wire(hosted.port, "/", receive_buffer=4_096):
        assert application.handed_over.wait(PATIENCE)

        def write() -> int:
            writer, written = application.socket.bound(bound), 0
            while not writer.send(bytes(50_000)):
                written += 50_000
                assert written < 100_000_000, "the bound was never reached"
            assert writer.buffered() > bound
            writer.close(4100, "too slow")
            assert writer.is_closing()
            assert not writer.send(b"never")
            writer.abort()
            return written

        assert hosted.call(write) > bound / 2
        waiting.until(lambda: not hosted.connections(), PATIENCE, "the connection has ended")
        assert application.socket.is_gone()
        assert application.socket.buffered() == 0
        assert not application.socket.send(b"never")
        application.socket.close(4100)
        application.socket.abort()
    application.until(END)
