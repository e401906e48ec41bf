"""Two nodes that share nothing but a PostgreSQL server: each has a data folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.harness import calls, consoles, deployments, postgresql, receivers, servers, signing, sockets, waiting
from tests.unit.docs import pages

Name = Callable[[str], str]
LEASE_SECONDS = 10.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("realtime")
        yield cluster


@pytest.fixture(scope="module")
def environment(cluster: postgresql.Cluster) -> dict[str, str]:
    return {
        "DATABASE_URL": cluster.url("realtime"),
        "FANFARE_ENGINE": cluster.url("realtime", schema="realtime_log"),
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


@pytest.fixture
def node(
    start: Callable[..., servers.Server],
    fleet: servers.Fleet,
    environment: dict[str, str],
    application: deployments.Application,
) -> Callable[[], servers.Server]:
    """Start one more node."""

    def node() -> servers.Server:
        deployment = fleet.deployment(**environment)
        deployment.application = application
        return start("uvicorn", deployment)

    return node


@pytest.fixture
async def nodes(
    node: Callable[[], servers.Server],
) -> AsyncIterator[list[tuple[servers.Server, sockets.Socket]]]:
    """Two nodes, with a connection to each."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(2):
            server = await asyncio.to_thread(node)
            found.append((server, await stack.enter_async_context(sockets.connect(server))))
        yield found


async def test_revoked_token_ends_on_both_nodes(nodes: list[tuple[servers.Server, sockets.Socket]], name: Name) -> None:
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


async def test_console_of_one_node_shows_the_clients_of_the_other(
    nodes: list[tuple[servers.Server, sockets.Socket]], name: Name
) -> None:
    await consoles.assert_shows_other_node(nodes[0][0], nodes[1][0], name("orders"), workers=2)


async def test_queries_of_the_guide_show_the_state_of_the_store(
    nodes: list[tuple[servers.Server, sockets.Socket]], cluster: postgresql.Cluster
) -> None:
    await asyncio.to_thread(calls.publish, nodes[0][0], "orders", "created", "1")
    guide = pages.ROOT / "docs/how-to/many-machines.md"
    queries = [line.text for line in pages.shell_lines(guide) if line.text.startswith("SELECT ")]
    assert len(queries) == 3
    with cluster.connect("realtime") as connection:
        for query in queries:
            # The schema of these tests is not that of the guide.
            assert connection.execute(query.replace("fanfare.", "realtime_log.").encode()).fetchall(), query


async def test_events_cross_nodes_in_one_order_and_a_webhook_is_sent_once(
    nodes: list[tuple[servers.Server, sockets.Socket]], webhooks: receivers.Receiver, name: Name
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


async def test_presence_is_that_of_all_nodes_and_a_killed_node_leaves_once(
    nodes: list[tuple[servers.Server, sockets.Socket]], name: Name
) -> None:
    room = name("presence-room")
    (first, ann), (second, bob) = nodes
    await ann.subscribe(room, member={"user_id": "ann"})
    snapshot = await bob.subscribe(room, member={"user_id": "bob"})
    assert sorted(snapshot.decoded["presence"]["ids"]) == ["ann", "bob"]
    assert (await ann.expect("pusher_internal:member_added", room)).decoded == {"user_id": "bob"}
    first.tracebacks_expected = "it is killed"
    await asyncio.to_thread(first.kill)
    removed = await bob.expect("pusher_internal:member_removed", room, within=LEASE_SECONDS + 5)
    assert removed.decoded == {"user_id": "ann"}
    await bob.expect_silence()
    with calls.Caller(second) as caller:
        answer = await asyncio.to_thread(caller.signed, "GET", f"channels/{room}", None, {"info": "user_count"})
    assert answer.body == {"occupied": True, "user_count": 1}


async def test_publishing_is_refused_while_the_database_is_away_and_the_sockets_stay(
    nodes: list[tuple[servers.Server, sockets.Socket]], cluster: postgresql.Cluster, name: Name
) -> None:
    channel = name("news")
    (first, here), (_, there) = nodes
    for socket in (here, there):
        await socket.subscribe(channel)
    await asyncio.to_thread(calls.publish, first, channel, "created", "before")
    for socket in (here, there):
        assert (await socket.expect("created", channel)).data == "before"
    first.tracebacks_expected = "the database was stopped"
    with cluster.stopped():
        with calls.Caller(first) as caller:
            answer = await asyncio.to_thread(
                caller.signed, "POST", "events", {"name": "created", "channels": [channel], "data": "during"}
            )
        assert answer.status == 503
        assert "retry-after" in answer.headers
        await waiting.until_async(lambda: _status(first, 503), 10, "the node is not ready")
        await here.expect_silence()
    await waiting.until_async(lambda: _status(first, 200), 20, "the node is ready again")
    await asyncio.to_thread(calls.publish, first, channel, "created", "after")
    for socket in (here, there):
        assert (await socket.expect("created", channel)).data == "after"


async def _status(server: servers.Server, status: int) -> bool:
    return (await asyncio.to_thread(server.health))[0] == status


@pytest.mark.parametrize(
    ("missing", "remedy"), [("FANFARE_SECRET_KEY", "same value"), ("DATABASE_URL", "every machine")]
)
def test_secret_key_and_database_must_be_shared(
    fleet: servers.Fleet, environment: dict[str, str], missing: str, remedy: str
) -> None:
    given = {name: value for name, value in environment.items() if name != missing}
    with pytest.raises(deployments.CommandFailed, match=remedy) as failure:
        fleet.deployment(**given).manage("check")
    assert "Traceback" not in str(failure.value)
