"""The JSON of every good answer. The operations are typed with it, and the OpenAPI description is made from it."""

from __future__ import annotations

from typing import Any, NotRequired

# pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict


class Counts(TypedDict):
    """What `info` asked for about one channel, as far as its type has it."""

    user_count: NotRequired[int]
    """Distinct users, in the whole deployment. Presence channels only."""
    subscription_count: NotRequired[int]
    """Connections, in the whole deployment."""


class Nothing(TypedDict):
    """An empty object: it is done."""


class Published(Counts):
    """What `info` asked for about an event on one channel.

    The event is published all the same where the counts are missing: they could not be read.
    """

    offset: NotRequired[int]
    """Its place in the channel's history: 1, 2, 3, … Only where a history is kept."""
    epoch: NotRequired[str]
    """Offsets of different epochs are not comparable. It comes with `offset`."""


class Triggered(TypedDict):
    """An empty object, or what `info` asked for."""

    channels: NotRequired[dict[str, Published]]
    """By name."""


class BatchTriggered(TypedDict):
    """An empty object, or, where an event of the batch has `info`, what was asked for at the event's place."""

    batch: NotRequired[list[Published]]
    """One for each event, in their order; empty for an event without `info`."""


class Channels(TypedDict):
    """The occupied channels."""

    channels: dict[str, Counts]
    """By name."""


class Cached(TypedDict):
    """The event that a cache channel holds for those who come."""

    data: Any
    """As it was published: a string."""
    ttl: int
    """For how many more seconds it is held."""


class Occupancy(Counts):
    """One channel, without what it holds."""

    occupied: bool
    """Whether anybody is subscribed."""


class Channel(Occupancy):
    """One channel."""

    cache: NotRequired[Cached | None]
    """`null`: nothing is held. Cache channels only."""


class Stats(TypedDict):
    """One channel, as it was answered before 2012."""

    occupied: bool
    """Whether anybody is subscribed."""
    connection_count: int
    """Connections, in the whole deployment."""
    user_count: NotRequired[int]
    """Distinct users, in the whole deployment. Presence channels only."""


class User(TypedDict):
    """Somebody in a presence channel."""

    id: str
    user_info: NotRequired[Any]
    """What the application said about the user; `null` if it said nothing. Only with `with_user_info`."""


class Users(TypedDict):
    """Who is in a presence channel."""

    users: list[User]
    """Each once, whatever the number of their connections; who has been there longest comes first."""


class Item(TypedDict):
    """An event of a channel's history."""

    offset: int
    """Its place: 1, 2, 3, … without a gap."""
    event: str
    """Its name."""
    data: Any
    """As subscribers got it: a string, or whatever a client sent."""
    user_id: NotRequired[str]
    """Who sent it, where a client of a presence channel did."""


class History(TypedDict):
    """A page of what is kept of a channel."""

    items: list[Item]
    """In the order that was asked for."""
    position: str | None
    """Of the newest event, `EPOCH:OFFSET`; `null` where nothing was ever kept."""
    next: str | None
    """What the next page is `before` (`after`, going forwards); `null`: there is no more."""


class Refusal(TypedDict):
    """Why a request was not done."""

    error: str
    """For a person. Where it is about a limit, both numbers are in it."""
    code: str
    """For a machine."""
