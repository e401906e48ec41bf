"""The cost of an open console: CPU and memory of a worker with many clients, with and without console pages.

Each client subscribes to a channel of its own, and a publisher sends a fixed number of events per second, each to the
next channel. Turns without and with consoles alternate, and the cheapest turn of each kind counts: what else runs on
the machine only adds CPU time. An overview page follows the overview, a tail page the live tail.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import select
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tests.harness import deployments, servers, signing, wire
from tests.load import connections, errors, events, machine, publishers, rows, subjects
from tests.load.subjects import fanfare, pusher

NAME = "console"
TITLE = "Consoles that are open while events pass"
TURNS = 5  # of each kind
BATCH = 10  # events of one request
EVENTS_EACH = 600  # per second and publisher
SETTLE_S = 2.0  # at the start of a turn, not measured
PATIENCE_S = 20.0
TICK_S = 0.005
LEAST_SEEN = 0.8  # of the events, in the counts of a tail whose filter takes all

PATH = "/fanfare/console/"  # below FANFARE_URL_PREFIX
PING = bytes([0x80 | wire.PING])
SEEN = re.compile(rb'"seen":(\d+)')
STATUS = b"HTTP/1.1 200"

# By the name in the table: the arguments of each page's tail, None for an overview.
MANY = tuple(
    None if number % 5 == 0 else {"channel": f"room{number % 10}*", "text": "0" if number % 2 else ""}
    for number in range(50)
)
ONE_PERSON = "overview and tail"
WAYS: dict[str, Sequence[dict[str, str] | None]] = {
    ONE_PERSON: (None, {}),
    "overview and search of a text in no event": (None, {"text": "needle"}),
    "overview and search of a text in all events": (None, {"text": events.NAME}),
    "50 pages, 10 filters": MANY,
}

TOKEN = """
import time
from fanfare.console import permissions, tokens
rights = dict.fromkeys(permissions.PER_APPLICATION)
print("TOKEN", tokens.issue(permissions.Access("1", "load", rights), now=time.time() + 7_200))
"""


class Sample(NamedTuple):
    """`closed` and `opened`: shares of a core, at the rate of the plan. `memory`: bytes of the process at the end.
    `growth_per_minute`: of the memory over all turns, those without consoles included."""

    closed: float
    opened: float
    events_per_second: float
    client_busy: float
    memory: float
    growth_per_minute: float

    @property
    def cost(self) -> float:
        return self.opened - self.closed


COMPARED = rows.Column("% of a core for the consoles", lambda sample: sample.cost * 100, digits=1)
LESS_IS_BETTER = True
COLUMNS: Sequence[rows.Column] = (
    COMPARED,
    rows.Column("% of a core without", lambda sample: sample.closed * 100, digits=1),
    rows.Column("events/s", lambda sample: sample.events_per_second),
    rows.Column("client's core", lambda sample: sample.client_busy, percent=True),
    rows.Column("MB", lambda sample: sample.memory / 1e6, digits=1),
    rows.Column("kB more per minute", lambda sample: sample.growth_per_minute / 1e3, digits=0),
)


def takes(subject: subjects.Subject) -> bool:
    return subject.name == subjects.FANFARE


def measure(subject: fanfare.Fanfare, folder: Path, plan: rows.Plan) -> Iterator[rows.Measured]:
    with subject.running(folder, plan.cores.server) as running, contextlib.ExitStack() as stack:
        deployment: deployments.Deployment = running._deployment  # type: ignore[attr-defined]
        with machine.pinned(plan.cores.client):
            token = deployment.shell(TOKEN).rpartition("TOKEN ")[2].strip()
        load = stack.enter_context(loaded(running, plan))
        load.run(SETTLE_S)
        for way, pages in WAYS.items():
            yield rows.Measured(way, _measured(running, load, pages, token, plan.console_seconds))


def _measured(
    running: pusher.Running, load: _Load, pages: Sequence[dict[str, str] | None], token: str, seconds: float
) -> Sample:
    costs: dict[bool, list[float]] = {False: [], True: []}  # seconds of CPU per event
    busy: list[float] = []
    memory: list[tuple[float, float]] = []
    passed, published = 0.0, 0
    for is_open in (False, True) * TURNS:
        with pages_open(running, pages if is_open else (), token) as opened:
            load.pages = opened
            load.run(SETTLE_S)
            first, seen, before = load.published, sum(one.seen for one in opened), machine.clocks(running.pid)
            load.run(seconds)
            spent = machine.clocks(running.pid).since(before)
            costs[is_open].append(spent.server_s / (load.published - first))
            busy.append(spent.client_s / spent.wall_s)
            passed, published = passed + spent.wall_s, published + load.published - first
            memory.append((time.monotonic(), machine.resident_bytes(running.pid)))
            counted = sum(one.seen for one in opened) - seen
            if is_open and {} in pages and counted < LEAST_SEEN * (load.published - first):
                raise errors.Lost(f"the tail counted {counted} events of {load.published - first}")
            load.pages = ()
    growth = statistics.linear_regression(*zip(*memory, strict=True)).slope * 60
    return Sample(
        min(costs[False]) * load.rate,
        min(costs[True]) * load.rate,
        published / passed,
        statistics.median(busy),
        memory[-1][1],
        growth,
    )


class _Page:
    """A stream of a console page. `seen`: the items that its tail counted."""

    def __init__(self, port: int, target: str, token: str) -> None:
        self.seen = 0
        self._rest = b""
        self.socket = socket.create_connection((servers.HOST, port))
        head = f"GET {target} HTTP/1.1\r\nHost: {servers.HOST}\r\nAuthorization: Bearer {token}\r\n\r\n"
        self.socket.sendall(head.encode())
        self.socket.settimeout(PATIENCE_S)
        answer = self.socket.recv(connections.READ_BYTES)
        if not answer.startswith(STATUS):
            raise errors.Refused(f"the console answered {answer[:300]!r}")
        self.socket.setblocking(False)

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while received := self.socket.recv(connections.READ_BYTES):
                lines, _, self._rest = (self._rest + received).rpartition(b"\n")
                self.seen += sum(map(int, SEEN.findall(lines)))
                if len(received) < connections.READ_BYTES:
                    return
            raise errors.Lost("the console ended a stream")


@contextlib.contextmanager
def pages_open(
    running: pusher.Running, pages: Sequence[dict[str, str] | None], token: str
) -> Iterator[Sequence[_Page]]:
    with contextlib.ExitStack() as stack:
        opened = []
        for arguments in pages:
            query = "&".join(f"{name}={quote(value)}" for name, value in (arguments or {}).items())
            page = _Page(running.port, f"{PATH}{'overview' if arguments is None else 'tail'}?{query}", token)
            stack.callback(page.socket.close)
            opened.append(page)
        yield opened


@contextlib.contextmanager
def loaded(running: pusher.Running, plan: rows.Plan) -> Iterator[_Load]:
    with contextlib.ExitStack() as stack:
        rooms = [f"room{number}" for number in range(plan.connections)]
        members = connections.each(running.port, running.target, [running.joining_room(room) for room in rooms])
        for one in members:
            stack.callback(one.close)
        load = _Load(running, rooms, members, plan.rate)
        stack.callback(load.close)
        yield load


class _Load:
    """`rate`: events per second. `published`: events so far. `pages`: those that `run` reads."""

    def __init__(
        self,
        running: pusher.Running,
        rooms: Sequence[str],
        members: Sequence[connections.Connection],
        rate: float,
    ) -> None:
        self.published = 0
        self.pages: Sequence[_Page] = ()
        self.rate = rate
        self._delivered = 0
        self._application = running.application
        self._rooms = itertools.cycle(rooms)
        self._members = {one.socket.fileno(): one for one in members}
        some = [publishers.HttpConnection(running.port) for _ in range(math.ceil(rate / EVENTS_EACH))]
        self._publishers = {one.fileno(): one for one in some}
        self._turns = itertools.cycle(some)  # each sends: the server closes a connection without requests
        self._poll = select.epoll()
        for fd in (*self._members, *self._publishers):
            self._poll.register(fd, select.EPOLLIN)

    def run(self, seconds: float) -> None:
        """Publish at the fixed rate, then wait for the last delivery. Raises Refused or Lost."""
        begin, first = time.perf_counter(), self.published
        progress = begin
        while True:
            now = time.perf_counter()
            due = first + int(min(now - begin, seconds) * self.rate)
            for one in itertools.islice(self._turns, len(self._publishers)):
                if not one.busy and self.published + BATCH <= due:
                    self._send(one)
            if now - begin >= seconds and self._delivered == self.published:
                break
            for fd, _ in self._poll.poll(TICK_S):
                publisher = self._publishers.get(fd)
                if publisher is not None:
                    publisher.ready()
                else:
                    self._receive(self._members[fd])
                    progress = now
            for page in self.pages:
                page.read()
            if now - progress > PATIENCE_S:
                raise errors.Lost(f"{self.published - self._delivered} deliveries are missing")

    def close(self) -> None:
        self._poll.close()
        for one in self._publishers.values():
            one.close()

    def _receive(self, member: connections.Connection) -> None:
        received = member.socket.recv(connections.READ_BYTES)
        if not received:
            raise errors.Lost("the server closed a connection")
        self._delivered += received.count(events.MARKED)
        if PING in received:
            member.send(connections.pong(b""))

    def _send(self, publisher: publishers.HttpConnection) -> None:
        batch = [
            {"name": events.NAME, "channel": room, "data": events.data(self.published + number)}
            for number, room in enumerate(itertools.islice(self._rooms, BATCH))
        ]
        body = json.dumps({"batch": batch}).encode()
        route = f"/apps/{self._application.id}/batch_events"
        publisher.send(publishers.post(signing.path(self._application, "POST", route, body), body))
        self.published += BATCH
