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
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from fanfare.sockets import errors, exchange, frames, handshake, pings

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

logger = logging.getLogger("uvicorn.error")

CLOSE_S: Final = 10.0  # that a client has to answer a close frame, as in uvicorn
FLUSH_S: Final = 10.0  # that it has to read what was written before the end, which it has seen itself
LINGER_S: Final = 2.0  # that it has to read why it was dropped, or that the server stops
FRAMES_PER_TURN: Final = 64  # then others get the loop: one read from a socket can hold 40,000 small frames


class Listener(Protocol):
    """Who gets the messages of a connection that was handed over. It never makes the client wait.

    It may write, close and abort while it is called. What it raises is logged and ends the connection with 1011.
    `answers`: texts that are answered with a ready frame and without a call, both in bytes. Of 10,000 idle clients that
    ping, every ping meets a processor that has forgotten the way; this is half of it.
    """

    answers: Mapping[bytes, bytes]

    def received(self, text: str) -> None: ...
    def received_binary(self) -> None: ...
    def end(self) -> None:
        """Nothing more comes: one side closed, or the connection is gone. Called once."""


class State(enum.IntEnum):
    CONNECTING = 0  # the application has not answered yet
    OPEN = 1
    CLOSING = 2  # we sent a close frame, and wait for the client's
    ENDING = 3  # nothing is written any more, and what comes is not looked at
    GONE = 4  # the transport has ended, and may raise when it is touched


# The hot path asks for them, and a member of an enum costs twice a global.
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
ENDING: Final = State.ENDING


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
        self.wheel = pings.Wheel(interval, timeout) if interval is not None and interval > 0 else None


_shared: weakref.WeakKeyDictionary[ServerState, Shared] = weakref.WeakKeyDictionary()


class WebSocketProtocol(asyncio.Protocol):
    """uvicorn's interface of a WebSocket class above, an ASGI application or a Listener below.

    It is the writer of its own connection too: see `fanfare.hub.writers.Writer` for what `write` to `is_gone` promise.
    """

    __slots__ = (
        "__weakref__",
        "_app_state",
        "_exchange",
        "_held",
        "_key",
        "_listener",
        "_max_buffer_bytes",
        "_pong",
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
        self._held = False  # the transport does not read, because what came has to be dealt with first
        self._pong: bytes | None = None  # an answer that waits until the client reads
        self._max_buffer_bytes = 0
        self.is_paused = False  # the client does not read: more than the transport's mark is buffered
        self.heard = False
        self.pinged_at = pings.NOT_PINGED
        self.slot: set[pings.Pinged] | None = None

    # -- the transport's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._shared.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._state is OPEN or self._state is CLOSING:
            self._reader.feed(data)
            self._read()
        elif self._app_state is not None:
            self._begin(handshake.read(data))
        elif self._state is State.CONNECTING:
            self._reader.feed(data)  # it should have waited for the answer
            self._hold()

    def eof_received(self) -> None:
        """The client writes no more, and a WebSocket has no half that could go on alone."""
        self._ended(frames.ABNORMAL, "")
        self._end(FLUSH_S)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self.write_frame(pong)
        if self._exchange is not None:
            self._exchange.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self._stop_timers()
        self._state = State.GONE
        self._ended(frames.ABNORMAL, "")
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
        self._end(LINGER_S)

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
        self._exchange = exchange.Exchange(self, self._scope(request, app_state))
        task = asyncio.get_running_loop().create_task(self._exchange.run(shared.app))
        shared.tasks.add(task)
        task.add_done_callback(shared.tasks.discard)

    def _scope(self, request: handshake.Request, app_state: dict[str, Any]) -> dict[str, Any]:
        path, query = request.resource()
        transport, root_path = self._transport, self._shared.root_path
        return {
            "type": "websocket",
            "asgi": {"version": self._shared.config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(transport) else "ws",
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
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
    def is_logged(self) -> bool:
        """Whether connections have a line in the log: not with `--no-access-log`."""
        return self._shared.config.access_log

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
        self.read_on()

    def deny(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer the request with something else than a WebSocket."""
        state = self._shared.server_state()
        given = [*(state.default_headers if state is not None else ()), *headers]
        self._transport.write(handshake.response(status, given, body))
        self._ended(frames.ABNORMAL, "")
        self._end(FLUSH_S)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read_on(self) -> None:
        """What stood in the way of the next message is gone."""
        if self._held:
            self._read()

    def listen(self, listener: Listener) -> None:
        """Hand the connection over: each message goes to `listener` as it comes, and the ASGI application is done.

        For an accepted connection, called by its application, which then returns. What came before is delivered here,
        before this returns, and where the connection has ended meanwhile, the end follows in the same turn of the loop.
        """
        if self._state is State.CONNECTING or self._exchange is None:
            raise errors.UnexpectedMessage("Only an accepted connection can be handed over, and only once.")
        before, self._exchange = self._exchange, None
        self._listener = listener
        for message in before.waiting():
            if message["type"] == "websocket.receive":
                self._tell(message.get("text"))
        if self._state is OPEN:
            self.read_on()
        else:
            self._ended(frames.ABNORMAL, "")

    def _read(self) -> None:
        """Deal with what came, for a turn at most, and let the transport read only if nothing is left to deal with."""
        try:
            for _ in range(FRAMES_PER_TURN):
                if self._state is OPEN:
                    if self._exchange is not None and self._exchange.is_full():
                        self._hold()
                        return
                elif self._state is not CLOSING:
                    return
                frame = self._reader.take()
                if frame is None:
                    self._release()
                    return
                self._handle(*frame)
        except errors.ProtocolViolation as violation:
            logger.debug("A WebSocket was ended with %d: %s", violation.code, violation.reason)
            self._fail(violation.code, violation.reason)
            return
        if self._state < ENDING:
            self._hold()
            asyncio.get_running_loop().call_soon(self._read)

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._transport.pause_reading()

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._transport.resume_reading()

    def _handle(self, opcode: int, payload: bytes) -> None:
        if opcode == frames.CLOSE:
            self._close_received(*frames.read_close(payload))
        elif self._state is not OPEN:
            return  # of what comes after our close, only the client's close matters
        elif opcode == frames.TEXT:
            listener = self._listener
            # One that does not read its answers is the listener's to let go.
            if listener is not None and not self.is_paused and payload in listener.answers:
                self._transport.write(listener.answers[payload])
                return
            try:
                text = payload.decode()
            except UnicodeDecodeError:
                raise errors.ProtocolViolation(frames.INVALID_TEXT, "The text is not UTF-8") from None
            if self._exchange is None:
                self._tell(text)
            else:
                self._exchange.put({"type": "websocket.receive", "text": text})
        elif opcode == frames.BINARY:
            if self._exchange is None:
                self._tell(None)
            else:
                self._exchange.put({"type": "websocket.receive", "bytes": payload})
        elif opcode == frames.PING:
            self._ping_received(payload)

    def _ping_received(self, payload: bytes) -> None:
        pong = frames.frame(frames.PONG, payload)
        if self.is_paused:
            # The last one answers them all (RFC 6455 §5.5.3); or pongs pile up for who never reads.
            self._pong = pong
        else:
            self._transport.write(pong)

    def _tell(self, text: str | None) -> None:
        """The listener, if it has not closed. `text`: None stands for a binary message."""
        listener = self._listener
        if listener is None:
            return
        try:
            if text is not None:
                listener.received(text)
            else:
                listener.received_binary()
        except Exception:
            logger.exception("A WebSocket's listener failed")
            self._fail(frames.INTERNAL_ERROR, "")

    def _close_received(self, code: int, reason: str) -> None:
        if self._state is OPEN:
            self._transport.write(frames.close(code))
            self._ended(code, reason)
        self._end(FLUSH_S)

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
        self._stop_timers()
        self._state = CLOSING
        self._start_timer(CLOSE_S)
        self._ended(code, reason)
        if self._held:  # the client's close frame is behind what waits; and the caller may be in the midst of it
            asyncio.get_running_loop().call_soon(self._read)

    def abort(self) -> None:
        if self._state is not State.GONE:
            self._state = ENDING
            with contextlib.suppress(RuntimeError):  # uvloop: the handle is closed
                self._transport.abort()

    def buffered(self) -> int:
        return 0 if self._state is State.GONE else int(self._transport.get_write_buffer_size())

    def is_closing(self) -> bool:
        # asyncio's transport notices a dead client while it writes, and says so a turn later.
        return self._state >= CLOSING or bool(self._transport.is_closing())

    def is_gone(self) -> bool:
        return self._state is State.GONE

    # -- keepalive -----------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        self._transport.write(_PING)

    def timed_out(self) -> None:
        if self._held and self._shared.wheel is not None:
            self._shared.wheel.add(self)  # its answer may be there, behind a message that the application has not taken
        else:
            self._fail(frames.INTERNAL_ERROR, "keepalive ping timeout")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        """The connection cannot go on (RFC 6455 §7.1.7).

        Bytes of the client may be on their way. To close on them would reset the connection, and what we say with it;
        so only our half is closed, and theirs read. TLS has no halves: there it is closed, and may be reset.
        """
        if self._state is OPEN:
            self._transport.write(frames.close(code, reason))
            self._ended(code, reason)
        self._end(LINGER_S, unread=True)

    def _end(self, within: float, *, unread: bool = False) -> None:
        """Everything was said. The client gets `within` seconds to read it."""
        if self._state >= ENDING:
            return
        self._stop_timers()
        self._release()
        self._state = ENDING
        self._start_timer(within)
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
        """The application is over. What it left open is closed with `code`, unless a listener has it."""
        if self._exchange is not of:
            return
        self._exchange = None
        if self._state is State.CONNECTING:
            if code == frames.NORMAL:
                logger.error("The ASGI application returned without an answer to the handshake")
            self.deny(500, [], b"Internal Server Error")
        else:
            self.close(code)


_PING: Final = frames.frame(frames.PING, b"")
