"""One WebSocket on one transport, which uvicorn creates from an HTTP upgrade request.

docs/explanation/performance.md compares its cost with uvicorn's default class. The savings: no task, queue, scope and
header objects once the connection is handed over; no timer for each connection; no parser state between frames; no
compression.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from uvicorn.protocols.utils import get_local_addr, is_ssl

from fanfare.runtime import close_codes
from fanfare.runtime.log_throttle import Count, LogThrottle
from fanfare.runtime.supervisor import Supervisor
from fanfare.sockets import accept_gate, asgi, direct_send, drain, frames, handshake, keepalive

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

logger = logging.getLogger("uvicorn.error")
_violations = LogThrottle(logging.getLogger(__name__))
_failures = LogThrottle(logging.getLogger(__name__))
_pauses = LogThrottle(logging.getLogger(__name__))

HANDSHAKE_S: Final = 30.0  # for the application's answer to the handshake
CLOSE_S: Final = 10.0  # for the client's answer to a close frame, as in uvicorn
FLUSH_S: Final = 10.0  # for the client to read the remaining bytes after it has ended the connection itself
LINGER_S: Final = 2.0  # for the client to read the reason after the server has ended the connection
COUNT: Final = "fanfare_count"  # attribute of uvicorn's Config: adds one to a counter
HANDLER: Final = "fanfare_websocket_handler"  # attribute of uvicorn's Config: a Handler

# How much of one client is read at once; the rest waits, first in the kernel and then at the client. One read can hold
# 40,000 small frames, and libuv repeats a read of 256 kB up to 32 times before it serves another connection.
FRAMES_PER_TURN: Final = 64
LARGE_READ_BYTES: Final = 65_536
PAUSE_S: Final = 0.005  # after FRAMES_PER_TURN: 12,800 frames a second, more than client events may be allowed
BYTES_PER_SECOND: Final = 10_000_000  # after a large read
# The same for all clients together. Ten clients with 64 expensive frames each would delay the events of all others by
# 10 ms in one turn of the event loop. Two frames of each client are handled in any case.
TURN_S: Final = 0.002


class Listener(Protocol):
    """Gets the messages of a connection that was handed over, synchronously.

    Its methods may write, close and abort. An exception is logged and closes the connection with 1011. `answers`: the
    frame to send, by text, both in bytes, for texts that are answered without a call. With 10,000 idle clients the CPU
    caches are cold at every ping; this halves the cost of the answer.
    """

    answers: Mapping[bytes, bytes]

    def received(self, text: str) -> float:
        """A message. Returns the seconds to wait before the next one is read, mostly 0.0."""

    def received_binary(self) -> float:
        """The same for a binary message."""

    def restart(self) -> None:
        """The server stops, and another one is there: close the connection with the protocol's code for a reconnect."""

    def end(self) -> None:
        """The connection was closed by one side, or is lost. Called once, after the last message."""


# Called with a connection and its valid handshake. True: it has opened the connection with `accept_for`. False: the
# application answers the handshake.
Handler = Callable[["WebSocketProtocol", handshake.Request], bool]


class State(enum.IntEnum):
    CONNECTING = 0  # the application has not answered the handshake yet
    OPEN = 1
    CLOSING = 2  # the server has sent a close frame and waits for the client's
    ENDING = 3  # nothing more is written, and bytes from the client are ignored
    GONE = 4  # the transport has ended, and may raise when it is used


# For the hot path: an enum member costs twice as much as a global.
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
ENDING: Final = State.ENDING


class Shared:
    """State that all connections of one server share through one reference each."""

    def __init__(self, config: Config, server_state: ServerState) -> None:
        self.config = config
        self.app: Any = config.loaded_app
        self.connections: set[Any] = server_state.connections
        self.tasks = server_state.tasks  # uvicorn waits for them when it stops
        self.supervisor = Supervisor(logger)
        self.count: Count | None = getattr(config, COUNT, None)
        self.server_state = weakref.ref(server_state)
        self.drain = drain.of(config)
        self.gate = accept_gate.of(config)
        self.handler: Handler | None = getattr(config, HANDLER, None)
        self.root_path = config.root_path
        interval, timeout = config.ws_ping_interval, config.ws_ping_timeout
        self.keepalive = keepalive.Keepalive(interval, timeout) if interval is not None and interval > 0 else None
        self.handshake_log = asgi.HandshakeLog(is_on=config.access_log)
        self._headers: list[tuple[bytes, bytes]] | None = None  # of `_header_lines`
        self._header_lines = b""
        self._turn_began_s: float | None = None

    def is_turn_long(self) -> bool:
        """Whether TURN_S have passed since the first call in this turn of the event loop."""
        now = time.monotonic()
        if self._turn_began_s is None:
            self._turn_began_s = now
            asyncio.get_running_loop().call_soon(self._end_turn)
        return now - self._turn_began_s > TURN_S

    def _end_turn(self) -> None:
        self._turn_began_s = None

    def header_lines(self) -> bytes:
        """The lines of uvicorn's headers of each response: another list each second."""
        state = self.server_state()
        if state is None:
            return b""
        if state.default_headers is not self._headers:
            self._header_lines = handshake.lines(state.default_headers)
            self._headers = state.default_headers
        return self._header_lines


_shared: weakref.WeakKeyDictionary[ServerState, Shared] = weakref.WeakKeyDictionary()


class WebSocketProtocol(asyncio.Protocol):
    """A WebSocket class for uvicorn, with an ASGI application or a Listener above it.

    It is also the writer of its connection: `write` to `is_gone` implement `fanfare.hub.writers.Writer`.
    """

    __slots__ = (
        "__weakref__",
        "_app_state",
        "_asgi",
        "_held",
        "_key",
        "_listener",
        "_max_buffer_bytes",
        "_pong",
        "_reader",
        "_request",
        "_send",
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
        self._asgi: asgi.AsgiConnection | None = None
        self._listener: Listener | None = None
        self._app_state: dict[str, Any] | None = app_state  # None once the request was read
        self._request: tuple[handshake.Request, dict[str, Any]] | None = None  # waits for the worker's gate
        self._key = b""  # of the handshake, until it is answered
        self._state = State.CONNECTING
        self._timer: asyncio.TimerHandle | None = None
        self._held = False  # the transport does not read, because earlier bytes wait for the application
        self._pong: bytes | None = None  # waits until the client reads
        self._max_buffer_bytes = 0
        self._send: Callable[[bytes], int] | None = None  # of the socket, while the transport has nothing waiting
        self.is_paused = False  # the client reads slowly: the write buffer is above the transport's high-water mark
        self.heard = False
        self.pinged_at = keepalive.NOT_PINGED
        self.slot: set[Any] | None = None

    # -- the transport's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._shared.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._state is OPEN or self._state is CLOSING:
            self._reader.feed(data)
            size = len(data)
            self._read(size / BYTES_PER_SECOND if size >= LARGE_READ_BYTES else 0.0)
        elif self._app_state is not None:
            self.begin(handshake.read(data))
        elif self._state is State.CONNECTING:
            self._reader.feed(data)  # sent before the handshake was answered
            self._hold()

    def eof_received(self) -> None:
        """The client sends nothing more. A WebSocket cannot go on in one direction."""
        self._ended(frames.ABNORMAL, "")
        self._end(FLUSH_S)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self.write_frame(pong)
        if self._asgi is not None:
            self._asgi.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self._stop_timers()
        self._state, self._send = State.GONE, None
        self._ended(frames.ABNORMAL, "")
        if self._asgi is not None:
            self._asgi.writable()

    # -- uvicorn's side ------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """uvicorn stops: close the connection with 1012, at the time that the worker's drain gives it."""
        if self._state is State.CONNECTING and self._request is not None:
            # It waits at the gate. pusher-js waits for 15 s after a refused handshake, and for 1 s after this code.
            self._request = None
            self.accept(None, ())
            self.restart(returns=False)
        elif self._state is State.CONNECTING:
            self.deny(503, [], b"")
        elif self._state is OPEN and self._shared.drain is not None:
            self._shared.drain.add(self, drain.address_of(self._transport))
        else:
            self.restart(returns=False)

    def restart(self, *, returns: bool) -> None:
        """`returns`: another server accepts connections, so the listener's protocol may ask for a reconnect at once."""
        if self._state is OPEN and returns and self._listener is not None:
            self._listener.restart()
        if self._state is OPEN:
            self._transport.write(frames.close(frames.SERVICE_RESTART))
            self._ended(frames.SERVICE_RESTART, "")
        self._end(LINGER_S)

    # -- the handshake -------------------------------------------------------------------------------------------------

    def begin(self, request: handshake.Request) -> None:
        """Answer the handshake, or let the application answer it."""
        shared = self._shared
        app_state, self._app_state = self._app_state or {}, None
        try:
            self._key = handshake.key(request)
        except handshake.HandshakeRefused as refusal:
            logger.debug("A WebSocket handshake was refused with %d: %s", refusal.status, refusal.reason)
            headers = [*refusal.headers, (b"content-type", b"text/plain; charset=utf-8")]
            self.deny(refusal.status, headers, refusal.reason.encode())
            return
        gate = shared.gate
        if gate is not None and (reason := gate.refusal(len(shared.connections))):
            # A refused handshake has no close code, and a client without one waits for much longer.
            self.accept(None, ())
            self.close(close_codes.OVER_CAPACITY, reason)
            return
        self._request = request, app_state
        if gate is None or gate.takes(self):
            self.enter()

    def enter(self) -> None:
        """Call the handler or run the application: the worker's gate lets this handshake in."""
        shared = self._shared
        if self._request is None:
            return
        (request, app_state), self._request = self._request, None
        if shared.handler is not None and self._is_handled(shared.handler, request):
            return
        self._asgi = asgi.AsgiConnection(self, self._scope(request, app_state))
        self._start_timer(HANDSHAKE_S, self._handshake_timed_out)
        task = shared.supervisor.spawn("WebSocket application", self._asgi.run(shared.app))
        shared.tasks.add(task)
        task.add_done_callback(shared.tasks.discard)

    def _is_handled(self, handler: Handler, request: handshake.Request) -> bool:
        try:
            return handler(self, request)
        except Exception:
            logger.exception("The handshake of a WebSocket failed")
            self._open_with()
            if self._state is State.CONNECTING:
                self.deny(500, [], b"Internal Server Error")
            else:
                self._fail(frames.INTERNAL_ERROR, "")
            return True

    def _scope(self, request: handshake.Request, app_state: dict[str, Any]) -> dict[str, Any]:
        path, query = request.resource()
        transport, root_path = self._transport, self._shared.root_path
        return {
            "type": "websocket",
            "asgi": {"version": self._shared.config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(transport) else "ws",
            "server": get_local_addr(transport),
            "client": _peer(transport),
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
    def handshake_log(self) -> asgi.HandshakeLog:
        return self._shared.handshake_log

    @property
    def is_connecting(self) -> bool:
        return self._state is State.CONNECTING

    @property
    def client(self) -> tuple[str, int] | None:
        """The peer's address."""
        return _peer(self._transport)

    def accept_for(self, listener: Listener, request: handshake.Request, client: tuple[str, int] | None) -> None:
        """Open the WebSocket for `listener`, without an application. Frames are read from `read_on` on.

        The answer to the handshake is written with the listener's first frame, or by `read_on`. `client`: the address
        for the log.
        """
        self._listener = listener
        self._shared.handshake_log.add(client, request.path_with_query, "[accepted]")

    def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Open the WebSocket and read the client's frames."""
        self._open(subprotocol, headers)
        self.read_on()

    def _open_with(self, frame: bytes = b"") -> bool:
        """After `accept_for`: answer the handshake, and send the first frame in the same write. Returns False, as
        `write` of a small frame."""
        if self._state is State.CONNECTING and self._listener is not None:
            self._open(None, (), frame)
        return False

    def _open(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]], frame: bytes = b"") -> None:
        lines = self._shared.header_lines() + handshake.lines(headers)
        if subprotocol:
            lines += handshake.lines([(b"sec-websocket-protocol", subprotocol.encode("latin-1"))])
        self._transport.write(handshake.switching(self._key, lines) + frame)
        self._key = b""
        if self._timer is not None:
            self._stop_timers()
        self._state = OPEN
        if self._shared.keepalive is not None:
            self._shared.keepalive.add(self)

    def deny(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer the handshake with an HTTP response."""
        state = self._shared.server_state()
        given = [*(state.default_headers if state is not None else ()), *headers]
        self._transport.write(handshake.response(status, given, body))
        self._ended(frames.ABNORMAL, "")
        self._end(FLUSH_S)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read_on(self) -> None:
        """Read on: the application has received its message."""
        self._open_with()
        if self._held:
            self._read()

    def listen(self, listener: Listener) -> None:
        """Hand the connection over: from now on each message is a call of `listener`.

        The application of an accepted connection calls it and then returns. Messages that have arrived already are
        delivered before this returns. If the connection has ended already, `end` follows in the same turn of the loop.
        """
        if self._state is State.CONNECTING or self._asgi is None:
            raise asgi.UnexpectedMessage("Only an accepted connection can be handed over, and only once.")
        before, self._asgi = self._asgi, None
        self._listener = listener
        for message in before.waiting():
            if message["type"] == "websocket.receive":
                self._tell(message.get("text"))
        if self._state is OPEN:
            self.read_on()
        else:
            self._ended(frames.ABNORMAL, "")

    def _read(self, pause_s: float = 0.0) -> None:
        """Handle up to FRAMES_PER_TURN frames, fewer in a long turn of the event loop. The transport reads again when
        all of them are handled, and not before `pause_s`.
        """
        try:
            for number in range(FRAMES_PER_TURN):
                if self._state is OPEN:
                    if self._timer is not None:
                        return  # the client rests
                    if self._asgi is not None and self._asgi.is_full():
                        self._hold()
                        return
                elif self._state is not CLOSING:
                    return
                frame = self._reader.take()
                if frame is None:
                    if pause_s:
                        break
                    self._release()
                    return
                self._handle(*frame)
                if number and self._state is OPEN and self._shared.is_turn_long():
                    self._rest(max(pause_s, TURN_S))
        except frames.ProtocolViolation as violation:
            self._violated(violation)
            return
        except Exception as error:  # noqa: BLE001  (of one connection, which would otherwise never be read again)
            _failures.error("Reading from a WebSocket failed; it is closed with 1011", error=error)
            if self._shared.count is not None:
                self._shared.count("sockets.failed")
            self._fail(frames.INTERNAL_ERROR, "Internal error")
            return
        self._pause(max(pause_s, PAUSE_S))

    def _violated(self, violation: frames.ProtocolViolation) -> None:
        if self._shared.count is not None:
            self._shared.count(f"sockets.violations.{violation.code}")
        client = _peer(self._transport)
        _violations.warning(
            "A WebSocket was closed with %d: %s (from %s)",
            violation.code,
            violation.reason,
            client[0] if client else "unknown",
            key=violation.code,
        )
        self._fail(violation.code, violation.reason)

    def _pause(self, seconds: float) -> None:
        """The client has sent much at once: read on later, so that a flood leaves time for the others."""
        if self._state is CLOSING:  # its timer is that of the close
            self._hold()
            asyncio.get_running_loop().call_later(seconds, self._read)
        elif self._state is OPEN and self._timer is None:
            if self._shared.count is not None:
                self._shared.count("sockets.paused")
            client = self.client
            _pauses.info(
                "A WebSocket client sends more than %d frames or %d bytes at once; it is read with pauses (from %s)",
                FRAMES_PER_TURN,
                LARGE_READ_BYTES,
                client[0] if client else "unknown",
            )
            self._rest(seconds)

    def _rest(self, seconds: float) -> None:
        """Read nothing of the client meanwhile. What it sends waits in the kernel, and then at the client."""
        if self._state is OPEN and self._timer is None:
            self._hold()
            self._start_timer(seconds, self._rested)

    def _rested(self) -> None:
        self._timer = None
        self._read()

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
            return  # after the server's close frame only the client's matters
        elif opcode == frames.TEXT:
            listener = self._listener
            # A client that does not read goes to the listener, which disconnects it.
            if listener is not None and not self.is_paused and payload in listener.answers:
                self._put(listener.answers[payload])
                return
            try:
                text = payload.decode()
            except UnicodeDecodeError:
                raise frames.ProtocolViolation(frames.INVALID_TEXT, "The text is not UTF-8") from None
            if self._asgi is None:
                self._tell(text)
            else:
                self._asgi.put({"type": "websocket.receive", "text": text})
        elif opcode == frames.BINARY:
            if self._asgi is None:
                self._tell(None)
            else:
                self._asgi.put({"type": "websocket.receive", "bytes": payload})
        elif opcode == frames.PING:
            self._ping_received(payload)

    def _ping_received(self, payload: bytes) -> None:
        pong = frames.frame(frames.PONG, payload)
        if self.is_paused:
            # The last pong answers all pings (RFC 6455 §5.5.3): they must not accumulate for a client that never reads.
            self._pong = pong
        else:
            self._put(pong)

    def _tell(self, text: str | None) -> None:
        """Call the listener, unless it has closed the connection. `text`: None for a binary message."""
        listener = self._listener
        if listener is None:
            return
        try:
            rest_s = listener.received(text) if text is not None else listener.received_binary()
            if rest_s:
                self._rest(rest_s)
        except Exception:
            logger.exception("A WebSocket's listener failed")
            self._fail(frames.INTERNAL_ERROR, "")

    def _close_received(self, code: int, reason: str) -> None:
        if self._state is OPEN:
            self._transport.write(frames.close(code))
            self._ended(code, reason)
        self._end(FLUSH_S)

    # -- writing, for the hub ------------------------------------------------------------------------------------------

    def bound(self, max_buffer_bytes: int) -> WebSocketProtocol:
        """Set the number of buffered bytes above which `write` returns True."""
        self._max_buffer_bytes = max_buffer_bytes
        return self

    def write(self, batch: Any) -> bool:
        wire, send = batch.wire, self._send
        if send is None or self._state is not OPEN:
            return self._write_by_transport(wire)
        try:
            sent = send(wire)
        except OSError:  # the kernel has no room, or the client is lost: the transport finds out and handles it
            sent = 0
        if sent == len(wire):
            return False
        self._send = None
        return self.write_frame(wire[sent:])

    def _write_by_transport(self, wire: bytes) -> bool:
        """If the transport has nothing waiting afterwards, the next batch is sent on its socket."""
        is_slow = self.write_frame(wire)
        if self._state is OPEN and not self._transport.get_write_buffer_size():
            self._send = direct_send.sender(self._transport)
        return is_slow

    def send(self, body: bytes) -> bool:
        return self.write_frame(frames.text(body))

    def write_frame(self, frame: bytes) -> bool:
        if self._state is not OPEN:
            return self._open_with(frame)
        self._put(frame)
        return self.is_paused and self._transport.get_write_buffer_size() > self._max_buffer_bytes

    def _put(self, frame: bytes) -> None:
        """Write by the transport. Bytes that it cannot write now must precede the next batch."""
        self._transport.write(frame)
        if self._send is not None and self._transport.get_write_buffer_size():
            self._send = None

    def close(self, code: int, reason: str = "") -> None:
        self._open_with()
        if self._state is not OPEN:
            return
        self._transport.write(frames.close(code, reason))
        self._stop_timers()
        self._state = CLOSING
        self._start_timer(CLOSE_S)
        self._ended(code, reason)
        if self._held:  # the client's close frame may be behind the waiting bytes; the caller may be in `_read`
            asyncio.get_running_loop().call_soon(self._read)

    def abort(self) -> None:
        if self._state is not State.GONE:
            self._state = ENDING
            with contextlib.suppress(RuntimeError):  # uvloop: the handle is closed
                self._transport.abort()

    def buffered(self) -> int:
        return 0 if self._state is State.GONE else int(self._transport.get_write_buffer_size())

    def is_closing(self) -> bool:
        # asyncio's transport detects a lost client while it writes, and reports it one turn later.
        return self._state >= CLOSING or bool(self._transport.is_closing())

    def is_gone(self) -> bool:
        return self._state is State.GONE

    # -- keepalive -----------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        self._put(_PING)

    def timed_out(self) -> None:
        if self._held and self._shared.keepalive is not None:
            self._shared.keepalive.add(self)  # the answer may be behind a message that the application has not received
        else:
            if self._shared.count is not None:
                self._shared.count("closed.by_server")
            self._fail(frames.INTERNAL_ERROR, "keepalive ping timeout")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 §7.1.7).

        The client may still be sending. Closing the socket with unread bytes would reset the connection before the
        client reads the close frame, so only the sending half is closed, and the rest is read. TLS has no half-close:
        there the connection is closed, and may be reset.
        """
        if self._state is OPEN:
            self._transport.write(frames.close(code, reason))
            self._ended(code, reason)
        self._end(LINGER_S, unread=True)

    def _end(self, within: float, *, unread: bool = False) -> None:
        """Close after the last write. The client has `within` seconds to read it."""
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
        """Notify the listener or the application. The listener later in the turn, because it may be the caller."""
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener.end)
            self._listener = None
        elif self._asgi is not None:
            self._asgi.put({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _start_timer(self, seconds: float, callback: Callable[[], None] | None = None) -> None:
        """`callback`: `abort` by default."""
        self._timer = asyncio.get_running_loop().call_later(seconds, callback or self.abort)

    def _handshake_timed_out(self) -> None:
        if self._shared.count is not None:
            self._shared.count("sockets.refused.handshake_timeout")
        _failures.warning(
            "A WebSocket handshake was refused: the application has not answered within %g s", HANDSHAKE_S
        )
        self.deny(503, [(b"retry-after", b"1")], b"The application did not answer in time")

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._shared.keepalive is not None:
            self._shared.keepalive.remove(self)

    def application_ended(self, of: asgi.AsgiConnection, code: int) -> None:
        """The application has returned: close the connection with `code`, unless a listener has it."""
        if self._asgi is not of:
            return
        self._asgi = None
        if self._state is State.CONNECTING:
            if code == frames.NORMAL:
                logger.error("The ASGI application returned without an answer to the handshake")
            self.deny(500, [], b"Internal Server Error")
        else:
            self.close(code)


_PING: Final = frames.frame(frames.PING, b"")


def _peer(transport: Any) -> tuple[str, int] | None:
    """The peer's address; None on a Unix socket.

    Not `get_remote_addr` of uvicorn, which takes it from a socket object: uvloop makes one for each connection, which
    costs more than the answer.
    """
    try:
        found = transport.get_extra_info("peername")
    except OSError:  # uvloop asks the kernel, and the client has gone
        return None
    return (str(found[0]), int(found[1])) if isinstance(found, tuple | list) and len(found) >= 2 else None
