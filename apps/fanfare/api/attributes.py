"""The `info` parameter: what a caller wants to know about a channel besides that it is there."""

from __future__ import annotations

from typing import Any

from fanfare.api import answers, errors
from fanfare.engine import interface
from fanfare.protocol import names, refusals

USER_COUNT = "user_count"  # distinct users, presence channels only
SUBSCRIPTION_COUNT = "subscription_count"  # connections
CACHE = "cache"  # the event that a cache channel holds
OFFSET = "offset"  # where a publication stands in its channel's history; ours

COUNTS = (USER_COUNT, SUBSCRIPTION_COUNT)
OF_CHANNEL = (*COUNTS, CACHE)
OF_PUBLICATION = (*COUNTS, OFFSET)


def parse(value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """`value`: None, "a,b" or ["a", "b"]. Raises Invalid for an attribute that the operation does not have."""
    if value is None:
        return ()
    asked = value.split(",") if isinstance(value, str) else value
    if not isinstance(asked, list) or not all(isinstance(attribute, str) for attribute in asked):
        raise errors.Invalid("The parameter info must be attributes, separated by commas.", code="invalid_info")
    attributes = tuple([attribute.strip() for attribute in asked if attribute])
    for attribute in attributes:
        if attribute not in known:
            shown = refusals.quoted(attribute)
            message = f'Unknown attribute "{shown}" in info; known here are {", ".join(known)}.'
            raise errors.Invalid(message, code="unknown_attribute")
    return attributes


def require(channel: str, attributes: tuple[str, ...]) -> None:
    """Raise Invalid if a channel of this name cannot have one of them."""
    if USER_COUNT in attributes and not names.is_presence(channel):
        raise _not_available(USER_COUNT, channel, "only presence channels have users")
    if CACHE in attributes and not names.is_cache(channel):
        raise _not_available(CACHE, channel, "only cache channels hold an event")


def describe(channel: str, counts: interface.ChannelCounts, attributes: tuple[str, ...]) -> answers.Counts:
    """The counts of one channel. What its type does not have is left out: an event can go to several types."""
    values: answers.Counts = {}
    if USER_COUNT in attributes and names.is_presence(channel):
        values["user_count"] = counts.users
    if SUBSCRIPTION_COUNT in attributes:
        values["subscription_count"] = counts.subscriptions
    return values


def _not_available(attribute: str, channel: str, reason: str) -> errors.Invalid:
    return errors.Invalid(
        f"The attribute {attribute} is not available for {channel}: {reason}.", code="attribute_not_available"
    )
