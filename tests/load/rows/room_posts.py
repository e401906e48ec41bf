"""Small rooms fed by a backend: channels of five subscribers each, and one event at a time for one of them.

There is nothing to join: each event is one request, and each delivery one write to another socket. The requests come
over 16 connections, for the rooms in turn. All expected deliveries are known and waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.harness import wire
from tests.load import connections, errors, events, machine, publishers, rows, subjects
from tests.load.rows import lone

NAME = "room-posts"
TITLE = "1,000 channels of 5: events by HTTP"
ROOMS, SEATS = 1_000, 5
PUBLISHERS = 16
WARM_UP_S = 0.5
PING = bytes([0x80 | wire.PING])  # the first byte of a ping; events have ASCII characters only
PATIENCE_S = 10.0


class Sample(NamedTuple):
    deliveries: int
    wall_s: float
    server_cpu_s: float
    client_cpu_s: float


COMPARED = rows.Column("CPU µs per delivery", lambda sample: sample.server_cpu_s / sample.deliveries * 1e6, digits=1)
LESS_IS_BETTER = True
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("deliveries/s", lambda sample: sample.deliveries / sample.wall_s),
    rows.Column("server's share of its core", lambda sample: sample.server_cpu_s / sample.wall_s, percent=True),
    rows.Column("client's core", lambda sample: sample.client_cpu_s / sample.wall_s, percent=True),
)
WAY = "one event a request"


class Running(subjects.Running, Protocol):
    def room_target(self, room: str) -> str:
        """Path and query of the WebSockets of a room."""

    def joining_room(self, room: str) -> connections.Dialogue:
        """The dialogue until a client is subscribed to a room."""

    def room_request(self, room: str, number: int) -> bytes:
        """The HTTP request that publishes an event to a room."""


def takes(subject: subjects.Subject) -> bool:
    return subject.name == subjects.NCHAN or lone.takes(subject)


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    yield measured(subject, folder, plan, ROOMS, SEATS)


def measured(subject: subjects.Subject, folder: Path, plan: rows.Plan, rooms: int, seats: int) -> rows.Measured:
    """Measure a server with `rooms` channels of `seats` subscribers each."""
    with (
        subject.running(folder, plan.cores.server) as running,
        _opened(running, rooms, seats) as load,  # type: ignore[arg-type]
    ):
        load.publish_for(WARM_UP_S)
        delivered, before = load.delivered, machine.clocks(running.pid)
        load.publish_for(plan.seconds)
        spent = machine.clocks(running.pid).since(before)
        return rows.Measured(WAY, Sample(load.delivered - delivered, *spent))


@contextlib.contextmanager
def _opened(running: Running, count: int, seats: int) -> Iterator[_Load]:
    with contextlib.ExitStack() as stack:
        rooms = [f"room{number}" for number in range(count)]
        by_target: dict[str, list[connections.Dialogue]] = {}
        for room in rooms:
            dialogues = by_target.setdefault(running.room_target(room), [])
            dialogues += [running.joining_room(room) for _ in range(seats)]
        members = []
        for target, dialogues in by_target.items():
            for one in connections.each(running.port, target, dialogues):
                stack.callback(one.close)
                members.append(one)
        load = _Load(running, rooms, seats, members)
        stack.callback(load.close)
        yield load


class _Load:
    def __init__(
        self, running: Running, rooms: Sequence[str], seats: int, members: Sequence[connections.Connection]
    ) -> None:
        self.delivered = 0
        self._seats = seats
        self._published = 0
        self._running = running
        self._rooms = itertools.cycle(rooms)
        self._members = {one.socket.fileno(): one for one in members}
        self._tails = dict.fromkeys(self._members, b"")  # the last bytes of each, which may be the beginning of a mark
        self._publishers = {
            one.fileno(): one for one in (publishers.HttpConnection(running.port) for _ in range(PUBLISHERS))
        }
        self._poll = select.epoll()
        for fd in (*self._members, *self._publishers):
            self._poll.register(fd, select.EPOLLIN)

    def publish_for(self, seconds: float) -> None:
        """Publish, then wait for the last response and the last delivery. Raises Refused or Lost."""
        deadline = time.perf_counter() + seconds
        for one in self._publishers.values():
            self._send(one)
        while self.delivered < self._published * self._seats or any(one.busy for one in self._publishers.values()):
            ready = self._poll.poll(PATIENCE_S)
            if not ready:
                missing = self._published * self._seats - self.delivered
                raise errors.Lost(f"{missing} deliveries are missing after {PATIENCE_S:g} s")
            for fd, _ in ready:
                publisher = self._publishers.get(fd)
                if publisher is None:
                    self._receive(fd, self._members[fd])
                    continue
                publisher.ready()
                if not publisher.busy and time.perf_counter() < deadline:
                    self._send(publisher)

    def _receive(self, fd: int, member: connections.Connection) -> None:
        received = member.socket.recv(connections.READ_BYTES)
        if not received:
            raise errors.Lost("the server closed a connection")
        text = self._tails[fd] + received
        self.delivered += text.count(events.MARKED)
        self._tails[fd] = text[1 - len(events.MARKED) :]
        if PING in received:
            member.send(connections.pong(b""))

    def close(self) -> None:
        self._poll.close()
        for one in self._publishers.values():
            one.close()

    def _send(self, publisher: publishers.HttpConnection) -> None:
        self._published += 1
        publisher.send(self._running.room_request(next(self._rooms), self._published))
