"""The console's answers about a presence channel with 100,000 members: `python -m tests.load.console_members local`.

A process without a worker makes the members, each with a lease. Prints for each request how long it takes, the CPU of
the worker, and how long the worker kept another client waiting: the longest wait, and the most CPU time that the worker
took while it waited, which leaves out what else ran on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import functools
import http.client
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from django.conf import settings

from fanfare.engine import current
from tests.harness import calls, consoles, postgresql, redisserver, servers
from tests.load import machine

ROOM = "presence-room"
INFO = '{"name":"A member with a name"}'
LEASE_S = 3_600.0
WRITERS = 8
TIMES = 10
PING_S = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.console_members", description=__doc__)
    parser.add_argument("store", nargs="+", choices=sorted(STORES))
    parser.add_argument("--members", type=int, default=100_000, help="(100000)")
    options = parser.parse_args()
    settings.configure()  # for the signature of the console's token
    for name in options.store:
        with tempfile.TemporaryDirectory() as folder, STORES[name]() as (engine, database):
            fleet = servers.Fleet(Path(folder))
            try:
                deployment = fleet.deployment(
                    FANFARE_ENGINE=engine, DATABASE_URL=database, FANFARE_SECRET_KEY="of several machines " * 3
                )
                deployment.manage("migrate", "--verbosity", "0")
                deployment.application = deployment.create_application("Rooms")
                server = fleet.start("uvicorn", deployment)
                began = time.monotonic()
                _fill(engine, deployment.folder, server.application.id, options.members)
                print(f"- {name}: {options.members:,} members joined in {time.monotonic() - began:.0f} s", flush=True)
                asyncio.run(_measure(server, options.members))
            finally:
                fleet.stop()


# The engine, and Django's database, which has to be one that every machine reaches unless the engine is `local`.


@contextlib.contextmanager
def _local() -> Iterator[tuple[str, str]]:
    yield "local", ""


@contextlib.contextmanager
def _postgres() -> Iterator[tuple[str, str]]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield (cluster.url("realtime"),) * 2


@contextlib.contextmanager
def _redis() -> Iterator[tuple[str, str]]:
    with _postgres() as (url, _), redisserver.running() as server:
        yield server.url(), url


STORES: dict[str, Callable[[], contextlib.AbstractContextManager[tuple[str, str]]]] = {
    "local": _local,
    "postgres": _postgres,
    "redis": _redis,
}


def _fill(name: str, folder: Path, app: str, count: int) -> None:
    current.configure(name, folder)
    engine = current.another()
    lease = functools.partial(engine.lease_member, app, ROOM, info=INFO, seconds=LEASE_S)
    try:
        with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
            assert all(pool.map(lease, (f"user-{number}" for number in range(count))))
    finally:
        asyncio.run(engine.close())


async def _measure(server: servers.Server, members: int) -> None:
    console, app = consoles.Console(server), server.application.id
    answer = await console.get("channel", app=app, channel=ROOM)
    assert answer["users"] == members, answer["users"]

    async def users() -> Any:
        def call() -> calls.Answer:
            with calls.Caller(server) as caller:
                return caller.signed("GET", f"channels/{ROOM}/users")

        found = await asyncio.to_thread(call)
        assert len(found.body["users"]) == members, found.status

    requests: dict[str, Callable[[], Any]] = {
        "nothing": lambda: asyncio.sleep(0.1),
        "the page of the channel": lambda: console.get("channel", app=app, channel=ROOM),
        "the list of the channels": lambda: console.get("channels", app=app),
        "all members by the HTTP API": users,
    }
    for name, request in requests.items():
        took_s = []
        with _pings(server) as waits:
            before = machine.cpu_seconds(server.main_pid)
            for _ in range(TIMES):
                began = time.monotonic()
                await request()
                took_s.append(time.monotonic() - began)
            cpu_s = machine.cpu_seconds(server.main_pid) - before
        longest_s, most_cpu_s = (max(each) for each in zip(*waits, strict=True))
        print(
            f"  - {name}: {1000 * statistics.median(took_s):.0f} ms, {1000 * cpu_s / TIMES:.0f} ms of CPU with the "
            f"pings; another client waited {1000 * longest_s:.0f} ms at most, {1000 * most_cpu_s:.0f} ms in CPU time",
            flush=True,
        )


@contextlib.contextmanager
def _pings(server: servers.Server) -> Iterator[list[tuple[float, float]]]:
    """Another client's requests, one after the other, while the block runs: the seconds that each took, and how many of
    them the worker was running.

    It is another process, so that reading the answer with all members does not count."""
    found: list[tuple[float, float]] = []
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_ping, args=(server.port, server.main_pid, there))
    process.start()
    try:
        here.recv()
        yield found
        here.send(None)
        found += here.recv()
    finally:
        here.close()
        process.join()


def _ping(port: int, pid: int, pipe: Connection) -> None:
    found: list[tuple[float, float]] = []
    connection = http.client.HTTPConnection(servers.HOST, port)
    while not pipe.poll(PING_S):
        began, before = time.monotonic(), machine.cpu_clock_s(pid)
        connection.request("GET", "/health/live")
        connection.getresponse().read()
        if not found:
            pipe.send(None)  # ready
        found.append((time.monotonic() - began, machine.cpu_clock_s(pid) - before))
    connection.close()
    pipe.send(found[1:])


if __name__ == "__main__":
    main()
