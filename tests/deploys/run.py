"""One deploy with open sockets, and its figures."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tests.deploys import clients, ways
from tests.harness import calls, servers

BEFORE_S = 3.0  # of measuring before the deploy
BACK_S = 90.0
DELIVERIES_PER_SECOND = 5_000


@dataclass
class Result:
    how: str
    sockets: int
    published: int = 0
    deploy_s: float = 0.0  # until the new processes are ready and the old ones gone
    last_back_s: float = 0.0  # from the signal until the last client is subscribed again
    away_s: float = 0.0  # the longest time from the loss of a connection until its client is subscribed again
    missing: int = 0  # events, over all clients
    lost: int = 0  # clients that could not resume
    duplicates: int = 0
    moved: int = 0  # clients whose connection was closed
    codes: dict[int, int] = field(default_factory=dict)
    refused: int = 0  # attempts to publish
    pause_s: float = 0.0  # the longest time between two acknowledged events
    p99_before_ms: float = 0.0
    p99_during_ms: float = 0.0  # of live deliveries between the signal and the last client's return

    @property
    def faults(self) -> list[str]:
        found = []
        if self.missing:
            found.append(f"{self.missing} events are missing")
        if self.lost:
            found.append(f"{self.lost} clients could not resume")
        return found

    def text(self) -> str:
        return "\n".join(
            (
                f"{ways.WAYS[self.how].help}; {self.sockets} clients, {self.published} events",
                f"  moved {self.moved}, close codes {dict(sorted(self.codes.items()))}",
                f"  the last client is back after {self.last_back_s:.1f} s; the deploy took {self.deploy_s:.1f} s",
                f"  no client was away for longer than {self.away_s:.1f} s",
                f"  missing {self.missing}, not resumed {self.lost}, duplicates {self.duplicates}",
                f"  {self.refused} publish requests failed; the longest time without an event was {self.pause_s:.1f} s",
                f"  p99 of live deliveries: {self.p99_before_ms:.0f} ms before, {self.p99_during_ms:.0f} ms during",
            )
        )


async def play(how: str, server: Any, fleet: servers.Fleet, *, sockets: int) -> Result:
    """Deploy `server` in this way. Raises TimeoutError if a client is not back in time."""
    way = ways.WAYS[how]
    result = Result(how, sockets)
    application = await asyncio.to_thread(
        server.deployment.create_application, "Deploys", "--history", f"{clients.CHANNEL}=10000,600"
    )
    await asyncio.to_thread(wait_for, server, application)
    crowd = clients.Fleet(server.port, application)
    publisher = asyncio.create_task(publish(server, application, result, max(1.0, DELIVERIES_PER_SECOND / sockets)))
    try:
        await crowd.open(sockets)
        await asyncio.sleep(BEFORE_S)
        begun_s = time.monotonic()
        await asyncio.to_thread(way.act, server, fleet)
        result.deploy_s = time.monotonic() - begun_s
        async with asyncio.timeout(BACK_S):
            # A close may not have arrived yet when the old processes are gone.
            while crowd.live < sockets or not all(one.closes for one in crowd.clients):
                await asyncio.sleep(0.05)
        publisher.cancel()
        await asyncio.wait([publisher])
        async with asyncio.timeout(BACK_S):
            while any(len(one.received) < _wanted(one, result) for one in crowd.clients):
                await asyncio.sleep(0.1)
    except TimeoutError:
        pass  # the figures say what is missing
    finally:
        publisher.cancel()
        crowd.close()
    moved = [one for one in crowd.clients if one.closes]
    last_s = max((one.last_live_s for one in moved), default=begun_s)
    result.moved = len(moved)
    result.codes = crowd.codes
    result.last_back_s = last_s - begun_s
    result.away_s = max(crowd.away_s, default=0.0)
    result.missing = sum(max(0, _wanted(one, result) - len(one.received)) for one in crowd.clients)
    result.lost = sum(bool(one.lost) for one in crowd.clients) + sockets - crowd.live
    result.duplicates = sum(one.duplicates for one in crowd.clients)
    result.p99_before_ms = p99([delay for at, delay in crowd.delays_s if begun_s - BEFORE_S < at < begun_s])
    result.p99_during_ms = p99([delay for at, delay in crowd.delays_s if begun_s <= at <= last_s])
    return result


def _wanted(client: clients.Client, result: Result) -> int:
    """How many events a client must have: all from its first one."""
    return result.published - min(client.received) + 1 if client.received else result.published


async def publish(
    server: servers.Server,
    application: calls.Application,
    result: Result,
    per_second: float,
    channel: str = clients.CHANNEL,
) -> None:
    """Count. Each number is retried, with its idempotency key, until it is acknowledged."""
    series = uuid4().hex

    def one(number: int) -> bool:
        body = json.dumps({"n": number, "at": time.monotonic()})
        try:
            with calls.Caller(server, application) as caller:
                return (
                    caller.signed(
                        "POST",
                        "events",
                        {
                            "name": clients.EVENT,
                            "channels": [channel],
                            "data": body,
                            "idempotency_key": f"{series}-{number}",
                        },
                    ).status
                    == 200
                )
        except (OSError, calls.http.client.HTTPException, ValueError):
            return False

    number = 1
    published_s = time.monotonic()
    while True:
        if await asyncio.to_thread(one, number):
            result.published = number
            number += 1
            result.pause_s = max(result.pause_s, time.monotonic() - published_s)
            published_s = time.monotonic()
            await asyncio.sleep(1 / per_second)
        else:
            result.refused += 1
            await asyncio.sleep(0.1)


def wait_for(server: servers.Server, application: calls.Application) -> None:
    """Every worker knows a new application soon."""
    end = time.monotonic() + 10
    answered = 0
    while answered < 20 and time.monotonic() < end:
        with calls.Caller(server, application) as caller:
            answered = answered + 1 if caller.signed("GET", "channels").status == 200 else 0


def p99(delays_s: list[float]) -> float:
    if len(delays_s) < 2:
        return 0.0
    return statistics.quantiles(delays_s, n=100)[98] * 1000
