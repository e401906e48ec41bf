"""publish() in the workers of `gunicorn -w 4`, as views call it: throughput and latency.

Throughput: each of the four workers calls `publish()` in a loop, in one or more threads. An event counts when the call
returns, that is, when it is committed. Alternatively twenty calls are made in one `transaction.atomic()`, which becomes
one commit of the log; they count when the block ends. The transaction is on the project's database (SQLite here) and
does nothing else. There are no subscribers, but each worker reads the whole log.

Latency: one worker calls `publish()` at a low rate, and a subscriber of another worker reads the event from its
WebSocket. The time from just before the call to just after the read includes encoding, the commit, the wake-up of the
other process, the fan-out, loopback, and the wake-up of the client.

The four workers and the client share all cores of the machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.harness import deployments, servers
from tests.load import connections, errors, events, machine, processes, publishers, rows, subjects
from tests.load.rows import latency
from tests.load.subjects import fanfare, pusher

NAME = "publish"
TITLE = "publish() from Python in 4 gunicorn workers"
APPLICATION = "tests.load.publishing:application"  # not imported here: importing it loads the project
CLOCK = time.CLOCK_MONOTONIC  # the same in all processes of a machine
WORKERS = 4
TOGETHER = 20  # as in the prototype that set the target


class Way(NamedTuple):
    """A method: each of `threads` threads publishes `together` events per commit."""

    threads: int
    together: int = 1

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)} in each worker"
        if self.together == 1:
            return f"one publish() at a time, {threads}"
        return f"{self.together} publish() in one transaction.atomic(), {threads}"


WAYS = (Way(1), Way(4), Way(16), Way(1, TOGETHER), Way(4, TOGETHER))
PACE_S = 0.005
WARM_UP = 40  # events
PATIENCE_S = 20.0
ATTEMPTS = 200  # connections until one reaches another worker; the kernel distributes them


class Sample(NamedTuple):
    """A figure that the method does not measure is NaN."""

    per_second: float = math.nan
    cpu_us: float = math.nan  # of all workers per event
    p50: float = math.nan
    p99: float = math.nan
    worst: float = math.nan


COMPARED = rows.Column("events/s into the log", lambda sample: sample.per_second)
LESS_IS_BETTER = False
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("CPU µs of all workers per event", lambda sample: sample.cpu_us, digits=1),
    rows.Column("p50 ms", lambda sample: sample.p50 * 1e3, digits=2),
    rows.Column("p99 ms", lambda sample: sample.p99 * 1e3, digits=2),
    rows.Column("worst ms", lambda sample: sample.worst * 1e3, digits=1),
)
PACED = f"to a subscriber of another worker, {1 / PACE_S:g} events/s"


def takes(subject: subjects.Subject) -> bool:
    return subject.name == subjects.FANFARE


def measure(subject: fanfare.Fanfare, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    deployment = deployments.template(folder / "data")
    port = servers.free_port()
    bind = ["-w", str(WORKERS), "-k", servers.UVICORN_WORKER, APPLICATION]
    command = processes.own(["gunicorn", *bind, "-b", f"{servers.HOST}:{port}"])
    with (
        processes.running(command, port, deployment.environment(), core=None, log=folder / "log") as process,
        machine.pinned(None),
        _endpoints(process.port) as endpoints,
    ):
        for way in WAYS:
            yield rows.Measured(str(way), _saturated(endpoints, way, plan))
        yield rows.Measured(PACED, _paced(endpoints, pusher.Running(process, deployment.application), plan))


def _saturated(endpoints: dict[int, publishers.HttpConnection], way: Way, plan: rows.Plan) -> Sample:
    begin = time.clock_gettime(CLOCK) + 0.2
    before = sum(map(machine.cpu_seconds, endpoints))
    for endpoint in endpoints.values():
        times = f"begin={begin!r}&end={begin + plan.seconds!r}"
        _ask(endpoint, f"publish?threads={way.threads}&together={way.together}&{times}")
    published = sum(_answer(endpoint)["published"] for endpoint in endpoints.values())
    cpu = sum(map(machine.cpu_seconds, endpoints)) - before
    return Sample(per_second=published / plan.seconds, cpu_us=cpu / published * 1e6)


def _paced(endpoints: dict[int, publishers.HttpConnection], running: pusher.Running, plan: rows.Plan) -> Sample:
    publisher, *others = endpoints
    with contextlib.ExitStack() as stack:
        subscriber = _subscriber(running, others, stack)
        count = int(plan.latency_seconds / PACE_S) + WARM_UP
        _ask(endpoints[publisher], f"pace?count={count}&every={PACE_S}")
        frames = connections.Frames()
        delays: list[float] = []
        subscriber.socket.settimeout(PATIENCE_S)
        while len(delays) < count:
            payloads = frames.feed(subscriber.socket.recv(connections.READ_BYTES))
            now = time.clock_gettime(CLOCK)
            delays += [now - json.loads(pusher.expect(payload, events.NAME))["at"] for payload in payloads]
        _answer(endpoints[publisher])
    ordered = sorted(delays[WARM_UP:])
    return Sample(p50=latency.percentile(ordered, 50), p99=latency.percentile(ordered, 99), worst=ordered[-1])


@contextlib.contextmanager
def _endpoints(port: int) -> Iterator[dict[int, publishers.HttpConnection]]:
    """A connection to each worker, by pid."""
    found: dict[int, publishers.HttpConnection] = {}
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.ExitStack() as stack:
        while len(found) < WORKERS:
            if time.monotonic() > deadline:
                raise errors.NotStarted(f"{len(found)} of {WORKERS} workers answered within {PATIENCE_S:g} s")
            # Several at a time, because the first worker that wakes up accepts one.
            for endpoint in [publishers.HttpConnection(port) for _ in range(WORKERS)]:
                stack.callback(endpoint.close)
                _ask(endpoint, "pace?count=0&every=0")
                found.setdefault(_answer(endpoint)["pid"], endpoint)
        yield found


def _subscriber(running: pusher.Running, workers: list[int], stack: contextlib.ExitStack) -> connections.Connection:
    """A subscriber connected to one of these workers."""
    for _ in range(ATTEMPTS):
        (one,) = connections.opened(running.port, running.target, running.joining, 1)
        stack.callback(one.close)
        own = one.socket.getsockname()[1]
        for pid in workers:
            for connection in psutil.Process(pid).net_connections(kind="tcp"):
                if connection.raddr and connection.raddr.port == own:
                    return one
    raise errors.Unsuited(f"all of {ATTEMPTS} connections reached the publishing worker")


def _ask(endpoint: publishers.HttpConnection, what: str) -> None:
    endpoint.socket.sendall(f"GET /load/{what} HTTP/1.1\r\nHost: {servers.HOST}\r\n\r\n".encode())


def _answer(endpoint: publishers.HttpConnection) -> Any:
    endpoint.socket.settimeout(PATIENCE_S)
    received = b""
    while not received.endswith(b"}"):
        part = endpoint.socket.recv(connections.READ_BYTES)
        if not part:
            raise errors.Refused(f"a worker did not publish: {received!r}")
        received += part
    return json.loads(received.partition(b"\r\n\r\n")[2])
