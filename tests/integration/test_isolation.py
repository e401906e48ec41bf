"""An exception is injected into each callback, timer, thread and task of a running server, one after the other.

tests/lint/callbacks.py finds the places and names the test of each. Here a server gets traffic of every kind while one
function raises: the clients that were there still get their events, new clients are served, the worker is ready, and
the log names the failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.harness import calls, event_streams, faults, receivers, servers, sockets, waiting
from tests.lint import callbacks

Name = Callable[[str], str]
PATIENCE = 20.0  # seconds
ALWAYS = 10**9


class World:
    """A server with a webhook receiver, and the switches of its faults."""

    def __init__(self, server: servers.Server, receiver: receivers.Receiver) -> None:
        self.server = server
        self.receiver = receiver

    def _ask(self, action: str, **query: Any) -> dict[str, Any]:
        with calls.Caller(self.server) as caller:
            state: dict[str, Any] = caller.call("POST", f"/faults/{action}?{urlencode(query)}").body
        return state

    def arm(self, place: str, times: int = 1) -> None:
        self._ask("arm", place=place, times=times)

    def disarm(self) -> None:
        self._ask("disarm")

    def raised(self, place: str) -> int:
        return int(self._ask("").get(place, {}).get("raised", 0))

    def lines(self, place: str, start: int) -> int:
        """How often the log names the failure."""
        return len(re.findall(rf"injected into {re.escape(place)}(?!\w)", self.server.log_text(start)))


@pytest.fixture(scope="module")
def world(fleet: servers.Fleet) -> Iterator[World]:
    deployment = fleet.deployment(
        **faults.MOUNT,
        FANFARE_WEBHOOKS_ALLOW_PRIVATE="1",
        FANFARE_PING_INTERVAL="1",
    )
    with receivers.receiver() as receiver:
        deployment.shell(
            "from fanfare.applications.models import WebhookEndpoint\n"
            "application = Application.objects.get()\n"
            "application.subscription_counts = True\n"
            "application.save()\n"
            f"WebhookEndpoint.objects.create(application=application, url={receiver.url!r})"
        )
        server = fleet.start("uvicorn", deployment)
        server.tracebacks_expected = "the injected exceptions"
        yield World(server, receiver)
        server.stop()


@pytest.fixture
def prefix(name: Name) -> str:
    return name("isolation")


async def traffic(world: World, prefix: str) -> None:
    """Something for each place: members, counts, caches, a history, a token, a stream, a termination, a slow start."""
    server, application = world.server, world.server.application
    room, cache, demo = f"presence-{prefix}", f"cache-{prefix}", "presence-demo"
    async with contextlib.AsyncExitStack() as stack:
        with_token = server.socket_url().replace("/app/", f"/s/{prefix}-of-a-page/app/")
        page = await stack.enter_async_context(sockets.open_raw(server, with_token))
        one = await stack.enter_async_context(sockets.open_raw(server))
        for socket in (page, one):
            await sockets.establish(socket)
            await socket.request_subscription(cache)
            for channel in (room, demo):
                await socket.request_subscription(channel, member={"user_id": socket.socket_id})
        await one.trigger(room, "client-hello", {})
        stream = await stack.enter_async_context(event_streams.listen(server, application, cache))
        await asyncio.to_thread(burst, server, cache, demo)
        await stream.next()
        await one.unsubscribe(room)
        await page.skip_to("pusher:ping")  # for the events of the channel with a history, from a timer


def burst(server: servers.Server, *channels: str) -> None:
    with calls.Caller(server) as caller:
        for number in range(10):
            for channel in channels:
                caller.signed("POST", "events", {"name": "e", "channel": channel, "data": f"{number}"})
        caller.signed("POST", "users/nobody/terminate_connections", {})
        caller.call("GET", "/health/ready")


@contextlib.asynccontextmanager
async def neighbour(world: World, channel: str) -> AsyncIterator[tuple[sockets.Socket, event_streams.EventStream]]:
    """A socket and a stream that are there before the fault."""
    async with (
        sockets.connect(world.server) as socket,
        event_streams.listen(world.server, world.server.application, channel) as stream,
    ):
        await socket.subscribe(channel)
        await stream.statement()
        yield socket, stream


async def still_works(world: World, channel: str, before: tuple[sockets.Socket, event_streams.EventStream]) -> None:
    """The neighbours and a new client get the next event, a webhook is sent, and the worker is ready."""
    await waiting.until_async(lambda: asyncio.to_thread(world.server.is_ready), PATIENCE, "the worker is ready")
    old, stream = before
    async with sockets.connect(world.server) as new:
        await new.request_subscription(channel)
        await new.skip_to("pusher_internal:subscription_succeeded", channel)
        await asyncio.to_thread(calls.publish, world.server, channel, "after", "x")
        await new.skip_to("after", channel)
        await old.skip_to("after", channel)
        while (await stream.next()).data.get("event") != "after":
            continue
    async with sockets.connect(world.server) as last:
        occupied = f"{channel}-webhook"
        await last.request_subscription(occupied)
        await waiting.until_async(
            lambda: asyncio.to_thread(world.receiver.events, "channel_occupied", occupied), PATIENCE, "webhook arrived"
        )


CASES = [case for case in callbacks.INJECTIONS if not case.is_slow]
SLOW = [case for case in callbacks.INJECTIONS if case.is_slow]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.place.rpartition(":")[2])
async def test_exception_in_one_callback_stops_nothing_else(
    world: World, prefix: str, case: callbacks.Injection
) -> None:
    start = world.server.log_size()
    async with neighbour(world, prefix) as before:
        await asyncio.to_thread(world.arm, case.place)

        async def is_raised() -> bool:
            try:
                async with asyncio.timeout(3):
                    await traffic(world, prefix)
            except Exception as error:  # noqa: BLE001  (the fault may concern a client of the traffic)
                failures.append(error)
            return await asyncio.to_thread(world.raised, case.place) > 0

        failures: list[Exception] = []

        try:
            await waiting.until_async(is_raised, PATIENCE, f"{case.place} was called, {failures[-1:]}")
        finally:
            await asyncio.to_thread(world.disarm)
        await still_works(world, prefix, before)
    waiting.until(lambda: world.lines(case.place, start), PATIENCE, "the failure is logged")
    assert world.lines(case.place, start) <= 3, "the callers that it reaches may name it, too"


async def test_timers_that_fail_come_again(world: World, prefix: str) -> None:
    start = world.server.log_size()
    frequent = [case for case in SLOW if case.place.endswith((":Worker._tick", ":Hub._forget_closed"))]
    assert len(frequent) == 2

    async def raised(cases: Sequence[callbacks.Injection]) -> None:
        async def look() -> bool:
            await asyncio.to_thread(world.server.is_ready)  # health queries are made on demand
            missing.clear()
            missing.extend([case.place for case in cases if not await asyncio.to_thread(world.raised, case.place)])
            return not missing

        missing: list[str] = []
        for case in cases:
            await asyncio.to_thread(world.arm, case.place)
        try:
            await waiting.until_async(look, 2 * PATIENCE, "all timers were called")
        finally:
            await asyncio.to_thread(world.disarm)

    async with neighbour(world, prefix) as before:
        await raised(SLOW)
        await raised(frequent)
        await still_works(world, prefix, before)
    for case in SLOW:
        assert 1 <= world.lines(case.place, start) <= 2, case


@pytest.mark.parametrize("place", callbacks.RED)
async def test_worker_is_not_ready_while_events_do_not_flow(world: World, prefix: str, place: str) -> None:
    """Health is red as long as the function raises, and green after that without a restart."""
    await asyncio.to_thread(world.arm, place, ALWAYS)
    try:

        async def is_red() -> bool:
            return not await asyncio.to_thread(world.server.is_ready)

        await waiting.until_async(is_red, PATIENCE, "the worker is not ready")
    finally:
        await asyncio.to_thread(world.disarm)
    await waiting.until_async(lambda: asyncio.to_thread(world.server.is_ready), PATIENCE, "the worker is ready")
    async with neighbour(world, prefix) as before:
        await still_works(world, prefix, before)
