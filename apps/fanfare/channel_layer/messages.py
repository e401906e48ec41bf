"""What the processes of a deployment send each other: one message for each call that others must know of, in
MessagePack.

Every release of one major version reads the messages of the others: workers of two releases run side by side during a
deployment. So fields are only added, at the end.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgpack


class Verb(enum.IntEnum):
    """What is asked of the processes that read it."""

    SEND = 0  # target: a channel, body: the content
    GROUP_SEND = 1  # target: a group, body: the content
    TAKEN = 2  # target: a channel, id: the message that one of its receivers has now
    GROUP_ADD = 3  # target: a group, member: a channel of another process, or a plain name
    GROUP_DISCARD = 4  # the same
    FLUSH = 5  # forget all messages and all members
    ADDED = 6  # id: the GROUP_ADD that was done


class Message(NamedTuple):
    """`sent`, `deadline`: Unix seconds. `body`: the packed content. `reply_to`: a mailbox that gets the answer."""

    verb: Verb
    id: str
    target: str = ""
    deadline: float = 0.0
    body: bytes = b""
    member: str = ""
    sent: float = 0.0
    reply_to: str = ""

    def packed(self) -> bytes:
        packed: bytes = msgpack.packb(tuple(self))
        return packed


def unpacked(data: bytes) -> Message:
    """Raises ValueError for anything else."""
    fields = msgpack.unpackb(data)
    if not isinstance(fields, list) or len(fields) < 2:
        raise ValueError("A message of the channel layer is a list of a verb, an id and more")
    verb, *rest = fields
    return Message(Verb(verb), *rest[: len(Message._fields) - 1])


def content_packed(content: dict[str, Any]) -> bytes:
    """Raises TypeError for what MessagePack does not know."""
    packed: bytes = msgpack.packb(content)
    return packed


def content_unpacked(body: bytes) -> dict[str, Any]:
    content: dict[str, Any] = msgpack.unpackb(body, strict_map_key=False)
    return content
