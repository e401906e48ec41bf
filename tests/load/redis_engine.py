"""The Redis engine's cost: `python -m tests.load.redis_engine`. CPU as the processes account it; read the ratios.

Two workers in processes of their own, one that publishes and one that follows, on a Redis server of their own.
With `centrifugo` on the PATH it publishes on the same server too, over its HTTP interface, beside Fanfare over its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import redis.asyncio

from fanfare.engine import interface
from fanfare.engine.redis import engine as redis_engine
from fanfare.engine.redis import entries, operations, scripts
from tests.harness import calls, postgresql, redisserver, servers
from tests.load import processes

APP = "1"
CHANNEL = "news"
BODY = b'{"event":"created","channel":"news","data":"%s"}' % (b"x" * 105)  # 150 bytes
KEPT = interface.Retention(1_000, 60)
GROUP = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="of each row")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the latency's row")
    options = parser.parse_args()
    for title, arguments in (("without an append-only file", ()), ("with one", ("--appendonly", "yes"))):
        with redisserver.running(*arguments) as server:
            print(f"\n### Redis {title}\n\n{HEADING}", flush=True)
            asyncio.run(_engines(server, options.events, options.seconds))
    with redisserver.running() as server:
        print("\n### Over HTTP, ten events in a call\n\n| server | store µs | node µs |\n|---|--:|--:|", flush=True)
        _http(server, options.events // 10)


HEADING = "| row | store µs | publisher µs | follower µs | events/s |\n|---|--:|--:|--:|--:|"


# -- engines -----------------------------------------------------------------------------------------------------------


async def _engines(server: redisserver.Server, count: int, seconds: float) -> None:
    with _process(_follow, server.url()) as (follower, pipe), _process(_wait, server.url()) as (publisher, orders):
        _ready(pipe), _ready(orders)
        for name, function, events, is_heard in (
            ("alone", "alone", count // 10, True),
            ("alone, kept", "alone_kept", count // 10, True),
            ("grouped", "grouped", count, True),
            ("grouped, kept", "grouped_kept", count, True),
            ("grouped, kept, with a key", "grouped_keyed", count, True),
            ("grouped, no subscriber on the follower", "grouped", count, False),
            ("the same scripts with redis-py, alone", "redis_py_alone", count // 10, True),
            ("the same scripts with redis-py, grouped", "redis_py_grouped", count, True),
        ):
            pipe.send(is_heard)
            _ready(pipe)
            with server.client() as client:
                before = _cpu_of(client), _cpu(publisher), _cpu(follower), time.monotonic()
                orders.send((function, events))
                _ready(orders)
                took = time.monotonic() - before[3]
                await asyncio.sleep(0.5)
                used = _cpu_of(client) - before[0], _cpu(publisher) - before[1], _cpu(follower) - before[2]
            shown = " | ".join(f"{1e6 * one / events:.1f}" for one in used)
            print(f"| {name} | {shown} | {events / took:,.0f} |", flush=True)
        pipe.send(True)
        _ready(pipe)
        orders.send(("timed", seconds))
        _ready(orders)
        pipe.send(None)
        delays = sorted(_ready(pipe))
        p99 = delays[int(len(delays) * 0.99)]
        print(f"\nTo the other worker at 200 events/s: p50 {statistics.median(delays):.2f} ms, p99 {p99:.2f} ms.")
        orders.send(None)


@contextlib.contextmanager
def _process(function: Callable[[Connection, str], Awaitable[None]], url: str) -> Iterator[tuple[int, Connection]]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_run, args=(function, theirs, url), daemon=True)
    process.start()
    try:
        yield process.pid or 0, mine
    finally:
        process.join(10)
        process.kill()


def _run(function: Callable[[Connection, str], Awaitable[None]], pipe: Connection, url: str) -> None:
    import uvloop

    uvloop.run(function(pipe, url))


def _ready(pipe: Connection) -> Any:
    assert pipe.poll(120), "a process does not answer"
    return pipe.recv()


async def _follow(pipe: Connection, url: str) -> None:
    """Deliver, and keep the delays of events with a time in them."""
    engine = redis_engine.RedisEngine(url)
    delays: list[float] = []

    def deliver(found: Any) -> None:
        now = time.monotonic()
        delays.extend(1000 * (now - float(entry.body[5:])) for entry in found if entry.body.startswith(b"time "))

    await engine.open(deliver, lambda reason, partition: None)
    pipe.send(None)
    while (is_heard := await asyncio.to_thread(pipe.recv)) is not None:
        engine.listen(APP, CHANNEL, is_heard)
        await engine.ask(lambda queries: queries.channel(APP, CHANNEL))
        pipe.send(None)
    pipe.send(delays)
    await engine.close()


async def _wait(pipe: Connection, url: str) -> None:
    engine = redis_engine.RedisEngine(url)
    await engine.open(lambda found: None, lambda reason, partition: None)
    pipe.send(None)
    while (order := await asyncio.to_thread(pipe.recv)) is not None:
        name, count = order
        await PUBLISHERS[name](engine, count)
        pipe.send(None)
    await engine.close()


async def _alone(engine: interface.Engine, count: int, **more: Any) -> None:
    for _ in range(int(count)):
        await engine.append([interface.Publication(APP, CHANNEL, BODY, **more)])


async def _grouped(engine: interface.Engine, count: int, *, keyed: bool = False, **more: Any) -> None:
    """So many calls at the same time, as so many requests of one turn are."""
    run = os.urandom(4).hex()
    for start in range(0, int(count), GROUP):
        await asyncio.gather(
            *(
                engine.append(
                    [
                        interface.Publication(
                            APP, CHANNEL, BODY, idempotency_key=f"{run}{start + n}" if keyed else None, **more
                        )
                    ]
                )
                for n in range(GROUP)
            )
        )


async def _timed(engine: interface.Engine, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        await engine.append([interface.Publication(APP, CHANNEL, b"time %f" % now)])
        await asyncio.sleep(0.005)


async def _redis_py(engine: redis_engine.RedisEngine, count: int, group: int) -> None:
    """The same calls of the same scripts, through redis-py with hiredis."""
    host, port = engine.address.hosts[0]
    worker = engine._worker
    assert worker is not None
    partition = worker.of(APP, CHANNEL)
    operation = operations.append(interface.Publication(APP, CHANNEL, BODY))
    async with redis.asyncio.Redis(host=host, port=port) as client:
        for _ in range(0, int(count), group):
            packed = [entries.pack([operation] * group), entries.pack([])]
            await client.evalsha(
                scripts.PUBLISH.sha, 2, *partition.keys, partition._run, "x" * 16, partition.life, *packed
            )


PUBLISHERS: dict[str, Callable[[Any, Any], Awaitable[None]]] = {
    "alone": _alone,
    "alone_kept": lambda engine, count: _alone(engine, count, retention=KEPT),
    "grouped": _grouped,
    "grouped_kept": lambda engine, count: _grouped(engine, count, retention=KEPT),
    "grouped_keyed": lambda engine, count: _grouped(engine, count, keyed=True, retention=KEPT),
    "timed": _timed,
    "redis_py_alone": lambda engine, count: _redis_py(engine, count, 1),
    "redis_py_grouped": lambda engine, count: _redis_py(engine, count, GROUP),
}


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _cpu_of(client: Any) -> float:
    found = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def _http(server: redisserver.Server, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with _fanfare(server, Path(folder)) as (pid, call):
            _measure_http("Fanfare", server, pid, call, count)
        if shutil.which("centrifugo"):
            for name, kept in (("Centrifugo", False), ("Centrifugo, kept", True)):
                with _centrifugo(server, Path(folder), kept=kept) as (pid, call):
                    _measure_http(name, server, pid, call, count)


def _measure_http(name: str, server: redisserver.Server, pid: int, call: Callable[[], None], count: int) -> None:
    call()
    with server.client() as client:
        before = _cpu_of(client), _cpu(pid)
        for _ in range(count):
            call()
        used = _cpu_of(client) - before[0], _cpu(pid) - before[1]
    print(f"| {name} | {' | '.join(f'{1e6 * one / (10 * count):.1f}' for one in used)} |", flush=True)


@contextlib.contextmanager
def _fanfare(server: redisserver.Server, folder: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    with postgresql.running() as cluster:
        cluster.create("django")
        fleet = servers.Fleet(folder / "fleet")
        (folder / "fleet").mkdir()
        environment = {
            "DATABASE_URL": cluster.url("django"),
            "FANFARE_ENGINE": server.url(),
            "FANFARE_SECRET_KEY": "the same on every node " * 3,
        }
        try:
            deployment = fleet.deployment(**environment)
            deployment.manage("migrate", "--verbosity", "0")
            deployment.application = deployment.create_application("Load")
            running = fleet.start("uvicorn", deployment)
            batch = {"batch": [{"channel": CHANNEL, "name": "created", "data": "x" * 105} for _ in range(10)]}
            with calls.Caller(running) as caller:

                def call() -> None:
                    assert caller.signed("POST", "batch_events", batch).status == 200

                yield running.process.pid, call
        finally:
            fleet.stop()


@contextlib.contextmanager
def _centrifugo(server: redisserver.Server, folder: Path, *, kept: bool) -> Iterator[tuple[int, Callable[[], None]]]:
    port = servers.free_port()
    configuration: dict[str, Any] = {
        "http_server": {"address": servers.HOST, "port": port},
        "http_api": {"insecure": True},
        "log": {"level": "error"},
        "engine": {"type": "redis", "redis": {"address": f"127.0.0.1:{server.port}"}},
    }
    if kept:
        configuration["channel"] = {"without_namespace": {"history_size": 1000, "history_ttl": "60s"}}
    file = folder / f"centrifugo-{kept}.json"
    file.write_text(json.dumps(configuration))
    command = [shutil.which("centrifugo") or "", "--config", str(file)]
    one = {"publish": {"channel": CHANNEL, "data": {"event": "created", "data": "x" * 105}}}
    body = json.dumps({"commands": [one] * 10})
    with processes.running(command, port, dict(os.environ), core=None, log=folder / "log") as process:
        connection = http.client.HTTPConnection(servers.HOST, port)

        def call() -> None:
            connection.request("POST", "/api/batch", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert b'"error"' not in answer.read()

        yield process.pid, call


if __name__ == "__main__":
    main()
