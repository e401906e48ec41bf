"""The ASGI application of one WebSocket: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

from uvicorn.protocols.utils import ClientDisconnected, get_path_with_query_string

from fanfare.sockets import frames

logger = logging.getLogger("uvicorn.error")  # where uvicorn's own classes log their connections

HANDSHAKE: Final = '%s - "WebSocket %s" %s'  # uvicorn's log line, by which fanfare.hub.on_uvicorn knows it
FORBIDDEN: Final = 403
GRACE_S: Final = 10.0  # for a consumer to receive the disconnect
FIRST_MESSAGES: Final = "'websocket.accept', 'websocket.close' or 'websocket.http.response.start'"

Application = Callable[[Any, Any, Any], Awaitable[None]]


class Socket(Protocol):
    """The part of `WebSocketProtocol` that the application's side uses."""

    is_paused: bool  # the client does not read: `send` waits for `AsgiConnection.writable`

    @property
    def is_connecting(self) -> bool: ...
    @property
    def handshake_log(self) -> HandshakeLog: ...
    def is_closing(self) -> bool: ...
    def is_gone(self) -> bool: ...
    def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]], /) -> None: ...
    def deny(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, /) -> None: ...
    def read_on(self) -> None: ...
    def write_frame(self, frame: bytes, /) -> bool: ...
    def close(self, code: int, reason: str = "", /) -> None: ...
    def application_ended(self, of: AsgiConnection, code: int, /) -> None: ...


class UnexpectedMessage(RuntimeError):
    """The application sent a message that ASGI does not allow in this state. uvicorn's classes raise RuntimeError."""


class HandshakeLog:
    """Logs the handshakes of one server in uvicorn's form, at the end of the event loop's turn.

    The accept gate opens several WebSockets in a turn. Of lines that are written together, only the first one finds the
    code of `logging` outside of the CPU's caches: line by line, they took a quarter of the CPU of connecting clients.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._lines: list[tuple[str, str, str]] = []  # of this turn

    def add(self, client: tuple[str, int] | None, target: Callable[[], str], outcome: str) -> None:
        """`target`: gives the path and the query, if they are logged."""
        if not self._is_on or not logger.isEnabledFor(logging.INFO):
            return
        line = (f"{client[0]}:{client[1]}" if client else "", target(), outcome)
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        self._lines.append(line)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        place = HandshakeLog.add.__code__
        for line in lines:
            # Not `logger.info`, which examines the stack for the line's caller.
            record = logger.makeRecord(
                logger.name, logging.INFO, __file__, place.co_firstlineno, HANDSHAKE, line, None, place.co_name
            )
            logger.handle(record)


class AsgiConnection:
    """`receive` and `send` of one connection, and the messages that wait between them.

    It is dropped when the application hands the connection over to a listener (`WebSocketProtocol.listen`), and its
    scope and its task with it. At most one message waits for the application; meanwhile the client is not read.
    """

    __slots__ = ("_arrived", "_closed", "_connected", "_denial", "_messages", "_over", "_scope", "_writable", "socket")

    def __init__(self, socket: Socket, scope: dict[str, Any]) -> None:
        self.socket = socket
        self._scope = scope
        self._messages: list[dict[str, Any]] = []  # at most two, and one of them is the disconnect
        # Events instead of futures, because an application may wait in two tasks and cancel one of them. They are
        # created on first use: an application that hands its connection over uses neither.
        self._arrived: asyncio.Event | None = None
        self._writable: asyncio.Event | None = None
        self._connected = False  # the application has received websocket.connect
        self._closed = False  # the application has closed or denied the connection
        self._over = False  # the disconnect was put
        self._denial: tuple[int, list[tuple[bytes, bytes]], bytearray] | None = None

    # -- the application's side ----------------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while not self._messages:
            if self._arrived is None:
                self._arrived = asyncio.Event()
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.pop(0)
        if not self._messages:
            self.socket.read_on()
        return message

    async def send(self, message: Any) -> None:
        socket = self.socket
        while socket.is_paused and not socket.is_gone():
            if self._writable is None:
                self._writable = asyncio.Event()
            self._writable.clear()
            await self._writable.wait()
        if socket.is_gone():
            raise ClientDisconnected
        if socket.is_connecting:
            if self._denial is None:
                self._answer(message)
            else:
                self._deny_further(message, *self._denial)
        elif not socket.is_closing():
            self._send(message)
        elif self._closed:
            raise UnexpectedMessage(f"Unexpected ASGI message '{message['type']}' after 'websocket.close'.")
        else:
            raise ClientDisconnected

    def _send(self, message: Any) -> None:
        kind = message["type"]
        if kind == "websocket.send":
            data, text = message.get("bytes"), message.get("text")
            frame = frames.frame(frames.BINARY, data) if data is not None else frames.text((text or "").encode())
            self.socket.write_frame(frame)
        elif kind == "websocket.close":
            code = message.get("code") or frames.NORMAL
            if code != frames.NO_CODE and not frames.may_be_sent(code):
                raise UnexpectedMessage(f"A WebSocket cannot be closed with {code}: RFC 6455, section 7.4.")
            self._closed = True
            self.socket.close(code, message.get("reason") or "")
        else:
            raise UnexpectedMessage(f"Expected 'websocket.send' or 'websocket.close', but got '{kind}'.")

    def _answer(self, message: Any) -> None:
        """The application's first message answers the handshake."""
        kind = message["type"]
        if kind == "websocket.accept":
            self.socket.accept(message.get("subprotocol"), message.get("headers") or ())
            self._log("[accepted]")
        elif kind == "websocket.close":
            self._deny(FORBIDDEN, [], b"")
        elif kind == "websocket.http.response.start":
            status = message["status"]
            if not 200 <= status < 600:
                raise UnexpectedMessage(f"{status} is not the status of a final response.")
            self._denial = status, list(message.get("headers") or ()), bytearray()
        else:
            raise UnexpectedMessage(f"Expected {FIRST_MESSAGES}, but got '{kind}'.")

    def _deny_further(self, message: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytearray) -> None:
        if message["type"] != "websocket.http.response.body":
            raise UnexpectedMessage(f"Expected 'websocket.http.response.body', but got '{message['type']}'.")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            self._deny(status, headers, bytes(body))

    def _deny(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.socket.deny(status, headers, body)
        self._closed = True
        self._log(str(status))

    def _log(self, outcome: str) -> None:
        def target() -> str:
            return get_path_with_query_string(self._scope)  # type: ignore[arg-type]

        self.socket.handshake_log.add(self._scope["client"], target, outcome)

    async def run(self, application: Any) -> None:
        """Run the application to its end."""
        code = frames.INTERNAL_ERROR
        try:
            await application(self._scope, self.receive, self.send)
            code = frames.NORMAL
        except ClientDisconnected:
            code = frames.NORMAL
        except Exception:
            logger.exception("Exception in ASGI application")
        finally:
            self.socket.application_ended(self, code)

    # -- the client's side ---------------------------------------------------------------------------------------------

    def put(self, message: dict[str, Any]) -> None:
        """Give a message to the application. Messages after a disconnect are dropped."""
        if self._over:
            return
        self._over = message["type"] == "websocket.disconnect"
        self._messages.append(message)
        if self._arrived is not None:
            self._arrived.set()

    def is_full(self) -> bool:
        """Whether a message waits for the application."""
        return bool(self._messages)

    def writable(self) -> None:
        """Wake `send`: the client reads again, or is gone."""
        if self._writable is not None:
            self._writable.set()

    def waiting(self) -> list[dict[str, Any]]:
        """The messages that the application has not received."""
        return list(self._messages)


def deliver_disconnect(application: Application) -> Application:
    """Wrap a WebSocket application so that a send to a client that is gone does nothing.

    ASGI servers raise OSError then. In a Channels consumer it would end the consumer before `disconnect()` is called,
    and the consumer would stay in its groups. Without the exception the consumer goes on to receive
    `websocket.disconnect`, on every server.

    A consumer that only sends never receives it. Its sends raise OSError again after `GRACE_S`, which ends it.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await application(scope, receive, send)
            return
        gone_s: float | None = None  # since when the client is gone, in monotonic time

        async def receive_message() -> Any:
            nonlocal gone_s
            message = await receive()
            if message["type"] == "websocket.disconnect" and gone_s is None:
                gone_s = time.monotonic()
            return message

        async def send_message(message: Any) -> None:
            nonlocal gone_s
            if gone_s is None:
                try:
                    await send(message)
                except OSError:
                    gone_s = time.monotonic()
                else:
                    return
            if time.monotonic() - gone_s > GRACE_S:
                raise ClientDisconnected
            logger.debug("%s was dropped: the client is gone", message["type"])
            await asyncio.sleep(0)  # a consumer in a loop of sends must let the others run

        await application(scope, receive_message, send_message)

    return wrapped
