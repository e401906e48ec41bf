"""The request of an SSE connection: its path, its query and three headers.

    GET /sse/KEY?channels=a,b[&token=…][&last_event_id=…][&rewind=N]

`channels` has names separated by commas. A name that contains a comma is given as `channel=…`, which can be repeated
and combined with `channels`; the positions of the cursor have the order of the URL. A `Last-Event-ID` header, which
browsers send when they reconnect, takes precedence over `last_event_id`, and both over `rewind`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from fanfare.protocol import names
from fanfare.protocol import refusals as protocol_refusals
from fanfare.sse import cursors, refusals

MAX_CHANNELS: Final = 16  # the `id:` of each event has a position for each channel
MAX_QUERY_BYTES: Final = 16_384  # 16 names of 200 characters, percent-encoded, and a token

_PATH: Final = re.compile(r"\A/sse/(?P<key>[^/]+)\Z")
_STREAM: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Head:
    """The parts that every response depends on, including refusals."""

    method: str
    origin: str | None
    wants_stream: bool  # the client accepts `text/event-stream`, as EventSource does and curl does not
    bearer: str | None
    last_event_id: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """`cursor`: the last position, as the client sent it, or `earliest`; None on a first visit."""

    channels: tuple[str, ...]
    token: str | None
    cursor: str | None
    rewind: int | None

    @property
    def is_back(self) -> bool:
        """Whether the client had an earlier connection."""
        return self.cursor is not None and self.cursor != cursors.EARLIEST


def head(scope: Any) -> Head:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    scheme, _, credentials = headers.get(b"authorization", "").partition(" ")
    return Head(
        method=scope["method"],
        origin=headers.get(b"origin"),
        wants_stream=_STREAM in headers.get(b"accept", ""),
        bearer=credentials.strip() if scheme.lower() == "bearer" else None,
        last_event_id=headers.get(b"last-event-id", "").strip() or None,
    )


def key(scope: Any) -> str:
    """The application's key. Raises NotFound."""
    match = _PATH.match(scope["path"].removeprefix(scope.get("root_path", "")))
    if match is None:
        raise refusals.NotFound("not_found", "Server-Sent Events are at /sse/KEY.")
    return match["key"]


def asked(scope: Any, head: Head, *, max_channel_name: int) -> Asked:
    """Raises BadRequest."""
    query: bytes = scope["query_string"]
    if len(query) > MAX_QUERY_BYTES:
        raise refusals.BadRequest("query_too_long", f"The query has {len(query)} bytes; {MAX_QUERY_BYTES} are allowed.")
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    values = dict(reversed(pairs))  # the first of each
    return Asked(
        channels=_channels(pairs, max_channel_name),
        token=head.bearer or values.get("token") or None,
        cursor=head.last_event_id or values.get("last_event_id") or None,
        rewind=_rewind(values.get("rewind", "")),
    )


def _channels(pairs: list[tuple[str, str]], max_channel_name: int) -> tuple[str, ...]:
    found: list[str] = []
    for name, value in pairs:
        if name == "channels":
            found += [channel for channel in value.split(",") if channel]
        elif name == "channel":
            found.append(value)
    if not found:
        raise refusals.BadRequest("no_channels", "The query has no `channels`, the names with commas between them.")
    if len(found) > MAX_CHANNELS:
        raise refusals.BadRequest("too_many_channels", f"{len(found)} channels; {MAX_CHANNELS} are allowed.")
    if len(set(found)) < len(found):
        raise refusals.BadRequest("duplicate_channel", "A channel is named twice.")
    for channel in found:
        try:
            names.check_channel(channel, max_channel_name)
        except protocol_refusals.InvalidName as error:
            raise refusals.BadRequest("invalid_channel", str(error)) from error
        if names.is_presence(channel):
            # An SSE reader would be invisible to the members.
            raise refusals.BadRequest("presence_channel", f"{channel} can only be joined over a WebSocket.")
    return tuple(found)


def _rewind(value: str) -> int | None:
    if not value:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,5}", value):
        raise refusals.BadRequest("invalid_rewind", "`rewind` is a number of events, at least 1.")
    return int(value)
