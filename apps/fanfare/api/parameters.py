"""Validation of the operations' parameters. Each function takes a raw value and returns the valid one, or raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from fanfare.api import refusals
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import capabilities, names, publications
from fanfare.protocol import refusals as protocol_refusals

_ON = ("1", "true", 1, True)
_OFF = (None, "", "0", "false", 0, False)
_MAX_DIGITS = 15  # of a number: exact in every JSON parser

# Attributes that `info` asks for.
USER_COUNT = "user_count"  # distinct users, presence channels only
SUBSCRIPTION_COUNT = "subscription_count"  # connections
CACHE = "cache"  # the event that a cache channel holds
OFFSET = "offset"  # the publication's position in its channel's history; an extension

COUNTS = (USER_COUNT, SUBSCRIPTION_COUNT)
CHANNEL_ATTRIBUTES = (*COUNTS, CACHE)
PUBLICATION_ATTRIBUTES = (*COUNTS, OFFSET)


# -- events ------------------------------------------------------------------------------------------------------------


def event_name(value: Any, limits: registry.Limits) -> str:
    if value is None or value == "":
        raise refusals.Invalid("The parameter name is missing: the name of the event.", code="missing_name")
    if not isinstance(value, str):
        raise refusals.Invalid("The parameter name must be a string.", code="invalid_name")
    try:
        publications.check_event_name(value, limits)
    except protocol_refusals.PusherError as error:
        raise _invalid(error) from None
    return value


def event_data(fields: dict[str, Any], limits: registry.Limits) -> str:
    """The text for subscribers. Other data than strings is encoded as JSON."""
    if "data" not in fields:
        raise refusals.Invalid("The parameter data is missing.", code="missing_data")
    data = fields["data"]
    if not isinstance(data, str):
        try:
            data = orjson.dumps(data).decode()
        except orjson.JSONEncodeError as error:  # nested more deeply than the encoder supports
            message = f"The parameter data cannot be encoded as JSON: {error}."
            raise refusals.Invalid(message, code="invalid_data") from None
    try:
        publications.check_data(data, limits)
    except publications.DataTooLarge as error:
        # Client libraries look for the words "content of this event" in a 413.
        raise refusals.TooLarge(
            f"The data content of this event exceeds the allowed maximum ({error.limit} bytes): "
            f"it has {error.actual} bytes."
        ) from None
    return data


def socket_id(value: Any) -> str | None:
    """The connection that does not get the event."""
    return _optional("socket_id", value, publications.check_socket_id)


def idempotency_key(value: Any) -> str | None:
    return _optional("idempotency_key", value, publications.check_idempotency_key)


# -- channels ----------------------------------------------------------------------------------------------------------


def channel_name(value: Any, limits: registry.Limits) -> str:
    """The name of a channel that an event can be published to."""
    if value is None or value == "":
        raise refusals.Invalid("The parameter channel is missing.", code="missing_channel")
    if not isinstance(value, str):
        raise refusals.Invalid("A channel's name must be a string.", code="invalid_channel")
    try:
        names.check_publishable_channel(value, limits.max_channel_name)
    except protocol_refusals.PusherError as error:
        raise _invalid(error, code="invalid_channel") from None
    return value


def presence_channel(value: Any, limits: registry.Limits) -> str:
    """The name of a presence channel."""
    channel = channel_name(value, limits)
    if not names.is_presence(channel):
        raise refusals.Invalid(f"{channel} is not a presence channel, so it has no users.", code="not_presence")
    return channel


def channel_names(fields: dict[str, Any], limits: registry.Limits) -> list[str]:
    """The channels of one event without repetition: `channels`, a list, or `channel`."""
    several = fields.get("channels")
    single = fields.get("channel")
    if several is None:
        return [channel_name(single, limits)]
    if single is not None:
        raise refusals.Invalid("Give channels or channel, not both.", code="invalid_channels")
    if not isinstance(several, list) or not several:
        raise refusals.Invalid("The parameter channels must be a list with at least one name.", code="invalid_channels")
    if len(several) > limits.max_channels_per_event:
        raise refusals.Invalid(
            f"Too many channels: the event has {len(several)}, the allowed maximum is {limits.max_channels_per_event}.",
            code="too_many_channels",
        )
    channels = list(dict.fromkeys([channel_name(each, limits) for each in several]))
    if len(channels) > 1:
        for channel in channels:
            if names.is_encrypted(channel):
                raise refusals.Invalid(
                    f"An event for the encrypted channel {channel} can have no other channel: each has its own key.",
                    code="encrypted_with_others",
                )
    return channels


def info(value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """The attributes of `info`: None, "a,b" or ["a", "b"]. Raises Invalid for one that is not in `known`."""
    if value is None:
        return ()
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(attribute, str) for attribute in given):
        raise refusals.Invalid("The parameter info must be attributes, separated by commas.", code="invalid_info")
    attributes = tuple([attribute.strip() for attribute in given if attribute])
    for attribute in attributes:
        if attribute not in known:
            shown = protocol_refusals.quoted(attribute)
            message = f'Unknown attribute "{shown}" in info; the attributes of this call are {", ".join(known)}.'
            raise refusals.Invalid(message, code="unknown_attribute")
    return attributes


def require_available(channel: str, attributes: tuple[str, ...]) -> None:
    """Raise Invalid if a channel with this name cannot have one of the attributes."""
    if USER_COUNT in attributes and not names.is_presence(channel):
        raise _not_available(USER_COUNT, channel, "only presence channels have users")
    if CACHE in attributes and not names.is_cache(channel):
        raise _not_available(CACHE, channel, "only cache channels hold an event")


def _not_available(attribute: str, channel: str, reason: str) -> refusals.Invalid:
    return refusals.Invalid(
        f"The attribute {attribute} is not available for {channel}: {reason}.", code="attribute_not_available"
    )


# -- others ------------------------------------------------------------------------------------------------------------


def user_id(value: str, limits: registry.Limits) -> str:
    """The id of a user, with any character but NUL. As a part of the path it is never empty."""
    if "\0" in value:
        raise refusals.Invalid("The user id contains the character NUL.", code="invalid_user_id")
    if len(value) > limits.max_user_id:
        raise refusals.Invalid(
            f"The user id has {len(value)} characters and exceeds the allowed maximum ({limits.max_user_id}).",
            code="invalid_user_id",
        )
    return value


def token_id(value: str) -> str:
    """The `jti` of a capability token."""
    if capabilities.TOKEN_ID.match(value) is None:
        raise refusals.Invalid(
            "The id of a token has 1 to 128 letters, digits and the characters _.:~-.", code="invalid_token_id"
        )
    return value


def flag(name: str, value: Any) -> bool:
    """A switch; off by default."""
    if value in _OFF:
        return False
    if value in _ON:
        return True
    raise refusals.Invalid(f"The parameter {name} must be 1 or 0.", code="invalid_flag")


def number(name: str, value: Any, default: int, most: int) -> int:
    """A whole number from 1 to `most`."""
    if value is None or value == "":
        return default
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS:
        value = int(value)
    if type(value) is not int or not 1 <= value <= most:
        shown = protocol_refusals.quoted(str(value))
        raise refusals.Invalid(
            f'The parameter {name} must be a whole number from 1 to {most}, and is "{shown}".', code=f"invalid_{name}"
        )
    return value


def position(name: str, value: Any) -> interface.Position | None:
    """A position in a channel's history, as an earlier answer gave it."""
    if value is None or value == "":
        return None
    try:
        return interface.Position.parse(value if isinstance(value, str) else "")
    except ValueError:
        shown = protocol_refusals.quoted(str(value))
        raise refusals.Invalid(
            f'The parameter {name} must be a position, EPOCH:OFFSET, and is "{shown}".', code="invalid_position"
        ) from None


def _optional(name: str, value: Any, check: Callable[[str], None]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise refusals.Invalid(f"The parameter {name} must be a string.", code=f"invalid_{name}")
    try:
        check(value)
    except protocol_refusals.PusherError as error:
        raise _invalid(error) from None
    return value


def _invalid(error: protocol_refusals.PusherError, code: str | None = None) -> refusals.Invalid:
    """The API's form of a refusal. `code` replaces the protocol's reason."""
    reason = "invalid_name" if isinstance(error, protocol_refusals.NameTooLong) else error.reason
    return refusals.Invalid(f"{error}.", code=code or reason)
