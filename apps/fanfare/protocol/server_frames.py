"""The protocol's own frames, as JSON text in UTF-8. (Channel events, counts and the events of watched users are in
`fanfare.hub.event_frames`.)

Clients differ in what they parse: `data` of `pusher:error` and of `pusher:subscription_error` is an object, of
everything else a string that holds JSON. Source: Pusher Channels protocol 7, and the clients' own sources where it is
silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from fanfare.engine import interface

PING: Final = b'{"event":"pusher:ping","data":"{}"}'
PONG: Final = b'{"event":"pusher:pong","data":"{}"}'


def connection_established(socket_id: str, activity_timeout: int, *, window: int | None = None) -> bytes:
    """The first frame. `activity_timeout`: seconds of silence before a client pings; without it pusher-js hangs.

    `window`: for a client that asked for positions: how many seconds it may be away.
    """
    told: dict[str, Any] = {"socket_id": socket_id, "activity_timeout": activity_timeout}
    if window is not None:
        told["rt"] = {"v": 1, "window": window}
    data = orjson.dumps(told).decode()
    return orjson.dumps({"event": "pusher:connection_established", "data": data})


def error(code: int | None, message: str) -> bytes:
    return orjson.dumps({"event": "pusher:error", "data": {"code": code, "message": message}})


def subscription_succeeded(channel: str, stream: dict[str, Any] | None = None) -> bytes:
    """For all channels except presence channels. `stream`: for a client that requests positions."""
    data = "{}" if stream is None else orjson.dumps({"stream": stream}).decode()
    return _internal("subscription_succeeded", channel, data)


def presence_subscription_succeeded(
    channel: str, members: Sequence[interface.Member], stream: dict[str, Any] | None = None
) -> bytes:
    """With all members, including the new one."""
    # A member's info is stored as JSON text. With 10,000 members, parsing and serializing it again would dominate the
    # cost.
    presence: dict[str, Any] = {
        "ids": [member.user_id for member in members],
        "hash": {member.user_id: orjson.Fragment(member.info) for member in members},
        "count": len(members),
    }
    data = {"presence": presence} if stream is None else {"presence": presence, "stream": stream}
    return _internal("subscription_succeeded", channel, orjson.dumps(data).decode())


def cache_miss(channel: str) -> bytes:
    """Sent if a cache channel has no cached event. It has no `data`, so that the documented handler is called without
    an argument.
    """
    return orjson.dumps({"event": "pusher:cache_miss", "channel": channel})


def signin_success(user_data: str) -> bytes:
    """`user_data`: the signed text, unchanged; pusher-js takes the user's id from it."""
    data = orjson.dumps({"user_data": user_data}).decode()
    return orjson.dumps({"event": "pusher:signin_success", "data": data})


def subscription_error(channel: str, kind: str, message: str, status: int) -> bytes:
    return orjson.dumps(
        {
            "event": "pusher:subscription_error",
            "channel": channel,
            "data": {"type": kind, "error": message, "status": status},
        }
    )


def _internal(name: str, channel: str, data: str) -> bytes:
    return orjson.dumps({"event": f"pusher_internal:{name}", "channel": channel, "data": data})
