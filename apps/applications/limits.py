"""The limits that an application may have, with the bounds of each. Their defaults are those of `registry.Limits`.

A limit that nobody chose is stored as NULL, so a better default of a later version reaches every application that has
no choice of its own.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from django.core import validators
from django.utils.deconstruct import deconstructible

from apps.applications import registry

DEFAULTS = registry.Limits()
NAMES = tuple(field.name for field in dataclasses.fields(registry.Limits))


class Bounds(NamedTuple):
    least: int
    most: int


# The upper bounds keep one application from harming the others; the units are those of `registry.Limits`.
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
    "client_events_per_second": Bounds(1, 10_000),
    "client_events_burst": Bounds(1, 10_000),
}


@deconstructible
class AtLeast(validators.MinValueValidator):
    """Takes the limit's name rather than a number, so that a changed bound is no migration."""

    def __init__(self, limit: str) -> None:
        super().__init__(BOUNDS[limit].least, "%(show_value)s is less than %(limit_value)s, the least that is allowed.")


@deconstructible
class AtMost(validators.MaxValueValidator):
    """See AtLeast."""

    def __init__(self, limit: str) -> None:
        super().__init__(BOUNDS[limit].most, "%(show_value)s is more than %(limit_value)s, the most that is allowed.")
