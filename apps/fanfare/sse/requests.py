"""What a client asks for: the path, the query and three headers of its request, understood and checked.

    GET /sse/KEY?channels=a,b[&token=…][&last_event_id=…][&rewind=N]

`channels` has names with commas between them. A name that has a comma itself is given as `channel=…`, once for each.
Both may be used together; their order in the URL is that of the cursor's places. A `Last-Event-ID` header, which a
browser sends when it comes back, wins over `last_event_id`, and both over `rewind`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from fanfare.protocol import names, refusals
from fanfare.sse import cursors, errors

MAX_CHANNELS: Final = 16  # the `id:` line of every event names all of them
MAX_QUERY_BYTES: Final = 16_384  # 16 names of 200 characters, percent-encoded, and a token

_PATH: Final = re.compile(r"\A/sse/(?P<key>[^/]+)\Z")
_STREAM: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Head:
    """What every answer depends on, the refusals too."""

    method: str
    origin: str | None
    wants_stream: bool  # it says that it reads event streams, as EventSource does and curl does not
    bearer: str | None
    last_event_id: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """`cursor`: where it stopped, as it came, or `earliest`; None on a first visit."""

    channels: tuple[str, ...]
    token: str | None
    cursor: str | None
    rewind: int | None

    @property
    def is_back(self) -> bool:
        """Whether it had a stream before."""
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
    """Of the application. Raises NotFound."""
    match = _PATH.match(scope["path"].removeprefix(scope.get("root_path", "")))
    if match is None:
        raise errors.NotFound("not_found", "There is nothing here; streams are at /sse/KEY.")
    return match["key"]


def asked(scope: Any, head: Head, *, max_channel_name: int) -> Asked:
    """Raises BadRequest."""
    query: bytes = scope["query_string"]
    if len(query) > MAX_QUERY_BYTES:
        raise errors.BadRequest("query_too_long", f"The query has {len(query)} bytes; {MAX_QUERY_BYTES} are allowed.")
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
        raise errors.BadRequest("no_channels", "The query has no `channels`, the names with commas between them.")
    if len(found) > MAX_CHANNELS:
        raise errors.BadRequest("too_many_channels", f"{len(found)} channels; a stream has at most {MAX_CHANNELS}.")
    if len(set(found)) < len(found):
        raise errors.BadRequest("duplicate_channel", "A channel is named twice.")
    for channel in found:
        try:
            names.check_channel(channel, max_channel_name)
        except refusals.InvalidName as error:
            raise errors.BadRequest("invalid_channel", str(error)) from error
        if names.is_presence(channel):
            # Its members see who else is there; somebody who reads without being seen would break that promise.
            raise errors.BadRequest("presence_channel", f"{channel} can only be joined over a WebSocket.")
    return tuple(found)


def _rewind(value: str) -> int | None:
    if not value:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,5}", value):
        raise errors.BadRequest("invalid_rewind", "`rewind` is the number of events to begin with, from 1 on.")
    return int(value)
