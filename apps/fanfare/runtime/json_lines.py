"""Log lines as JSON, one object a line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import orjson

# Ids that a line carries where they are known: `logger.debug(…, extra={"socket": …})`.
IDS: Final = ("socket", "channel", "reason", "request", "trace")

# The id of the trace in which a line is written; set with FANFARE_OTEL.
trace_id: Callable[[], str | None] | None = None


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
        for name in IDS:
            value = getattr(record, name, None)
            if isinstance(value, str | int):
                line[name] = value
        if trace_id is not None and "trace" not in line and (trace := trace_id()) is not None:
            line["trace"] = trace
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line).decode()
        except orjson.JSONEncodeError:  # half a surrogate pair
            line["message"] = record.getMessage().encode(errors="backslashreplace").decode()
            return orjson.dumps(line, default=str).decode()
