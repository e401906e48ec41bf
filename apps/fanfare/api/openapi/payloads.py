"""The bodies that clients send, for the description alone: `fanfare.api.validation` is what judges them.

Only bounds that hold for every application stand here as a schema; those that the admin can move are in the texts.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import Field, with_config

# pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fanfare.api import attributes, validation
from fanfare.applications import registry
from fanfare.engine import interface

LIMITS = registry.Limits()

# What fanfare.protocol.names and fanfare.api.validation accept, in the regular expressions of JSON Schema.
CHANNEL_PATTERN = r"^(#server-to-user-)?[-A-Za-z0-9_=@,.;]+$"
PRESENCE_PATTERN = r"^presence-[-A-Za-z0-9_=@,.;]*$"
SOCKET_ID_PATTERN = r"^[0-9]+\.[0-9]+$"
POSITION_PATTERN = rf"^[0-9A-Za-z]{{1,64}}:[0-9]{{1,{validation.MOST_DIGITS}}}$"
IDEMPOTENCY_KEY_PATTERN = r"^[ -~]+$"


def info_pattern(known: tuple[str, ...]) -> str:
    """Some of the known attributes, with commas between them."""
    one = f"({'|'.join(known)})"
    return f"^{one}(,{one})*$"


ChannelName = Annotated[
    str,
    Field(
        pattern=CHANNEL_PATTERN,
        description=f"At most {LIMITS.max_channel_name} characters. `#server-to-user-ID` is the channel of one user.",
        examples=["orders"],
    ),
]
Channels = Annotated[
    list[ChannelName],
    Field(
        min_length=1,
        description=(
            f"At most {LIMITS.max_channels_per_event}. "
            "A channel that begins with `private-encrypted-` must be the only one."
        ),
    ),
]
EventName = Annotated[
    str, Field(min_length=1, description=f"At most {LIMITS.max_event_name} characters.", examples=["created"])
]
Data = Annotated[
    Any,
    Field(
        description=(
            f"What subscribers get, at most {LIMITS.max_event_bytes} bytes of UTF-8. "
            "A string is sent as it is, anything else as its JSON text."
        ),
        examples=['{"id":7}'],
    ),
]
SocketId = Annotated[
    str,
    Field(
        pattern=SOCKET_ID_PATTERN,
        max_length=validation.MAX_SOCKET_ID,
        description="The connection that must not get it: mostly that of the client who caused it.",
        examples=["1234.5678"],
    ),
]
Info = Annotated[
    str,
    Field(
        pattern=info_pattern(attributes.OF_PUBLICATION),
        description=(
            "What to answer about each channel: any of `user_count`, `subscription_count` and `offset`, separated by "
            "commas. What a channel does not have is left out."
        ),
        examples=["subscription_count"],
    ),
]
Position = Annotated[
    str,
    Field(
        pattern=POSITION_PATTERN,
        description="A place in a channel's history, as it was answered before. Not included.",
        examples=["aZ3kP0Qx:57"],
    ),
]
IdempotencyKey = Annotated[
    str,
    Field(
        pattern=IDEMPOTENCY_KEY_PATTERN,
        max_length=interface.MAX_IDEMPOTENCY_KEY,
        description="Events with the same key for the same channel are published once in ten minutes.",
        examples=["order-7-created"],
    ),
]


class Content(TypedDict):
    """What every event has."""

    name: EventName
    data: Data
    socket_id: NotRequired[SocketId]
    info: NotRequired[Info]
    idempotency_key: NotRequired[IdempotencyKey]


@with_config(
    json_schema_extra={
        "oneOf": [{"required": ["channels"]}, {"required": ["channel"]}],
        "examples": [{"name": "created", "channels": ["orders", "shop-7"], "data": '{"id":7}'}],
    }
)
class Event(Content):
    """One event, for one or several channels."""

    channels: NotRequired[Channels]
    channel: NotRequired[ChannelName]


class BatchEvent(Content):
    """One event of a batch, for one channel."""

    channel: ChannelName


@with_config(
    json_schema_extra={
        "examples": [
            {
                "batch": [
                    {"name": "created", "channel": "orders", "data": '{"id":7}'},
                    {"name": "left", "channel": "shop-7", "data": '{"count":3}', "info": "subscription_count"},
                ]
            }
        ]
    }
)
class Batch(TypedDict):
    """Several events, published in this order, all of them or none."""

    batch: Annotated[list[BatchEvent], Field(description=f"At most {LIMITS.max_batch_events}.")]
