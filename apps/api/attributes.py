"""The `info` parameter: what a caller wants to know about a channel besides that it is there."""

from __future__ import annotations

from typing import Any

from apps.api import errors
from apps.engine import interface
from apps.pusher import errors as pusher_errors
from apps.pusher import names

USER_COUNT = "user_count"  # distinct users, presence channels only
SUBSCRIPTION_COUNT = "subscription_count"  # connections

KNOWN = (USER_COUNT, SUBSCRIPTION_COUNT)


def parse(value: Any) -> tuple[str, ...]:
    """`value`: None, "a,b" or ["a", "b"]. Raises Invalid for an attribute that no channel has."""
    if value is None:
        return ()
    asked = value.split(",") if isinstance(value, str) else value
    if not isinstance(asked, list) or not all(isinstance(attribute, str) for attribute in asked):
        raise errors.Invalid("The parameter info must be attributes, separated by commas.", code="invalid_info")
    attributes = tuple([attribute.strip() for attribute in asked if attribute])
    for attribute in attributes:
        if attribute not in KNOWN:
            shown = pusher_errors.quoted(attribute)
            message = f'Unknown attribute "{shown}" in info; known are {" and ".join(KNOWN)}.'
            raise errors.Invalid(message, code="unknown_attribute")
    return attributes


def describe(channel: str, counts: interface.ChannelCounts, attributes: tuple[str, ...]) -> dict[str, int]:
    """The attributes of one channel. What its type does not have is left out: an event can go to several types."""
    values: dict[str, int] = {}
    for attribute in attributes:
        if attribute == SUBSCRIPTION_COUNT:
            values[attribute] = counts.subscriptions
        elif names.is_presence(channel):
            values[attribute] = counts.users
    return values
