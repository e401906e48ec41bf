"""Unmodified pusher-js in Node: what it passes to application code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pusher

from tests.harness import calls, deployments, pusherjs, servers, signing

Name = Callable[[str], str]


async def test_pusher_js_decodes_events(
    server: servers.Server, api: pusher.Pusher, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    channel = name("news")
    async with pusher_js.node() as node:
        client = await node.connected(server)
        await client.subscribe(channel)
        await asyncio.to_thread(api.trigger, channel, "created", {"id": 7, "title": "日本 🎺"})
        happening = await client.event(channel, "created")
    assert happening["data"] == {"id": 7, "title": "日本 🎺"}


async def test_pusher_js_authorizes_a_private_channel(
    server: servers.Server, api: pusher.Pusher, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    channel = name("private-orders")
    async with pusher_js.node() as node:
        client = await node.connected(server)
        await client.subscribe(channel)
        await asyncio.to_thread(api.trigger, channel, "created", {"id": 1})
        assert (await client.event(channel, "created"))["data"] == {"id": 1}


async def test_pusher_js_uses_capability_tokens_until_they_are_revoked(
    server: servers.Server, api: pusher.Pusher, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    orders, room, now = name("private-orders"), name("presence-room"), time.time()
    claims = {"channels": [orders, room], "rights": ["subscribe", "presence", "publish"], "sub": "ann"}
    claims |= {"info": {"name": "Ann"}, "iat": now, "exp": int(now) + 600, "jti": room}
    token = signing.capability_token(server.application, claims)
    async with pusher_js.node() as node:
        ann = await node.connected(server, token=token, member={"user_id": "ann"})
        succeeded = await ann.subscribe(room)
        assert succeeded["data"]["me"] == {"id": "ann", "info": {"name": "Ann"}}
        await ann.subscribe(orders)
        await asyncio.to_thread(api.trigger, orders, "created", {"id": 1})
        assert (await ann.event(orders, "created"))["data"] == {"id": 1}
        reader = await node.connected(server)
        await reader.subscribe(orders)
        await ann.do("trigger", channel=orders, event="client-seen", data={"id": 1})
        assert (await reader.event(orders, "client-seen"))["data"] == {"id": 1}

        with calls.Caller(server) as caller:
            answer = await asyncio.to_thread(
                caller.signed, "POST", f"capabilities/{room}/revoke", {"exp": claims["exp"]}
            )
        assert answer.status == 200, answer
        for channel in (room, orders):
            error = await ann.event(channel, "pusher:subscription_error")
            assert (error["data"]["type"], error["data"]["status"]) == ("TokenRevoked", 401)
        later = await node.connected(server, token=token)
        await later.do("subscribe", channel=orders)
        assert (await later.event(orders, "pusher:subscription_error"))["data"]["status"] == 401


async def test_pusher_js_gets_member_events_once_per_user(
    server: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    room = name("presence-room")
    ann = {"user_id": "ann", "user_info": {"name": "Ann"}}
    bob = {"user_id": "bob", "user_info": {"name": "Bob"}}
    async with pusher_js.node() as node:
        watcher = await node.connected(server, member=ann)
        succeeded = await watcher.subscribe(room)
        assert succeeded["data"]["me"] == {"id": "ann", "info": {"name": "Ann"}}

        first_tab = await node.connected(server, member=bob)
        await first_tab.subscribe(room)
        added = await watcher.event(room, "pusher:member_added")
        assert added["data"] == {"id": "bob", "info": {"name": "Bob"}}

        second_tab = await node.connected(server, member=bob)
        await second_tab.subscribe(room)
        assert (await second_tab.members(room))["count"] == 2
        await first_tab.do("disconnect")
        await second_tab.do("trigger", channel=room, event="client-marker", data={})
        happening = await watcher.next(what="event", channel=room)
        while happening["event"].startswith("pusher_internal:"):  # pusher-js passes these to bind_global too
            assert happening["event"] != "pusher_internal:member_removed"
            happening = await watcher.next(what="event", channel=room)
        assert happening["event"] == "client-marker", "member event of a user who has another tab open"

        await second_tab.do("disconnect")
        removed = await watcher.event(room, "pusher:member_removed")
        assert removed["data"]["id"] == "bob"
        assert (await watcher.members(room))["members"] == {"ann": {"name": "Ann"}}


async def test_client_event_reaches_other_members_with_the_senders_id(
    server: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    room = name("presence-room")
    async with pusher_js.node() as node:
        ann = await node.connected(server, member={"user_id": "ann"})
        bob = await node.connected(server, member={"user_id": "bob"})
        await ann.subscribe(room)
        await bob.subscribe(room)
        await ann.do("bind", channel=room, event="client-typing")
        await ann.members(room)  # the answer comes after the bind
        await bob.do("trigger", channel=room, event="client-typing", data={"on": True})
        typing = await ann.next(what="bound", channel=room, event="client-typing")
    assert typing["data"] == {"on": True}
    assert typing["metadata"] == {"user_id": "bob"}


async def test_pusher_js_does_not_reconnect_with_an_unknown_key(
    server: servers.Server, pusher_js: pusherjs.Runtime
) -> None:
    async with pusher_js.node() as node:
        client = await node.client(server, key="no-such-key")
        error = await client.next(what="error")
        assert error["data"]["code"] == 4001
        await client.state("disconnected")


async def test_refused_subscription_reaches_the_channels_error_handler(
    server: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    room = name("presence-room")
    async with pusher_js.node() as node:
        client = await node.connected(server, member={"user_id": ""})  # correctly signed, but the id is empty
        await client.do("subscribe", channel=room)
        failed = await client.event(room, "pusher:subscription_error")
        assert failed["data"]["status"] == 401
        await client.subscribe(name("news"))  # the connection still works


def switch(server: servers.Server, application: deployments.Application, *, enabled: bool) -> None:
    code = f"""from fanfare.applications.models import Application
Application.objects.filter(app_id={application.id!r}).update(enabled={enabled})"""
    server.deployment.manage("shell", "--no-imports", "-c", code)


async def test_pusher_js_comes_back_when_its_application_is_enabled_again(
    server: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    application = await asyncio.to_thread(server.deployment.create_application, name("switched"))
    async with pusher_js.node() as node:
        client = await node.connected(server, key=application.key)
        await asyncio.to_thread(switch, server, application, enabled=False)
        await client.state("connecting")
        await asyncio.to_thread(switch, server, application, enabled=True)
        await client.state("connected")
        await client.subscribe(name("news"))
