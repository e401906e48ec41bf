"""Limits for HTTP connections of uvicorn, before and between their requests.

uvicorn's HTTP classes parse a request's head of any size, and wait for it for any time. `install` replaces the class by
a subclass with these limits:

- The head of a request: its line, the number of its headers and its bytes, trailers included. Above it the client gets
  414 or 431, and the connection is closed.
- The time from the first byte of a request (of the first one: from the connect) to the end of its head. After it the
  client gets 408, or nothing if it has sent nothing.
- The number of connections that wait: those without a complete head, and those that are idle between two requests.
  Above it the oldest is closed, so that silent clients never lock others out.
- The number of all connections of the worker. Above it the oldest waiting one is closed, or else the new one gets 503.

A WebSocket begins as such a request, so the limits hold for upgrades too.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.timer_wheel import TimerWheel
from fanfare.sockets import direct_http, opening, protocol

logger = logging.getLogger(__name__)

TURN_S: Final = 0.25
LINGER_S: Final = 2.0  # for the client to read a refusal while it still sends
LINGER_BYTES: Final = 1_048_576  # read and dropped meanwhile
MAX_PIPELINED: Final = 64  # requests that wait for the answers of earlier ones on their connection
PIECES_AT_ONCE: Final = 64  # of a body: one read can hold 40,000 chunks, which the parser passes on one by one
PIECE_S: Final = 0.0001  # of a pause after more of them
RESERVED_DESCRIPTORS: Final = 128  # for logs, databases, webhooks and the engine


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The limits of one worker. `connections`: 0 for as many as the open-file limit allows."""

    line_bytes: int = 32_768
    head_bytes: int = 65_536
    headers: int = 128
    head_seconds: float = 20.0
    waiting: int = 1_000  # without a complete head, and again as many that are idle
    connections: int = 0

    def within_descriptors(self) -> HttpLimits:
        """These limits, reduced to what the open-file limit of the process allows."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return self
        most = max(soft - RESERVED_DESCRIPTORS, soft // 2)
        connections = min(self.connections or most, most)
        return HttpLimits(
            self.line_bytes,
            self.head_bytes,
            self.headers,
            self.head_seconds,
            max(1, min(self.waiting, connections // 4)),
            connections,
        )


class RequestRefused(Exception):
    """The head of a request exceeds a limit. `reason`: for the counter."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


STATUS_LINES: Final = {
    400: b"HTTP/1.1 400 Bad Request\r\n",
    408: b"HTTP/1.1 408 Request Timeout\r\n",
    414: b"HTTP/1.1 414 URI Too Long\r\n",
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n",
}


class Gate:
    """The connections of one server that wait for a request. `count` adds one to a counter."""

    def __init__(self, limits: HttpLimits, count: Callable[[str], None]) -> None:
        self.limits = limits
        self.count = count
        self._pending: dict[Any, None] = {}  # without a complete head; oldest first
        self._idle: dict[Any, None] = {}  # between two requests; oldest first
        self._wheel: TimerWheel[Any] = TimerWheel("HTTP heads", TURN_S, self._timed_out)
        self._log = LogThrottle(logger)

    def opened(self, connection: Any) -> bool:
        """A client has connected. False: the worker has too many connections, and this one was refused."""
        total = len(connection.connections)
        if self.limits.connections and total > self.limits.connections and not self._evict_one("connections", total):
            message = f"This worker has {total} connections; {self.limits.connections} are allowed."
            connection.refuse(503, "connections", message)
            return False
        self.pending(connection)
        return True

    def pending(self, connection: Any, waited_s: float = 0.0) -> None:
        """The head of a request is expected since `waited_s`."""
        self._idle.pop(connection, None)
        self._pending[connection] = None
        self._wheel.schedule(connection, self.limits.head_seconds - waited_s)
        if len(self._pending) > self.limits.waiting:
            self._evict(next(iter(self._pending)), "waiting", len(self._pending), self.limits.waiting)

    def idle(self, connection: Any) -> None:
        """A response is complete, and the connection stays open for another request. uvicorn limits the time."""
        self._idle[connection] = None
        if len(self._idle) > self.limits.waiting:
            self._evict(next(iter(self._idle)), "idle", len(self._idle), self.limits.waiting)

    def is_idle(self, connection: Any) -> bool:
        return connection in self._idle

    def served(self, connection: Any) -> None:
        """The head is complete, or the connection is gone."""
        self._pending.pop(connection, None)
        self._wheel.cancel(connection)
        self._idle.pop(connection, None)

    def refused(self, reason: str, message: str, client: Any) -> None:
        self.count(f"http.refused.{reason}")
        self._log.warning("HTTP request refused: %s (from %s)", message, client[0] if client else "unknown", key=reason)

    def _timed_out(self, connection: Any) -> None:
        self.served(connection)
        if not connection.has_sent:  # browsers open connections before they need them
            self.count("http.evicted.silent")
            connection.transport.abort()
            return
        seconds = self.limits.head_seconds
        connection.refuse(408, "head_timeout", f"The request's head did not arrive within {seconds:g} s.")

    def _evict_one(self, why: str, total: int) -> bool:
        oldest = next(iter(self._pending), None) or next(iter(self._idle), None)
        if oldest is None:
            return False
        self._evict(oldest, why, total, self.limits.connections)
        return True

    def _evict(self, connection: Any, why: str, actual: int, limit: int) -> None:
        self.served(connection)
        self.count(f"http.evicted.{why}")
        self._log.warning(
            "The oldest waiting HTTP connection was closed: %d connections (%s), %d are allowed",
            actual,
            why,
            limit,
            key=("evicted", why),
        )
        connection.transport.close()


class _Flow(FlowControl):
    """uvicorn's flow control of one connection, with pauses in which the application cannot resume the reading."""

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self._rests = False

    def rest(self, seconds: float) -> None:
        """Read nothing meanwhile."""
        if not self._rests:
            self._rests = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._rests = False
        if not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        if self._rests:
            self.read_paused = False
        else:
            super().resume_reading()


_Any: Any = object  # the attributes below are those of uvicorn's classes, which come later in the order of resolution


class _Limited(_Any):  # type: ignore[misc]
    """The limits for one of uvicorn's HTTP classes."""

    gate: Gate  # set by `install`
    slot: Any = None  # of the gate's wheel
    flow: Any  # a _Flow instead of uvicorn's

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._limits = self.gate.limits
        self.has_sent = False  # the client has sent something
        self._is_refused = False
        self._is_stopping = False
        self._dropped = 0  # bytes after the refusal

    # -- uvicorn's methods ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.gate.opened(self)

    def opened(self, transport: Any, waited_s: float) -> None:
        """Take over a connection that the gate has let in, `waited_s` after its start."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.gate.pending(self, waited_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gate.served(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.transport.abort()
            return
        self.has_sent = True
        if self.gate.is_idle(self):
            self.gate.pending(self)
        super().data_received(data)
        if self._is_stopping and self._is_answering():
            self.cycle.keep_alive = False

    def _rest_after(self, pieces: int) -> None:
        """`pieces`: of a body, in one read."""
        if pieces > PIECES_AT_ONCE:
            self.gate.count("http.paused")
            self.flow.rest(pieces * PIECE_S)

    def shutdown(self) -> None:
        """uvicorn stops. A request may still arrive, see `opening.STOP_S`."""
        self._is_stopping = True
        if self._is_answering():
            self._stop()
        else:
            self.loop.call_later(opening.STOP_S, self._stop)

    def _stop(self) -> None:
        if self in self.connections:  # otherwise a WebSocket has its transport
            super().shutdown()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def handle_websocket_upgrade(self, *arguments: Any) -> None:
        self.gate.served(self)
        super().handle_websocket_upgrade(*arguments)
        if self._is_stopping:
            self.transport.get_protocol().shutdown()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is None or self.transport.is_closing():
            return
        if self.cycle.more_body:  # the rest of the body is read and dropped, for a while
            self.gate.pending(self)
        else:
            self.gate.idle(self)

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it in the handler of the parser's exception."""
        refusal = _refusal(sys.exc_info()[1]) or RequestRefused(400, "invalid", msg)
        self.refuse(refusal.status, refusal.reason, str(refusal))

    # -- the end -------------------------------------------------------------------------------------------------------

    def refuse(self, status: int, reason: str, message: str) -> None:
        """Answer with `status` and close. Once a response has begun, or while an earlier request waits for its own,
        only 503 is answered.
        """
        if self._is_refused or self.transport.is_closing():
            return
        self.gate.refused(reason, message, self.client)
        if status == 503 or self._takes_over():
            self._end(status, message)
        else:
            self._is_refused = True
            self.gate.served(self)
            self.transport.abort()

    def _takes_over(self) -> bool:
        """Whether no response of the application can come any more. For the application of a request whose body is
        invalid, the client is gone.
        """
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not cycle.more_body):
            return True
        if cycle.response_started or getattr(self, "pipeline", None):
            return False
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        return True

    def _end(self, status: int, message: str) -> None:
        """The client may still be sending, and a close with unread bytes would reset the connection before it reads
        the answer. So only the sending half is closed, and the rest is read and dropped, for LINGER_S.
        """
        self._is_refused = True
        self.gate.served(self)
        self._unset_keepalive_if_required()
        body = message.encode()
        head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINES[status] + head + body)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            self.transport.close()


def _refusal(error: BaseException | None) -> RequestRefused | None:
    """The refusal behind a parser's exception."""
    while error is not None:
        if isinstance(error, RequestRefused):
            return error
        error = error.__cause__ or error.__context__
    return None


def _check_line(line_bytes: int, limits: HttpLimits) -> None:
    if line_bytes > limits.line_bytes:
        raise RequestRefused(
            414,
            "line_bytes",
            f"The request line has at least {line_bytes} bytes; {limits.line_bytes} are allowed.",
        )


def _check_headers(headers: int, limits: HttpLimits) -> None:
    if headers > limits.headers:
        raise RequestRefused(
            431, "headers", f"The request has at least {headers} headers; {limits.headers} are allowed."
        )


def _check_host(version: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """RFC 9112 §3.2. h11 checks it itself."""
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise RequestRefused(400, "invalid", f"The request has {hosts} Host headers; it must have one.")


def _head_too_large(head_bytes: int, limits: HttpLimits) -> RequestRefused:
    return RequestRefused(
        431,
        "head_bytes",
        f"The request's head has at least {head_bytes} bytes; {limits.head_bytes} are allowed.",
    )


# -- uvicorn's two parsers ---------------------------------------------------------------------------------------------


class LimitedHttpTools(_Limited, HttpToolsProtocol):
    """httptools calls a method for the URL, each header and the body, and buffers incomplete ones itself. So the bytes
    of a head are counted by chunk: those since the last message, or since the last byte of a body.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head_bytes = 0
        self._pieces = 0  # of a body, in the current read

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        self._pieces = 0
        super().data_received(data)
        self._rest_after(self._pieces)
        if self._head_bytes > self._limits.head_bytes and not self._is_refused and not self.transport.is_closing():
            error = _head_too_large(self._head_bytes, self._limits)
            self.refuse(error.status, error.reason, str(error))

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        _check_line(len(self.url), self._limits)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        _check_headers(len(self.headers), self._limits)

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._limits.head_bytes:  # the chunk may hold a part of the body
            exact = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if exact > self._limits.head_bytes:
                raise _head_too_large(exact, self._limits)
        _check_host(self.parser.get_http_version(), self.headers)
        self._head_bytes = 0
        self.gate.served(self)
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            raise RequestRefused(
                400, "pipelined", f"{len(self.pipeline)} requests are pipelined; {MAX_PIPELINED} are allowed."
            )

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        self._pieces += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()


class LimitedH11(_Limited, H11Protocol):
    conn: _LimitedConnection

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.conn = _LimitedConnection(self._limits, weakref.WeakMethod(self._head_complete))

    def data_received(self, data: bytes) -> None:
        self.conn.pieces = 0
        super().data_received(data)
        self._rest_after(self.conn.pieces)

    def _head_complete(self) -> None:
        self.gate.served(self)

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except RequestRefused as refused:
            self.refuse(refused.status, refused.reason, str(refused))


class _LimitedConnection(h11.Connection):
    """h11 limits the bytes of an incomplete head itself; here a complete one is checked."""

    def __init__(self, limits: HttpLimits, head_complete: weakref.WeakMethod[Callable[[], None]]) -> None:
        super().__init__(h11.SERVER, limits.head_bytes)
        self._limits = limits
        self._head_complete = head_complete
        self.pieces = 0  # of a body, in the current read

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                raise _head_too_large(len(self._receive_buffer), self._limits) from error
            raise
        if isinstance(event, h11.Request):
            _check_line(len(event.target), self._limits)
            _check_headers(len(event.headers), self._limits)
            exact = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
            if exact > self._limits.head_bytes:
                raise _head_too_large(exact, self._limits)
            complete = self._head_complete()
            if complete is not None:
                complete()
        elif isinstance(event, h11.Data):
            self.pieces += 1
        return event


class _QuietWarnings(logging.Filter):
    """uvicorn logs these for each request. The first one is logged here, with its reason and its client."""

    REFUSED = "Invalid HTTP request received."
    THROTTLED = ("Unsupported upgrade request.",)

    def __init__(self) -> None:
        super().__init__()
        self._log = LogThrottle(logger)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg in self.THROTTLED:
            self._log.warning("%s", record.msg, key=record.msg)
        return record.msg != self.REFUSED and record.msg not in self.THROTTLED


LIMITED: Final[dict[Any, type[_Limited]]] = {H11Protocol: LimitedH11, HttpToolsProtocol: LimitedHttpTools}


def install(
    config: Any, limits: HttpLimits, count: Callable[[str], None], handler: direct_http.Handler | None = None
) -> bool:
    """Make the connections that uvicorn accepts from now on obey `limits`. `config`: uvicorn's, loaded. `count`: adds
    one to a counter, also for WebSockets. `handler`: answers whole requests without ASGI, if uvicorn parses with
    httptools.

    False: the HTTP class is none of LIMITED, and has no limits.
    """
    base = config.http_protocol_class
    if issubclass(base, opening.Opening):
        base = base.http_class
    known = next((one for one in base.__mro__ if one in LIMITED), None) if issubclass(base, _Limited) else base
    limited = LIMITED.get(known)
    if known is None or limited is None:
        logger.warning("The HTTP class %s.%s has no limits of Fanfare's", base.__module__, base.__qualname__)
        return False
    uvicorn_logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(one, _QuietWarnings) for one in uvicorn_logger.filters):
        uvicorn_logger.addFilter(_QuietWarnings())
    setattr(config, protocol.COUNT, count)
    # The classes go by the name of uvicorn's class, by which fanfare.hub.on_uvicorn knows it.
    name, shared = known.__name__, {"gate": Gate(limits.within_descriptors(), count), "__module__": known.__module__}
    if limited is not LimitedHttpTools:
        config.http_protocol_class = type(name, (limited,), shared)
        return True
    http_class = type(name, (limited,), shared)
    if handler is not None:
        http_class = type(name, (direct_http.Answering, limited), {**shared, "handler": staticmethod(handler)})
    config.http_protocol_class = type(name, (opening.Opening,), {**shared, "__slots__": (), "http_class": http_class})
    return True
