"""A move with many channels and open sockets: `python -m tests.load.moves local redis`. Prints how long it took, how
long publishing was refused, and whether each socket was closed and each acknowledged event is kept.

Each channel has one event. A backend publishes all the time and repeats what is refused, as SDKs do. With `--busy 16`,
so many other processes want the processors during the move; if it is abandoned, the old store must have each
acknowledged event and go on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness import calls, deployments, postgresql, redisserver, servers, sockets

BODY = "x" * 105  # 150 bytes with the rest
FILLERS = 4
BATCH = 10
CLOSED_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.moves", description=__doc__)
    parser.add_argument("stores", nargs=2, choices=["local", "postgres", "redis"], metavar="STORE")
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--busy", type=int, default=0, help="processes that use a processor all the time (0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        environment, old, new = stack.enter_context(_stores(*options.stores))
        fleet = servers.Fleet(Path(folder))
        try:
            deployment = fleet.deployment(**environment, FANFARE_ENGINE=old, FANFARE_ENGINE_NEXT=new)
            deployment.manage("migrate", "--verbosity", "0")
            deployment.application = deployment.create_application("Moves", "--history", "*=1000,3600")
            if new == "local":
                shutil.rmtree(deployment.folder / "engine")  # of the template, and a move refuses a log with contents
            server = fleet.start("uvicorn", deployment)
            asyncio.run(_measure(deployment, server, options.channels, options.sockets, options.busy))
        finally:
            fleet.stop()


@contextlib.contextmanager
def _stores(old: str, new: str) -> Iterator[tuple[dict[str, str], str, str]]:
    """The environment, and the two values of FANFARE_ENGINE."""
    with postgresql.running() as cluster, redisserver.running("--appendonly", "yes") as redis:
        cluster.create("realtime")
        urls = {
            "local": ("local", "local"),
            "postgres": (cluster.url("realtime", schema="old"), cluster.url("realtime", schema="new")),
            "redis": (redis.url(prefix="old"), redis.url(prefix="new")),
        }
        environment = {
            "DATABASE_URL": cluster.url("realtime"),
            "FANFARE_SECRET_KEY": "the same before and after a move " * 2,
        }
        yield environment, urls[old][0], urls[new][1]


@contextlib.contextmanager
def _busy(processes: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


async def _measure(
    deployment: deployments.Deployment, server: servers.Server, channels: int, count: int, busy: int
) -> None:
    began = time.monotonic()
    share = range(0, channels, BATCH)
    await asyncio.gather(*(asyncio.to_thread(_fill, server, share[start::FILLERS]) for start in range(FILLERS)))
    print(f"- {channels:,} channels were filled in {time.monotonic() - began:.0f} s", flush=True)
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(sockets.connect(server)) for _ in range(count)]
        for number, socket in enumerate(opened):
            await socket.subscribe(f"room-{number}")
        closed = [asyncio.ensure_future(socket.closed(CLOSED_S)) for socket in opened]
        backend = Backend(server)
        publishing = asyncio.ensure_future(asyncio.to_thread(backend.run))
        try:
            began = time.monotonic()
            with _busy(busy):
                report = await asyncio.to_thread(_move, deployment)
                took_s = time.monotonic() - began
                codes = await asyncio.gather(*closed) if report else []
                await asyncio.to_thread(backend.acknowledge_one_more)
        finally:
            for each in closed:
                each.cancel()
            backend.is_stopped = True
        await publishing
    kept = await asyncio.to_thread(_kept, server)
    assert kept == backend.acknowledged, f"{backend.acknowledged} events were acknowledged, and {kept} are kept"
    if not report:
        print(f"- the old store goes on, and all {kept:,} acknowledged events are kept")
        return
    print(
        f"- {report['streams']:,} channels and {report['entries']:,} events moved in {took_s:.1f} s and "
        f"{report['passes']} passes, {report['frozen_s']:.2f} s of them frozen\n"
        f"- the backend's longest call took {backend.longest_s:.2f} s; {backend.refused} tries were refused, and all "
        f"{backend.acknowledged:,} acknowledged events are kept\n"
        f"- {codes.count(4200)} of {count} sockets were closed with 4200"
    )


def _move(deployment: deployments.Deployment) -> dict[str, Any]:
    """The report; empty if the move was abandoned."""
    try:
        return dict(json.loads(deployment.manage("fanfare", "--json", "engine", "move")))
    except deployments.CommandFailed as error:
        print(f"- the move was abandoned: {str(error).strip().splitlines()[-1]}")
        return {}


def _fill(server: servers.Server, firsts: range) -> None:
    with calls.Caller(server) as caller:
        for first in firsts:
            batch = [
                {"channel": f"room-{number}", "name": "created", "data": BODY} for number in range(first, first + BATCH)
            ]
            answer = caller.signed("POST", "batch_events", {"batch": batch})
            assert answer.status == 200, answer


def _kept(server: servers.Server) -> int:
    """The newest offset of the backend's channel, which has no event that was not acknowledged twice."""
    with calls.Caller(server) as caller:
        answer: Any = caller.signed("GET", "channels/backend/history", None, {"limit": "1"})
    assert answer.status == 200, answer
    return int(answer.body["position"].rpartition(":")[2])


class Backend:
    """Publishes one event after the other with an idempotency key each, and repeats what is refused."""

    def __init__(self, server: servers.Server) -> None:
        self.acknowledged = self.refused = 0
        self.longest_s = 0.0
        self.is_stopped = False
        self._server = server

    def run(self) -> None:
        with calls.Caller(self._server) as caller:
            while not self.is_stopped:
                began = time.monotonic()
                event = {"name": "created", "channels": ["backend"], "data": BODY}
                event["idempotency_key"] = f"event-{self.acknowledged}"
                while caller.signed("POST", "events", event).status != 200:
                    self.refused += 1
                    time.sleep(0.02)
                self.acknowledged += 1
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                time.sleep(0.005)

    def acknowledge_one_more(self) -> None:
        """Wait until the workers publish in the new store."""
        seen = self.acknowledged
        while self.acknowledged <= seen + 1:
            time.sleep(0.05)


if __name__ == "__main__":
    main()
