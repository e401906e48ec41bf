"""Two nodes that share nothing but a database and a Redis server: each has a data folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from tests.harness import (
    calls,
    consoles,
    deployments,
    postgresql,
    receivers,
    redisserver,
    servers,
    sockets,
    two_nodes,
    waiting,
)
from tests.unit.docs import pages

Name = Callable[[str], str]
LEASE_SECONDS = 10.0


@pytest.fixture(scope="module")
def store() -> Iterator[redisserver.Server]:
    with redisserver.running("--appendonly", "yes") as server:
        yield server


@pytest.fixture(scope="module")
def environment(store: redisserver.Server) -> Iterator[dict[str, str]]:
    with postgresql.running() as cluster:
        cluster.create("django")
        yield {
            "DATABASE_URL": cluster.url("django"),
            "FANFARE_ENGINE": store.url(),
            **two_nodes.SHARED,
        }


@pytest.fixture(scope="module")
def webhooks() -> Iterator[receivers.Receiver]:
    """It gets the webhooks of both nodes."""
    with receivers.receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def application(
    fleet: servers.Fleet, environment: dict[str, str], webhooks: receivers.Receiver
) -> deployments.Application:
    return two_nodes.create_application(fleet, environment, webhooks)


@pytest.fixture(scope="module")
def running(
    fleet: servers.Fleet, environment: dict[str, str], application: deployments.Application
) -> list[servers.Server]:
    """Two nodes: uvicorn, and gunicorn with four workers."""
    return [
        fleet.start(command, two_nodes.deployment(fleet, environment, application))
        for command in ("uvicorn", "gunicorn")
    ]


@pytest.fixture
async def nodes(running: list[servers.Server]) -> AsyncIterator[two_nodes.Nodes]:
    """The two nodes, with a connection to each."""
    async with contextlib.AsyncExitStack() as stack:
        yield [(server, await stack.enter_async_context(sockets.connect(server))) for server in running]


async def is_served(nodes: two_nodes.Nodes, channel: str) -> bool:
    """A new connection to the second node gets an event of the first one. Its worker may not follow the log yet."""
    with contextlib.suppress(ConnectionClosed):
        async with sockets.connect(nodes[1][0]) as socket:
            await socket.request_subscription(channel)
            frame = await socket.receive()
            if frame.event == "pusher_internal:subscription_succeeded":
                await asyncio.to_thread(calls.publish, nodes[0][0], channel, "created", "after")
                return (await socket.expect("created", channel)).data == "after"
    return False


async def test_events_of_two_nodes_arrive_in_one_order_and_a_webhook_once(
    nodes: two_nodes.Nodes, webhooks: receivers.Receiver, name: Name
) -> None:
    await two_nodes.assert_one_order_and_one_webhook(nodes, webhooks, name("news"))


async def test_revoked_token_ends_on_both_nodes(nodes: two_nodes.Nodes, name: Name) -> None:
    await two_nodes.assert_revoked_token_ends(nodes, name("private-token"))


async def test_console_of_one_node_shows_the_clients_of_the_other(running: list[servers.Server], name: Name) -> None:
    await consoles.assert_shows_other_node(running[0], running[1], name("orders"), workers=5)


async def test_commands_of_the_guide_show_the_state_of_the_store(
    nodes: two_nodes.Nodes, store: redisserver.Server
) -> None:
    await asyncio.to_thread(calls.publish, nodes[0][0], "orders", "created", "1")
    guide = pages.ROOT / "docs/how-to/many-machines.md"
    commands = [line.text for line in pages.shell_lines(guide) if line.text.startswith("redis-cli ")]
    assert len(commands) == 4
    for command in commands:
        text = command.replace("redis-cli", f"redis-cli -u {store.url()}")
        done = await asyncio.to_thread(subprocess.run, ["bash", "-c", text], capture_output=True, text=True, check=True)
        assert done.stdout.strip(), (command, done.stderr)


async def test_departure_of_a_killed_node_is_announced_once(
    nodes: two_nodes.Nodes,
    start: Callable[..., servers.Server],
    fleet: servers.Fleet,
    environment: dict[str, str],
    application: deployments.Application,
    name: Name,
) -> None:
    third = await asyncio.to_thread(start, "uvicorn", two_nodes.deployment(fleet, environment, application))
    async with sockets.connect(third) as ann:
        await two_nodes.assert_killed_node_leaves_once(
            (third, ann), nodes[1], name("presence-room"), within=LEASE_SECONDS + 50
        )


async def test_sockets_stay_while_redis_does_not_answer(
    nodes: two_nodes.Nodes, store: redisserver.Server, name: Name
) -> None:
    channel = name("news")
    first = nodes[0][0]
    for _, socket in nodes:
        await socket.subscribe(channel)
    await two_nodes.assert_published(nodes, channel, "before")
    store.signal(signal.SIGSTOP)
    try:
        answer = await two_nodes.try_to_publish(first, channel, "during")
        assert answer.status == 503
        assert "retry-after" in answer.headers
        await waiting.until_async(lambda: two_nodes.is_ready(first, 503), 30, "the node is not ready")
    finally:
        store.signal(signal.SIGCONT)
    await waiting.until_async(lambda: two_nodes.is_ready(first, 200), 30, "the node is ready again")
    # The event of that time may have been written, although it was refused.
    await asyncio.to_thread(calls.publish, first, channel, "created", "after")
    for _, socket in nodes:
        event = await socket.expect("created", channel)
        if event.data == "during":
            event = await socket.expect("created", channel)
        assert event.data == "after"


async def test_sockets_with_channels_are_closed_after_a_restart_of_redis(
    nodes: two_nodes.Nodes, store: redisserver.Server, name: Name
) -> None:
    channel = name("news")
    (first, subscribed), (_, idle) = nodes
    await subscribed.subscribe(channel)
    for server, _ in nodes:
        server.tracebacks_expected = "Redis is killed"
    await asyncio.to_thread(store.kill)
    await asyncio.to_thread(store.start)
    assert await subscribed.closed(within=60) == 4200
    await waiting.until_async(lambda: two_nodes.is_ready(first, 200), 30, "the node is ready again")
    await idle.expect_silence()
    await waiting.until_async(lambda: is_served(nodes, channel), 30, "an event after the restart")


async def test_full_memory_answers_503(nodes: two_nodes.Nodes, store: redisserver.Server, name: Name) -> None:
    channel = name("news")
    for _, socket in nodes:
        await socket.subscribe(channel)
    first = nodes[0][0]
    with store.client() as client:
        client.config_set("maxmemory", 1)
        try:
            answer = await two_nodes.try_to_publish(first, channel, "refused")
        finally:
            client.config_set("maxmemory", 0)
    assert answer.status == 503
    await waiting.until_async(lambda: two_nodes.is_ready(first, 200), 30, "the node is ready again")
    await two_nodes.assert_published(nodes, channel, "after")
