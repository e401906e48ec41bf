"""Two nodes that share nothing but a PostgreSQL server: each has a data folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.harness import calls, consoles, deployments, postgresql, receivers, servers, sockets, two_nodes, waiting
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


@pytest.fixture
def node(
    start: Callable[..., servers.Server],
    fleet: servers.Fleet,
    environment: dict[str, str],
    application: deployments.Application,
) -> Callable[[], servers.Server]:
    """Start one more node."""
    return lambda: start("uvicorn", two_nodes.deployment(fleet, environment, application))


@pytest.fixture
async def nodes(
    node: Callable[[], servers.Server],
) -> AsyncIterator[two_nodes.Nodes]:
    """Two nodes, with a connection to each."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(2):
            server = await asyncio.to_thread(node)
            found.append((server, await stack.enter_async_context(sockets.connect(server))))
        yield found


async def test_revoked_token_ends_on_both_nodes(nodes: two_nodes.Nodes, name: Name) -> None:
    await two_nodes.assert_revoked_token_ends(nodes, name("private-token"))


async def test_console_of_one_node_shows_the_clients_of_the_other(nodes: two_nodes.Nodes, name: Name) -> None:
    await consoles.assert_shows_other_node(nodes[0][0], nodes[1][0], name("orders"), workers=2)


async def test_queries_of_the_guide_show_the_state_of_the_store(
    nodes: two_nodes.Nodes, cluster: postgresql.Cluster
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
    nodes: two_nodes.Nodes, webhooks: receivers.Receiver, name: Name
) -> None:
    await two_nodes.assert_one_order_and_one_webhook(nodes, webhooks, name("news"))


async def test_presence_is_that_of_all_nodes_and_a_killed_node_leaves_once(nodes: two_nodes.Nodes, name: Name) -> None:
    await two_nodes.assert_killed_node_leaves_once(*nodes, name("presence-room"), within=LEASE_SECONDS + 5)


async def test_publishing_is_refused_while_the_database_is_away_and_the_sockets_stay(
    nodes: two_nodes.Nodes, cluster: postgresql.Cluster, name: Name
) -> None:
    channel = name("news")
    first, here = nodes[0]
    for _, socket in nodes:
        await socket.subscribe(channel)
    await two_nodes.assert_published(nodes, channel, "before")
    first.tracebacks_expected = "the database was stopped"
    with cluster.stopped():
        answer = await two_nodes.try_to_publish(first, channel, "during")
        assert answer.status == 503
        assert "retry-after" in answer.headers
        await waiting.until_async(lambda: two_nodes.is_ready(first, 503), 10, "the node is not ready")
        await here.expect_silence()
    await waiting.until_async(lambda: two_nodes.is_ready(first, 200), 20, "the node is ready again")
    await two_nodes.assert_published(nodes, channel, "after")


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
