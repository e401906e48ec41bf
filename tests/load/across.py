"""From one node to another: `python -m tests.load.across postgres redis`. Prints p50 and p99 in milliseconds.

Two servers share a store. A backend publishes 200 events a second on one by HTTP, and a client receives them from the
other by WebSocket. A delay is the time from just before the request until the client has the event. Each pair of nodes
is measured alone, and while another backend publishes 1,000 events a second that another client receives. The pairs
take turns. With `centrifugo` on the PATH, two nodes of it use the same Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect

from tests.harness import calls, postgresql, redisserver, servers
from tests.harness.deployments import Application
from tests.load.subjects import centrifugo

TIMED, BUSY = "timed", "busy"  # channels
PER_SECOND = 200
BUSY_PER_SECOND = 1_000
BATCH = 10
FILL = "x" * 80
ANSWER_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="+", choices=["postgres", "redis"])
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        pairs = dict(_pairs(stack, Path(folder), options.store))
        delays: dict[tuple[str, bool], list[float]] = {(name, busy): [] for name in pairs for busy in (False, True)}
        for _ in range(options.turns):
            for name, busy in delays:
                found = asyncio.run(_turn(pairs[name], options.seconds, busy))
                p50, p99 = _percentiles(found)
                print(f"- {name}{', busy' * busy}: {len(found)} events, p50 {p50:.1f} ms, p99 {p99:.1f} ms", flush=True)
                delays[name, busy] += found
    print("\n| nodes | alone, p50 | p99 | beside 1,000 events/s, p50 | p99 |\n|---|--:|--:|--:|--:|")
    for name in pairs:
        shown = [f"{value:.1f}" for busy in (False, True) for value in _percentiles(delays[name, busy])]
        print(f"| {name} | {' | '.join(shown)} |")


def _percentiles(delays: list[float]) -> tuple[float, float]:
    found = sorted(delays)
    return statistics.median(found), found[int(len(found) * 0.99)]


class Node(NamedTuple):
    """A port and the application of a server, as `calls.Caller` wants them."""

    port: int
    application: Application


class Pair(NamedTuple):
    """`publish(caller, channel, data)` sends all events of `data` in one request. `join(websocket, channel)`."""

    publisher: Node
    subscriber: Node
    target: str
    publish: Callable[[calls.Caller, str, list[str]], Any]
    join: Callable[[ClientConnection, str], Any]


def _pairs(stack: contextlib.ExitStack, folder: Path, stores: list[str]) -> Iterator[tuple[str, Pair]]:
    cluster = stack.enter_context(postgresql.running())
    cluster.create("realtime")
    urls = {"postgres": cluster.url("realtime")}
    redis = None
    if "redis" in stores:
        redis = stack.enter_context(redisserver.running())
        urls["redis"] = redis.url()
    fleet = servers.Fleet(folder)
    stack.callback(fleet.stop)
    for store in stores:
        cluster.create(f"django_{store}")
        deployment = fleet.deployment(
            DATABASE_URL=cluster.url(f"django_{store}"),
            FANFARE_ENGINE=urls[store],
            FANFARE_SECRET_KEY="the same on every node " * 3,
        )
        deployment.manage("migrate", "--verbosity", "0")
        deployment.application = deployment.create_application("Across")
        nodes = [Node(fleet.start("uvicorn", deployment).port, deployment.application) for _ in range(2)]
        target = f"/app/{deployment.application.key}?protocol=7"
        yield f"Fanfare, {store}", Pair(nodes[0], nodes[1], target, _publish, _join)
    if redis is not None and shutil.which("centrifugo"):
        ports = [stack.enter_context(_centrifugo(redis, folder / f"node-{number}")) for number in range(2)]
        nodes = [Node(port, Application("", "", "")) for port in ports]
        yield "Centrifugo, redis", Pair(nodes[0], nodes[1], "/connection/websocket", _publish_there, _join_there)


def _publish(caller: calls.Caller, channel: str, data: list[str]) -> None:
    events = [{"channel": channel, "name": "created", "data": one} for one in data]
    answer = caller.signed("POST", "batch_events", {"batch": events})
    assert answer.status == 200, answer


async def _join(websocket: ClientConnection, channel: str) -> None:
    assert "connection_established" in str(await websocket.recv())
    await websocket.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": channel}}))
    assert "subscription_succeeded" in str(await websocket.recv())


@contextlib.contextmanager
def _centrifugo(redis: redisserver.Server, folder: Path) -> Iterator[int]:
    folder.mkdir()
    engine = {"type": "redis", "redis": {"address": f"127.0.0.1:{redis.port}"}}
    with centrifugo.started(folder, None, engine=engine) as process:
        yield process.port


def _publish_there(caller: calls.Caller, channel: str, data: list[str]) -> None:
    commands = [{"publish": {"channel": channel, "data": {"event": "created", "data": one}}} for one in data]
    answer = caller.call("POST", "/api/batch", json.dumps({"commands": commands}).encode())
    assert answer.status == 200, answer
    assert not any("error" in one for one in answer.body["replies"]), answer


async def _join_there(websocket: ClientConnection, channel: str) -> None:
    await websocket.send(json.dumps({"id": 1, "connect": {}}))
    assert '"connect"' in str(await websocket.recv())
    await websocket.send(json.dumps({"id": 2, "subscribe": {"channel": channel}}))
    assert '"subscribe"' in str(await websocket.recv())


# -- a turn ------------------------------------------------------------------------------------------------------------


async def _turn(pair: Pair, seconds: float, busy: bool) -> list[float]:
    """The delays in milliseconds."""
    async with contextlib.AsyncExitStack() as stack:
        if busy:
            stack.enter_context(_process(_drain, pair))
            stack.enter_context(_process(_publish_busy, pair))
        websocket = await stack.enter_async_context(_connected(pair, TIMED))
        stack.enter_context(_process(_publish_timed, pair))
        await _read(websocket, 0.5)  # until all processes are warm
        return await _read(websocket, seconds)


async def _read(websocket: ClientConnection, seconds: float) -> list[float]:
    delays: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        async with asyncio.timeout(ANSWER_S):
            text = str(await websocket.recv())
        now = time.monotonic()
        # Centrifugo joins events, one a line.
        delays += [1000 * (now - float(part.partition("!")[0])) for part in text.split("sent!")[1:]]
    return delays


@contextlib.asynccontextmanager
async def _connected(pair: Pair, channel: str) -> Any:
    url = f"ws://{servers.HOST}:{pair.subscriber.port}{pair.target}"
    async with connect(url, compression=None, open_timeout=ANSWER_S) as websocket:
        await pair.join(websocket, channel)
        yield websocket


@contextlib.contextmanager
def _process(function: Callable[[Pair, Event, Event], None], pair: Pair) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    is_ready, is_over = context.Event(), context.Event()
    process = context.Process(target=function, args=(pair, is_ready, is_over), daemon=True)
    process.start()
    try:
        assert is_ready.wait(ANSWER_S), "a client does not start"
        yield
    finally:
        is_over.set()
        process.join(10)
        process.kill()


def _publish_timed(pair: Pair, is_ready: Event, is_over: Event) -> None:
    with calls.Caller(pair.publisher) as caller:
        _paced(functools.partial(_timed, pair, caller), 1 / PER_SECOND, is_ready, is_over)


def _timed(pair: Pair, caller: calls.Caller) -> None:
    pair.publish(caller, TIMED, [f"sent!{time.monotonic():.6f}!{FILL}"])


def _publish_busy(pair: Pair, is_ready: Event, is_over: Event) -> None:
    with calls.Caller(pair.publisher) as caller:
        publish = functools.partial(pair.publish, caller, BUSY, [FILL] * BATCH)
        _paced(publish, BATCH / BUSY_PER_SECOND, is_ready, is_over)


def _paced(call: Callable[[], None], every_s: float, is_ready: Event, is_over: Event) -> None:
    call()
    is_ready.set()
    due = time.monotonic()
    while not is_over.is_set():
        call()
        due = max(due + every_s, time.monotonic() - 0.1)
        time.sleep(max(0.0, due - time.monotonic()))


def _drain(pair: Pair, is_ready: Event, is_over: Event) -> None:
    async def drain() -> None:
        async with _connected(pair, BUSY) as websocket:
            is_ready.set()
            while not is_over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await websocket.recv()

    asyncio.run(drain())


if __name__ == "__main__":
    main()
