"""The numeric settings of applications and channel rules, with their bounds and defaults.

The defaults are those of `registry.Limits`, `registry.Application` and `rules.Rule`. A limit that is not set is NULL in
the database, so a new default of a later version applies to it.
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
    "max_event_bytes": Bounds(
        1, 1_048_576
    ),  # the default size of a connection's send buffer: a larger event would exceed it
    "max_channels_per_event": Bounds(1, 1_000),  # each is a log entry in one transaction
    "max_batch_events": Bounds(1, 100),
    "max_channel_name": Bounds(1, 1_000),  # names are part of URLs, and proxies refuse long URLs
    "max_event_name": Bounds(1, 1_000),
    "max_presence_members": Bounds(1, 10_000),  # each new subscriber gets the list of members
    "max_member_bytes": Bounds(1, 65_536),  # per member, in each list of members
    "max_user_id": Bounds(1, 1_000),
    "max_watchlist": Bounds(1, 1_000),  # each is a row in the log file while the client is signed in
    "max_events_per_second": Bounds(1, 1_000_000),
    "client_events_per_second": Bounds(1, 10_000),
    "client_events_burst": Bounds(1, 10_000),
    "authorization_timeout": Bounds(5, 3_600),  # a shorter timeout would disconnect clients on slow networks
    "cache_seconds": Bounds(1, 86_400),
}

# Bounds of a channel rule; the units are those of `rules.Rule`.
RULE_BOUNDS = {
    "history_size": Bounds(1, 1_000_000),  # each is a row in the log file, per matching channel
    "history_seconds": Bounds(1, 30 * 86_400),
    "rewind_count": Bounds(0, 500),  # read at each subscription, in one query
    "rewind_seconds": Bounds(0, 30 * 86_400),
    "max_replay_entries": Bounds(1, 100_000),
    "max_replay_bytes": Bounds(1_024, 64 * 1_048_576),
    "stream_window_ms": Bounds(0, 10_000),  # a reader waits so long for the next piece
}
_ALL_BOUNDS = BOUNDS | RULE_BOUNDS

_FIELDS = (*dataclasses.fields(registry.Limits), *dataclasses.fields(registry.Application))
DEFAULTS: dict[str, Any] = {field.name: field.default for field in _FIELDS if field.name in BOUNDS}

# The two history defaults are only the admin's proposal: enough for a client that was offline in a tunnel.
RULE_DEFAULTS: dict[str, int] = {"history_size": 1_000, "history_seconds": 3_600} | {
    field.name: field.default
    for field in dataclasses.fields(rules.Rule)
    if field.name in RULE_BOUNDS and field.default is not dataclasses.MISSING
}


@deconstructible
class AtLeast(validators.MinValueValidator):
    """Takes the name of the limit instead of a number, so that a changed bound needs no migration."""

    def __init__(self, limit: str) -> None:
        super().__init__(_ALL_BOUNDS[limit].least, "%(show_value)s is below the minimum of %(limit_value)s.")


@deconstructible
class AtMost(validators.MaxValueValidator):
    """See AtLeast."""

    def __init__(self, limit: str) -> None:
        super().__init__(_ALL_BOUNDS[limit].most, "%(show_value)s is above the maximum of %(limit_value)s.")
