"""The JSON text that subscribers get. It is encoded once, when it is published, stored in the log, and written
unchanged to all subscribers.

Source: Pusher Channels protocol 7. `data` of a server's event is the published string; a client event's data is relayed
unchanged, string or object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson


def event(name: str, channel: str, data: Any, user_id: str | None = None) -> bytes:
    """A channel event. `data`: a str is sent as a JSON string, other values as JSON values."""
    frame: dict[str, Any] = {"event": name, "channel": channel, "data": data}
    if user_id is not None:
        frame["user_id"] = user_id
    return orjson.dumps(frame)


def with_offset(body: bytes, offset: int, *, replayed: bool = False) -> bytes:
    """A channel event with its offset, which other clients ignore."""
    return b'%b,"offset":%d%b}' % (body[:-1], offset, b',"replay":true' if replayed else b"")


def member_added(channel: str, user_id: str, info: str) -> bytes:
    """`info`: the member's user_info as JSON text. A member without one has no `user_info` in the frame."""
    data = f'{{"user_id":{_text(user_id)}}}' if info == "null" else f'{{"user_id":{_text(user_id)},"user_info":{info}}}'
    return event("pusher_internal:member_added", channel, data)


def member_updated(channel: str, user_id: str, info: str) -> bytes:
    """An event of the channel, which pages bind or ignore: the vendor's protocol has none for updates of members."""
    return event("fanfare:member_updated", channel, f'{{"user_id":{_text(user_id)},"user_info":{info}}}')


def member_removed(channel: str, user_id: str) -> bytes:
    return event("pusher_internal:member_removed", channel, f'{{"user_id":{_text(user_id)}}}')


def subscription_count(channel: str, subscribers: int) -> bytes:
    return event("pusher_internal:subscription_count", channel, f'{{"subscription_count":{subscribers}}}')


def watchlist_events(online: Sequence[str] = (), offline: Sequence[str] = ()) -> bytes:
    """Watchlist events for a client. pusher-js reads `events` of one frame without a channel."""
    events = [{"name": name, "user_ids": users} for name, users in (("online", online), ("offline", offline)) if users]
    return orjson.dumps(
        {"event": "pusher_internal:watchlist_events", "data": orjson.dumps({"events": events}).decode()}
    )


def _text(value: str) -> str:
    return orjson.dumps(value).decode()
