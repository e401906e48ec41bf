"""Two releases that serve one deployment at the same time, as during a rolling upgrade.

The old release starts first and keeps running. The database is migrated, and a server of this release starts beside it
on the same log. Clients with resume tokens move between the two while both publish. No event may be missing, and no
client may fail to resume.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploys import clients
from tests.harness import calls, deployments, postgresql, redisserver, servers

ENGINES = ("local", "postgres", "redis")
CLIENTS = 40
MOVES = 6
PAUSE_S = 1.0  # of events between two moves
PER_SECOND = 50.0
WITHIN_S = 60.0


@dataclass
class Outcome:
    published: int = 0
    moves: int = 0
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        return f"side by side: {self.published} events, {self.moves} moves, 0 missing"


@contextlib.contextmanager
def store(engine: str) -> Iterator[dict[str, str]]:
    """The settings of a deployment with a log in this engine."""
    if engine == "local":
        yield {}
        return
    with postgresql.running() as cluster, contextlib.ExitStack() as stack:
        cluster.create("realtime")
        yield {
            "DATABASE_URL": cluster.url("realtime"),
            "FANFARE_SECRET_KEY": "the same for both releases " * 3,
            "FANFARE_ENGINE": (
                cluster.url("realtime", schema="realtime_log")
                if engine == "postgres"
                else stack.enter_context(redisserver.running("--appendonly", "yes")).url()
            ),
        }


async def play(old: servers.Server, new: servers.Server) -> Outcome:
    """Move clients between the two servers while both publish."""
    outcome = Outcome()
    fleets = [clients.Fleet(server.port, server.application) for server in (old, new)]
    publisher = asyncio.create_task(publish([old, new], outcome))
    everyone: list[clients.Client] = []
    try:
        for fleet in fleets:
            await fleet.open(CLIENTS // 2)
            everyone += fleet.clients
        for _ in range(MOVES):
            await asyncio.sleep(PAUSE_S)
            for client in random.sample(everyone, CLIENTS // 2):
                client.fleet = fleets[client.fleet is fleets[0]]
                client.drop()
                outcome.moves += 1
            await until(lambda: all(client.live.is_set() for client in everyone))
        await asyncio.sleep(PAUSE_S)
        publisher.cancel()
        await asyncio.wait([publisher])
        await until(lambda: not any(missing(client, outcome) for client in everyone))
    finally:
        publisher.cancel()
        for client in everyone:
            client.stop()
    outcome.faults += [f"{client.token} could not resume: {client.lost}" for client in everyone if client.lost]
    outcome.faults += [f"a client is not back after {WITHIN_S:.0f} s" for one in everyone if not one.live.is_set()]
    for client in everyone:
        if lacks := missing(client, outcome):
            outcome.faults.append(f"{client.token} misses the events {sorted(lacks)[:10]}")
    return outcome


def missing(client: clients.Client, outcome: Outcome) -> set[int]:
    """From its first event on."""
    return set(range(min(client.received, default=1), outcome.published + 1)) - client.received


async def until(condition: Callable[[], bool]) -> None:
    """Or until the time is over; the outcome says what is missing."""
    end_s = time.monotonic() + WITHIN_S
    while not condition() and time.monotonic() < end_s:
        await asyncio.sleep(0.05)


async def publish(targets: list[servers.Server], outcome: Outcome) -> None:
    """Count, by turns through both servers. A number that one does not acknowledge is sent to the other, with the same
    idempotency key.
    """
    attempt = 0
    while True:
        attempt += 1
        number = outcome.published + 1
        if await asyncio.to_thread(_publish, targets[attempt % len(targets)], number):
            outcome.published = number
        await asyncio.sleep(1 / PER_SECOND)


def _publish(server: servers.Server, number: int) -> bool:
    event = {
        "name": clients.EVENT,
        "channels": [clients.CHANNEL],
        "data": json.dumps({"n": number, "at": time.monotonic()}),
        "idempotency_key": f"count-{number}",
    }
    try:
        with calls.Caller(server) as caller:
            return caller.signed("POST", "events", event).status == 200
    except (OSError, calls.http.client.HTTPException, ValueError):
        return False


def histories(running: list[servers.Server]) -> list[list[str]]:
    """What each server answers to a request for the channel's newest events."""
    found = []
    for server in running:
        with calls.Caller(server) as caller:
            answer = caller.signed("GET", f"channels/{clients.CHANNEL}/history")
        found.append([item["data"] for item in answer.body["items"]])
    return found


def run(old_root: Path, new_root: Path, folder: Path, engine: str) -> str:
    """`side by side` and the figures, or `refused` and why. Raises AssertionError."""
    with store(engine) as environment:
        data = folder / "data"

        def manage(root: Path, *arguments: str) -> str:
            more = {**environment, "PYTHONPATH": str(root / "apps")}
            return deployments.run_manage(deployments.environment_of(data, more), *arguments, root=root)

        manage(old_root, "migrate", "--verbosity", "0")
        printed = manage(old_root, "createapplication", "Tests", "--history", f"{clients.CHANNEL}=10000,600")
        deployment = deployments.Deployment(data, environment, deployments.parse_credentials(printed))
        running: list[servers.Server] = []
        try:
            running.append(servers.Server("gunicorn pair", deployment, folder / "old.log", root=old_root))
            running[0].wait_until_ready()
            try:
                manage(new_root, "migrate", "--verbosity", "0")
            except deployments.CommandFailed as failed:
                assert "Traceback" not in failed.stderr, failed.stderr
                return f"refused: {failed.stderr.strip().splitlines()[-1]}"
            running.append(servers.Server("gunicorn pair", deployment, folder / "new.log", root=new_root))
            running[1].wait_until_ready()
            outcome = asyncio.run(play(*running))
            first, second = histories(running)
            if first != second or not first:
                outcome.faults.append("the two releases answer with different histories")
            for server in running:
                if "Traceback" in server.log_text():
                    outcome.faults.append(f"a traceback in {server.log.name}: {server.log_text()[-3_000:]}")
            assert not outcome.faults, "; ".join(outcome.faults)
            return outcome.text()
        finally:
            for server in running:
                server.kill()
