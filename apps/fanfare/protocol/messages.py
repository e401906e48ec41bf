"""Parse a client's frames: JSON objects with an event. Invalid input raises only BadFrame."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from fanfare.protocol import refusals

MAX_PENDING_BYTES: Final = 65_536  # the default of PendingFrames


class Message(NamedTuple):
    event: str
    fields: dict[str, Any]  # the whole object, including the event


def parse(text: str) -> Message:
    """Raises BadFrame. Of duplicate keys the last counts; integers over 64 bits become floats, as in a browser."""
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise refusals.BadFrame(f"Invalid message: it is not JSON ({error})", reason="malformed_json") from None
    if not isinstance(fields, dict):
        raise refusals.BadFrame("Invalid message: it is not a JSON object", reason="not_an_object")
    event = fields.get("event")
    if not isinstance(event, str):
        raise refusals.BadFrame("Invalid message: its event is not a string", reason="no_event")
    return Message(event, fields)


def data(message: Message) -> dict[str, Any]:
    """The data of a message of the protocol. Raises BadFrame.

    Clients send the object itself, the object as a JSON string, or nothing: no `data`, null or an empty string.
    """
    value = message.fields.get("data")
    if isinstance(value, str) and value:
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise refusals.BadFrame(
                f"The data of {message.event} is not JSON ({error})", reason="malformed_json"
            ) from None
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise refusals.BadFrame(f"The data of {message.event} is not a JSON object", reason="not_an_object")
    return value


def channel(message: Message) -> tuple[str, dict[str, Any]]:
    """The channel that a subscribe or unsubscribe names, and the rest of its data. Raises BadFrame."""
    fields = data(message)
    name = fields.get("channel")
    if not isinstance(name, str):
        raise refusals.BadFrame(f"The data of {message.event} names no channel", reason="no_channel")
    return name, fields


class PendingFrames:
    """Frames that cannot be answered yet, oldest first; iterates over their texts.

    They wait for one answer of the engine. A client that does not wait may send some hundred subscribes meanwhile,
    which is far below the default limit.
    """

    __slots__ = ("_bytes", "_frames", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._frames: list[tuple[str, str]] = []  # text, and the channel that it subscribes to
        self._bytes = 0  # of memory
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[str]:
        return iter([text for text, _ in self._frames])

    def add(self, text: str, channel: str = "") -> None:
        """`channel`: of a subscribe, if relevant. Raises TooManyPendingFrames."""
        self._frames.append((text, channel))
        self._bytes += sys.getsizeof(text)
        if self._bytes > self._max_bytes:
            raise refusals.TooManyPendingFrames(self._bytes, self._max_bytes)

    def subscribe_to(self, channel: str) -> bool:
        return any(channel == other for _, other in self._frames)

    def drop(self, channel: str) -> None:
        """Forget the subscribes to this channel. Their bytes stay counted."""
        self._frames = [frame for frame in self._frames if frame[1] != channel]
