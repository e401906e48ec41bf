"""The ASGI application of one connection: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket"""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.utils import ClientDisconnected

from apps.sockets import frames

if TYPE_CHECKING:
    from apps.sockets.protocol import WebSocketProtocol

FORBIDDEN: Final = 403


class Exchange:
    """`receive` and `send` of one connection, and what waits between them.

    It goes when the application hands the connection over to a listener (`WebSocketProtocol.listen`), and its scope and
    its task with it. One message waits for the application at a time; meanwhile nothing is read from the client.
    """

    __slots__ = ("_closed", "_denial", "_messages", "_over", "_waiter", "_writable", "socket")

    def __init__(self, socket: WebSocketProtocol) -> None:
        self.socket = socket
        self._messages: collections.deque[dict[str, Any]] = collections.deque([{"type": "websocket.connect"}])
        self._waiter: asyncio.Future[None] | None = None  # a `receive` that has nothing yet
        self._writable: asyncio.Future[None] | None = None  # a `send` that waits for the client to read
        self._closed = False  # by the application
        self._over = False  # the application was told that nothing more comes
        self._denial: tuple[int, list[tuple[bytes, bytes]], bytearray] | None = None

    # -- the application's side ----------------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        while not self._messages:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        if not self._messages:
            self.socket.release()
        return message

    async def send(self, message: Any) -> None:
        while self.socket.is_paused and not self.socket.is_gone():
            if self._writable is None:
                self._writable = asyncio.get_running_loop().create_future()
            await self._writable
        if self.socket.is_gone():
            raise ClientDisconnected
        kind = message["type"]
        if self._denial is not None:
            self._deny_further(message, *self._denial)
        elif self.socket.is_connecting:
            self._answer(message)
        elif self.socket.is_closing():
            if self._closed:
                raise RuntimeError(f"Unexpected ASGI message '{kind}', after sending 'websocket.close'.")
            raise ClientDisconnected
        elif kind == "websocket.send":
            data, text = message.get("bytes"), message.get("text")
            frame = frames.frame(frames.BINARY, data) if data is not None else frames.text((text or "").encode())
            self.socket.write_frame(frame)
        elif kind == "websocket.close":
            self._closed = True
            self.socket.close(message.get("code", frames.NORMAL), message.get("reason") or "")
        else:
            raise RuntimeError(f"Expected ASGI message 'websocket.send' or 'websocket.close', but got '{kind}'.")

    def _answer(self, message: Any) -> None:
        """The application's first word decides what the client's request becomes."""
        kind = message["type"]
        if kind == "websocket.accept":
            self.socket.accept(message.get("subprotocol"), message.get("headers") or ())
        elif kind == "websocket.close":
            self._closed = True
            self.socket.deny(FORBIDDEN, [], b"")
        elif kind == "websocket.http.response.start":
            status = message["status"]
            if not 200 <= status < 600:
                raise RuntimeError(f"Invalid HTTP status code '{status}' in response.")
            self._denial = status, list(message.get("headers") or ()), bytearray()
        else:
            raise RuntimeError(
                "Expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start', "
                f"but got '{kind}'."
            )

    def _deny_further(self, message: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytearray) -> None:
        if message["type"] != "websocket.http.response.body":
            raise RuntimeError(f"Expected ASGI message 'websocket.http.response.body' but got '{message['type']}'.")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            self.socket.deny(status, headers, bytes(body))

    # -- the client's side ---------------------------------------------------------------------------------------------

    def put(self, message: dict[str, Any]) -> None:
        """Nothing after a disconnect."""
        if self._over:
            return
        self._over = message["type"] == "websocket.disconnect"
        self._messages.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def writable(self) -> None:
        """The client reads again, or never will."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def waiting(self) -> list[dict[str, Any]]:
        """What came and was not taken by the application."""
        return list(self._messages)
