"""The format `text/event-stream`.

Source: the HTML standard, "Server-sent events". An event ends with an empty line; the client stores its `id:` and sends
it back as `Last-Event-ID`; a line that starts with a colon is a comment. A frame is one line of JSON, so it is one
`data:` line.
"""

from __future__ import annotations

import random
from typing import Any, Final

import orjson

from fanfare.sse import cursors

CONTENT_TYPE: Final = b"text/event-stream; charset=utf-8"
HEARTBEAT: Final = b": hb\n\n"

# The random pause of a client before it reconnects, so that the clients of a stopped worker do not return all at once.
RETRY_MS: Final = (1_000, 5_000)


def frame(body: bytes) -> bytes:
    """A frame without an `id:`."""
    return b"data: %b\n\n" % body


def frame_with_id(body: bytes, cursor: str) -> bytes:
    """A frame, and the client's positions after it."""
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), body)


def statement(channels: dict[str, Any], positions: cursors.Positions) -> bytes:
    """The outcome of the recovery of each channel. The following events come after these positions."""
    return b"id: %b\nevent: stream\ndata: %b\n\n" % (
        cursors.text(positions).encode(),
        orjson.dumps({"channels": channels}),
    )


def retry() -> bytes:
    return b"retry: %d\n\n" % random.randint(*RETRY_MS)  # noqa: S311  (it only spreads load)


def unavailable(code: str, message: str) -> bytes:
    """A complete response, for a client that does not reconnect after an HTTP error status."""
    return b"%bevent: unavailable\ndata: %b\n\n" % (retry(), orjson.dumps({"code": code, "error": message}))


def comment(text: str) -> bytes:
    return b": %b\n\n" % " ".join(text.split()).encode()
