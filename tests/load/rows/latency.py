"""Latency and CPU at a low rate: a few events a second on a fixed schedule.

The latency is the time from the moment an event is due to each receipt. It starts at the due time and not at the time
of sending, because a client that waits for a slow server would otherwise hide the delay (coordinated omission). It
includes the time in which the client reads its thousand sockets.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.load import errors, machine, publishers, rooms, rows, subjects

NAME = "latency"

PER_SECOND = 20
WARM_UP_S = 0.5
SPIN_S = 0.001  # epoll's timeout resolution; closer to the due time, do not sleep
TITLE = f"{PER_SECOND} events/s: CPU, and the latency from the moment an event is due to each receipt"
ALLOWED_BEHIND = 2 * PER_SECOND  # events in flight at the end; with more, the server does not keep up


class Sample(NamedTuple):
    """Seconds: the server's CPU time per delivery, and percentiles of the latency.

    `behind`: events in flight at the end if the server could not keep up, otherwise 0.
    """

    cpu_s: float
    p50: float
    p99: float
    worst: float
    behind: int


COMPARED = rows.Column("p99 ms", lambda sample: sample.p99 * 1e3, digits=1)
LESS_IS_BETTER = True
CPU = rows.Column("CPU µs per delivery", lambda sample: sample.cpu_s * 1e6, digits=2)
COLUMNS: Sequence[rows.Column] = (
    CPU,
    rows.Column("p50 ms", lambda sample: sample.p50 * 1e3, digits=1),
    COMPARED,
    rows.Column("worst ms", lambda sample: sample.worst * 1e3, digits=1),
    rows.Column("events behind at the end", lambda sample: sample.behind),
)


def takes(subject: subjects.Subject) -> bool:
    return subject.one_frame_each and subject.name not in (subjects.FANFARE_OTHER, subjects.FANFARE_OPEN)


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running, rooms.opened(running, plan.subscribers) as room:
        name, way = next(iter(running.ways().items()))
        with room.publisher(way) as publisher:
            sample(room, publisher, running.pid, WARM_UP_S)
            yield rows.Measured(name, sample(room, publisher, running.pid, plan.latency_seconds))


def sample(room: rooms.Room, publisher: publishers.Publisher, pid: int, seconds: float) -> Sample:
    room.drain()
    cpu_s = machine.cpu_clock_s(pid)
    room.subscribers.arrivals = array("d")
    first = room.published + 1
    start = time.perf_counter() + 0.1
    due = [start + number / PER_SECOND for number in range(int(seconds * PER_SECOND))]
    while (sent := room.published + 1 - first) < len(due):
        wait = due[sent] - time.perf_counter()
        if wait <= 0:
            room.publish(publisher, 1)
        room.subscribers.read(max(0.0, wait - SPIN_S))
    behind = room.in_flight
    if behind > ALLOWED_BEHIND:
        room.subscribers.arrivals = None
        return Sample(math.inf, math.inf, math.inf, math.inf, behind)
    room.drain()
    cpu_s = machine.cpu_clock_s(pid) - cpu_s
    room.verify()
    arrivals, room.subscribers.arrivals = room.subscribers.arrivals, None
    numbers = room.subscribers.layout.numbers(room.subscribers.reference)
    due_at = [due[number - first] if number >= first else math.nan for number in numbers]
    latencies = sorted(delays(arrivals, due_at))
    if len(latencies) != len(due) * len(room.subscribers):
        raise errors.Lost(f"{len(latencies)} arrivals of {len(due)} events")
    return Sample(cpu_s / len(latencies), percentile(latencies, 50), percentile(latencies, 99), latencies[-1], 0)


def delays(arrivals: array[float], due_at: Sequence[float]) -> list[float]:
    """One delay per delivery. `arrivals`: see Subscribers. `due_at`: by the event's position."""
    return [
        arrivals[at + 2] - due_at[position]
        for at in range(0, len(arrivals), 3)
        for position in range(int(arrivals[at]), int(arrivals[at + 1]))
    ]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
