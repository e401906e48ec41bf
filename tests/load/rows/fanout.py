"""Fan-out at saturation: all subscribers on one channel, and as many events as the server can deliver."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.load import machine, publishers, rooms, rows, subjects

NAME = "fanout"
TITLE = "Fan-out at saturation"

WARM_UP_S = 0.3
IDLE_WAIT_S = 0.1  # the longest wait for readable sockets while publishing


class Sample(NamedTuple):
    deliveries: int
    wall_s: float  # from the first publication to the last delivery
    server_cpu_s: float  # user and system time of all threads of the server
    client_cpu_s: float  # of the client, including the publisher
    core_s: float  # busy time of the server's core, for all processes

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server per delivery."""
        return self.server_cpu_s / self.deliveries * 1e6

    @property
    def per_second(self) -> float:
        return self.deliveries / self.wall_s

    @property
    def server_busy(self) -> float:
        return self.server_cpu_s / self.wall_s

    @property
    def others_busy(self) -> float:
        """The share of the server's core that other processes took; a high share makes `per_second` unreliable."""
        return max(0.0, self.core_s - self.server_cpu_s) / self.wall_s

    @property
    def client_busy(self) -> float:
        return self.client_cpu_s / self.wall_s


COMPARED = rows.Column("CPU µs per delivery", lambda sample: sample.cpu_us, digits=2)
LESS_IS_BETTER = True
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("1,000 deliveries/s", lambda sample: sample.per_second / 1e3),
    rows.Column("server's share of its core", lambda sample: sample.server_busy, percent=True),
    rows.Column("others' share of it", lambda sample: sample.others_busy, percent=True),
    rows.Column("client's core", lambda sample: sample.client_busy, percent=True),
)


def takes(subject: subjects.Subject) -> bool:
    return subject.one_frame_each and subject.name != subjects.FANFARE_OPEN


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running, rooms.opened(running, plan.subscribers) as room:
        for name, way in running.ways().items():
            with room.publisher(way) as publisher:
                yield rows.Measured(name, sample(room, publisher, way.window, running.pid, plan.seconds), way.saturates)


def sample(room: rooms.Room, publisher: publishers.Publisher, window: int, pid: int, seconds: float) -> Sample:
    """Publish for `seconds` after a warm-up, with at most `window` events in flight. Raises Lost."""
    _saturate(room, publisher, window, WARM_UP_S)
    deliveries = room.subscribers.deliveries
    before = _clocks(pid)
    _saturate(room, publisher, window, seconds)
    spent = [now - then for now, then in zip(_clocks(pid), before, strict=True)]
    room.verify()
    return Sample(room.subscribers.deliveries - deliveries, *spent)


def _clocks(pid: int) -> tuple[float, float, float, float]:
    """The clocks of a sample, in the order of its fields."""
    return time.perf_counter(), machine.cpu_seconds(pid), time.process_time(), machine.core_seconds(pid)


def _saturate(room: rooms.Room, publisher: publishers.Publisher, window: int, seconds: float) -> None:
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        room.publish(publisher, window - room.in_flight)
        room.subscribers.read(IDLE_WAIT_S)
    room.drain()
