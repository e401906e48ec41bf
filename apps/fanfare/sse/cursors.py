"""The cursor of an SSE connection: the `id:` of its events, and the `Last-Event-ID` of a client that reconnects.

    1.aZ3kP0Qx:57.-.Bq9xT1Lm:8

The version, then one position for each channel in the order of the URL: `epoch:offset`, or `-` for a channel that keeps
no history. It is valid on every worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fanfare.engine import interface
from fanfare.sse import refusals

Positions = Sequence[interface.Position | None]

VERSION: Final = "1"
EARLIEST: Final = "earliest"  # instead of a cursor: all kept events


def text(positions: Positions) -> str:
    return ".".join([VERSION, *("-" if position is None else str(position) for position in positions)])


def parse(cursor: str, channels: int) -> tuple[interface.Position | None, ...]:
    """Raises InvalidCursor, also if the number of positions is not `channels`."""
    version, *positions = cursor.split(".")
    if version != VERSION or len(positions) != channels:
        raise refusals.InvalidCursor(f"a cursor of {channels} channels has the version {VERSION} and as many positions")
    try:
        return tuple([None if position == "-" else interface.Position.parse(position) for position in positions])
    except ValueError as error:
        raise refusals.InvalidCursor(str(error)) from None
