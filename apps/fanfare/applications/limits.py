"""The numbers that a person may choose for an application and its channel rules, with the bounds of each.

Their defaults are those of `registry.Limits`, `registry.Application` and `rules.Rule`. A number that
was not set for an application is stored as NULL, so a new default of a later version holds for that application.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from django.core import validators
from django.utils.deconstruct import deconstructible

from fanfare.applications import registry, rules

NAMES = tuple(field.name for field in dataclasses.fields(registry.Limits))
DURATIONS = ("authorization_timeout", "cache_seconds")  # of `registry.Application`, in seconds


class Bounds(NamedTuple):
    least: int
    most: int


# The upper bounds keep one application from harming the others; the units are those of `registry`.
BOUNDS = {
    "max_connections": Bounds(1, 10_000_000),
    "max_event_bytes": Bounds(1, 1_048_576),  # the default bound of a connection's buffer: more would cut it off
    "max_channels_per_event": Bounds(1, 1_000),  # each is an entry of the log, in one transaction
    "max_batch_events": Bounds(1, 100),
    "max_channel_name": Bounds(1, 1_000),  # names are part of URLs, and proxies refuse long ones
    "max_event_name": Bounds(1, 1_000),
    "max_presence_members": Bounds(1, 10_000),  # the snapshot goes to every joiner
    "max_member_bytes": Bounds(1, 65_536),  # times the members, in every snapshot
    "max_user_id": Bounds(1, 1_000),
    "max_watchlist": Bounds(1, 1_000),  # each is a row of the log's file for as long as the client is signed in
    "max_events_per_second": Bounds(1, 1_000_000),
    "client_events_per_second": Bounds(1, 10_000),
    "client_events_burst": Bounds(1, 10_000),
    "authorization_timeout": Bounds(5, 3_600),  # less would close the clients whose network is slow
    "cache_seconds": Bounds(1, 86_400),
}

# Of a channel rule; the units are those of `rules.Rule`.
RULE_BOUNDS = {
    "history_size": Bounds(1, 1_000_000),  # each is a row of the log's file, for each channel that fits
    "history_seconds": Bounds(1, 30 * 86_400),
    "rewind_count": Bounds(0, 500),  # read at every subscription, in one piece
    "rewind_seconds": Bounds(0, 30 * 86_400),
    "max_replay_entries": Bounds(1, 100_000),
    "max_replay_bytes": Bounds(1_024, 64 * 1_048_576),
}
_ALL_BOUNDS = BOUNDS | RULE_BOUNDS

_FIELDS = (*dataclasses.fields(registry.Limits), *dataclasses.fields(registry.Application))
DEFAULTS: dict[str, Any] = {field.name: field.default for field in _FIELDS if field.name in BOUNDS}

# Those of a history are only what the admin proposes: a reader who comes back from a tunnel, and small for any channel.
RULE_DEFAULTS: dict[str, int] = {"history_size": 1_000, "history_seconds": 3_600} | {
    field.name: field.default
    for field in dataclasses.fields(rules.Rule)
    if field.name in RULE_BOUNDS and field.default is not dataclasses.MISSING
}


@deconstructible
class AtLeast(validators.MinValueValidator):
    """Takes the limit's name rather than a number, so that a changed bound is no migration."""

    def __init__(self, limit: str) -> None:
        super().__init__(
            _ALL_BOUNDS[limit].least, "%(show_value)s is less than %(limit_value)s, the least that is allowed."
        )


@deconstructible
class AtMost(validators.MaxValueValidator):
    """See AtLeast."""

    def __init__(self, limit: str) -> None:
        super().__init__(
            _ALL_BOUNDS[limit].most, "%(show_value)s is more than %(limit_value)s, the most that is allowed."
        )
