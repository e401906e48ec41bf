"""From an entry of the log to the event of a webhook.

Source: Pusher Channels, "Webhooks". `data` of a client event is a string in the typed SDKs (Go), so an object that a
client sent is told as its JSON text.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import orjson

from fanfare.engine import interface

OCCUPIED = "channel_occupied"
VACATED = "channel_vacated"
MEMBER_ADDED = "member_added"
MEMBER_REMOVED = "member_removed"

# A return takes back the departure of the same channel or member.
DEPARTURE_OF = {OCCUPIED: VACATED, MEMBER_ADDED: MEMBER_REMOVED}
DEPARTURES = frozenset(DEPARTURE_OF.values())

NAMES = {
    interface.Kind.OCCUPIED: OCCUPIED,
    interface.Kind.VACATED: VACATED,
    interface.Kind.MEMBER_ADDED: MEMBER_ADDED,
    interface.Kind.MEMBER_REMOVED: MEMBER_REMOVED,
    interface.Kind.CLIENT_EVENT: "client_event",
    interface.Kind.CACHE_MISS: "cache_miss",
    interface.Kind.COUNT: "subscription_count",
}
KINDS = frozenset(NAMES)


class Event(NamedTuple):
    """`payload`: the event as it is sent, JSON. `entry`: the id of the entry that it comes from.

    `who`: the same for a departure and for the return that takes it back, 64 characters; empty for other events.
    """

    entry: int
    app: str
    name: str
    channel: str
    payload: str
    who: str = ""


def of(entry: interface.Entry) -> Event | None:
    """What a webhook tells of an entry; None where it tells nothing.

    The channels whose names start with # are the server's own: nobody asked for them by name.
    """
    if entry.kind not in KINDS or entry.channel.startswith("#") or entry.channel == interface.CONNECTIONS:
        return None
    name = NAMES[interface.Kind(entry.kind)]
    fields = {"channel": entry.channel, **_told(entry)}
    payload, who = _json(name, fields), ""
    if name in DEPARTURES or name in DEPARTURE_OF:
        who = hashlib.sha256(_json(DEPARTURE_OF.get(name, name), fields).encode()).hexdigest()
    return Event(entry.id, entry.app, name, entry.channel, payload, who)


def _told(entry: interface.Entry) -> dict[str, Any]:
    """The fields that belong to this kind alone."""
    match entry.kind:
        case interface.Kind.MEMBER_ADDED | interface.Kind.MEMBER_REMOVED:
            return {"user_id": entry.user_id}
        case interface.Kind.COUNT:
            return {"subscription_count": int(entry.body)}
        case interface.Kind.CLIENT_EVENT:
            return _client_event(entry)
        case _:
            return {}


def _client_event(entry: interface.Entry) -> dict[str, Any]:
    frame = orjson.loads(entry.body)
    data = frame.get("data")
    told = {
        "event": frame["event"],
        "data": data if isinstance(data, str) else orjson.dumps(data).decode(),
        "socket_id": entry.exclude,
    }
    if entry.user_id is not None:
        told["user_id"] = entry.user_id
    return told


def _json(name: str, fields: dict[str, Any]) -> str:
    return orjson.dumps({"name": name, **fields}).decode()
