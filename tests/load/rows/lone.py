"""Lone publishes: a few backends publish one event after the other, and one subscriber receives them.

There is hardly anything to join, so each event pays the whole way: request, signature, commit, read, delivery.
soketi closes the connection after each response, so each of its requests opens a new one.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.load import connections, errors, events, machine, publishers, rows, subjects

NAME = "lone"
TITLE = "Lone publishes with one subscriber"
PUBLISHERS = 4  # each waits for the response before it sends the next request
BATCHES = (1, 10)  # events in a request
SINGLE, BATCHED = "one event a request", "10 events a request"
WARM_UP_S = 0.5
PATIENCE_S = 10.0


class Sample(NamedTuple):
    events: int  # published and delivered
    wall_s: float
    server_cpu_s: float
    client_cpu_s: float

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server per event, with its commit and its delivery."""
        return self.server_cpu_s / self.events * 1e6


COMPARED = rows.Column("CPU µs per event", lambda sample: sample.cpu_us, digits=1)
LESS_IS_BETTER = True
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("events/s", lambda sample: sample.events / sample.wall_s),
    rows.Column("server's share of its core", lambda sample: sample.server_cpu_s / sample.wall_s, percent=True),
    rows.Column("client's core", lambda sample: sample.client_cpu_s / sample.wall_s, percent=True),
)


class Running(subjects.Running, Protocol):
    def requests(self, batch: int) -> Callable[[int, int], bytes]:
        """A function that makes the HTTP request for `batch` events from a number on."""


def takes(subject: subjects.Subject) -> bool:
    return subject.name in (subjects.FANFARE, subjects.SOKETI, subjects.SOCKUDO, subjects.CENTRIFUGO)


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    for batch in BATCHES:
        place = folder / str(batch)
        place.mkdir()
        with subject.running(place, plan.cores.server) as running:
            load = _Load(running, batch)  # type: ignore[arg-type]
            try:
                load.publish_for(WARM_UP_S)
                delivered, before = load.delivered, machine.clocks(running.pid)
                load.publish_for(plan.seconds)
                spent = machine.clocks(running.pid).since(before)
            finally:
                load.close()
            yield rows.Measured(
                SINGLE if batch == 1 else BATCHED, Sample(load.delivered - delivered, *spent), saturates=False
            )


class _Load:
    def __init__(self, running: Running, batch: int) -> None:
        self.delivered = 0
        self._published = 0
        self._batch = batch
        self._request = running.requests(batch)
        self._poll = select.epoll()
        self._frames = connections.Frames()
        [self._subscriber] = connections.opened(running.port, running.target, running.joining, 1)
        self._poll.register(self._subscriber.socket, select.EPOLLIN)
        self._publishers = {
            one.fileno(): one for one in (publishers.HttpConnection(running.port) for _ in range(PUBLISHERS))
        }
        for fd in self._publishers:
            self._poll.register(fd, select.EPOLLIN)

    def publish_for(self, seconds: float) -> None:
        """Publish, then wait for the last response and the last delivery. Raises Refused or Lost."""
        deadline = time.perf_counter() + seconds
        for one in self._publishers.values():
            self._send(one)
        while self.delivered < self._published or any(one.busy for one in self._publishers.values()):
            ready = self._poll.poll(PATIENCE_S)
            if not ready:
                raise errors.Lost(f"{self._published - self.delivered} deliveries are missing after {PATIENCE_S:g} s")
            for fd, _ in ready:
                one = self._publishers.get(fd)
                if one is None:
                    self._receive()
                    continue
                one.ready()
                if not one.busy and time.perf_counter() < deadline:
                    self._send(one)

    def close(self) -> None:
        self._poll.close()
        self._subscriber.close()
        for one in self._publishers.values():
            one.close()

    def _send(self, one: publishers.HttpConnection) -> None:
        one.send(self._request(self._published + 1, self._batch))
        self._published += self._batch

    def _receive(self) -> None:
        for payload in self._frames.feed(self._subscriber.socket.recv(connections.READ_BYTES)):
            self.delivered += payload.count(events.MARKED)
        for ping in self._frames.pings:
            self._subscriber.send(connections.pong(ping))
        self._frames.pings.clear()
