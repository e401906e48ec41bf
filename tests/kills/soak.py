"""A server under churn: `python -m tests.kills.soak --seconds 300`.

Clients connect, join, publish and leave all the time. A socket on every worker gets each event in order, and its delay
is measured. Prints memory, open files, delays and sizes over time; exits with 1 if events were lost, or if memory,
files or the log grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import NamedTuple

import psutil
from websockets.exceptions import WebSocketException

from tests.harness import calls, event_streams, servers, sockets

CLIENTS = 16
VISIT_S = 0.25
EVENTS_PER_SECOND = 20
SAMPLES = 10
CHANNEL = "soak"
# Between the second sample, when caches and rings are warm, and the last one.
MEMORY_GROWTH = 15_000_000  # bytes of one worker
FILES_GROWTH = 30
LOG_BYTES = 80_000_000  # a WAL has 32 MB before its writers wait, beside the entries of the last minutes
LINES_PER_MINUTE = 60  # beside those of uvicorn, which are one for each connection
BROKEN_VISITS = 0.1  # of all visits; on a busy machine some run into a time-out
RETRY_S = 0.5
LAST_S = 150.0  # for the clients to end; a visit on a busy machine may run into several time-outs
REST_S = 60.0  # for the followers to get the last events


class Sample(NamedTuple):
    at_s: float
    memory: tuple[int, ...]  # bytes, by worker
    files: tuple[int, ...]
    p50_ms: float
    p99_ms: float
    log_bytes: int
    connections: int
    lines: int


class Soak:
    """`clients`: how many connect, stay for at most `visit_s` and leave, all the time."""

    def __init__(self, server: servers.Server, clients: int, visit_s: float) -> None:
        self.server = server
        self.clients = clients
        self.visit_s = visit_s
        self.samples: list[Sample] = []
        self.faults: list[str] = []
        self._delays: list[float] = []
        self._connections = 0
        self._broken = 0
        self._published = 0
        self._sent: dict[int, float] = {}
        self._ends = asyncio.Event()

    async def run(self, seconds: float) -> None:
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            spread = await sockets.spread(self.server, stack)
            followers = []
            for found in spread.values():
                await found[0].subscribe(CHANNEL)
                followers.append(asyncio.create_task(self._follow(found[0])))
            tasks = [asyncio.create_task(self._churn(number)) for number in range(self.clients)]
            tasks.append(asyncio.create_task(self._publish()))
            for number in range(1, SAMPLES + 1):
                await asyncio.sleep(max(0.0, began + seconds * number / SAMPLES - time.monotonic()))
                self.samples.append(await asyncio.to_thread(self._sample, time.monotonic() - began))
            self._ends.set()
            await self._ended("client", tasks, LAST_S)
            await self._ended("follower", followers, REST_S)

    async def _ended(self, who: str, tasks: Iterable[asyncio.Task[None]], within_s: float) -> None:
        done, late = await asyncio.wait(tasks, timeout=within_s)
        self.faults += [f"a {who} failed: {error!r}" for one in done if (error := one.exception()) is not None]
        self.faults += [f"a {who} did not end; the last event is {self._published}" for _ in late]
        for task in late:
            task.cancel()

    async def _publish(self) -> None:
        with calls.Caller(self.server) as caller:
            for number in itertools.count(1):
                if self._ends.is_set():
                    return
                self._sent[number] = time.monotonic()
                while not await asyncio.to_thread(self._published_once, caller, number):
                    await asyncio.sleep(RETRY_S)
                self._published = number
                await asyncio.sleep(1 / EVENTS_PER_SECOND)

    def _published_once(self, caller: calls.Caller, number: int) -> bool:
        """False: the server is busy, and the call may be repeated; the key keeps it from storing the event twice."""
        event = {"name": "tick", "channels": [CHANNEL], "data": str(number), "idempotency_key": f"soak-{number}"}
        try:
            answer = caller.signed("POST", "events", event)
        except (OSError, http.client.HTTPException):
            caller.disconnect()
            return False
        assert answer.status in (200, 503), answer
        return answer.status == 200

    async def _follow(self, socket: sockets.Socket) -> None:
        """To the last event that was published."""
        number = 0
        while number < self._published or not self._ends.is_set():
            try:
                frame = await socket.receive(within=2.0)
            except TimeoutError:
                continue
            if frame.event == "pusher:ping":
                await socket.send({"event": "pusher:pong", "data": {}})
            if (frame.event, frame.channel) != ("tick", CHANNEL):
                continue
            number += 1
            if int(frame.data) != number:
                self.faults.append(f"event {frame.data} came in place of {number}")
                number = int(frame.data)
            self._delays.append(time.monotonic() - self._sent[number])

    async def _churn(self, number: int) -> None:
        chance = random.Random(number)
        while not self._ends.is_set():
            self._connections += 1
            try:
                await self._visit(number, chance)
            except (OSError, TimeoutError, asyncio.IncompleteReadError, event_streams.Ended, WebSocketException):
                self._broken += 1
                await asyncio.sleep(RETRY_S)

    async def _visit(self, number: int, chance: random.Random) -> None:
        async with self._client(chance) as socket:
            room = f"presence-room-{chance.randrange(10)}"
            await socket.request_subscription(room, member={"user_id": str(number)})
            await socket.skip_to("pusher_internal:subscription_succeeded", room)
            await socket.request_subscription(f"cache-{chance.randrange(50)}")
            await socket.trigger(room, "client-hello", {"n": number})
            await asyncio.sleep(chance.random() * self.visit_s)

    @contextlib.asynccontextmanager
    async def _client(self, chance: random.Random) -> AsyncIterator[sockets.Socket]:
        async with sockets.connect(self.server) as socket:
            if chance.random() < 0.1:
                application = self.server.application
                async with event_streams.listen(self.server, application, "stream") as stream:
                    await stream.statement()
            yield socket

    def _sample(self, at_s: float) -> Sample:
        delays, self._delays = sorted(self._delays), []
        processes = [psutil.Process(pid) for pid in self.server.workers()]
        lines = [line for line in self.server.log_text().splitlines() if " uvicorn." not in line]
        return Sample(
            at_s,
            tuple(process.memory_info().rss for process in processes),
            tuple(process.num_fds() for process in processes),
            statistics.median(delays) * 1000 if delays else 0.0,
            delays[int(len(delays) * 0.99)] * 1000 if delays else 0.0,
            sum(path.stat().st_size for path in self.server.deployment.log_files()),
            self._connections,
            len(lines),
        )

    def judge(self) -> list[str]:
        first, last = self.samples[1], self.samples[-1]
        faults = list(self.faults)
        for before, after in zip(first.memory, last.memory, strict=True):
            if after - before > MEMORY_GROWTH:
                faults.append(f"a worker has grown by {(after - before) / 1e6:.1f} MB")
        for before, after in zip(first.files, last.files, strict=True):
            if after - before > FILES_GROWTH:
                faults.append(f"a worker has {after} open files, {before} before")
        if last.log_bytes > LOG_BYTES:
            faults.append(f"the log has {last.log_bytes / 1e6:.1f} MB")
        lines = (last.lines - first.lines) / max(1.0, (last.at_s - first.at_s) / 60)
        if lines > LINES_PER_MINUTE:
            faults.append(f"{lines:.0f} log lines a minute")
        if self._broken > BROKEN_VISITS * self._connections:
            faults.append(f"{self._broken} of {self._connections} connections broke off")
        if "Traceback" in self.server.log_text():
            faults.append("a traceback in the log")
        return faults

    def __str__(self) -> str:
        rows = [
            f"{one.at_s:6.0f} s  {max(one.memory) / 1e6:6.1f} MB  {max(one.files):4d} files  "
            f"p50 {one.p50_ms:6.1f} ms  p99 {one.p99_ms:7.1f} ms  log {one.log_bytes / 1e6:6.1f} MB  "
            f"{one.connections:7,d} connections  {one.lines:4d} lines"
            for one in self.samples
        ]
        followers = len(self.samples[-1].memory)
        return "\n".join(
            [*rows, f"{self._published:,} events to {followers} followers; {self._broken} visits broke off"]
        )


async def soak(server: servers.Server, options: argparse.Namespace) -> list[str]:
    """Run it and print the samples. Returns the faults."""
    found = Soak(server, options.clients, options.visit)
    await found.run(options.seconds)
    print(found)
    return found.judge()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="that come and go (default: %(default)s)")
    parser.add_argument("--visit", type=float, default=VISIT_S, help="longest stay in seconds (default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server is stopped
    with tempfile.TemporaryDirectory(prefix="fanfare-soak-") as folder:
        fleet = servers.Fleet(Path(folder))
        try:
            faults = asyncio.run(soak(fleet.start("gunicorn", fleet.deployment()), options))
        finally:
            fleet.stop()
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
