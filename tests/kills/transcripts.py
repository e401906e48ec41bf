"""What one client got, in its order, and what follows from it."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Got(NamedTuple):
    """An event."""

    number: int
    at: float  # monotonic seconds


class Subscribed(NamedTuple):
    """A connection was made, and the channel is subscribed to."""

    at: float


class Lost(NamedTuple):
    """The client was told that events are missing here."""

    reason: str


Line = Got | Subscribed | Lost


class Transcript:
    """`lines` in the order in which the client told them."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.highest = 0
        self.connections = 0
        self.recoveries = 0  # how often the client was told that nothing is missing, where it was told such things

    def examine(self, last: int) -> Findings:
        return examine(self.lines, last)

    @property
    def reasons(self) -> list[str]:
        return [line.reason for line in self.lines if isinstance(line, Lost)]

    def got(self, number: int) -> None:
        self.lines.append(Got(number, time.monotonic()))
        self.highest = max(self.highest, number)

    def subscribed(self) -> None:
        self.lines.append(Subscribed(time.monotonic()))
        self.connections += 1

    def lost(self, reason: str) -> None:
        self.lines.append(Lost(reason))


@dataclass
class Findings:
    """`told`: missing events whose loss was told, by reason; `silent`: the others. `repeated`: receipts of events that
    the client had already. `oldest_s`: how long before the end of its connection an event had come that came again,
    at most. `disordered`: events that came for the first time, and after a later one.
    """

    events: int = 0
    connections: int = 0
    told: collections.Counter[str] = field(default_factory=collections.Counter)
    silent: int = 0
    repeated: int = 0
    oldest_s: float = 0.0
    disordered: int = 0


def examine(lines: Iterable[Line], last: int) -> Findings:
    """`last`: the number of the last event that was acknowledged to the publisher."""
    found = Findings()
    seen: dict[int, tuple[int, float]] = {}  # on which connection it came last, and when
    ends: dict[int, float] = {}  # the last receipt on each connection
    highest = 0
    reason: str | None = None  # of a loss that was told since the last new event
    for line in lines:
        match line:
            case Subscribed():
                found.connections += 1
            case Lost():
                reason = line.reason
            case Got(number, at):
                if number in seen:
                    connection, before = seen[number]
                    found.repeated += 1
                    found.oldest_s = max(found.oldest_s, ends[connection] - before)
                elif number < highest:
                    found.disordered += 1
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
        found.silent += missing
    else:
        found.told[reason] += missing
