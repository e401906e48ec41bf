"""Two nodes that share nothing but a database and a Redis server: each has a data folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
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
    signing,
    sockets,
    waiting,
)
from tests.unit.docs import pages

Name = Callable[[str], str]
LEASE_SECONDS = 10.0
Nodes = list[tuple[servers.Server, sockets.Socket]]


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
            "FANFARE_SECRET_KEY": "the same on every node " * 3,
            "FANFARE_WEBHOOKS_ALLOW_PRIVATE": "1",
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
    """Migrated once; the application of both nodes."""
    deployment = fleet.deployment(**environment)
    deployment.manage("migrate", "--verbosity", "0")
    return deployment.create_application("Nodes", "--client-events", "--webhook", webhooks.url)


@pytest.fixture(scope="module")
def running(
    fleet: servers.Fleet, environment: dict[str, str], application: deployments.Application
) -> list[servers.Server]:
    """Two nodes: uvicorn, and gunicorn with four workers."""
    found = []
    for command in ("uvicorn", "gunicorn"):
        deployment = fleet.deployment(**environment)
        deployment.application = application
        found.append(fleet.start(command, deployment))
    return found


@pytest.fixture
async def nodes(running: list[servers.Server]) -> AsyncIterator[Nodes]:
    """The two nodes, with a connection to each."""
    async with contextlib.AsyncExitStack() as stack:
        yield [(server, await stack.enter_async_context(sockets.connect(server))) for server in running]


async def is_ready(server: servers.Server, status: int) -> bool:
    return (await asyncio.to_thread(server.health))[0] == status


async def is_served(nodes: Nodes, channel: str) -> bool:
    """A new connection to the second node gets an event of the first one. Its worker may not follow the log yet."""
    with contextlib.suppress(ConnectionClosed):
        async with sockets.connect(nodes[1][0]) as socket:
            await socket.request_subscription(channel)
            frame = await socket.receive()
            if frame.event == "pusher_internal:subscription_succeeded":
                await asyncio.to_thread(calls.publish, nodes[0][0], channel, "created", "after")
                return (await socket.expect("created", channel)).data == "after"
    return False


async def assert_published(nodes: Nodes, channel: str, text: str) -> None:
    """An event of one node reaches the sockets of both."""
    await asyncio.to_thread(calls.publish, nodes[0][0], channel, "created", text)
    for _, socket in nodes:
        assert (await socket.expect("created", channel)).data == text


async def test_events_of_two_nodes_arrive_in_one_order_and_a_webhook_once(
    nodes: Nodes, webhooks: receivers.Receiver, name: Name
) -> None:
    channel = name("news")
    for _, socket in nodes:
        await socket.subscribe(channel)

    def publish(server: servers.Server) -> None:
        with calls.Caller(server) as caller:
            for number in range(50):
                caller.publish(channel, "created", f"{server.port}:{number}")

    await asyncio.gather(*(asyncio.to_thread(publish, server) for server, _ in nodes))
    orders = [[(await socket.receive()).data for _ in range(100)] for _, socket in nodes]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == 100
    assert len(await webhooks.heard("channel_occupied", channel)) == 1


async def test_revoked_token_ends_on_both_nodes(nodes: Nodes, name: Name) -> None:
    channel, now = name("private-token"), time.time()
    claims = {"channels": [channel], "iat": now, "exp": int(now) + 600, "jti": channel}
    token = signing.capability_token(nodes[0][0].application, claims)
    for _, socket in nodes:
        await socket.request_subscription(channel, auth=token)
        await socket.expect("pusher_internal:subscription_succeeded", channel)
    with calls.Caller(nodes[0][0]) as caller:
        answer = await asyncio.to_thread(caller.signed, "POST", f"capabilities/{channel}/revoke")
    assert answer.status == 200, answer
    for _, socket in nodes:
        assert (await socket.skip_to("pusher:subscription_error", channel)).data["type"] == "TokenRevoked"
        await socket.request_subscription(channel, auth=token)
        assert (await socket.skip_to("pusher:subscription_error", channel)).data["status"] == 401


async def test_console_of_one_node_shows_the_clients_of_the_other(running: list[servers.Server], name: Name) -> None:
    await consoles.assert_shows_other_node(running[0], running[1], name("orders"), workers=5)


async def test_commands_of_the_guide_show_the_state_of_the_store(nodes: Nodes, store: redisserver.Server) -> None:
    await asyncio.to_thread(calls.publish, nodes[0][0], "orders", "created", "1")
    guide = pages.ROOT / "docs/how-to/many-machines.md"
    commands = [line.text for line in pages.shell_lines(guide) if line.text.startswith("redis-cli ")]
    assert len(commands) == 4
    for command in commands:
        text = command.replace("redis-cli", f"redis-cli -u {store.url()}")
        done = await asyncio.to_thread(subprocess.run, ["bash", "-c", text], capture_output=True, text=True, check=True)
        assert done.stdout.strip(), (command, done.stderr)


async def test_departure_of_a_killed_node_is_announced_once(
    nodes: Nodes,
    start: Callable[..., servers.Server],
    fleet: servers.Fleet,
    environment: dict[str, str],
    application: deployments.Application,
    name: Name,
) -> None:
    room = name("presence-room")
    deployment = fleet.deployment(**environment)
    deployment.application = application
    third = await asyncio.to_thread(start, "uvicorn", deployment)
    second, bob = nodes[1]
    async with sockets.connect(third) as ann:
        await ann.subscribe(room, member={"user_id": "ann"})
        snapshot = await bob.subscribe(room, member={"user_id": "bob"})
        assert sorted(snapshot.decoded["presence"]["ids"]) == ["ann", "bob"]
        assert (await ann.expect("pusher_internal:member_added", room)).decoded == {"user_id": "bob"}
        third.tracebacks_expected = "it is killed"
        await asyncio.to_thread(third.kill)
    removed = await bob.expect("pusher_internal:member_removed", room, within=LEASE_SECONDS + 50)
    assert removed.decoded == {"user_id": "ann"}
    await bob.expect_silence()
    with calls.Caller(second) as caller:
        answer = await asyncio.to_thread(caller.signed, "GET", f"channels/{room}", None, {"info": "user_count"})
    assert answer.body == {"occupied": True, "user_count": 1}


async def test_sockets_stay_while_redis_does_not_answer(nodes: Nodes, store: redisserver.Server, name: Name) -> None:
    channel = name("news")
    first = nodes[0][0]
    for _, socket in nodes:
        await socket.subscribe(channel)
    await assert_published(nodes, channel, "before")
    store.signal(signal.SIGSTOP)
    try:
        with calls.Caller(first) as caller:
            answer = await asyncio.to_thread(
                caller.signed, "POST", "events", {"name": "created", "channels": [channel], "data": "during"}
            )
        assert answer.status == 503
        assert "retry-after" in answer.headers
        await waiting.until_async(lambda: is_ready(first, 503), 30, "the node is not ready")
    finally:
        store.signal(signal.SIGCONT)
    await waiting.until_async(lambda: is_ready(first, 200), 30, "the node is ready again")
    # The event of that time may have been written, although it was refused.
    await asyncio.to_thread(calls.publish, first, channel, "created", "after")
    for _, socket in nodes:
        event = await socket.expect("created", channel)
        if event.data == "during":
            event = await socket.expect("created", channel)
        assert event.data == "after"


async def test_sockets_with_channels_are_closed_after_a_restart_of_redis(
    nodes: Nodes, store: redisserver.Server, name: Name
) -> None:
    channel = name("news")
    (first, subscribed), (_, idle) = nodes
    await subscribed.subscribe(channel)
    for server, _ in nodes:
        server.tracebacks_expected = "Redis is killed"
    await asyncio.to_thread(store.kill)
    await asyncio.to_thread(store.start)
    assert await subscribed.closed(within=60) == 4200
    await waiting.until_async(lambda: is_ready(first, 200), 30, "the node is ready again")
    await idle.expect_silence()
    await waiting.until_async(lambda: is_served(nodes, channel), 30, "an event after the restart")


async def test_full_memory_answers_503(nodes: Nodes, store: redisserver.Server, name: Name) -> None:
    channel = name("news")
    for _, socket in nodes:
        await socket.subscribe(channel)
    first = nodes[0][0]
    with store.client() as client:
        client.config_set("maxmemory", 1)
        try:
            with calls.Caller(first) as caller:
                answer = await asyncio.to_thread(
                    caller.signed, "POST", "events", {"name": "created", "channels": [channel], "data": "refused"}
                )
        finally:
            client.config_set("maxmemory", 0)
    assert answer.status == 503
    await waiting.until_async(lambda: is_ready(first, 200), 30, "the node is ready again")
    await assert_published(nodes, channel, "after")
