"""Log lines with the ids of their connection, request and trace: text, or one JSON object a line."""

from __future__ import annotations

import contextvars
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from fanfare.runtime import text

# Ids that a line carries where they are known: `logger.debug(…, extra={"socket": …})`.
IDS: Final = ("socket", "channel", "reason", "request", "trace")

# The id of the trace in which a line is written; set with FANFARE_OTEL.
trace_id: Callable[[], str | None] | None = None

# The ASGI scope of the request in which a line is written.
scope: contextvars.ContextVar[Any] = contextvars.ContextVar("fanfare.log_scope", default=None)

HEADER: Final = b"x-request-id"
_REQUEST_ID: Final = re.compile(rb"[\w.:/+=-]{1,128}")
_MADE: Final = "fanfare.request_id"  # in the scope, so that all lines of a request have the same one


def ids(record: logging.LogRecord) -> Iterator[tuple[str, str | int]]:
    """The known ids of a line, of its `extra` or of the request and the trace in which it is written."""
    for name in IDS:
        value = getattr(record, name, None)
        if isinstance(value, str | int):
            yield name, value
        elif name == "request" and (request := scope.get()) is not None:
            yield name, _request_id(request)
        elif name == "trace" and trace_id is not None and (trace := trace_id()) is not None:
            yield name, trace


def _request_id(request: Any) -> str:
    """That of the proxy's header `X-Request-ID`, otherwise one of our own, which is made for the first line."""
    made: str | None = request.get(_MADE)
    if made is None:
        sent = next((value for name, value in request["headers"] if name == HEADER), b"")
        made = sent.decode() if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)
        request[_MADE] = made
    return made


class TextLines(logging.Formatter):
    """The lines of another formatter, and at their end those ids that they do not contain: `… [request=0f3a]`."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        first, newline, rest = self.inner.format(record).partition("\n")
        more = " ".join(f"{name}={text.clean(str(value))}" for name, value in ids(record) if str(value) not in first)
        return f"{first} [{more}]{newline}{rest}" if more else first + newline + rest


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `process`, `message`, the ids of the line, and `exception`: the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        line |= ids(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line).decode()
        except orjson.JSONEncodeError:  # half a surrogate pair
            line["message"] = record.getMessage().encode(errors="backslashreplace").decode()
            return orjson.dumps(line, default=str).decode()
