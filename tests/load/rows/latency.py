"""Latency on a calm channel: a few events a second on a fixed schedule, from the moment one is due to each receipt.

The moment it is due and not the moment it was sent: a client that waits for a slow server would otherwise forgive it
(coordinated omission). The time in which the client reads its thousand sockets is in it, the same for every subject.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from tests.load import errors, publishers, rooms

PER_SECOND = 20
SPIN_S = 0.001  # the resolution of epoll's time-out: less than this before an event is due, do not sleep
ALLOWED_BEHIND = 2 * PER_SECOND  # events under way at the end; more, and the server does not keep up


class Sample(NamedTuple):
    """Percentiles in seconds. `behind`: events under way at the end, where the server could not keep up; else 0."""

    p50: float
    p99: float
    worst: float
    behind: int


def measure(room: rooms.Room, publisher: publishers.Publisher, seconds: float) -> Sample:
    room.drain()
    room.subscribers.arrivals = array("d")
    first = room.published + 1
    start = time.perf_counter() + 0.1
    due = [start + number / PER_SECOND for number in range(int(seconds * PER_SECOND))]
    while (sent := room.published + 1 - first) < len(due):
        wait = due[sent] - time.perf_counter()
        if wait <= 0:
            room.publish(publisher, 1)
        room.subscribers.read(max(0.0, wait - SPIN_S))
    behind = room.under_way
    if behind > ALLOWED_BEHIND:
        room.subscribers.arrivals = None
        return Sample(math.inf, math.inf, math.inf, behind)
    room.drain()
    room.verify()
    arrivals, room.subscribers.arrivals = room.subscribers.arrivals, None
    numbers = room.subscribers.layout.numbers(room.subscribers.reference)
    due_at = [due[number - first] if number >= first else math.nan for number in numbers]
    latencies = sorted(delays(arrivals, due_at))
    if len(latencies) != len(due) * len(room.subscribers):
        raise errors.Lost(f"{len(latencies)} arrivals of {len(due)} events")
    return Sample(percentile(latencies, 50), percentile(latencies, 99), latencies[-1], 0)


def delays(arrivals: array[float], due_at: Sequence[float]) -> list[float]:
    """One value for each delivery. `arrivals`: see Subscribers; `due_at`: by the event's position."""
    return [
        arrivals[at + 2] - due_at[position]
        for at in range(0, len(arrivals), 3)
        for position in range(int(arrivals[at]), int(arrivals[at + 1]))
    ]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
