"""All knowledge of uvicorn's internals. Tested with the pinned release; another class gets the portable writer.

uvicorn passes a bound method of its protocol object, which has the transport. Writing a frame to the transport costs
5.6 µs instead of 8.8-10 µs with ASGI `send`, can be joined with others, and does not wait for the reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.middleware import proxy_headers
from uvicorn.protocols.http import httptools_impl

from fanfare.hub import writers
from fanfare.runtime import log_throttle
from fanfare.sockets import direct_http, drain, frames
from fanfare.sockets import protocol as own

SANSIO = "uvicorn.protocols.websockets.websockets_sansio_impl"

# If one of these flags is given, it is kept. uvicorn's default cannot be recognized by its value.
CLASS_FLAG = "--ws"
DEFLATE_FLAG = "--ws-per-message-deflate"
PING_FLAG, PONG_FLAG = "--ws-ping-interval", "--ws-ping-timeout"
CLASS_BY_DEFAULT = "auto"
NO = ("", "0", "f", "false", "n", "no", "off")  # as click reads them, which uvicorn uses

# Backends publish through a pool of connections. uvicorn closes idle ones after 5 s, possibly just when the next
# request arrives; 75 s is what proxies and SDKs expect.
UVICORN_KEEP_ALIVE_S, GUNICORN_KEEP_ALIVE_S, KEEP_ALIVE_S = 5, 2, 75

# Pings wake phones, and take a third of the CPU of 10,000 idle clients. With these values there are fewer of them, and
# a dead client is detected after 45 s instead of 40.
UVICORN_PING_S, PING_S, PONG_S = 20.0, 30.0, 15.0


def protocol_of(send: Any) -> Any | None:
    """The protocol object of a connection's `send`, if it is of a known class."""
    protocol = getattr(send, "__self__", None)
    known = protocol is not None and any(
        cls.__module__ == SANSIO and cls.__name__ == "WebSocketsSansIOProtocol" for cls in type(protocol).__mro__
    )
    return protocol if known else None


class Uvicorn:
    """uvicorn's other WebSocket classes: beside ASGI, they can only be dropped."""

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def buffered(self) -> int:
        return 0  # its `send` waits for the reader, so nothing accumulates here

    def close(self, code: int, reason: str) -> bool:
        return False

    def abort(self) -> None:
        _abort(self._transport)

    def is_gone(self) -> bool:
        return False


def below(send: Any) -> Uvicorn | None:
    protocol = getattr(send, "__self__", None)
    transport = getattr(protocol, "transport", None)
    return Uvicorn(transport) if transport is not None and type(protocol).__module__.startswith("uvicorn.") else None


def _abort(transport: Any) -> None:
    with contextlib.suppress(RuntimeError):  # uvloop: the handle is closed
        transport.abort()


class UvicornWriter:
    """Writes frames to the transport of a WebSocketsSansIOProtocol."""

    __slots__ = ("_closed", "_max_bytes", "_protocol", "_transport", "_writable")

    def __init__(self, protocol: Any, max_buffer_bytes: int) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self._writable = protocol.writable  # an asyncio.Event, cleared above the transport's 64 KiB mark
        self._max_bytes = max_buffer_bytes
        self._closed = False

    def write(self, batch: writers.Batch) -> bool:
        transport = self._transport
        if self._closed or transport.is_closing():
            return False
        transport.write(batch.wire)
        return not self._writable.is_set() and transport.get_write_buffer_size() > self._max_bytes

    def send(self, body: bytes) -> bool:
        return self.write(writers.Batch([body]))

    def close(self, code: int, reason: str = "") -> None:
        if self._closed:
            return
        self._closed = True
        if self._transport.is_closing():
            return
        # uvicorn's own close, so that its state stays consistent. It would wait for a slow reader, which must not
        # happen here, so its event is set: all writes to this client come from this writer.
        self._writable.set()
        closing = self._protocol.send({"type": "websocket.close", "code": code, "reason": frames.close_reason(reason)})
        try:
            closing.send(None)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - ClientDisconnected, InvalidState: it is closed already
            logging.getLogger(__name__).debug("Close %d came too late: %r", code, error)
            return
        closing.close()
        self._transport.abort()

    def abort(self) -> None:
        self._closed = True
        _abort(self._transport)

    def buffered(self) -> int:
        return 0 if self._transport.is_closing() else int(self._transport.get_write_buffer_size())

    def is_closing(self) -> bool:
        return self._closed or bool(self._transport.is_closing())

    def is_gone(self) -> bool:
        return bool(self._protocol.disconnected)  # set by connection_lost


# -- configuration -----------------------------------------------------------------------------------------------------


def server_config(callable_: Any) -> Any | None:
    """uvicorn's Config, from an ASGI `receive` or `send` of its lifespan or a connection; None under another server."""
    owner = getattr(callable_, "__self__", None)
    if owner is None or not type(owner).__module__.startswith("uvicorn."):
        return None
    return getattr(owner, "config", None)


def serves(config: Any, application: Any) -> bool:
    """Whether requests reach `application` with nothing around it but uvicorn's own middleware for proxies."""
    outermost = config.loaded_app
    if isinstance(outermost, proxy_headers.ProxyHeadersMiddleware):
        outermost = outermost.app
    return application is not None and outermost is application


def tune(config: Any, *, max_frame_bytes: int, graceful_timeout_s: int) -> None:
    """Set defaults for the plain commands; connections after this call use them.

    Deflate costs 40 kB per connection and most of the CPU of a fan-out, so it is off unless a flag enables it. Without
    it, and without a flag for another class, Fanfare's WebSocket class is used: an idle connection costs 3 kB instead
    of 23, and a connect a third of the CPU. A client is pinged every `PING_S` and has `PONG_S` to
    answer. A frame larger than `max_frame_bytes` closes its connection with 1009 (uvicorn: 16 MiB). A stop waits for
    `graceful_timeout_s` (uvicorn: forever). gunicorn gets a heartbeat once a second.
    """
    if not _is_given(DEFLATE_FLAG):
        config.ws_per_message_deflate = False
    if config.ws == CLASS_BY_DEFAULT and not _is_given(CLASS_FLAG) and not config.ws_per_message_deflate:
        config.ws_protocol_class = own.WebSocketProtocol
    if config.ws_ping_interval == UVICORN_PING_S and not _is_given(PING_FLAG):
        config.ws_ping_interval = PING_S
    if config.ws_ping_timeout == UVICORN_PING_S and not _is_given(PONG_FLAG):
        config.ws_ping_timeout = PONG_S
    by_default = UVICORN_KEEP_ALIVE_S if config.callback_notify is None else GUNICORN_KEEP_ALIVE_S
    if config.timeout_keep_alive == by_default:
        config.timeout_keep_alive = KEEP_ALIVE_S
    config.ws_max_size = min(config.ws_max_size, max_frame_bytes)
    if config.timeout_graceful_shutdown is None:
        config.timeout_graceful_shutdown = graceful_timeout_s
    # uvicorn counts the seconds between two heartbeats by the wall clock. When that steps back, it stops sending them
    # and gunicorn aborts the worker, so each of its ticks (one a second) sends one.
    config.timeout_notify = -math.inf


def _is_given(flag: str) -> bool:
    """Whether a flag is given on the command line or in uvicorn's environment variable. gunicorn's worker class reads
    neither, so a variable counts if it is set to anything but a false value.
    """
    variable = "UVICORN_" + flag.removeprefix("--").replace("-", "_").upper()
    given = any(argument == flag or argument.startswith(f"{flag}=") for argument in sys.argv)
    return given or os.environ.get(variable, "").lower() not in NO


def describe(config: Any) -> dict[str, str]:
    """The parts of the server, for the start line: `loop`, `http`, `websockets`."""

    def short(cls: Any) -> str:
        module = getattr(cls, "__module__", "") or "none"
        return str(module).rpartition(".")[2].removesuffix("_impl").replace("_", "-")

    sockets = getattr(config, "ws_protocol_class", None)
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    return {
        "loop": loop,
        "http": short(getattr(config, "http_protocol_class", None)),
        "websockets": "fanfare" if sockets is own.WebSocketProtocol else short(sockets),
    }


def mute_access_log(send: Any) -> None:
    """Omit one HTTP request from uvicorn's access log.

    A signed request has its signature in the query, with which a reader of the log could repeat the request for ten
    minutes. The log line also takes 23 % of the CPU of a publication.
    """
    cycle = getattr(send, "__self__", None)
    if getattr(cycle, "access_log", False):
        cycle.access_log = False  # type: ignore[union-attr]


def respond(send: Any, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Write a whole response at once. False: it must be sent by ASGI.

    uvicorn writes the head and the body apart, which is a second system call, and checks each header against two
    patterns: together a tenth of the CPU of a publication. `headers` must be valid; `content-length` is among them.
    """
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not httptools_impl.RequestResponseCycle:
        return False
    if cycle.response_started or cycle.disconnected or cycle.flow.write_paused or cycle.access_log:
        return False
    if not cycle.keep_alive or cycle.scope["method"] == "HEAD":
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(response(status, [*cycle.default_headers, *headers], body))
    cycle.message_event.set()
    cycle.on_response()
    return True


def response(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The bytes of a whole response."""
    return direct_http.response(httptools_impl.STATUS_LINE[status], headers, body)


# -- shutdown ----------------------------------------------------------------------------------------------------------


class _AtShutdown:
    """A stopping uvicorn calls `shutdown` on each object in its set of connections and waits until it is empty."""

    def __init__(self, connections: set[Any], callback: Callable[[], None]) -> None:
        self._connections = connections
        self._callback = callback

    def shutdown(self) -> None:
        self._connections.discard(self)
        self._callback()


def drain_of(send: Any) -> tuple[drain.Drain, Any] | None:
    """The drain of the server of an HTTP request, and the address of its connection. `send`: of the request."""
    protocol = getattr(getattr(getattr(send, "__self__", None), "on_response", None), "__self__", None)
    found = drain.of(getattr(protocol, "config", None))
    return None if protocol is None or found is None else (found, drain.address_of(protocol.transport))


def at_shutdown(send: Any, callback: Callable[[], None]) -> bool:
    """Call `callback` when the server starts to stop, for any reason. `send`: of one of its HTTP requests.

    uvicorn notifies WebSockets that it is stopping, but not responses: it waits for them before the lifespan shuts
    down. Returns False under another server.
    """
    cycle = getattr(send, "__self__", None)
    protocol = getattr(getattr(cycle, "on_response", None), "__self__", None)
    connections = getattr(getattr(protocol, "server_state", None), "connections", None)
    if not isinstance(connections, set) or not type(protocol).__module__.startswith("uvicorn."):
        return False
    if getattr(protocol, "_is_stopping", False):
        asyncio.get_running_loop().call_soon(callback)  # a request that came after uvicorn had notified its connections
    else:
        connections.add(_AtShutdown(connections, callback))
    return True


# -- log ---------------------------------------------------------------------------------------------------------------


class QuietRefusals(logging.Filter):
    """uvicorn logs a traceback for each message with invalid UTF-8, so a client could fill the disk.

    This filter logs one line a minute, with the number of omitted ones.
    """

    MESSAGE = "Invalid UTF-8 sequence received from client."
    EVERY_S = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self._next_s = 0.0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg != self.MESSAGE:
            return True
        now = time.monotonic()
        if now < self._next_s:
            self._left_out += 1
            return False
        self._next_s = now + self.EVERY_S
        record.exc_info = record.exc_text = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "%s (%d more since the last line)", (self.MESSAGE, self._left_out)
        self._left_out = 0
        return True


class RedactTokens(logging.Filter):
    """uvicorn logs the path of each accepted WebSocket, which may contain a resume token."""

    TOKEN = re.compile(r"/s/[A-Za-z0-9_-]{16,128}/")

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and "WebSocket" in record.msg:
            record.args = tuple(
                [
                    self.TOKEN.sub("/s/…/", argument) if isinstance(argument, str) and "/s/" in argument else argument
                    for argument in record.args
                ]
            )
        return True


def install_log_filters() -> None:
    """Idempotent."""
    for logger, kind in (
        ("uvicorn.error", QuietRefusals),
        ("uvicorn.error", RedactTokens),
        (log_throttle.ACCESS, log_throttle.ThrottledRefusals),
    ):
        target = logging.getLogger(logger)
        if not any(isinstance(one, kind) for one in target.filters):
            target.addFilter(kind())
