"""An attack on a server with four workers, with checks of the server and its other clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field

import psutil

from tests.fuzz import attackers, frames
from tests.harness import calls, deployments, servers, signing, sockets, waiting

ATTACKERS = 8
CHANNEL = "steady"  # attackers do not name it
PAUSE = 0.05  # seconds between two events to the neighbours
WARM_UP = 0.1  # fraction of the frames, to fill caches, arenas and lazy imports
# Bytes by which a worker may grow after the warm-up: traces of 1,000 events and arenas take 4 MB (300,000 frames). With
# 200,000 frames, a quarter for each worker, a leak of 160 bytes per frame exceeds it.
GROWTH = 8_000_000
# Files that a worker opens on first use, such as those of the other workers. Far less than the number of closed
# connections.
SPARE_FILES = 12
CONNECTIONS = 200  # the application's limit; all must be available again at the end


@dataclass
class Findings:
    seconds: float
    tally: attackers.Tally
    published: int
    memory: dict[int, tuple[int, int]] = field(default_factory=dict)  # bytes by worker, before and after

    @property
    def growth(self) -> int:
        """The growth of the worker that has grown most."""
        return max(after - before for before, after in self.memory.values())

    def __str__(self) -> str:
        tally = self.tally
        lines = [
            f"frames       {tally.frames:,} in {self.seconds:.0f} s, over {tally.connections:,} connections",
            f"answers      {tally.received:,} frames",
            f"closes       {_counted(tally.closed)}",
            f"refused      {_counted(tally.refused)}",
            f"neighbours   one on every worker, each received {self.published:,} events in order",
            *(
                f"memory       worker {pid}: {before / 1e6:.1f} MB, then {after / 1e6:.1f} MB"
                for pid, (before, after) in sorted(self.memory.items())
            ),
        ]
        return "\n".join(lines)


def _counted(counter: dict[str, int] | dict[int, int]) -> str:
    return ", ".join(f"{name} ({count:,} times)" for name, count in sorted(counter.items(), key=str)) or "none"


def application(deployment: deployments.Deployment) -> deployments.Application:
    """An application with all features enabled."""
    flags = ("--client-events", "--subscription-counts", "--max-connections", str(CONNECTIONS))
    return deployment.create_application("Fuzz", *flags, "--history", f"{frames.KEPT}=100,60")


async def run(server: servers.Server, tenant: deployments.Application, total: int, seed: int) -> Findings:
    """Raises AssertionError if a worker, a neighbour or the state of the deployment was harmed."""
    workers = server.workers()
    files = {pid: psutil.Process(pid).num_fds() for pid in workers}
    chance = random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:
        found = await sockets.spread(server, stack, application=tenant)
        neighbours = [of_worker[0] for of_worker in found.values()]
        for neighbour in neighbours:
            await neighbour.subscribe(CHANNEL)
        stop = asyncio.Event()
        publisher = asyncio.create_task(_publish(server, tenant, stop))
        warm_up = attackers.Tally(int(total * WARM_UP))
        await _attack(server, tenant, warm_up, chance)
        before = {pid: _memory(pid) for pid in workers}
        tally = attackers.Tally(total)
        begun = time.monotonic()
        await _attack(server, tenant, tally, chance)
        seconds = time.monotonic() - begun
        stop.set()
        published = await publisher
        for neighbour in neighbours:
            for number in range(published):
                frame = await _next_tick(neighbour)
                assert frame.data == str(number), f"a neighbour received {frame.data} instead of {number}"
    await _all_have_left(server, tenant)
    assert server.workers() == workers, "a worker died"
    await _closed(files)
    assert not attackers.FAULT_CODES & set(tally.closed), tally.closed
    findings = Findings(seconds, tally, published, {pid: (before[pid], _memory(pid)) for pid in workers})
    assert findings.growth < GROWTH, f"a worker has grown by {findings.growth:,} bytes\n{findings}"
    return findings


async def _next_tick(neighbour: sockets.Socket) -> sockets.Frame:
    """The next event. A neighbour receives events and subscription counts only."""
    while (frame := await neighbour.receive()).event == "pusher_internal:subscription_count":
        continue
    assert (frame.event, frame.channel) == ("tick", CHANNEL), frame
    return frame


async def _attack(
    server: servers.Server, tenant: deployments.Application, tally: attackers.Tally, chance: random.Random
) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(ATTACKERS):
            group.create_task(attackers.attack(server, tenant, tally, random.Random(chance.random())))


async def _publish(server: servers.Server, tenant: deployments.Application, stop: asyncio.Event) -> int:
    """Publish 0, 1, 2, … to the neighbours; returns how many."""
    number = 0
    with calls.Caller(server, tenant) as caller:
        while not stop.is_set():
            await asyncio.to_thread(caller.publish, CHANNEL, "tick", str(number))
            number += 1
            await asyncio.sleep(PAUSE)
    return number


async def _all_have_left(server: servers.Server, tenant: deployments.Application) -> None:
    """Check that the application has no channel, member, subscriber or connection left."""

    def occupied() -> dict[str, object]:
        with calls.Caller(server, tenant) as caller:
            return dict(caller.signed("GET", "channels").body["channels"])

    async def empty() -> bool:
        return not await asyncio.to_thread(occupied)

    await waiting.until_async(empty, 30.0, "every channel is empty")
    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(sockets.connect(server, tenant)) for _ in range(CONNECTIONS)]
        one_more = await stack.enter_async_context(sockets.open_raw(server, application=tenant))
        assert await one_more.closed() == 4100, "the connection limit no longer holds"
        online = await _online(opened[0], tenant)
        assert not online, f"{online} are still online"


async def _online(socket: sockets.Socket, tenant: deployments.Application) -> list[str]:
    """The attackers' users that the server reports as online."""
    users = [str(number) for number in range(frames.USERS)]
    user_data = json.dumps({"id": "watcher", "watchlist": users})
    signature = signing.hexadecimal(tenant.secret, f"{socket.socket_id}::user::{user_data}")
    auth = f"{tenant.key}:{signature}"
    await socket.send({"event": "pusher:signin", "data": {"auth": auth, "user_data": user_data}})
    frame = await socket.skip_to("pusher_internal:watchlist_events")
    return [user for event in frame.decoded["events"] if event["name"] == "online" for user in event["user_ids"]]


async def _closed(before: dict[int, int]) -> None:
    """Wait until each worker has closed its sockets."""

    async def few() -> bool:
        return all(psutil.Process(pid).num_fds() <= files + SPARE_FILES for pid, files in before.items())

    await waiting.until_async(few, 30.0, "the sockets are closed")


def _memory(pid: int) -> int:
    """The unique set size of a process in bytes."""
    return int(psutil.Process(pid).memory_full_info().uss)
