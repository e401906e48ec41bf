"""What travels through the log: one envelope for each call that others must know of, in MessagePack.

Every release of one major version reads the envelopes of the others: workers of two releases run side by side during a
deployment. So fields are only added, at the end.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgpack

COMMAND = "layer"  # the name of the CONTROL entries


class Verb(enum.IntEnum):
    """What is asked of the processes that read it."""

    SEND = 0  # target: a channel, body: the message
    GROUP_SEND = 1  # target: a group, body: the message
    TAKEN = 2  # target: a channel, id: the message that one of its receivers has now
    GROUP_ADD = 3  # target: a group, member: a channel that is not of the process that asks
    GROUP_DISCARD = 4  # the same
    FLUSH = 5  # everything goes


class Envelope(NamedTuple):
    """`layer`: the prefix of the layers that are meant. `deadline`: Unix seconds. `body`: the packed message."""

    layer: str
    verb: Verb
    id: str
    target: str = ""
    deadline: float = 0.0
    body: bytes = b""
    member: str = ""

    def packed(self) -> bytes:
        packed: bytes = msgpack.packb(tuple(self))
        return packed


def unpacked(data: bytes) -> Envelope:
    """Raises ValueError for what is no envelope."""
    layer, verb, *rest = msgpack.unpackb(data)
    return Envelope(layer, Verb(verb), *rest[:5])


def message_packed(message: dict[str, Any]) -> bytes:
    """Raises TypeError for what MessagePack does not know."""
    packed: bytes = msgpack.packb(message)
    return packed


def message_unpacked(body: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgpack.unpackb(body, strict_map_key=False)
    return message
