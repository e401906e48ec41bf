"""Names of channels and events, and the channel type that a name implies.

A channel's prefix is its type (Pusher Channels, "Channel naming conventions"): without one it is public; `private-` and
`presence-` need an authorization; `private-encrypted-` is private, and its data is opaque to the server; `cache-`
after that prefix, or at the start, makes it a cache channel. Names that start with `#` belong to the server.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from fanfare.protocol import refusals

# \A…\Z and not ^…$, because `$` also matches before a trailing newline.
_CHANNEL: Final = re.compile(r"\A[-A-Za-z0-9_=@,.;]+\Z")
_SOCKET_ID: Final = re.compile(r"\A[0-9]+\.[0-9]+\Z")

PRIVATE_PREFIX: Final = "private-"
ENCRYPTED_PREFIX: Final = "private-encrypted-"
PRESENCE_PREFIX: Final = "presence-"
RESERVED_PREFIX: Final = "#"
USER_PREFIX: Final = "#server-to-user-"
CLIENT_EVENT_PREFIX: Final = "client-"
STATE_EVENT: Final = "client-fanfare-state"  # updates the sender as a member, and is not relayed
CANCEL_EVENT: Final = "client-fanfare-cancel"  # cancels a stream, and is not relayed
PROTOCOL_PREFIX: Final = "pusher:"
INTERNAL_PREFIX: Final = "pusher_internal:"

_CACHE_PREFIXES: Final = ("cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-")


class Type(enum.Enum):
    """The type of a channel, which decides how a subscribe is authorized."""

    PUBLIC = "public"  # nothing
    PRIVATE = "private"  # a signature
    ENCRYPTED = "encrypted"  # a signature; client events are refused
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
    """Whether the channel is a cache channel."""
    return channel.startswith(_CACHE_PREFIXES)


def user_channel(user_id: str) -> str:
    """The channel of events for one user. Only connections signed in as this user can subscribe to it."""
    return f"{USER_PREFIX}{user_id}"


def is_valid_socket_id(text: str) -> bool:
    """Whether `text` has the form that SDKs require: digits, a dot, digits."""
    return _SOCKET_ID.match(text) is not None


def check_channel(name: str, limit: int) -> None:
    """Raise InvalidName or NameTooLong unless clients and publishers may use this name. `limit` is in characters."""
    if len(name) > limit:
        raise refusals.NameTooLong("channel", len(name), limit)
    if name.startswith(RESERVED_PREFIX):
        raise refusals.InvalidName(f'Channel names that start with "#" are reserved: "{refusals.quoted(name)}"')
    if _CHANNEL.match(name) is None:
        raise refusals.InvalidName(
            f'Invalid channel name "{refusals.quoted(name)}": allowed are letters, digits and any of _ - = @ , . ;'
        )


def check_publishable_channel(name: str, limit: int) -> None:
    """`check_channel` for publishers, which may also publish to a user's own channel (`#server-to-user-ID`)."""
    if name.startswith(USER_PREFIX):
        if len(name) > limit:
            raise refusals.NameTooLong("channel", len(name), limit)
        if _CHANNEL.match(name.removeprefix(USER_PREFIX)) is None:
            raise refusals.InvalidName(f'Invalid user id in the channel name "{refusals.quoted(name)}"')
        return
    check_channel(name, limit)


def check_event(name: str, limit: int) -> None:
    """Raise InvalidName or NameTooLong unless this is a valid event name. `limit` is in characters."""
    if not name:
        raise refusals.InvalidName("The event name is empty")
    if len(name) > limit:
        raise refusals.NameTooLong("event", len(name), limit)
