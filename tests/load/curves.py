"""How the cost of an event, a member and a client grows: `python -m tests.load.curves`, or with the names of curves.

Each figure is the server's CPU time for one unit of work, the least of three measurements in a row. A curve is flat if
its column "times the first" stays near 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import select
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from fanfare.engine import interface
from fanfare.engine.local import engine
from fanfare.hub import event_frames
from tests.harness import deployments, servers, signing
from tests.load import connections, errors, events, machine, processes, publishers
from tests.load.subjects import pusher

PUBLISHERS = 16
PREPARED = 2_000  # signed requests, sent in turn
SUBSCRIPTIONS = 1_000  # of one connection: the default limit
SLICES = 3  # measurements of a point, of which the least counts
VISITS = 40
MEMBERS = 10_000  # that a presence channel may have; the default is 100
QUIET_SHARE, QUIET_S = 0.03, 1.0  # of a core: the server has deleted the old events
GROUP = 500  # events in one transaction that fills the log
PATIENCE_S = 60.0

Request = Callable[[int], bytes]


class Point(NamedTuple):
    size: int
    cpu_us: float  # the server's, for one unit of work
    more: str = ""


class Server(NamedTuple):
    pids: Sequence[int]
    running: pusher.Running
    deployment: deployments.Deployment

    def cpu_s(self) -> float:
        return sum(machine.cpu_seconds(pid) for pid in self.pids)


@contextlib.contextmanager
def serving(folder: Path, cores: machine.Cores, *, workers: int = 0, applications: int = 1) -> Iterator[Server]:
    """One uvicorn process on the server's core; with `workers`, gunicorn on all cores."""
    folder.mkdir()
    deployment = deployments.template(folder / "data")
    more = [{"name": f"Application {number}"} for number in range(1, applications)]
    deployment.shell(
        f"for fields in {more!r}: Application(**fields).save()\n"
        f"Application.objects.update(max_presence_members={MEMBERS})"
    )
    port = servers.free_port()
    command = servers.COMMANDS["uvicorn"](port)
    if workers:
        command = servers.COMMANDS["gunicorn"](port)
        command[command.index("-w") + 1] = str(workers)
    own, core, log = processes.own(command), None if workers else cores.server, folder / "log"
    with processes.running(own, port, deployment.environment(), core=core, log=log) as process:
        pids = [process.pid]
        deadline = time.monotonic() + PATIENCE_S
        while workers and len(pids) != workers + 1:
            if time.monotonic() > deadline:
                raise errors.NotStarted(f"gunicorn has {len(pids) - 1} workers instead of {workers}")
            time.sleep(0.1)
            pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
        time.sleep(1.0)  # a worker of gunicorn listens before it has started
        yield Server(pids, pusher.Running(process, deployment.application), deployment)


class Load:
    """Backends that publish one event after the other, each on its connection, and the subscribers' sockets."""

    def __init__(self, server: Server, request: Request, members: Sequence[connections.Connection] = ()) -> None:
        self._server = server
        self._prepared = itertools.cycle([request(number) for number in range(PREPARED)])
        self._members = {one.socket.fileno(): one for one in members}
        self._backends = {
            one.fileno(): one for one in (publishers.HttpConnection(server.running.port) for _ in range(PUBLISHERS))
        }
        self._poll = select.epoll()
        for fd in (*self._members, *self._backends):
            self._poll.register(fd, select.EPOLLIN)

    def cpu_us(self, seconds: float) -> float:
        """The least CPU time of an event in SLICES measurements, in microseconds."""
        self._publish_for(seconds / SLICES)  # what the first events load once
        return min(self._measured(seconds / SLICES) for _ in range(SLICES))

    def close(self) -> None:
        self._poll.close()
        for one in self._backends.values():
            one.close()

    def _measured(self, seconds: float) -> float:
        before = self._server.cpu_s()
        published = self._publish_for(seconds)
        return (self._server.cpu_s() - before) / published * 1e6

    def _publish_for(self, seconds: float) -> int:
        """Publish, then wait for the last response and the last delivery. Answers the number of events."""
        deadline = time.perf_counter() + seconds
        published = delivered = 0
        for one in self._backends.values():
            one.send(next(self._prepared))
            published += 1
        while any(one.busy for one in self._backends.values()) or (self._members and delivered < published):
            ready = self._poll.poll(PATIENCE_S)
            if not ready:
                raise errors.Lost(f"{published - delivered} deliveries are missing after {PATIENCE_S:g} s")
            for fd, _ in ready:
                backend = self._backends.get(fd)
                if backend is None:
                    delivered += self._members[fd].socket.recv(connections.READ_BYTES).count(events.MARKED)
                    continue
                backend.ready()
                if not backend.busy and time.perf_counter() < deadline:
                    backend.send(next(self._prepared))
                    published += 1
        return published


def workers(folder: Path, cores: machine.Cores, seconds: float, sizes: Sequence[int]) -> Iterator[Point]:
    """One signed event a request, without a subscriber, in gunicorn with so many workers on both cores."""
    for count in sizes:
        with serving(folder / str(count), cores, workers=count) as server:
            request = server.running.requests(1)
            load = Load(server, lambda number, request=request: request(number, 1))  # type: ignore[misc]
            yield Point(count, load.cpu_us(seconds))
            load.close()


def channels(folder: Path, cores: machine.Cores, seconds: float, sizes: Sequence[int]) -> Iterator[Point]:
    """One event for one of so many channels in turn, each with a subscriber, and its delivery."""
    for count in sizes:
        with serving(folder / str(count), cores) as server, contextlib.ExitStack() as stack:
            dialogues = [
                _joining([f"room-{number}" for number in range(first, min(first + SUBSCRIPTIONS, count))])
                for first in range(0, count, SUBSCRIPTIONS)
            ]
            members = connections.each(server.running.port, server.running.target, dialogues, at_once=4)
            for one in members:
                stack.callback(one.close)
            step = max(1, count // PREPARED)
            load = Load(
                server,
                lambda number, step=step, count=count, running=server.running: running.room_request(  # type: ignore[misc]
                    f"room-{number * step % count}", number
                ),
                members,
            )
            stack.callback(load.close)
            yield Point(count, load.cpu_us(seconds), f"{machine.resident_bytes(server.pids[0]) / 1e6:.0f} MB")


def _joining(rooms: Sequence[str]) -> connections.Dialogue:
    """Subscribe to all of them at once."""
    yield from pusher.connected()
    frames = [
        connections.text(json.dumps({"event": "pusher:subscribe", "data": {"channel": room}}).encode())
        for room in rooms
    ]
    pusher.expect((yield b"".join(frames)), "pusher_internal:subscription_succeeded")
    for _ in rooms[1:]:
        pusher.expect((yield b""), "pusher_internal:subscription_succeeded")


def applications(folder: Path, cores: machine.Cores, seconds: float, sizes: Sequence[int]) -> Iterator[Point]:
    """One signed event a request, for so many applications in turn, without a subscriber."""
    for count in sizes:
        with serving(folder / str(count), cores, applications=count) as server:
            code = "import json; print(json.dumps([[a.app_id, a.key, a.secret] for a in Application.objects.all()]))"
            known = [deployments.Application(*one) for one in json.loads(server.deployment.shell(code))]
            requests = [pusher.requests(one) for one in known]
            load = Load(server, lambda number, requests=requests: requests[number % len(requests)](number, 1))  # type: ignore[misc]
            yield Point(count, load.cpu_us(seconds))
            load.close()


def presence(folder: Path, cores: machine.Cores, seconds: float, sizes: Sequence[int]) -> Iterator[Point]:
    """A member that joins and leaves a presence channel of so many members, for each member that gets both events."""
    for count in sizes:
        with serving(folder / str(count), cores) as server, contextlib.ExitStack() as stack:
            running, numbers = server.running, itertools.count()

            def joining(running: pusher.Running = running, numbers: Iterator[int] = numbers) -> connections.Dialogue:
                return _presence(running.application, next(numbers))

            members = connections.opened(running.port, running.target, joining, count)
            for one in members:
                stack.callback(one.close)
            reader = _Reader(members)
            stack.callback(reader.close)
            reader.read_until_silent()  # the members that came later
            found = []
            for _ in range(SLICES):
                before = server.cpu_s()
                for _ in range(VISITS):
                    [visitor] = connections.opened(running.port, running.target, joining, 1)
                    visitor.close()
                    reader.expect(2 * count)
                found.append((server.cpu_s() - before) / VISITS / (2 * count) * 1e6)
            yield Point(count, min(found))


def _presence(application: deployments.Application, number: int) -> connections.Dialogue:
    greeting = json.loads(pusher.expect((yield b""), "pusher:connection_established"))
    member = json.dumps({"user_id": f"user-{number}", "user_info": {"name": f"User {number}"}})
    data = {
        "channel": "presence-curve",
        "channel_data": member,
        "auth": signing.subscription(application, greeting["socket_id"], "presence-curve", member),
    }
    subscribe = connections.text(json.dumps({"event": "pusher:subscribe", "data": data}).encode())
    message = json.loads((yield subscribe))
    while message["event"] != "pusher_internal:subscription_succeeded":
        message = json.loads((yield b""))


class _Reader:
    """Counts the events of members that join and leave, on the sockets of all members."""

    def __init__(self, members: Sequence[connections.Connection]) -> None:
        self._by_fd = {one.socket.fileno(): one for one in members}
        self._poll = select.epoll()
        for fd in self._by_fd:
            self._poll.register(fd, select.EPOLLIN)

    def _read(self, wait_s: float) -> int | None:
        """None: nothing came."""
        ready = self._poll.poll(wait_s)
        received = (self._by_fd[fd].socket.recv(connections.READ_BYTES) for fd, _ in ready)
        return sum(data.count(b"pusher_internal:member_") for data in received) if ready else None

    def read_until_silent(self) -> None:
        while self._read(1.0) is not None:
            continue

    def expect(self, count: int) -> None:
        while count > 0:
            got = self._read(PATIENCE_S)
            if got is None:
                raise errors.Lost(f"{count} events of members are missing after {PATIENCE_S:g} s")
            count -= got

    def close(self) -> None:
        self._poll.close()


def returning(folder: Path, cores: machine.Cores, seconds: float, sizes: Sequence[int]) -> Iterator[Point]:
    """A client that connects and subscribes, where so many come at the same moment."""
    for count in sizes:
        with serving(folder / str(count), cores) as server:
            running = server.running
            found = []
            for _ in range(SLICES):
                before, began = server.cpu_s(), time.perf_counter()
                back = connections.opened(
                    running.port, running.target, running.joining, count, headers=connections.BROWSER, at_once=count
                )
                found.append(((server.cpu_s() - before) / count * 1e6, time.perf_counter() - began))
                for one in back:
                    one.close()
                time.sleep(1.0)
            cpu_us, took_s = min(found)
            yield Point(count, cpu_us, f"all after {took_s:.1f} s")


def age(folder: Path, cores: machine.Cores, seconds: float, sizes: Sequence[int]) -> Iterator[Point]:
    """One signed event a request, after so many events were written to the log."""
    with serving(folder / "age", cores) as server:
        request = server.running.requests(1)
        load = Load(server, lambda number: request(number, 1))
        written = 0
        for count in sizes:
            asyncio.run(_write(server.deployment, count - written))
            written = count
            _settle(server)
            yield Point(count, load.cpu_us(seconds))
        load.close()


def _settle(server: Server) -> None:
    """Wait until the server has done what the new events make it do."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        before = server.cpu_s()
        time.sleep(QUIET_S)
        if server.cpu_s() - before <= QUIET_SHARE * QUIET_S:
            return


async def _write(deployment: deployments.Deployment, count: int) -> None:
    log = engine.LocalEngine(deployment.folder / "engine")
    frame = event_frames.event(events.NAME, events.CHANNEL, events.data(0))
    group = [interface.Publication(deployment.application.id, events.CHANNEL, frame)] * GROUP
    for _ in range(count // GROUP):
        log.append_blocking(group)
    await log.close()


CURVES = {
    "workers": (workers, (1, 2, 4)),
    "channels": (channels, (10, 100, 1_000, 10_000, 100_000)),
    "applications": (applications, (1, 10, 100, 1_000)),
    "presence": (presence, (10, 100, 1_000)),
    "returning": (returning, (100, 500, 2_000)),
    "age": (age, (0, 100_000, 1_000_000, 2_000_000)),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.curves", description=__doc__)
    parser.add_argument("curve", nargs="*", metavar="CURVE", help=f"{', '.join(CURVES)}; all by default")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each point (3)")
    parser.add_argument("--upto", type=int, help="omit larger sizes")
    options = parser.parse_args()
    if unknown := set(options.curve) - set(CURVES):
        parser.error(f"unknown curves: {', '.join(sorted(unknown))}")
    cores = machine.cores()
    machine.allow_files(4_096)
    print(machine.describe(), end="\n\n")
    print("| curve | size | CPU µs | times the first | |\n| --- | --: | --: | --: | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="fanfare-curves-") as folder, machine.pinned(cores.client):
        for name in options.curve or CURVES:
            measure, sizes = CURVES[name]
            chosen = [size for size in sizes if options.upto is None or size <= options.upto]
            first: float | None = None
            place = Path(folder) / name
            place.mkdir()
            for point in measure(place, cores, options.seconds, chosen):
                first = first or point.cpu_us
                print(
                    f"| {name} | {point.size:,} | {point.cpu_us:.1f} | {point.cpu_us / first:.2f} | {point.more} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
