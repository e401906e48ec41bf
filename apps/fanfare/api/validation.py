"""What each parameter of a request may be. A function takes the raw value and returns the good one, or raises."""

from __future__ import annotations

import re
from typing import Any

import orjson

from fanfare.api import errors
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import names, refusals

MAX_SOCKET_ID = 64  # characters; a connection's own has at most 33, and a longer one is only stored for nothing

_ON = ("1", "true", 1, True)
_OFF = (None, "", "0", "false", 0, False)

MOST_DIGITS = 15  # of an offset: a number that every JSON reader takes as it is

_POSITION = re.compile(rf"([0-9A-Za-z]{{1,64}}):([0-9]{{1,{MOST_DIGITS}}})", re.ASCII)
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]+")


def event_name(value: Any, limits: registry.Limits) -> str:
    if value is None or value == "":
        raise errors.Invalid("The parameter name is missing: the name of the event.", code="missing_name")
    if not isinstance(value, str):
        raise errors.Invalid("The parameter name must be a string.", code="invalid_name")
    try:
        names.check_event(value, limits.max_event_name)
    except refusals.InvalidName as error:
        raise errors.Invalid(str(error), code="invalid_name") from None
    return value


def event_data(fields: dict[str, Any], limits: registry.Limits) -> str:
    """The text that subscribers get. What is not a string becomes its JSON text."""
    if "data" not in fields:
        raise errors.Invalid("The parameter data is missing.", code="missing_data")
    data = fields["data"]
    if not isinstance(data, str):
        try:
            data = orjson.dumps(data).decode()
        except orjson.JSONEncodeError as error:  # nested more deeply than the encoder goes
            message = f"The parameter data cannot be encoded as JSON: {error}."
            raise errors.Invalid(message, code="invalid_data") from None
    size = len(data) if data.isascii() else len(data.encode())
    if size > limits.max_event_bytes:
        raise errors.TooLarge(
            f"The data content of this event exceeds the allowed maximum ({limits.max_event_bytes} bytes): "
            f"it has {size} bytes."
        )
    return data


def channel_name(value: Any, limits: registry.Limits) -> str:
    """A name that an event can be published to; of those that begin with #, only a user's own channel."""
    if value is None or value == "":
        raise errors.Invalid("The parameter channel is missing.", code="missing_channel")
    if not isinstance(value, str):
        raise errors.Invalid("A channel's name must be a string.", code="invalid_channel")
    try:
        names.check_publishable_channel(value, limits.max_channel_name)
    except refusals.InvalidName as error:
        raise errors.Invalid(str(error), code="invalid_channel") from None
    return value


def channel_names(fields: dict[str, Any], limits: registry.Limits) -> list[str]:
    """The channels of one event, each once: `channels`, a list, or `channel`."""
    several = fields.get("channels")
    single = fields.get("channel")
    if several is None:
        return [channel_name(single, limits)]
    if single is not None:
        raise errors.Invalid("Give channels or channel, not both.", code="invalid_channels")
    if not isinstance(several, list) or not several:
        raise errors.Invalid("The parameter channels must be a list with at least one name.", code="invalid_channels")
    if len(several) > limits.max_channels_per_event:
        raise errors.Invalid(
            f"Too many channels: the event has {len(several)}, the allowed maximum is {limits.max_channels_per_event}.",
            code="too_many_channels",
        )
    channels = list(dict.fromkeys([channel_name(each, limits) for each in several]))
    if len(channels) > 1:
        for channel in channels:
            if names.is_encrypted(channel):
                raise errors.Invalid(
                    f"An event for the encrypted channel {channel} can have no other channel: each has its own key.",
                    code="encrypted_with_others",
                )
    return channels


def socket_id(value: Any) -> str | None:
    """The connection that must not get the event."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise errors.Invalid("The parameter socket_id must be a string.", code="invalid_socket_id")
    if len(value) > MAX_SOCKET_ID or not names.is_valid_socket_id(value):
        shown = refusals.quoted(value)
        raise errors.Invalid(f'Invalid socket_id "{shown}": it has the form 1234.1234.', code="invalid_socket_id")
    return value


def user_id(value: str, limits: registry.Limits) -> str:
    """What somebody may sign in as; any characters. It stands in a path, so it is never empty."""
    if len(value) > limits.max_user_id:
        raise errors.Invalid(
            f"The user id has {len(value)} characters and exceeds the allowed maximum ({limits.max_user_id}).",
            code="invalid_user_id",
        )
    return value


def flag(name: str, value: Any) -> bool:
    """A parameter that is on or off; off where it is missing."""
    if value in _OFF:
        return False
    if value in _ON:
        return True
    raise errors.Invalid(f"The parameter {name} must be 1 or 0.", code="invalid_flag")


def number(name: str, value: Any, default: int, most: int) -> int:
    """A whole number of at least 1; `default` where it is missing."""
    if value is None or value == "":
        return default
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= MOST_DIGITS:
        value = int(value)
    if type(value) is not int or not 1 <= value <= most:
        shown = refusals.quoted(str(value))
        raise errors.Invalid(
            f'The parameter {name} must be a whole number from 1 to {most}, and is "{shown}".', code=f"invalid_{name}"
        )
    return value


def position(name: str, value: Any) -> interface.Position | None:
    """A place in a channel's history, as it was answered before."""
    if value is None or value == "":
        return None
    match = _POSITION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        shown = refusals.quoted(str(value))
        raise errors.Invalid(
            f'The parameter {name} must be a position, EPOCH:OFFSET, and is "{shown}".', code="invalid_position"
        )
    return interface.Position(match[1], int(match[2]))


def idempotency_key(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _IDEMPOTENCY_KEY.fullmatch(value):
        raise errors.Invalid("The idempotency key must be printable ASCII, not empty.", code="invalid_idempotency_key")
    most = interface.MAX_IDEMPOTENCY_KEY
    if len(value) > most:
        raise errors.Invalid(
            f"The idempotency key has {len(value)} characters and exceeds the allowed maximum ({most}).",
            code="invalid_idempotency_key",
        )
    return value
