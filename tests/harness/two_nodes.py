"""Two nodes that share a store and no data folder, and the assertions that hold with each store."""

from __future__ import annotations

import asyncio
import time

from tests.harness import calls, deployments, receivers, servers, signing, sockets

Node = tuple[servers.Server, sockets.Socket]  # with a connection to it
Nodes = list[Node]  # two

SHARED = {"FANFARE_SECRET_KEY": "the same on every node " * 3, "FANFARE_WEBHOOKS_ALLOW_PRIVATE": "1"}


def create_application(
    fleet: servers.Fleet, environment: dict[str, str], webhooks: receivers.Receiver
) -> deployments.Application:
    """Migrate the database. The application is that of all nodes."""
    deployment = fleet.deployment(**environment)
    deployment.manage("migrate", "--verbosity", "0")
    return deployment.create_application("Nodes", "--client-events", "--webhook", webhooks.url)


def deployment(
    fleet: servers.Fleet, environment: dict[str, str], application: deployments.Application
) -> deployments.Deployment:
    """For one more node."""
    added = fleet.deployment(**environment)
    added.application = application
    return added


async def is_ready(server: servers.Server, status: int) -> bool:
    return (await asyncio.to_thread(server.health))[0] == status


async def try_to_publish(server: servers.Server, channel: str, text: str) -> calls.Answer:
    body = {"name": "created", "channels": [channel], "data": text}
    with calls.Caller(server) as caller:
        return await asyncio.to_thread(caller.signed, "POST", "events", body)


async def assert_published(nodes: Nodes, channel: str, text: str) -> None:
    """An event of one node reaches the sockets of both."""
    await asyncio.to_thread(calls.publish, nodes[0][0], channel, "created", text)
    for _, socket in nodes:
        assert (await socket.expect("created", channel)).data == text


async def assert_one_order_and_one_webhook(nodes: Nodes, webhooks: receivers.Receiver, channel: str) -> None:
    """Both nodes publish at the same time."""
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


async def assert_revoked_token_ends(nodes: Nodes, channel: str) -> None:
    """The token is revoked at the first node."""
    now = time.time()
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


async def assert_killed_node_leaves_once(
    killed: tuple[servers.Server, sockets.Socket],
    other: tuple[servers.Server, sockets.Socket],
    room: str,
    within: float,
) -> None:
    """`room`: of this test alone. `within` seconds, the other node announces the departure."""
    (first, ann), (second, bob) = killed, other
    await ann.subscribe(room, member={"user_id": "ann"})
    snapshot = await bob.subscribe(room, member={"user_id": "bob"})
    assert sorted(snapshot.decoded["presence"]["ids"]) == ["ann", "bob"]
    assert (await ann.expect("pusher_internal:member_added", room)).decoded == {"user_id": "bob"}
    first.tracebacks_expected = "it is killed"
    await asyncio.to_thread(first.kill)
    removed = await bob.expect("pusher_internal:member_removed", room, within=within)
    assert removed.decoded == {"user_id": "ann"}
    await bob.expect_silence()
    with calls.Caller(second) as caller:
        answer = await asyncio.to_thread(caller.signed, "GET", f"channels/{room}", None, {"info": "user_count"})
    assert answer.body == {"occupied": True, "user_count": 1}
