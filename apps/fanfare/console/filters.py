"""Filters of the live tail: what of all that happens a page wants to see."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fanfare.engine import interface
from fanfare.hub import activity
from fanfare.protocol import names

EVENT, CLIENT_EVENT, MEMBER, CHANNEL = "event", "client event", "member", "channel"
STREAM_END, REVISION = "stream end", "revision"

# The types of entries that are events, and what entries about members say.
EVENTS: Final[Mapping[int, str]] = {
    interface.Kind.EVENT: EVENT,
    interface.Kind.CLIENT_EVENT: CLIENT_EVENT,
    interface.Kind.STREAM_END: STREAM_END,
    interface.Kind.REVISED: REVISION,
}
MEMBERS: Final[Mapping[int, str]] = {
    interface.Kind.MEMBER_ADDED: "joined",
    interface.Kind.MEMBER_UPDATED: "updated",
    interface.Kind.MEMBER_REMOVED: "left",
}

# The kinds of entries that some filter takes.
KINDS: Final = frozenset([*map(interface.Kind, (*EVENTS, *MEMBERS)), interface.Kind.OCCUPIED, interface.Kind.VACATED])

# What a page can choose, with the types of items behind each.
TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "events": (EVENT, CLIENT_EVENT, STREAM_END, REVISION),
    "subscriptions": (activity.SUBSCRIBED, activity.UNSUBSCRIBED, activity.SIGNED_IN, MEMBER, CHANNEL),
    "connections": (activity.OPENED, activity.CLOSED),
    "refusals": (activity.REFUSAL,),
    "webhooks": (activity.WEBHOOK,),
}

MAX_CHARACTERS: Final = 200  # of one pattern
_NOT_SEARCHED: Final = frozenset(["type", "entry"])
_PLAIN: Final = re.compile(r"[ !#-\[\]-~]+")  # ASCII that JSON does not escape
_PATTERN: Final = re.compile(r"[A-Za-z0-9_\-=@,.;#*]+")


class InvalidFilter(ValueError):
    """`field`: the parameter that is wrong. The message says what it may be."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Filter:
    """`apps`: the ids of the applications, None for all. `channel` and `event`: patterns in which `*` stands for any
    characters. `user` and `socket`: ids. Empty: everything."""

    types: frozenset[str]
    apps: frozenset[str] | None = None
    channel: str = ""
    event: str = ""
    user: str = ""
    socket: str = ""
    text: str = ""

    @property
    def key(self) -> str:
        """Equal for filters that select the same."""
        apps = "*" if self.apps is None else ",".join(sorted(self.apps))
        return "\n".join(
            [",".join(sorted(self.types)), apps, self.channel, self.event, self.user, self.socket, self.text]
        )

    @property
    def kinds(self) -> frozenset[interface.Kind]:
        """The entries of the log that can become items."""
        found: set[interface.Kind] = set()
        if EVENT in self.types:
            found |= {interface.Kind(kind) for kind in EVENTS}
        if MEMBER in self.types and not self.event:
            found |= {interface.Kind(kind) for kind in MEMBERS}
            found |= {interface.Kind.OCCUPIED, interface.Kind.VACATED}
        return frozenset(found)

    @property
    def needs_body(self) -> bool:
        """Whether the body of an event decides."""
        return bool(self.event or self.text)

    def to_json(self) -> dict[str, Any]:
        return {
            "types": sorted(self.types),
            "apps": None if self.apps is None else sorted(self.apps),
            "channel": self.channel,
            "event": self.event,
            "user": self.user,
            "socket": self.socket,
            "text": self.text,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Filter:
        apps = value["apps"]
        return cls(**{**value, "types": frozenset(value["types"]), "apps": None if apps is None else frozenset(apps)})

    def takes(self, item: activity.Item) -> bool:
        """Whether an item is one of those that are wanted."""
        if item["type"] not in self.types or (self.apps is not None and item["app"] not in self.apps):
            return False
        if self.channel and not matches(self.channel, item.get("channel", "")):
            return False
        if self.event and not matches(self.event, item.get("event", "")):
            return False
        if self.user and item.get("user") != self.user and item.get("channel") != names.USER_PREFIX + self.user:
            return False
        if self.socket and self.socket not in (item.get("socket"), item.get("exclude")):
            return False
        return not self.text or any(
            self.text in value.lower()
            for name, value in item.items()
            if name not in _NOT_SEARCHED and isinstance(value, str)
        )

    def takes_entry(self, entry: interface.Entry) -> bool:
        """The part of `takes` that needs no decoding of an entry: False for nearly all entries that it does not take,
        so that few are decoded."""
        return self.takes_channel(entry.app, entry.channel) and self.takes_rest(entry)

    def takes_channel(self, app: str, channel: str) -> bool:
        """The part of `takes_entry` that is the same for all entries of a channel."""
        return (self.apps is None or app in self.apps) and (not self.channel or matches(self.channel, channel))

    def takes_rest(self, entry: interface.Entry) -> bool:
        if self.user and entry.user_id != self.user and entry.channel != names.USER_PREFIX + self.user:
            return False
        if self.socket and entry.exclude != self.socket:
            return False
        return not self.needs_body or entry.kind not in EVENTS or self._may_take(entry)

    def _may_take(self, entry: interface.Entry) -> bool:
        """Whether the body of an event may match. A body that is not as the item shows it is not searched: the JSON of
        a client, and text with escaped characters."""
        body, is_of_client = entry.body, entry.kind == interface.Kind.CLIENT_EVENT
        if is_of_client or not body.isascii() or b"\\u" in body or b"\\/" in body:
            return True
        if self.event and _longest_literal(self.event) not in body:
            return False
        return (
            not self.text
            or _literal(self.text) in body.lower()
            or self.text in f"{entry.app} {entry.channel} {entry.user_id} {entry.exclude}".lower()
        )


def parse(fields: Mapping[str, str], apps: Collection[str] | None) -> Filter:
    """The filter of a request. `apps`: the applications that the person may see, None for all. Raises InvalidFilter."""
    chosen = fields.get("types", "").replace(" ", "") or ",".join(TYPES)
    types: set[str] = set()
    for name in chosen.split(","):
        if name not in TYPES:
            raise InvalidFilter("types", f'There is no type "{name[:40]}"; the types are {", ".join(TYPES)}.')
        types.update(TYPES[name])
    allowed = None if apps is None else frozenset(apps)
    app = fields.get("app", "").strip()
    if app:
        if allowed is not None and app not in allowed:
            raise InvalidFilter("app", f'You may not see the application "{app[:40]}", or it does not exist.')
        allowed = frozenset([app])
    return Filter(
        frozenset(types),
        allowed,
        _pattern("channel", fields),
        _text("event", fields),
        _text("user", fields),
        _socket(fields),
        _text("text", fields).lower(),
    )


@functools.lru_cache
def _literal(text: str) -> bytes:
    """A text as it stands in JSON of ASCII characters; empty, which is part of any, if JSON escapes it."""
    return text.encode() if _PLAIN.fullmatch(text) else b""


@functools.lru_cache
def _longest_literal(pattern: str) -> bytes:
    """The longest part of a pattern between its stars, as it stands in JSON of ASCII characters."""
    return max(map(_literal, pattern.split("*")), key=len)


def _text(name: str, fields: Mapping[str, str]) -> str:
    value = fields.get(name, "").strip()
    if len(value) > MAX_CHARACTERS:
        raise InvalidFilter(name, f"The {name} has {len(value)} characters; {MAX_CHARACTERS} are allowed.")
    return value


def _pattern(name: str, fields: Mapping[str, str]) -> str:
    value = _text(name, fields)
    if value and _PATTERN.fullmatch(value) is None:
        wrong = next(character for character in value if _PATTERN.fullmatch(character) is None)
        raise InvalidFilter(
            name,
            f"{wrong!r} cannot be in the name of a channel. A pattern has letters, digits and _ - = @ , . ; #, and `*` "
            "for any characters.",
        )
    return value


def _socket(fields: Mapping[str, str]) -> str:
    value = _text("socket", fields)
    if value and re.fullmatch(r"[0-9]+\.[0-9]+", value) is None:
        raise InvalidFilter("socket", f"{value[:40]!r} is not a socket id; one looks like 1234.5678.")
    return value


def matches(pattern: str, text: str) -> bool:
    """Whether all of `text` matches; `*` stands for any characters. Takes linear time, unlike a regular expression."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    *middle, last = rest
    if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
        return False
    start, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, start, end)
        if found < 0:
            return False
        start = found + len(piece)
    return True
