"""Signed publish requests to a channel without subscribers: HTTP, signature and log, without fan-out.

soketi closes the connection after each response, so each of its requests opens a new one.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.load import errors, machine, publishers, rows, subjects
from tests.load.rows import lone

NAME = "posts"
TITLE = "Signed POST /events without a subscriber"
CONNECTIONS = 32
WARM_UP_S = 0.3
PATIENCE_S = 5.0

# Signing costs about as much as answering, so the requests are made before and sent repeatedly. Fanfare and soketi
# verify every signature; neither caches one. Centrifugo runs without an API key.
PREPARED = 1_000
BATCH = 10


class Sample(NamedTuple):
    events: int  # in the answered requests
    wall_s: float
    server_cpu_s: float
    client_cpu_s: float

    @property
    def per_cpu_second(self) -> float:
        """Events per CPU second of the server: the capacity of one core."""
        return self.events / self.server_cpu_s

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server per event."""
        return self.server_cpu_s / self.events * 1e6

    @property
    def per_second(self) -> float:
        return self.events / self.wall_s


COMPARED = rows.Column("events per CPU second", lambda sample: sample.per_cpu_second)
LESS_IS_BETTER = False
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("CPU µs per event", lambda sample: sample.cpu_us, digits=1),
    rows.Column("events/s", lambda sample: sample.per_second),
    rows.Column("server's share of its core", lambda sample: sample.server_cpu_s / sample.wall_s, percent=True),
    rows.Column("client's core", lambda sample: sample.client_cpu_s / sample.wall_s, percent=True),
)
SINGLE = f"POST events, {CONNECTIONS} connections"
BATCHED = f"POST batch_events of {BATCH}, {CONNECTIONS} connections"


def takes(subject: subjects.Subject) -> bool:
    return lone.takes(subject)


def measure(subject: subjects.Subject, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running:
        for name, batch in ((SINGLE, 1), (BATCHED, BATCH)):
            request = running.requests(batch)  # type: ignore[attr-defined]
            prepared = [request(number * batch, batch) for number in range(PREPARED)]
            load = _Load(running.port, prepared)
            load.send_for(WARM_UP_S)
            answered = load.answered
            before = machine.clocks(running.pid)
            load.send_for(plan.seconds)
            spent = machine.clocks(running.pid).since(before)
            load.close()
            yield rows.Measured(name, Sample((load.answered - answered) * batch, *spent))


class _Load:
    """Keep-alive connections with one request in progress on each."""

    def __init__(self, port: int, prepared: list[bytes]) -> None:
        self.answered = 0
        self._prepared = prepared
        self._poll = select.epoll()
        self._connections: dict[int, publishers.HttpConnection] = {}
        for _ in range(CONNECTIONS):
            one = publishers.HttpConnection(port)
            self._connections[one.fileno()] = one
            self._poll.register(one, select.EPOLLIN)
        self._sent = 0

    def send_for(self, seconds: float) -> None:
        """Send requests for `seconds`, then wait for the last response. Raises Refused or Lost."""
        deadline = time.perf_counter() + seconds
        for one in self._connections.values():
            self._send(one)
        in_progress = len(self._connections)
        while in_progress:
            ready = self._poll.poll(PATIENCE_S)
            if not ready:
                raise errors.Lost(f"{in_progress} requests got no response for {PATIENCE_S:g} s")
            go_on = time.perf_counter() < deadline
            for fd, _ in ready:
                one = self._connections[fd]
                one.ready()
                if one.busy:
                    continue
                self.answered += 1
                if go_on:
                    self._send(one)
                else:
                    in_progress -= 1

    def close(self) -> None:
        self._poll.close()
        for one in self._connections.values():
            one.close()

    def _send(self, one: publishers.HttpConnection) -> None:
        one.send(self._prepared[self._sent % len(self._prepared)])
        self._sent += 1
