"""Converts entries of the log to events of webhooks.

Source: Pusher Channels, "Webhooks". Typed SDKs (Go) expect `data` of a client event to be a string, so an object
becomes its JSON text.
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

# Removals by the event that cancels them.
REMOVAL_OF = {OCCUPIED: VACATED, MEMBER_ADDED: MEMBER_REMOVED}
REMOVALS = frozenset(REMOVAL_OF.values())

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

    `key`: 64 characters, equal for a removal and for the event that cancels it; empty for other events.
    """

    entry: int
    app: str
    name: str
    channel: str
    payload: str
    key: str = ""


def of(entry: interface.Entry) -> Event | None:
    """The event of an entry; None for entries that webhooks do not report.

    Channels whose names start with # are internal channels of the server.
    """
    if entry.kind not in KINDS or entry.channel.startswith("#") or entry.channel == interface.CONNECTIONS:
        return None
    name = NAMES[interface.Kind(entry.kind)]
    fields = {"channel": entry.channel, **_fields(entry)}
    payload, key = _json(name, fields), ""
    if name in REMOVALS or name in REMOVAL_OF:
        key = hashlib.sha256(_json(REMOVAL_OF.get(name, name), fields).encode()).hexdigest()
    return Event(entry.id, entry.app, name, entry.channel, payload, key)


def _fields(entry: interface.Entry) -> dict[str, Any]:
    """The fields of this kind of event."""
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
    fields = {
        "event": frame["event"],
        "data": data if isinstance(data, str) else orjson.dumps(data).decode(),
        "socket_id": entry.exclude,
    }
    if entry.user_id is not None:
        fields["user_id"] = entry.user_id
    return fields


def _json(name: str, fields: dict[str, Any]) -> str:
    return orjson.dumps({"name": name, **fields}).decode()
