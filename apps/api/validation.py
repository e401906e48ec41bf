"""What each parameter of a publication may be. A function takes the raw value and returns the good one, or raises."""

from __future__ import annotations

import re
from typing import Any

import orjson

from apps.api import errors
from apps.applications import registry
from apps.pusher import errors as pusher_errors
from apps.pusher import names

MAX_IDEMPOTENCY_KEY = 128  # characters
MAX_SOCKET_ID = 64  # characters; a connection's own has at most 33, and a longer one is only stored for nothing

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]+")


def event_name(value: Any, limits: registry.Limits) -> str:
    if value is None or value == "":
        raise errors.Invalid("The parameter name is missing: the name of the event.", code="missing_name")
    if not isinstance(value, str):
        raise errors.Invalid("The parameter name must be a string.", code="invalid_name")
    try:
        names.check_event(value, limits.max_event_name)
    except pusher_errors.InvalidName as error:
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
    except pusher_errors.InvalidName as error:
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
        shown = pusher_errors.quoted(value)
        raise errors.Invalid(f'Invalid socket_id "{shown}": it has the form 1234.1234.', code="invalid_socket_id")
    return value


def idempotency_key(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _IDEMPOTENCY_KEY.fullmatch(value):
        raise errors.Invalid("The idempotency key must be printable ASCII, not empty.", code="invalid_idempotency_key")
    if len(value) > MAX_IDEMPOTENCY_KEY:
        raise errors.Invalid(
            f"The idempotency key has {len(value)} characters and exceeds the allowed maximum ({MAX_IDEMPOTENCY_KEY}).",
            code="invalid_idempotency_key",
        )
    return value
