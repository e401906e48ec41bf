"""Unmodified pusher-js in Node: what it passes to application code."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

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


async def sent(caller: calls.Caller, route: str, fields: dict[str, Any]) -> None:
    """POST until the server is neither busy nor over a rate limit."""
    while (answer := await asyncio.to_thread(caller.signed, "POST", route, fields)).status in (429, 503):
        await asyncio.sleep(float(answer.headers["retry-after"]))
    assert answer.status == 200, answer


async def test_pages_see_revisions_and_member_updates_and_a_client_that_binds_nothing_ignores_them(
    uvicorn: servers.Server, pusher_js: pusherjs.Runtime, name: Name
) -> None:
    room = name("presence-kept")
    flags = ("--client-events", "--history", f"{room}=100,600")
    application = await asyncio.to_thread(uvicorn.deployment.create_application, room, *flags)
    reviser = {"by": "moderator"}
    async with pusher_js.node(plugin=True) as with_plugin, pusher_js.node() as plain:
        ann, bob, cem = [
            await node.connected(
                uvicorn, application=application, member={"user_id": user, "user_info": {"name": user.title()}}
            )
            for node, user in ((with_plugin, "ann"), (plain, "bob"), (plain, "cem"))
        ]
        await ann.subscribe(room)
        await ann.do("revisions", channel=room, event="message")
        await bob.subscribe(room)
        await cem.do("subscribe_only", channel=room)
        while (await ann.event(room, "pusher:member_added"))["data"]["id"] != "cem":
            pass

        with calls.Caller(uvicorn, application) as caller:
            await sent(caller, "events", {"name": "message", "channel": room, "data": '{"text":"good"}'})
            kept = (await asyncio.to_thread(caller.signed, "GET", f"channels/{room}/history")).body
            [message], position = kept["items"], kept["position"]
            assert position.endswith(f":{message['offset']}")
            revise = f"channels/{room}/history/{position}/revise"
            for text in ("better", "best"):
                await sent(caller, revise, {"data": json.dumps({"text": text}), **reviser})
            await sent(caller, revise, {"delete": "1", **reviser})
            await sent(caller, "events", {"name": "last", "channel": room, "data": "{}"})

        revisions = [await ann.next(what="revision", channel=room) for _ in range(3)]
        assert [revision["data"] for revision in revisions] == [{"text": "better"}, {"text": "best"}, None]
        assert {(each["revision"]["id"], each["revision"]["by"]) for each in revisions} == {(position, "moderator")}
        seen = [await bob.event(room, "message")]
        while seen[-1]["event"] != "last":
            seen.append(await bob.next(what="event", channel=room))
        notices = ["fanfare:revised", "fanfare:revised", "fanfare:deleted"]
        assert [happening["event"] for happening in seen] == ["message", *notices, "last"]
        assert [json.loads(happening["data"]["data"])["text"] for happening in seen[1:3]] == ["better", "best"]
        assert {happening["data"]["id"] for happening in seen[1:4]} == {position}

        await bob.do("trigger", channel=room, event="client-fanfare-state", data={"typing": True})
        typing = {"name": "Bob", "state": {"typing": True}}
        updated = await ann.event(room, "fanfare:member_updated")
        assert updated["data"] == {"user_id": "bob", "user_info": typing}
        assert (await ann.members(room))["members"]["bob"] == typing
        await ann.do("trigger", channel=room, event="client-fanfare-state", data={"typing": False})
        while (updated := await bob.event(room, "fanfare:member_updated"))["data"]["user_id"] != "ann":
            pass
        assert updated["data"]["user_info"] == {"name": "Ann", "state": {"typing": False}}

        # The connection reports what it passes to the channel, and would report an error or another state.
        passed = [await cem.next()]
        while passed[-1].get("event") != "fanfare:member_updated" or passed[-1]["data"]["user_id"] != "ann":
            passed.append(await cem.next())
        assert {report["what"] for report in passed} == {"event"}
        names = [report["event"] for report in passed if not report["event"].startswith("pusher")]
        assert names == ["message", *notices, "last", "fanfare:member_updated", "fanfare:member_updated"]
        members = (await cem.members(room))["members"]
        assert members == {user: {"name": user.title()} for user in ("ann", "bob", "cem")}
        await cem.do("trigger", channel=room, event="client-marker", data={"n": 1})
        assert (await bob.event(room, "client-marker"))["data"] == {"n": 1}


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
