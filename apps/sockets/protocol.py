"""One WebSocket on one transport, as uvicorn makes it from an HTTP request that asks for one.

What it costs, beside the class that uvicorn picks by itself, is in docs/explanation/performance.md. The savings: no
task, queue, scope and header objects once the connection is handed over; no timers of its own; no parser state between
frames; no compression, which is not offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import urllib.parse
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

from uvicorn.protocols.utils import ClientDisconnected

from apps.sockets import errors, exchange, frames, handshake, pings

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

logger = logging.getLogger("uvicorn.error")

CLOSE_S: Final = 10.0  # that a client has to answer a close frame, as in uvicorn
LINGER_S: Final = 2.0  # that it has to read why it was dropped: closing on unread bytes resets what it has not read
MESSAGES_PER_TURN: Final = 64  # then others get the loop: one read from a socket can hold thousands of small frames


class Listener(Protocol):
    """Who gets the messages of a connection that was handed over. Its methods do not raise."""

    def received(self, text: str) -> None: ...
    def received_binary(self) -> None: ...
    def end(self) -> None:
        """Nothing more comes: one side closed, or the connection is gone. Called once."""


class State(enum.IntEnum):
    CONNECTING = 0  # the application has not answered yet
    OPEN = 1
    CLOSING = 2  # we sent a close frame, and wait for the client's
    ENDING = 3  # nothing is written any more, and what comes is not read
    GONE = 4


OPEN: Final = State.OPEN  # the hot path asks for it


class Shared:
    """What all connections of one server share, so that none of them holds more than one reference."""

    def __init__(self, config: Config, server_state: ServerState) -> None:
        self.config = config
        self.app: Any = config.loaded_app
        self.connections: set[Any] = server_state.connections
        self.tasks = server_state.tasks
        self.server_state = weakref.ref(server_state)
        self.root_path = config.root_path
        interval, timeout = config.ws_ping_interval, config.ws_ping_timeout
        self.wheel = pings.Wheel(interval, timeout) if interval else None


_shared: weakref.WeakKeyDictionary[ServerState, Shared] = weakref.WeakKeyDictionary()


class WebSocketProtocol(asyncio.Protocol):
    """uvicorn's interface of a WebSocket class above, an ASGI application or a Listener below.

    It is the writer of its own connection too: see `apps.hub.writers.Writer` for what `write` to `is_gone` promise.
    """

    __slots__ = (
        "__weakref__",
        "_app_state",
        "_exchange",
        "_held",
        "_key",
        "_listener",
        "_max_buffer_bytes",
        "_reader",
        "_shared",
        "_state",
        "_timer",
        "_transport",
        "heard",
        "is_paused",
        "pinged_at",
        "slot",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        shared = _shared.get(server_state)
        if shared is None:
            shared = _shared[server_state] = Shared(config, server_state)
        self._shared = shared
        self._transport: Any = None
        self._reader = frames.Reader(shared.config.ws_max_size)
        self._exchange: exchange.Exchange | None = None
        self._listener: Listener | None = None
        self._app_state: dict[str, Any] | None = app_state  # until the request is read
        self._key = b""  # of the request, until it is answered
        self._state = State.CONNECTING
        self._timer: asyncio.TimerHandle | None = None
        self._held = False  # reading is stopped, because what came has to be dealt with first
        self._max_buffer_bytes = 0
        self.is_paused = False  # the client does not read: more than the transport's mark is buffered
        self.heard = False
        self.pinged_at = pings.NOT_PINGED
        self.slot = pings.NOWHERE

    # -- the transport's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._shared.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._app_state is not None:
            self._begin(handshake.read(data))
        elif self._state < State.ENDING:
            self._reader.feed(data)
            if self._state is State.CONNECTING:
                self.hold()  # it should have waited for the answer
            else:
                self._read()

    def eof_received(self) -> None:
        """The transport closes by itself."""

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._exchange is not None:
            self._exchange.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self._stop_timers()
        opened = self._state is not State.CONNECTING
        self._state = State.GONE
        self._ended(frames.NO_CODE if opened and exc is None else frames.ABNORMAL, "")
        if self._exchange is not None:
            self._exchange.writable()

    # -- uvicorn's side ------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """The server stops: say so, and go."""
        if self._state is State.CONNECTING:
            self.deny(503, [], b"")
            return
        if self._state is OPEN:
            self._transport.write(frames.close(frames.SERVICE_RESTART))
            self._ended(frames.SERVICE_RESTART, "")
        self._end()

    # -- the handshake -------------------------------------------------------------------------------------------------

    def _begin(self, request: handshake.Request) -> None:
        shared = self._shared
        app_state, self._app_state = self._app_state or {}, None
        try:
            self._key = handshake.key(request)
        except errors.HandshakeRefused as refusal:
            logger.info("A WebSocket was refused with %d: %s", refusal.status, refusal.reason)
            headers = [*refusal.headers, (b"content-type", b"text/plain; charset=utf-8")]
            self.deny(refusal.status, headers, refusal.reason.encode())
            return
        self._exchange = exchange.Exchange(self)
        task = asyncio.get_running_loop().create_task(_run(self._exchange, self._scope(request, app_state)))
        shared.tasks.add(task)
        task.add_done_callback(shared.tasks.discard)

    def _scope(self, request: handshake.Request, app_state: dict[str, Any]) -> dict[str, Any]:
        path, _, query = request.target.partition(b"?")
        transport, root_path = self._transport, self._shared.root_path
        return {
            "type": "websocket",
            "asgi": {"version": self._shared.config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if transport.get_extra_info("sslcontext") else "ws",
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "root_path": root_path,
            "path": root_path + urllib.parse.unquote(path.decode("ascii")),
            "raw_path": root_path.encode("ascii") + path,
            "query_string": query,
            "headers": request.headers,
            "subprotocols": [token.decode("latin-1") for token in request.tokens(b"sec-websocket-protocol")],
            "state": app_state.copy(),
            "extensions": {"websocket.http.response": {}},
        }

    @property
    def application(self) -> Any:
        return self._shared.app

    @property
    def is_connecting(self) -> bool:
        return self._state is State.CONNECTING

    def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Open the WebSocket. What the client sends may come from now on."""
        state = self._shared.server_state()
        given = [*(state.default_headers if state is not None else ()), *headers]
        if subprotocol:
            given.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        self._transport.write(handshake.switching(self._key, given))
        self._key = b""
        self._state = OPEN
        if self._shared.wheel is not None:
            self._shared.wheel.add(self)
        self.release()

    def deny(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer the request with something else than a WebSocket."""
        state = self._shared.server_state()
        given = [*(state.default_headers if state is not None else ()), *headers]
        self._transport.write(handshake.response(status, given, body))
        self._ended(frames.ABNORMAL, "")
        self._end()

    # -- reading -------------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Read no more until `release`."""
        if not self._held and self._state < State.ENDING:
            self._held = True
            self._transport.pause_reading()

    def release(self) -> None:
        if self._held and self._state < State.ENDING:
            self._held = False
            self._transport.resume_reading()
            self._read()

    def listen(self, listener: Listener) -> None:
        """Hand the connection over: each message goes to `listener` as it comes, and the ASGI application is done.

        For an accepted connection, called by its application, which then returns.
        """
        before, self._exchange = self._exchange, None
        self._listener = listener
        for message in before.waiting() if before is not None else ():
            if message["type"] == "websocket.disconnect":
                self._listener = None
                listener.end()
                return
            if message.get("text") is not None:
                listener.received(message["text"])
            else:
                listener.received_binary()
        self.release()

    def _read(self) -> None:
        taken = 0
        try:
            while not self._held and State.CONNECTING < self._state < State.ENDING:
                message = self._reader.take()
                if message is None:
                    return
                self._handle(*message)
                taken += 1
                if taken == MESSAGES_PER_TURN:
                    self.hold()
                    asyncio.get_running_loop().call_soon(self.release)
        except errors.ProtocolViolation as violation:
            self._fail(violation.code, violation.reason)

    def _handle(self, opcode: int, payload: bytes) -> None:
        if opcode == frames.CLOSE:
            self._close_received(*frames.read_close(payload))
        elif self._state is not OPEN:
            return  # of what comes after our close, only the client's close matters
        elif opcode == frames.TEXT:
            try:
                text = payload.decode()
            except UnicodeDecodeError:
                raise errors.ProtocolViolation(frames.INVALID_TEXT, "The text is not UTF-8") from None
            if self._listener is not None:
                self._listener.received(text)
            elif self._exchange is not None:
                self._exchange.put({"type": "websocket.receive", "text": text})
                self.hold()
        elif opcode == frames.BINARY:
            if self._listener is not None:
                self._listener.received_binary()
            elif self._exchange is not None:
                self._exchange.put({"type": "websocket.receive", "bytes": payload})
                self.hold()
        elif opcode == frames.PING:
            self._transport.write(frames.frame(frames.PONG, payload))

    def _close_received(self, code: int, reason: str) -> None:
        if self._state is OPEN:
            self._transport.write(frames.close(code))
            self._ended(code, reason)
        self._end()

    # -- writing: the hub's one way to this client ---------------------------------------------------------------------

    def bound(self, max_buffer_bytes: int) -> WebSocketProtocol:
        """Above so many buffered bytes `write` calls the client slow."""
        self._max_buffer_bytes = max_buffer_bytes
        return self

    def write(self, batch: Any) -> bool:
        if self._state is not OPEN:
            return False
        self._transport.write(batch.wire)
        return self.is_paused and self._transport.get_write_buffer_size() > self._max_buffer_bytes

    def send(self, body: bytes) -> bool:
        return self.write_frame(frames.text(body))

    def write_frame(self, frame: bytes) -> bool:
        if self._state is not OPEN:
            return False
        self._transport.write(frame)
        return self.is_paused and self._transport.get_write_buffer_size() > self._max_buffer_bytes

    def close(self, code: int, reason: str = "") -> None:
        if self._state is not OPEN:
            return
        self._transport.write(frames.close(code, reason))
        self._state = State.CLOSING
        self._start_timer(CLOSE_S)
        self._ended(code, reason)
        if self._held:
            self.release()  # the client's close frame is behind what waits

    def abort(self) -> None:
        if self._state is not State.GONE:
            self._state = State.ENDING
            with contextlib.suppress(RuntimeError):  # uvloop: the handle is closed
                self._transport.abort()

    def buffered(self) -> int:
        return 0 if self._state is State.GONE else int(self._transport.get_write_buffer_size())

    def is_closing(self) -> bool:
        return self._state >= State.CLOSING

    def is_gone(self) -> bool:
        return self._state is State.GONE

    # -- keepalive -----------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        self._transport.write(_PING)

    def timed_out(self) -> None:
        self._fail(frames.INTERNAL_ERROR, "keepalive ping timeout")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        """The connection cannot go on (RFC 6455 §7.1.7)."""
        if self._state is OPEN:
            self._transport.write(frames.close(code, reason))
            self._ended(code, reason)
        self._end(unread=True)

    def _end(self, *, unread: bool = False) -> None:
        """Everything was said. The client gets a moment to read it.

        `unread`: bytes of the client may be on their way. To close on them would reset the connection, and what we said
        with it; so only our half is closed.
        """
        if self._state >= State.ENDING:
            return
        self._stop_timers()
        if self._held:
            self._held = False
            self._transport.resume_reading()
        self._state = State.ENDING
        self._start_timer(LINGER_S)
        if unread and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _ended(self, code: int, reason: str) -> None:
        """Tell whoever reads. Later in the turn, because it may be the one who is closing."""
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener.end)
            self._listener = None
        elif self._exchange is not None:
            self._exchange.put({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _start_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._shared.wheel is not None:
            self._shared.wheel.remove(self)

    def application_ended(self, of: exchange.Exchange, code: int) -> None:
        """The application returned. What it left open is closed, unless a listener has it."""
        if self._exchange is not of:
            return
        self._exchange = None
        if self._state is State.CONNECTING:
            logger.error("The ASGI application ended without an answer to the handshake")
            self.deny(500, [], b"Internal Server Error")
        else:
            self.close(code)


_PING: Final = frames.frame(frames.PING, b"")


async def _run(of: exchange.Exchange, scope: dict[str, Any]) -> None:
    """The application's task."""
    code = frames.INTERNAL_ERROR
    try:
        await of.socket.application(scope, of.receive, of.send)
        code = frames.NORMAL
    except ClientDisconnected:
        code = frames.NORMAL
    except Exception:
        logger.exception("Exception in ASGI application")
    finally:
        of.socket.application_ended(of, code)


def _address(name: Any) -> tuple[str, int | None] | None:
    """As ASGI wants it, of what the transport tells."""
    if isinstance(name, str):
        return (name, None) if name else None
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
