"""What a client sent, as a JSON object with an event. Whatever it is, nothing but BadFrame is raised."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from fanfare.protocol import refusals


class Message(NamedTuple):
    event: str
    fields: dict[str, Any]  # the whole object, the event too


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
    """The data of one of the protocol's own messages. Raises BadFrame.

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
