"""Where a client stands, as the `id:` of its events and the `Last-Event-ID` that it comes back with.

    1.aZ3kP0Qx:57.-.Bq9xT1Lm:8

The version, then one place for each channel in the order of the URL: `epoch:offset`, or `-` for a channel that keeps no
history. It means the same to every worker, so a client may come back to another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fanfare.engine import interface
from fanfare.sse import refusals

Places = Sequence[interface.Position | None]

VERSION: Final = "1"
EARLIEST: Final = "earliest"  # in the place of a cursor: everything that is kept

_PLACE: Final = re.compile(r"\A([0-9A-Za-z]{1,32}):(0|[1-9][0-9]{0,18})\Z")
_LONGEST_OFFSET: Final = 2**63 - 1  # what the log can hold


def text(places: Places) -> str:
    return ".".join([VERSION, *("-" if place is None else str(place) for place in places)])


def parse(cursor: str, channels: int) -> tuple[interface.Position | None, ...]:
    """Raises InvalidCursor, also where it has not one place for each of so many channels."""
    version, *places = cursor.split(".")
    if version != VERSION or len(places) != channels:
        raise refusals.InvalidCursor(f"a cursor of {channels} channels has the version {VERSION} and as many places")
    return tuple([None if place == "-" else _position(place) for place in places])


def _position(place: str) -> interface.Position:
    match = _PLACE.match(place)
    if match is None or int(match[2]) > _LONGEST_OFFSET:
        raise refusals.InvalidCursor("a place is epoch:offset or -")
    return interface.Position(match[1], int(match[2]))
