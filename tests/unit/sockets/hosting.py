"""A uvicorn in a thread of this process, on any event loop, and an application that records its calls."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import uvicorn

from fanfare.sockets import asgi, protocol
from tests.harness import servers, waiting
from tests.harness.wire import Wire

PATIENCE = 20.0  # seconds: a busy machine may take its time
OWN = "fanfare.sockets.protocol:WebSocketProtocol"
STOCK = "websockets-sansio"
END = "the end"  # the call of Handing.end

T = TypeVar("T")
Application = Callable[[Any, Any, Any], Awaitable[None]]


class Hosted:
    """`application` may be replaced at any time: it is read for each connection. `options`: of uvicorn.Config."""

    def __init__(self, application: Application | None = None, **options: Any) -> None:
        self.application = application
        options = {"ws": OWN, "ws_per_message_deflate": False, "timeout_graceful_shutdown": 5} | options
        config = uvicorn.Config(self._serve, interface="asgi3", lifespan="off", log_config=None, **options)
        self.server = uvicorn.Server(config)
        self.uds = config.uds
        self._listener = None if self.uds else socket.create_server((servers.HOST, 0))
        self.port = 0 if self._listener is None else int(self._listener.getsockname()[1])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.application is not None
        await self.application(scope, receive, send)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self.server.config.get_loop_factory()) as runner:
            self._loop = runner.get_loop()
            runner.run(self.server.serve(sockets=None if self._listener is None else [self._listener]))

    def __enter__(self) -> Self:
        self._thread.start()
        waiting.until(lambda: self.server.started, PATIENCE, "the server has started")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop like a signal does. Idempotent."""
        self.server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server did not stop"
        if self._listener is not None:
            self._listener.close()

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, called in the server's loop."""
        assert self._loop is not None

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)

    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def tasks(self) -> int:
        return len(self.server.server_state.tasks)


def ask(port: int, target: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """A handshake's answer: status, headers in lower case, body. `headers`: more, with underscores for hyphens."""
    connection = http.client.HTTPConnection(servers.HOST, port, timeout=PATIENCE)
    asked = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    try:
        connection.request("GET", target, headers=asked | {name.replace("_", "-"): v for name, v in headers.items()})
        response = connection.getresponse()
        answer = {name.lower(): value for name, value in response.getheaders()}
        return response.status, answer, b"" if response.status == 101 else response.read()
    finally:
        connection.close()


def socket_of(send: Any) -> protocol.WebSocketProtocol:
    owner = send.__self__
    assert isinstance(owner, asgi.AsgiConnection)
    return owner.socket


class Handing:
    """An application that accepts, hands the connection over to itself, and records the calls."""

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {}
        self.calls: list[str | None] = []  # None: a binary message, END: the end
        self.on_message: Callable[[protocol.WebSocketProtocol], None] = lambda _: None
        self.handed_over = threading.Event()
        self.socket: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await self.before(receive)
        self.socket = socket_of(send)
        self.socket.listen(self)
        self.handed_over.set()

    async def before(self, receive: Any) -> None:
        """Runs between the accept and the hand-over."""

    def received(self, text: str) -> None:
        self.calls.append(text)
        self.on_message(self.socket)

    def restart(self) -> None: ...

    def received_binary(self) -> None:
        self.calls.append(None)

    def end(self) -> None:
        self.calls.append(END)

    def until(self, *calls: str | None) -> None:
        """Wait for these calls; no other may have happened."""
        waiting.until(lambda: len(self.calls) >= len(calls), PATIENCE, f"the calls {calls} happened")
        assert self.calls == list(calls)


def on(hosted: Hosted, application: Handing) -> Wire:
    hosted.application = application
    client = Wire(hosted.port, "/")
    assert application.handed_over.wait(PATIENCE)
    return client
