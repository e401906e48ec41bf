"""The writers: what they put on the wire, under the servers that they know and under any other."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from fanfare.hub import on_any, on_uvicorn, transports, writers
from fanfare.sockets import protocol as own
from tests.harness import waiting

BOUND = 256 * 1024
App = Callable[[Any, Any, Any], Awaitable[None]]


def test_a_batch_is_its_frames_joined_and_encoded_once() -> None:
    batch = writers.Batch([b"a", b"bc"])
    assert batch.wire == b"\x81\x01a\x81\x02bc"
    assert batch.wire is batch.wire


def test_batches_of_several_channels_are_one_and_none_is_encoded_twice() -> None:
    batches = [writers.Batch([b"a"]), writers.Batch([b"b", b"c"])]
    whole = writers.Batch.joined(batches)
    assert whole.bodies == [b"a", b"b", b"c"]
    assert whole.wire == batches[0].wire + batches[1].wire
    assert writers.Batch.joined(batches[:1]) is batches[0]


@asynccontextmanager
async def served(app: App, **options: Any) -> AsyncIterator[str]:
    """A WebSocket URL under a real uvicorn in this loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", **options)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 20)
        listener.close()


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 5, "the condition")


class Accepting:
    """An application that accepts, makes the writer, hands it to the test, and waits for the end."""

    def __init__(self) -> None:
        self.writer: asyncio.Future[writers.Writer] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.writer.set_result(transports.writer_for(send, max_buffer_bytes=BOUND))
        while (message := await receive())["type"] != "websocket.disconnect":
            pass
        self.ended.set_result(message.get("code", 1005))


OWN = "fanfare.sockets.protocol:WebSocketProtocol"
SERVERS = {
    "own": {"ws": OWN},
    "own on asyncio's loop": {"ws": OWN, "loop": "asyncio"},
    "sansio": {"ws": "websockets-sansio"},
    "sansio on asyncio's loop": {"ws": "websockets-sansio", "loop": "asyncio"},
    "with deflate": {"ws": "websockets-sansio", "ws_per_message_deflate": True},
    "wsproto": {"ws": "wsproto"},
}


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
async def test_frames_arrive_in_order_and_before_the_close(options: dict[str, Any]) -> None:
    app = Accepting()
    async with served(app, **options) as url, connect(url) as client:
        writer = await app.writer
        for n in range(5):
            writer.write(writers.Batch([f"{n}a".encode(), f"{n}é".encode()]))
            writer.send(str(n).encode())
        writer.close(4200, "bye")
        writer.close(4001, "again")
        writer.send(b"never")
        got: list[str | bytes] = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                got.append(await client.recv())
        assert got == [text for n in range(5) for text in (f"{n}a", f"{n}é", str(n))]
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4200, "bye")
        await asyncio.wait_for(app.ended, 20)


KINDS = {"own": own.WebSocketProtocol, "sansio": on_uvicorn.UvicornWriter, "wsproto": on_any.AsgiWriter}


@pytest.mark.parametrize("server", KINDS)
async def test_a_known_class_gets_its_direct_writer_and_others_the_portable_one(server: str) -> None:
    app = Accepting()
    async with served(app, **SERVERS[server]) as url, connect(url):
        assert type(await app.writer) is KINDS[server]


@pytest.mark.parametrize("server", KINDS)
async def test_a_connection_is_handed_over_where_the_server_can_do_that(server: str) -> None:
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    received: list[str] = []

    class Listener:
        answers: ClassVar[dict[bytes, bytes]] = {}

        def received(self, text: str) -> None:
            received.append(text)

        def restart(self) -> None: ...

        def received_binary(self) -> None:
            raise AssertionError("nothing binary is sent here")

        def end(self) -> None:
            ended.set_result(None)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if not transports.listen(send, Listener()):
            received.append((await receive())["text"])
            await receive()
            ended.set_result(None)

    async with served(app, **SERVERS[server]) as url, connect(url) as client:
        await client.send("hello")
        await until(lambda: received)
    await asyncio.wait_for(ended, 20)
    assert received == ["hello"]


@pytest.mark.parametrize("options", [SERVERS[name] for name in KINDS], ids=KINDS)
async def test_a_reader_that_does_not_read_goes_over_the_bound_and_can_be_dropped(options: dict[str, Any]) -> None:
    app = Accepting()
    async with served(app, **options) as url:
        client = await stalled(url)
        writer = await app.writer
        body = b"x" * 50_000
        written = 0
        while not writer.send(body):
            written += len(body)
            assert written < 50_000_000, "the bound was never reached"
            await asyncio.sleep(0)
        assert writer.buffered() > BOUND
        writer.close(4100, "too slow")
        assert writer.is_closing()
        writer.abort()
        writer.abort()
        await asyncio.wait_for(app.ended, 20)
        client.close()


async def stalled(url: str) -> socket.socket:
    """A WebSocket that was opened and is never read."""
    loop = asyncio.get_running_loop()
    host, port = url.removeprefix("ws://").rstrip("/").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await loop.sock_connect(client, (host, int(port)))
    request = (
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await loop.sock_sendall(client, request.encode())
    assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 101")
    return client


@pytest.mark.parametrize("options", [SERVERS["own"], SERVERS["sansio"]], ids=["own", "sansio"])
async def test_a_client_that_is_gone_costs_nothing(options: dict[str, Any]) -> None:
    app = Accepting()
    async with served(app, **options) as url:
        async with connect(url):
            writer = await app.writer
        await asyncio.wait_for(app.ended, 20)
        assert writer.send(b"x") is False
        assert writer.is_closing()
        writer.close(4200)
        writer.abort()
        assert writer.buffered() == 0


async def test_the_portable_writer_counts_bytes_and_not_characters() -> None:
    sent: list[dict[str, Any]] = []
    gate = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        await gate.wait()
        sent.append(message)

    writer = on_any.AsgiWriter(send, 10)
    assert writer.send("ééé".encode()) is False
    assert writer.send("ééé".encode()) is True
    assert writer.buffered() == 12
    gate.set()
    await until(lambda: len(sent) == 2)
    await until(lambda: writer.buffered() == 0)


def test_the_plain_command_gets_sane_values_and_flags_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["uvicorn", "x:app"])
    config = uvicorn.Config("x:app")
    on_uvicorn.tune(config, max_frame_bytes=1000, graceful_timeout_s=5)
    assert (config.ws_per_message_deflate, config.ws_max_size, config.timeout_graceful_shutdown) == (False, 1000, 5)
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (30, 15)

    monkeypatch.setattr("sys.argv", ["uvicorn", "x:app", "--ws-per-message-deflate=true", "--ws-ping-interval", "20"])
    config = uvicorn.Config("x:app", ws_max_size=500, timeout_graceful_shutdown=9, ws_ping_timeout=7)
    on_uvicorn.tune(config, max_frame_bytes=1000, graceful_timeout_s=5)
    assert (config.ws_per_message_deflate, config.ws_max_size, config.timeout_graceful_shutdown) == (True, 500, 9)
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (20, 7)

    config = uvicorn.Config("x:app", ws_ping_interval=None, ws_ping_timeout=None)
    on_uvicorn.tune(config, max_frame_bytes=1000, graceful_timeout_s=5)
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (None, None)


async def test_gunicorn_gets_a_heartbeat_when_the_wall_clock_steps_back() -> None:
    beats: list[int] = []

    async def beat() -> None:
        beats.append(1)

    config = uvicorn.Config("x:app", timeout_notify=15, callback_notify=beat)
    config.encoded_headers = []
    on_uvicorn.tune(config, max_frame_bytes=1000, graceful_timeout_s=5)
    server = uvicorn.Server(config)
    server.last_notified = time.time() + 600
    for tick in range(0, 30, 10):  # three seconds
        await server.on_tick(tick)
    assert len(beats) == 3


STOCK = "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol"
CHOICES: dict[str, tuple[list[str], dict[str, str], dict[str, Any], str]] = {
    "nothing": ([], {}, {}, OWN),
    "--ws": (["--ws", "websockets-sansio"], {}, {"ws": "websockets-sansio"}, STOCK),
    "--ws auto": (["--ws=auto"], {}, {}, STOCK),
    "UVICORN_WS": ([], {"UVICORN_WS": "auto"}, {}, STOCK),
    "CONFIG_KWARGS of a worker": ([], {}, {"ws": "websockets-sansio"}, STOCK),
    "deflate": (["--ws-per-message-deflate", "true"], {}, {"ws_per_message_deflate": True}, STOCK),
    "deflate by environment": ([], {"UVICORN_WS_PER_MESSAGE_DEFLATE": "1"}, {"ws_per_message_deflate": True}, STOCK),
    "no deflate by environment": ([], {"UVICORN_WS_PER_MESSAGE_DEFLATE": "False"}, {}, OWN),
    "no deflate": (["--ws-per-message-deflate", "false"], {}, {"ws_per_message_deflate": False}, OWN),
}


@pytest.mark.parametrize(("arguments", "environment", "options", "chosen"), CHOICES.values(), ids=CHOICES)
def test_fanfares_class_is_used_unless_another_is_configured(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    options: dict[str, Any],
    chosen: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["uvicorn", "x:app", *arguments])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = uvicorn.Config(until, **options)  # any callable
    config.load()
    on_uvicorn.tune(config, max_frame_bytes=1000, graceful_timeout_s=5)
    cls: Any = config.ws_protocol_class
    assert f"{cls.__module__}:{cls.__name__}" == chosen


@pytest.fixture
def quiet() -> on_uvicorn.QuietRefusals:
    """The installed filter, as if nothing had been logged yet."""
    transports.install_log_filters()
    transports.install_log_filters()
    [installed] = [one for one in logging.getLogger("uvicorn.error").filters if type(one) is on_uvicorn.QuietRefusals]
    installed.forget()
    return installed


async def test_a_flood_of_invalid_text_is_one_line_without_a_traceback(
    quiet: on_uvicorn.QuietRefusals, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the pinned uvicorn, so that a changed message of its log is found out."""
    for _ in range(3):
        app = Accepting()
        async with served(app, ws="websockets-sansio") as url, connect(url) as client:
            await client.send(b"\xff\xfe", text=True)
            assert await asyncio.wait_for(app.ended, 20) == 1007
    records = [record for record in caplog.records if "Invalid UTF-8" in record.getMessage()]
    assert len(records) == 1
    assert records[0].exc_info is None
    assert records[0].levelname == "WARNING"


def test_a_form_of_a_batch_is_encoded_once_for_all_who_want_the_same() -> None:
    batch = writers.Batch([b"a", b"bc"])
    asked: list[str] = []

    def encode(name: str, of: writers.Batch) -> bytes:
        asked.append(name)
        return name.encode() + b"".join(of.bodies)

    for _ in range(2):
        for name in ("x", "y"):
            assert batch.form(name, functools.partial(encode, name)) == name.encode() + b"abc"
    assert asked == ["x", "y"]


async def test_send_that_raises_drops_its_client_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def send(message: Any) -> None:
        raise ValueError("no\nmessage")

    writer = on_any.AsgiWriter(send, BOUND)
    writer.send(b"x")
    await until(writer.is_gone)
    [record] = caplog.records
    assert record.getMessage() == r"Writing to a client failed; it is dropped: ValueError: no\x0amessage"


async def test_client_that_is_gone_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def send(message: Any) -> None:
        raise ConnectionResetError

    writer = on_any.AsgiWriter(send, BOUND)
    writer.send(b"x")
    await until(writer.is_gone)
    assert caplog.records == []
