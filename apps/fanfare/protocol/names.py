"""What channels and events may be called, and what a channel's name says about it.

A channel's prefix is its type (Pusher Channels, "Channel naming conventions"): without one it is public; `private-` and
`presence-` need an authorization; `private-encrypted-` is private, and its data is opaque to the server; a `cache-`
right after that prefix, or in the first place, makes it remember its last event. Names that start with `#` belong to
the server.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from fanfare.protocol import refusals

# \A…\Z and not ^…$: `$` also matches before a newline at the end, and the newline would be part of the name.
_CHANNEL: Final = re.compile(r"\A[-A-Za-z0-9_=@,.;]+\Z")
_SOCKET_ID: Final = re.compile(r"\A[0-9]+\.[0-9]+\Z")

PRIVATE_PREFIX: Final = "private-"
ENCRYPTED_PREFIX: Final = "private-encrypted-"
PRESENCE_PREFIX: Final = "presence-"
RESERVED_PREFIX: Final = "#"
USER_PREFIX: Final = "#server-to-user-"
CLIENT_EVENT_PREFIX: Final = "client-"
PROTOCOL_PREFIX: Final = "pusher:"
INTERNAL_PREFIX: Final = "pusher_internal:"

_CACHE_PREFIXES: Final = ("cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-")


class Type(enum.Enum):
    """What it takes to subscribe to a channel."""

    PUBLIC = "public"  # nothing
    PRIVATE = "private"  # a signature
    ENCRYPTED = "encrypted"  # a signature; client events are refused, the server could not tell what they say
    PRESENCE = "presence"  # a signature that names the member


def type_of(channel: str) -> Type:
    """The type of a channel, cache channels included: `private-cache-x` is private."""
    if channel.startswith(PRESENCE_PREFIX):
        return Type.PRESENCE
    if channel.startswith(ENCRYPTED_PREFIX):
        return Type.ENCRYPTED
    if channel.startswith(PRIVATE_PREFIX):
        return Type.PRIVATE
    return Type.PUBLIC


def is_presence(channel: str) -> bool:
    return channel.startswith(PRESENCE_PREFIX)


def is_encrypted(channel: str) -> bool:
    return channel.startswith(ENCRYPTED_PREFIX)


def is_cache(channel: str) -> bool:
    """Whether the channel remembers its last event."""
    return channel.startswith(_CACHE_PREFIXES)


def user_channel(user_id: str) -> str:
    """The channel of what servers send to one user. Nobody else can subscribe to it."""
    return f"{USER_PREFIX}{user_id}"


def is_valid_socket_id(text: str) -> bool:
    """Whether `text` has the form that the SDKs insist on: digits, a dot, digits."""
    return _SOCKET_ID.match(text) is not None


def check_channel(name: str, limit: int) -> None:
    """Raise InvalidName or NameTooLong unless `name` is one that anybody may choose. `limit` is in characters."""
    if len(name) > limit:
        raise refusals.NameTooLong("channel", len(name), limit)
    if name.startswith(RESERVED_PREFIX):
        raise refusals.InvalidName(f'Channel names that start with "#" are reserved: "{refusals.quoted(name)}"')
    if _CHANNEL.match(name) is None:
        raise refusals.InvalidName(
            f'Invalid channel name "{refusals.quoted(name)}": allowed are letters, digits and any of _ - = @ , . ;'
        )


def check_publishable_channel(name: str, limit: int) -> None:
    """`check_channel` for a publisher, who may also write to a user: `#server-to-user-ID`, as `send_to_user` does."""
    if name.startswith(USER_PREFIX):
        if len(name) > limit:
            raise refusals.NameTooLong("channel", len(name), limit)
        if _CHANNEL.match(name.removeprefix(USER_PREFIX)) is None:
            raise refusals.InvalidName(f'Invalid user id in the channel name "{refusals.quoted(name)}"')
        return
    check_channel(name, limit)


def check_event(name: str, limit: int) -> None:
    """Raise InvalidName or NameTooLong unless an event may have this name. `limit` is in characters."""
    if not name:
        raise refusals.InvalidName("The event name is empty")
    if len(name) > limit:
        raise refusals.NameTooLong("event", len(name), limit)
