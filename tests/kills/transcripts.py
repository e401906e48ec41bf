"""What one client received, in order, and the losses and duplicates that follow from it."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Received(NamedTuple):
    """An event."""

    number: int
    at: float  # monotonic seconds


class Subscribed(NamedTuple):
    """A new connection has subscribed to the channel."""

    at: float


class Lost(NamedTuple):
    """The server reported to the client that events are lost here."""

    reason: str


Line = Received | Subscribed | Lost


class Transcript:
    """`lines`: in the order in which the client reported them."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.highest = 0
        self.connections = 0
        self.recoveries = 0  # how often the server reported a complete recovery

    def examine(self, last: int) -> Findings:
        return examine(self.lines, last)

    @property
    def reasons(self) -> list[str]:
        return [line.reason for line in self.lines if isinstance(line, Lost)]

    def received(self, number: int) -> None:
        self.lines.append(Received(number, time.monotonic()))
        self.highest = max(self.highest, number)

    def subscribed(self) -> None:
        self.lines.append(Subscribed(time.monotonic()))
        self.connections += 1

    def lost(self, reason: str) -> None:
        self.lines.append(Lost(reason))


@dataclass
class Findings:
    """`reported`: lost events whose loss was reported, by reason. `unreported`: other lost events. `duplicates`:
    receipts of events that the client already had. `oldest_duplicate_s`: the longest time from the first receipt of an
    event to the end of its connection, if received again. `out_of_order`: events received after a later one. `ghosts`:
    receipts of events that no call had published yet, see `histories`.
    """

    events: int = 0
    connections: int = 0
    reported: collections.Counter[str] = field(default_factory=collections.Counter)
    unreported: int = 0
    duplicates: int = 0
    oldest_duplicate_s: float = 0.0
    out_of_order: int = 0
    ghosts: int = 0


def examine(lines: Iterable[Line], last: int) -> Findings:
    """`last`: the number of the last event acknowledged to the publisher."""
    found = Findings()
    seen: dict[int, tuple[int, float]] = {}  # connection and time of the last receipt
    ends: dict[int, float] = {}  # time of the last receipt on each connection
    highest = 0
    reason: str | None = None  # of a loss reported since the last new event
    for line in lines:
        match line:
            case Subscribed():
                found.connections += 1
            case Lost():
                reason = line.reason
            case Received(number, at):
                if number in seen:
                    connection, before = seen[number]
                    found.duplicates += 1
                    found.oldest_duplicate_s = max(found.oldest_duplicate_s, ends[connection] - before)
                elif number < highest:
                    found.out_of_order += 1
                else:
                    _count_missing(found, number - highest - 1, reason)
                    highest, reason = number, None
                seen[number] = found.connections, at
                ends[found.connections] = at
    _count_missing(found, last - highest, reason)
    found.events = len(seen)
    return found


def _count_missing(found: Findings, missing: int, reason: str | None) -> None:
    if missing <= 0:
        return
    if reason is None:
        found.unreported += missing
    else:
        found.reported[reason] += missing
