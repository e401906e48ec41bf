"""Whole HTTP requests that are answered without a parser, a task and an ASGI scope.

A backend that publishes sends a small POST on a connection that stays open, and it arrives in one piece. uvicorn spends
more time on such a request than everything behind it: callbacks of the parser, a scope, a task, two events and timers.
`parse` recognizes these requests. It accepts only the plainest form; every other request, and every request that the
handler does not take, goes to uvicorn's parser as it came, so all errors are answered there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

BEGINS: Final = b"POST /"
MAX_HEAD_BYTES: Final = 4_096  # a longer head is rare, and the cache of heads must stay small
CACHED_HEADS: Final = 256  # a backend's requests differ in their Content-Length only

# The characters of RFC 9110: a token as the name, and neither control characters nor line folding in the value.
_LINE: Final = re.compile(rb"POST (/[^?# \x00-\x20\x7f-\xff]*)\?([^# \x00-\x20\x7f-\xff]*) HTTP/1\.1")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_OTHERS: Final = frozenset([b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"])  # left to the parser


class Request(NamedTuple):
    """A complete POST request. `headers`: with names in lower case, as in an ASGI scope."""

    path: str  # as sent, not decoded
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


# Called with the connection and the request. It returns True if it takes the request; it then has called `begin`, and
# calls `answer` later, exactly once. It must not raise.
Handler = Callable[["Answering", Request], bool]


class _Head(NamedTuple):
    fields: tuple[tuple[bytes, bytes], ...]
    length: int


def parse(data: bytes, max_line: int, max_headers: int) -> Request | None:
    """The request, if `data` is a complete one of the plain form."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        return None
    line_end = data.find(b"\r\n")
    line = _LINE.fullmatch(data, 0, line_end)
    if line is None or line.end(2) - line.start(1) > max_line:
        return None
    head = _head(data[line_end + 2 : end])
    if head is None or head.length != len(data) - end - 4 or len(head.fields) > max_headers:
        return None
    path, query = line.groups()
    return Request(path.decode("ascii"), query.decode("ascii"), head.fields, data[end + 4 :])


@functools.lru_cache(CACHED_HEADS)
def _head(lines: bytes) -> _Head | None:
    """The header fields, without the empty line. None unless the body has a Content-Length and nothing else is asked
    of the connection than to stay open."""
    fields = []
    length = None
    for each in lines.split(b"\r\n"):
        field = _FIELD.fullmatch(each)
        if field is None:
            return None
        name, value = field[1].lower(), field[2].rstrip(b" \t")
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 9:
                return None
            length = int(value)
        elif name in _OTHERS or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
        fields.append((name, value))
    if not length or [name for name, _ in fields].count(b"host") != 1:
        return None
    return _Head(tuple(fields), length)


def response(status_line: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The bytes of a response."""
    lines = [status_line]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    return b"".join([*lines, b"\r\n", body])


_Any: Any = object  # uvicorn's class, which comes later in the order of resolution, has the other attributes


class Answering(_Any):  # type: ignore[misc]
    """Mixed into uvicorn's httptools class by `http_limits.install`: a connection of which `handler` takes requests.

    Bytes that arrive before the response are kept until it is written. The timer of an idle connection is not set anew
    for each request: when it ends, it starts again for what remains since the last response.
    """

    handler: Handler

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._is_parsing = False  # the parser has a part of a request
        self._kept: bytes | None = None  # what arrived since `begin`; None: no request waits for its response
        self._answered_s = 0.0  # the loop's time
        self._is_last = False  # the server stops

    # -- for the handler -----------------------------------------------------------------------------------------------

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """uvicorn's headers of each response: another list each second."""
        headers: list[tuple[bytes, bytes]] = self.server_state.default_headers
        return headers

    def begin(self) -> None:
        self._kept = b""
        self.gate.served(self)

    def answer(self, whole: bytes) -> None:
        """Write a response. Does nothing if the client has disconnected."""
        kept, self._kept = self._kept, None
        transport = self.transport
        if transport.is_closing():
            return
        self.server_state.total_requests += 1
        if self._is_last:
            transport.write(whole.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            transport.close()
            return
        transport.write(whole)
        self._answered_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._start_keep_alive(self.timeout_keep_alive)
        self.gate.idle(self)
        if kept:
            self.flow.resume_reading()
            self.data_received(kept)

    # -- uvicorn's methods ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept += data
            self.flow.pause_reading()
            return
        if data.startswith(BEGINS) and self._is_free():
            request = parse(data, self.gate.limits.line_bytes, self.gate.limits.headers)
            if request is not None and self.handler(self, request):
                return
        super().data_received(data)

    def _is_free(self) -> bool:
        """Whether the parser and uvicorn's cycle have nothing to do on this connection."""
        cycle = self.cycle
        return (
            not self._is_parsing
            and (cycle is None or cycle.response_complete)
            and not self._is_refused
            and not self.pipeline
            and not self.flow.write_paused
            and self.limit_concurrency is None
            and not self.transport.is_closing()
        )

    def on_message_begin(self) -> None:
        self._is_parsing = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._is_parsing = False
        super().on_message_complete()

    def shutdown(self) -> None:
        self._is_last = True
        super().shutdown()

    def _stop(self) -> None:
        if self._kept is None:
            super()._stop()

    def timeout_keep_alive_handler(self) -> None:
        rest_s = self.timeout_keep_alive
        if self._kept is None:
            rest_s += self._answered_s - self.loop.time()
        if rest_s > 0 and not self.transport.is_closing():
            self._start_keep_alive(rest_s)
        else:
            super().timeout_keep_alive_handler()

    def _start_keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
