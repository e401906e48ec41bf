"""The ASGI application of one connection: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.utils import ClientDisconnected, get_client_addr, get_path_with_query_string

from fanfare.sockets import errors, frames

if TYPE_CHECKING:
    from fanfare.sockets.protocol import WebSocketProtocol

logger = logging.getLogger("uvicorn.error")  # where uvicorn's own classes write the lines of their connections

FORBIDDEN: Final = 403
FIRST_WORDS: Final = "'websocket.accept', 'websocket.close' or 'websocket.http.response.start'"


class Exchange:
    """`receive` and `send` of one connection, and what waits between them.

    It goes when the application hands the connection over to a listener (`WebSocketProtocol.listen`), and its scope and
    its task with it. One message waits for the application at a time; meanwhile nothing is read from the client.
    """

    __slots__ = ("_arrived", "_closed", "_denial", "_greeted", "_messages", "_over", "_scope", "_writable", "socket")

    def __init__(self, socket: WebSocketProtocol, scope: dict[str, Any]) -> None:
        self.socket = socket
        self._scope = scope
        self._messages: list[dict[str, Any]] = []  # two at most, and one of them the last
        # Events and not futures, for an application may wait in two tasks, and cancel one of them. Made when they are
        # waited for: an application that hands its connection over waits for neither.
        self._arrived: asyncio.Event | None = None
        self._writable: asyncio.Event | None = None
        self._greeted = False  # the application took websocket.connect
        self._closed = False  # by the application
        self._over = False  # the last message was put
        self._denial: tuple[int, list[tuple[bytes, bytes]], bytearray] | None = None

    # -- the application's side ----------------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        if not self._greeted:
            self._greeted = True
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
            raise errors.UnexpectedMessage(f"Unexpected ASGI message '{message['type']}', after the application's end.")
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
                raise errors.UnexpectedMessage(f"A WebSocket cannot be closed with {code}: RFC 6455, section 7.4.")
            self._closed = True
            self.socket.close(code, message.get("reason") or "")
        else:
            raise errors.UnexpectedMessage(f"Expected 'websocket.send' or 'websocket.close', but got '{kind}'.")

    def _answer(self, message: Any) -> None:
        """The application's first word decides what the client's request becomes."""
        kind = message["type"]
        if kind == "websocket.accept":
            self.socket.accept(message.get("subprotocol"), message.get("headers") or ())
            self._log("[accepted]")
        elif kind == "websocket.close":
            self._deny(FORBIDDEN, [], b"")
        elif kind == "websocket.http.response.start":
            status = message["status"]
            if not 200 <= status < 600:
                raise errors.UnexpectedMessage(f"{status} is no status of a response.")
            self._denial = status, list(message.get("headers") or ()), bytearray()
        else:
            raise errors.UnexpectedMessage(f"Expected {FIRST_WORDS}, but got '{kind}'.")

    def _deny_further(self, message: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytearray) -> None:
        if message["type"] != "websocket.http.response.body":
            raise errors.UnexpectedMessage(f"Expected 'websocket.http.response.body', but got '{message['type']}'.")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            self._deny(status, headers, bytes(body))

    def _deny(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.socket.deny(status, headers, body)
        self._closed = True
        self._log(str(status))

    def _log(self, outcome: str) -> None:
        if self.socket.is_logged and logger.isEnabledFor(logging.INFO):
            address, path = get_client_addr(self._scope), get_path_with_query_string(self._scope)  # type: ignore[arg-type]
            logger.info('%s - "WebSocket %s" %s', address, path, outcome)

    async def run(self, application: Any) -> None:
        """The application's task."""
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
        """Nothing after a disconnect."""
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
        """The client reads again, or never will."""
        if self._writable is not None:
            self._writable.set()

    def waiting(self) -> list[dict[str, Any]]:
        """What came and was not taken by the application."""
        return list(self._messages)
