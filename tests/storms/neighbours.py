"""The delays of events for clients whose server another client attacks, beside those for clients of an idle server.

Both servers have the same clients and events, so other load of the machine delays both. The attacks on a server run in
a process of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from http.client import HTTPException
from typing import Final, Self

from tests.deploys import clients, run
from tests.harness import deployments, servers
from tests.storms import attacks

PAUSE_S: Final = 0.02  # between two attacks: the attacker shares this machine's cores with the server
PER_SECOND: Final = 20.0  # events

Delays = list[float]


class Neighbours:
    """The clients of both servers, which get events from now on."""

    def __init__(self, one: servers.Server, other: servers.Server) -> None:
        self._servers = one, other
        self._fleets = [clients.Fleet(server.port, server.application) for server in self._servers]
        self._publishers: list[asyncio.Task[None]] = []

    async def open(self, count: int) -> None:
        for server, fleet in zip(self._servers, self._fleets, strict=True):
            await fleet.open(count)
            result = run.Result("hup", count)
            publishing = run.publish(server, server.application, result, PER_SECOND)
            self._publishers.append(asyncio.create_task(publishing))
            await asyncio.sleep(0.5 / PER_SECOND)  # the servers take turns

    async def close(self) -> None:
        for publisher in self._publishers:
            publisher.cancel()
        await asyncio.wait(self._publishers)
        for fleet in self._fleets:
            fleet.close()

    async def delays_s(self, seconds: float) -> tuple[Delays, Delays]:
        """Of the events of the next seconds, on each of the two servers."""
        for fleet in self._fleets:
            fleet.delays_s.clear()
        await asyncio.sleep(seconds)
        one, other = ([delay for _, delay in fleet.delays_s] for fleet in self._fleets)
        return one, other

    @property
    def closed(self) -> int:
        """The connections of the clients that were lost."""
        return sum(sum(fleet.codes.values()) for fleet in self._fleets)


@contextlib.asynccontextmanager
async def connected(one: servers.Server, other: servers.Server, count: int) -> AsyncIterator[Neighbours]:
    neighbours = Neighbours(one, other)
    await neighbours.open(count)
    try:
        yield neighbours
    finally:
        await neighbours.close()


class Attacker:
    """A process that repeats one attack after the other. Use as a context manager."""

    def __init__(self, server: servers.Server) -> None:
        one = server.application
        address = ":".join((str(server.port), one.id, one.key, one.secret))
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.storms", "--attacker", address),
            cwd=deployments.REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def begin(self, counter: str) -> None:
        """Begin the attack on the limit with this counter."""
        self._send(counter)

    def end(self) -> int:
        """End the attack. Returns how often it was made."""
        self._send("")
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def attack(address: str) -> None:
    """The attacker's process: a line with a counter begins its attack, and the next line ends it."""
    port, *credentials = address.split(":")
    server = attacks.Limited(int(port), deployments.Application(*credentials))
    for line in sys.stdin:
        stop = threading.Event()
        repeating = threading.Thread(target=_repeat, args=(server, line.strip(), stop))
        repeating.start()
        sys.stdin.readline()
        stop.set()
        repeating.join()


def _repeat(server: attacks.Limited, counter: str, stop: threading.Event) -> None:
    made = 0
    try:
        while not stop.is_set():
            with contextlib.suppress(AssertionError, OSError, HTTPException, IndexError):
                attacks.ATTACKS[counter].run(server)
            made += 1
            stop.wait(PAUSE_S)
    finally:
        print(made, flush=True)  # the parent waits for it
