"""Protocol clauses without another test. docs/reference/protocol-clauses.md lists all clauses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from websockets.typing import Subprotocol

from tests.harness import calls, deployments, pusherjs, servers, sockets, waiting

Name = Callable[[str], str]


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> servers.Server:
    return fleet.start("gunicorn", fleet.deployment(FANFARE_ACTIVITY_TIMEOUT="30"))


@pytest.fixture
async def node(pusher_js: pusherjs.Runtime) -> AsyncIterator[pusherjs.Node]:
    async with pusher_js.node() as node:
        yield node


async def created(server: servers.Server, name: str, *flags: str) -> deployments.Application:
    """Create an application and wait until every worker knows it."""

    def create() -> deployments.Application:
        application = server.deployment.create_application(name, *flags)
        with calls.to_each_worker(server) as callers:
            for caller in callers.values():
                caller.application = application
                waiting.until(
                    lambda caller=caller: caller.signed("GET", "channels").status == 200,
                    5.0,
                    "the worker knows the application",
                )
        return application

    return await asyncio.to_thread(create)


async def test_offered_subprotocol_is_not_selected(server: servers.Server) -> None:
    offered = [Subprotocol("pusher"), Subprotocol("v7.pusher.com")]
    async with sockets.connect(server, subprotocols=offered) as socket:
        assert socket.websocket.subprotocol is None


async def test_activity_timeout_of_the_settings_is_announced(server: servers.Server) -> None:
    async with sockets.open_raw(server) as socket:
        frame = await socket.expect("pusher:connection_established")
    assert frame.decoded["activity_timeout"] == 30


async def test_websocket_ping_of_a_client_is_answered(server: servers.Server) -> None:
    async with sockets.connect(server) as socket:
        answered = await socket.websocket.ping(b"swift")
        async with asyncio.timeout(sockets.PATIENCE):
            await answered


async def test_no_event_is_delivered_after_unsubscribe(server: servers.Server, name: Name) -> None:
    channel = name("news")
    async with sockets.connect(server) as socket, sockets.connect(server) as neighbour:
        await socket.subscribe(channel)
        await neighbour.subscribe(channel)
        await socket.unsubscribe(channel)
        await asyncio.to_thread(calls.publish, server, channel, "created", "{}")
        await neighbour.expect("created", channel)
        await socket.expect_silence()


async def test_user_info_is_that_of_the_users_latest_connection(server: servers.Server, name: Name) -> None:
    room = name("presence-room")
    async with (
        sockets.connect(server) as first,
        sockets.connect(server) as second,
        sockets.connect(server) as third,
    ):
        await first.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Ann"}})
        await second.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Anna"}})
        snapshot = await third.subscribe(room, member={"user_id": "bob"})
        await first.expect("pusher_internal:member_added", room)  # Bob; the second tab added no member
    assert snapshot.decoded["presence"]["hash"] == {"ann": {"name": "Anna"}, "bob": None}


async def test_member_events_are_not_replayed(server: servers.Server, name: Name) -> None:
    """Not even in a channel with history: the snapshot has the current members."""
    history = ("--history", "presence-*=10,60", "--rewind", "presence-*=10")
    application = await created(server, name("Kept"), *history)
    room = name("presence-room")
    async with sockets.connect(server, application) as ann:
        await ann.subscribe(room, member={"user_id": "ann"})
        async with sockets.connect(server, application) as bob:
            await bob.subscribe(room, member={"user_id": "bob"})
            await ann.expect("pusher_internal:member_added", room)
            with calls.Caller(server, application) as caller:
                await asyncio.to_thread(caller.publish, room, "said", "1")
            await ann.expect("said", room)
        await ann.expect("pusher_internal:member_removed", room)
        async with sockets.connect(server, application) as late:
            snapshot = await late.subscribe(room, member={"user_id": "cy"})
            assert snapshot.decoded["presence"]["ids"] == ["ann", "cy"]
            await late.expect("said", room)
            await late.expect_silence()


async def test_pusher_js_over_the_connection_limit_reconnects(
    server: servers.Server, node: pusherjs.Node, name: Name
) -> None:
    application = await created(server, name("Small"), "--max-connections", "1")
    async with sockets.connect(server, application):
        client = await node.client(server, key=application.key)
        refused = await client.next(what="error")
        assert refused["data"]["code"] == 4100
    await client.state("connected")


async def test_pusher_js_reconnects_after_4200_and_gets_the_current_members(
    server: servers.Server, node: pusherjs.Node, name: Name
) -> None:
    room, ann = name("presence-room"), name("ann")
    client = await node.connected(server, user={"id": ann}, member={"user_id": ann})
    await client.subscribe(room)
    await client.do("signin")
    await client.next(what="event", event="pusher:signin_success")
    async with sockets.connect(server) as bob:
        await bob.subscribe(room, member={"user_id": "bob"})
        await client.event(room, "pusher:member_added")
        with calls.Caller(server) as caller:
            route = f"users/{ann}/terminate_connections"
            answer = await asyncio.to_thread(caller.signed, "POST", route, query={"reconnect": "1"})
        assert answer.status == 200
        before = client.socket_id
        after = (await client.state("connected"))["socket_id"]
        assert after != before
        snapshot = await client.event(room, "pusher:subscription_succeeded")
        assert set(snapshot["data"]["members"]) == {ann, "bob"}
