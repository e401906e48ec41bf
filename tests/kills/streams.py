"""Streams while workers are killed and restarted and connections are cut: python -m tests.kills.streams

Each stream grows by so many tokens a second. Plain readers, without positions, put the texts together with the line of
the how-to. Between, in turn: SIGKILL of a worker, SIGHUP of the server (a deploy), a cut of half of the connections. At
the end every text must be exact, late readers have got each stream in one event, and the bytes are counted: at most
1.15 times the text and one envelope for each window. CPU time of a token is stated beside that of `group_send` of
channels_redis with one subscriber, if it and redis-server are installed: a message for each token, one for the tokens
of a window, and one for as many tokens as an event of this run had (a machine at its limit has longer windows).

Exits with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.harness import deployments, redisserver, servers

PATIENCE_S = 60.0
TEXT_SHARE = 1.15  # of the text, on the wire
CHANNELS_A_CONNECTION = 50
PRODUCERS = 2


def channel(number: int) -> str:
    return f"chat-{number}"


def token(stream: int, number: int) -> str:
    return f"{stream}.{number} "


class Reader:
    """One connection on several channels, which comes back whenever it is lost."""

    def __init__(self, url: str, numbers: range) -> None:
        self.texts: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self.firsts: dict[str, dict[str, Any]] = {}  # the first event of each stream
        self.events = 0
        self.bytes = 0  # of live pieces
        self.text_bytes = 0
        self.envelope_bytes = 0
        self.reconnects = -1
        self.subscribed = asyncio.Event()
        self._url = url
        self._channels = [channel(number) for number in numbers]
        self._socket: Any = None

    async def run(self) -> None:
        while True:
            self.reconnects += 1
            with contextlib.suppress(OSError, WebSocketException):
                async with connect(self._url, max_size=None, open_timeout=10) as socket:
                    self._socket = socket
                    for name in self._channels:
                        await socket.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": name}}))
                    waiting = len(self._channels)
                    async for text in socket:
                        frame = json.loads(text)
                        if frame["event"] == "answer":
                            self._show(frame, len(text.encode()) if isinstance(text, str) else len(text))
                        elif frame["event"] == "pusher_internal:subscription_succeeded":
                            waiting -= 1
                            if not waiting:
                                self.subscribed.set()
                        elif frame["event"] == "pusher:ping":
                            await socket.send('{"event":"pusher:pong","data":{}}')
            await asyncio.sleep(0.2)

    def _show(self, frame: dict[str, Any], size: int) -> None:
        data, name = json.loads(frame["data"]), frame["channel"]
        self.firsts.setdefault(name, data)
        self.texts[name] = self.texts.get(name, "")[: data["at"]] + data["text"]
        self.states[name] = data["state"]
        self.events += 1
        if data["at"] and data["text"]:
            text = len(data["text"].encode())
            self.bytes += size
            self.text_bytes += text
            self.envelope_bytes += len(_compact({**frame, "data": _compact({**data, "text": ""})}).encode())

    def cut(self) -> None:
        if self._socket is not None and self._socket.transport is not None:
            self._socket.transport.abort()


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


async def disturb(server: servers.Server, readers: list[Reader], every_s: float, done: list[str]) -> None:
    while True:
        await asyncio.sleep(every_s)
        kind = ("kill", "cut", "hup")[len(done) % 3]
        if kind == "kill":
            os.kill(server.workers()[0], signal.SIGKILL)
        elif kind == "hup":
            server.send_signal(signal.SIGHUP)
        else:
            for reader in readers[::2]:
                reader.cut()
        done.append(kind)


async def produce(deployment: deployments.Deployment, options: argparse.Namespace) -> list[Any]:
    share = options.streams // PRODUCERS
    processes = []
    for index in range(PRODUCERS):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.kills.stream_producer",
            str(index * share),
            str(share),
            str(options.rate),
            str(options.seconds),
            env=deployment.environment(DJANGO_SETTINGS_MODULE="myproject.settings"),
            cwd=deployments.REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        processes.append(process)
    for process in processes:
        assert process.stdout is not None
        assert (await process.stdout.readline()).strip() == b"open"
    return processes


def cpu_of(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


class Cpu:
    """CPU seconds of a server with all its workers, also those that ended, and of the producers."""

    def __init__(self, roots: list[int]) -> None:
        self._roots = roots
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}

    def look(self) -> None:
        for root in self._roots:
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(root)
                for process in (parent, *parent.children(recursive=True)):
                    used = cpu_of(process)
                    self._first.setdefault(process.pid, used if not self._last else 0.0)
                    self._last[process.pid] = max(used, self._last.get(process.pid, 0.0))

    @property
    def seconds(self) -> float:
        return sum(used - self._first[pid] for pid, used in self._last.items())


async def play(options: argparse.Namespace, fleet: servers.Fleet) -> list[str]:
    deployment = fleet.deployment(FANFARE_STREAM_WINDOW_MS=str(options.window), FANFARE_STREAM_LEASE="60")
    server = fleet.start("gunicorn", deployment)
    url = server.socket_url()
    chunks = [
        range(start, min(start + CHANNELS_A_CONNECTION, options.streams))
        for start in range(0, options.streams, CHANNELS_A_CONNECTION)
    ]
    readers = [Reader(url, chunk) for chunk in chunks]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    processes = await produce(deployment, options)
    for reader in readers:
        await asyncio.wait_for(reader.subscribed.wait(), PATIENCE_S)
    cpu = Cpu([server.process.pid, *[process.pid for process in processes]])
    cpu.look()
    for process in processes:
        process.stdin.write(b"\n")
    disturbances: list[str] = []
    disturbing = asyncio.create_task(disturb(server, readers, options.every, disturbances))
    started, late = time.monotonic(), []
    while time.monotonic() - started < options.seconds:
        cpu.look()
        if not late and time.monotonic() - started > options.seconds / 2:
            late = [Reader(url, chunk) for chunk in chunks[:2]]
            tasks += [asyncio.create_task(reader.run()) for reader in late]
        await asyncio.sleep(0.25)
    disturbing.cancel()
    sent = [int((await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode()) for process in processes]
    share = options.streams // PRODUCERS
    expected = {
        channel(number): "".join(token(number, each) for each in range(1, sent[number // share] + 1))
        for number in range(share * PRODUCERS)
    }
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        cpu.look()
        if all(state == "done" for reader in (*readers, *late) for state in reader.states.values()) and all(
            len(reader.states) == len(chunk) for reader, chunk in zip(readers, chunks, strict=True)
        ):
            break
        await asyncio.sleep(0.25)
    for process in processes:
        process.stdin.close()
        await process.wait()
    for task in (*tasks, disturbing):
        task.cancel()
    await asyncio.gather(*tasks, disturbing, return_exceptions=True)
    print(f"{'disturbances':45} {', '.join(disturbances)}")
    return judge(options, readers, late, expected, cpu.seconds)


def judge(
    options: argparse.Namespace, readers: list[Reader], late: list[Reader], expected: dict[str, str], cpu_s: float
) -> list[str]:
    faults = []
    wrong = 0
    for reader in (*readers, *late):
        for name, text in expected.items():
            if name in reader.texts and reader.texts[name] != text:
                wrong += 1
    missing = set(expected) - {name for reader in readers for name in reader.texts}
    if wrong or missing:
        faults.append(f"{wrong} texts are wrong and {len(missing)} are missing")
    open_still = sum(state != "done" for reader in (*readers, *late) for state in reader.states.values())
    if open_still:
        faults.append(f"{open_still} streams are not done")
    firsts = [first for reader in late for first in reader.firsts.values()]
    in_parts = sum(first["at"] != 0 or not first["text"] for first in firsts)
    if in_parts:
        faults.append(f"{in_parts} of {len(firsts)} late streams did not begin with the whole text")
    text_bytes = sum(reader.text_bytes for reader in readers)
    over = sum(reader.bytes - reader.envelope_bytes for reader in readers) / max(text_bytes, 1)
    if over > TEXT_SHARE:
        faults.append(f"{over:.3f} times the text, and {TEXT_SHARE} is promised")
    tokens = sum(text.count(" ") for text in expected.values())
    pieces = sum(reader.events for reader in readers)
    options.tokens_of_an_event = max(1, round(tokens / max(pieces, 1)))
    rows = {
        "streams": len(expected),
        "tokens": tokens,
        "tokens a second": round(tokens / options.seconds),
        "reconnects": sum(reader.reconnects for reader in readers),
        "wrong texts": wrong,
        "late streams in one event": f"{len(firsts) - in_parts} of {len(firsts)}",
        "events": pieces,
        "tokens of an event": options.tokens_of_an_event,
        "bytes beside envelopes / text": f"{over:.3f}",
        "bytes of an envelope": round(sum(reader.envelope_bytes for reader in readers) / max(pieces, 1)),
        "CPU of servers and producers, µs a token": f"{cpu_s / max(tokens, 1) * 1e6:.1f}",
    }
    for title, value in rows.items():
        print(f"{title:45} {value}", flush=True)
    return faults


# -- channels_redis ----------------------------------------------------------------------------------------------------


async def group_send_cost(options: argparse.Namespace, folder: Path, batch: int) -> None:
    """CPU of `group_send` and of one receiver for each group, in this process, and of Redis. `batch`: tokens of a
    message."""
    if importlib.util.find_spec("channels_redis") is None:
        print("channels_redis is not installed: pip install channels-redis")
        return
    from channels_redis.core import RedisChannelLayer

    redis = redisserver.Server(folder)
    redis.start()
    try:
        layer = RedisChannelLayer(hosts=[(servers.HOST, redis.port)], capacity=10_000)
        groups = 50
        receivers = []
        for number in range(groups):
            name = await layer.new_channel()
            await layer.group_add(f"chat-{number}", name)

            async def receive(name: str = name) -> None:
                while True:
                    await layer.receive(name)

            receivers.append(asyncio.create_task(receive()))
        server = next(one for one in psutil.Process().children() if redis.port in _ports(one))
        before, sent = cpu_of(psutil.Process()) + cpu_of(server), 0
        end = time.monotonic() + min(options.seconds, 10.0)
        while time.monotonic() < end:
            for number in range(groups):
                text = "".join([token(number, sent + index) for index in range(batch)])
                await layer.group_send(f"chat-{number}", {"type": "token", "text": text})
                sent += batch
        await asyncio.sleep(0.5)
        used = cpu_of(psutil.Process()) + cpu_of(server) - before
        for receiver in receivers:
            receiver.cancel()
        title = f"group_send of {batch} tokens, µs a token"
        print(f"{title:45} {used / sent * 1e6:.1f}", flush=True)
    finally:
        redis.stop()


def _ports(process: psutil.Process) -> set[int]:
    return {one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of each stream (50)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two disturbances (5)")
    parser.add_argument("--window", type=int, default=40, help="milliseconds (40)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fanfare-streams-") as folder:
        fleet = servers.Fleet(Path(folder))
        try:
            faults = asyncio.run(play(options, fleet))
        finally:
            fleet.stop()
        in_a_window = max(1, round(options.rate * options.window / 1000))
        for batch in sorted({1, in_a_window, options.tokens_of_an_event}):
            asyncio.run(group_send_cost(options, Path(folder), batch))
    for fault in faults:
        print(f"BROKEN: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
