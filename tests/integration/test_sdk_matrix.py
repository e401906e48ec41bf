"""Every Pusher SDK on npm and PyPI, with four workers: each backend SDK with each client SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.harness import backends, calls, pusherjs, receivers, servers, sockets, waiting
from tests.integration.test_pysher import Subscribe, Subscription, subscribing
from tests.unit.docs import pages

Name = Callable[[str], str]

ANN: dict[str, Any] = {"user_id": "ann", "user_info": {"name": "Ann"}}
BOB: dict[str, Any] = {"user_id": "bob", "user_info": {"name": "Bob"}}


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> servers.Server:
    deployment = fleet.deployment(FANFARE_WEBHOOKS_ALLOW_PRIVATE="1")
    deployment.shell("Application.objects.update(subscription_counts=True)")
    return fleet.start("gunicorn", deployment)


@pytest.fixture
async def node(pusher_js: pusherjs.Runtime) -> AsyncIterator[pusherjs.Node]:
    async with pusher_js.node() as node:
        yield node


@pytest.fixture(params=["PyPI", "npm"])
async def backend(request: pytest.FixtureRequest, server: servers.Server, node: pusherjs.Node) -> backends.Backend:
    if request.param == "PyPI":
        return backends.PyPi(server)
    return backends.Npm(await node.backend(server, master_key=backends.MASTER_KEY))


@pytest.fixture
def subscribe(server: servers.Server) -> Iterator[Subscribe]:
    """Subscribe with Pysher."""
    with subscribing(server) as begin:
        yield begin


# -- publishing and queries --------------------------------------------------------------------------------------------


async def test_backend_publishes_to_several_channels_except_to_the_sender(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    one, other = name("news"), name("news")
    sender, listener = await node.connected(server), await node.connected(server)
    for client in (sender, listener):
        for channel in (one, other):
            await client.subscribe(channel)
    assert await backend.trigger([one, other], "created", {"title": "日本 🎺"}, sender.socket_id) == {}
    for channel in (one, other):
        assert (await listener.event(channel, "created"))["data"] == {"title": "日本 🎺"}
    assert await backend.trigger(one, "later", {}) == {}
    while (happening := await sender.next(what="event", channel=one))["event"] != "later":
        assert happening["event"] != "created"


async def test_backend_publishes_a_batch_in_order(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    channel = name("news")
    client = await node.connected(server)
    await client.subscribe(channel)
    batch = [{"channel": channel, "name": "tick", "data": json.dumps(number)} for number in range(10)]
    assert await backend.trigger_batch(batch) == {}
    assert [(await client.event(channel, "tick"))["data"] for _ in batch] == list(range(10))


async def test_backend_queries_channels_and_users(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    room = name("presence-room")
    for member in (ANN, ANN, BOB):
        await (await node.connected(server, member=member)).subscribe(room)
    assert await backend.users(room) == ["ann", "bob"]
    expected = {"occupied": True, "user_count": 2, "subscription_count": 3}
    assert await backend.channel(room, "user_count", "subscription_count") == expected
    assert await backend.channels(room, "user_count") == {"channels": {room: {"user_count": 2}}}
    assert await backend.channel(name("news")) == {"occupied": False}


async def test_cache_channel_keeps_the_event_of_a_backend(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    channel = name("private-cache-score")
    early = await node.connected(server)
    await early.subscribe(channel)
    await early.event(channel, "pusher:cache_miss")
    await backend.trigger(channel, "score", {"home": 1})
    late = await node.connected(server)
    await late.subscribe(channel)
    assert (await late.event(channel, "score"))["data"] == {"home": 1}
    cache = (await backend.channel(channel, "cache"))["cache"]
    assert json.loads(cache["data"]) == {"home": 1}
    assert 1700 < cache["ttl"] <= 1800  # the default


async def test_backend_with_a_wrong_key_is_refused(server: servers.Server, node: pusherjs.Node) -> None:
    forger = await node.backend(server, key="no-such-key")
    with pytest.raises(pusherjs.Refused) as refused:
        await forger.call("trigger", "news", "created", {})
    assert refused.value.status == 401


# -- pusher-js ---------------------------------------------------------------------------------------------------------


async def test_pusher_js_decrypts_events_of_a_backend(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    channel = name("private-encrypted-orders")
    reader = await node.connected(server, master_key=backends.MASTER_KEY)
    await reader.subscribe(channel)
    await reader.do("bind", channel=channel, event="created")
    async with sockets.connect(server) as eavesdropper:  # may subscribe, but does not have the key
        await eavesdropper.request_subscription(channel)
        await eavesdropper.skip_to("pusher_internal:subscription_succeeded", channel)
        await backend.trigger(channel, "created", {"secret": "for two"})
        assert (await reader.next(what="bound", event="created"))["data"] == {"secret": "for two"}
        passed_on = await eavesdropper.skip_to("created", channel)
    assert set(json.loads(passed_on.data)) == {"nonce", "ciphertext"}


async def test_pusher_js_gets_subscription_counts(server: servers.Server, node: pusherjs.Node, name: Name) -> None:
    channel = name("private-orders")
    first = await node.connected(server)
    await first.subscribe(channel)
    assert (await first.event(channel, "pusher:subscription_count"))["data"] == {"subscription_count": 1}
    second = await node.connected(server)
    await second.subscribe(channel)
    assert (await first.event(channel, "pusher:subscription_count"))["data"] == {"subscription_count": 2}
    await second.do("unsubscribe", channel=channel)
    assert (await first.event(channel, "pusher:subscription_count"))["data"] == {"subscription_count": 1}


async def signed_in(node: pusherjs.Node, server: servers.Server, user_id: str, **user: Any) -> pusherjs.Client:
    client = await node.connected(server, user={"id": user_id, **user})
    await client.do("signin")
    await client.next(what="event", channel=None, event="pusher:signin_success")
    return client


async def has_its_user_channel(server: servers.Server, user_id: str, connections: int = 1) -> None:
    """Wait until the SDK has subscribed to its user's channel, which it does after the sign-in.

    The backend SDKs cannot query it, because they do not escape the `#`.
    """
    channel = f"#server-to-user-{user_id}"

    def count() -> int:
        with calls.Caller(server) as caller:
            answer = caller.signed("GET", "channels", query={"filter_by_prefix": channel, "info": "subscription_count"})
        return int(answer.body["channels"].get(channel, {}).get("subscription_count", 0))

    async def all_joined() -> bool:
        return await asyncio.to_thread(count) == connections

    await waiting.until_async(all_joined, sockets.PATIENCE, "the user's channel is joined")


async def test_backend_sends_to_a_signed_in_user(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    ann, bob = name("ann"), name("bob")
    tabs = [await signed_in(node, server, ann) for _ in range(2)]
    other = await signed_in(node, server, bob)
    await has_its_user_channel(server, ann, connections=2)
    await has_its_user_channel(server, bob)
    assert await backend.send_to_user(ann, "paid", {"id": 7}) == {}
    for tab in tabs:
        assert (await tab.next(what="user", event="paid"))["data"] == {"id": 7}
    await backend.send_to_user(bob, "marker", {})
    happening = await other.next(what="user")
    while happening["event"].startswith("pusher"):
        happening = await other.next(what="user")
    assert happening["event"] == "marker"


async def test_backend_terminates_the_connections_of_one_user_only(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    ann, bob, room = name("ann"), name("bob"), name("presence-room")
    tabs = [await signed_in(node, server, ann) for _ in range(2)]
    other = await signed_in(node, server, bob)
    namesake = await node.connected(server, member={"user_id": ann})  # a member with that id, but not signed in
    await namesake.subscribe(room)
    assert await backend.terminate(ann) == {}
    for tab in tabs:
        await tab.state("disconnected")  # pusher-js does not reconnect after 4009
    for client in (other, namesake):
        await client.subscribe(name("news"))


async def test_watchlist_reports_users_going_online_and_offline(
    server: servers.Server, node: pusherjs.Node, name: Name
) -> None:
    ann, bob, cy = name("ann"), name("bob"), name("cy")
    await signed_in(node, server, bob)
    watcher = await signed_in(node, server, ann, watchlist=[bob, cy])
    assert (await watcher.next(what="watchlist", event="online"))["user_ids"] == [bob]
    friend = await signed_in(node, server, cy)
    assert (await watcher.next(what="watchlist", event="online"))["user_ids"] == [cy]
    await friend.do("disconnect")
    gone = await watcher.next(what="watchlist", event="offline")
    while gone["user_ids"] != [cy]:
        gone = await watcher.next(what="watchlist", event="offline")


async def test_signed_in_user_joins_a_presence_channel_as_that_user(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    ann, room = name("ann"), name("presence-room")
    client = await signed_in(node, server, ann, user_info={"name": "Ann"})
    succeeded = await client.subscribe(room)  # the backend signs no channel_data
    assert succeeded["data"]["me"] == {"id": ann, "info": {"name": "Ann"}}
    assert await backend.users(room) == [ann]


# -- Laravel Echo ------------------------------------------------------------------------------------------------------


async def joined(echo: pusherjs.Client, kind: str, channel: str, **more: Any) -> None:
    await echo.do("join", kind=kind, name=channel, **more)
    await echo.next(what="subscribed", name=channel)


@pytest.mark.parametrize("broadcaster", ["pusher", "reverb"])
async def test_echo_gets_events_of_every_channel_type(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, broadcaster: str, name: Name
) -> None:
    channel = name("orders")
    echo = await node.echo(server, member=ANN, master_key=backends.MASTER_KEY, broadcaster=broadcaster)
    prefixes = {"public": "", "private": "private-", "encrypted": "private-encrypted-", "presence": "presence-"}
    for kind, prefix in prefixes.items():
        await joined(echo, kind, channel, listen=["OrderShipped"])
        await backend.trigger(prefix + channel, "App\\Events\\OrderShipped", {"kind": kind})
        heard = await echo.next(what="heard", name=channel)
        assert (heard["event"], heard["data"]) == ("OrderShipped", {"kind": kind})


async def test_echo_gets_members_joins_and_leaves(server: servers.Server, node: pusherjs.Node, name: Name) -> None:
    room = name("room")
    ann, bob = await node.echo(server, member=ANN), await node.echo(server, member=BOB)
    await ann.do("join", kind="presence", name=room)
    assert (await ann.next(what="here"))["members"] == [{"name": "Ann"}]
    await bob.do("join", kind="presence", name=room)
    members = (await bob.next(what="here"))["members"]
    assert sorted(member["name"] for member in members) == ["Ann", "Bob"]
    assert (await ann.next(what="joining"))["member"] == {"name": "Bob"}
    await bob.do("leave", name=room)
    assert (await ann.next(what="leaving"))["member"] == {"name": "Bob"}


@pytest.mark.parametrize("kind", ["private", "presence"])
async def test_whisper_of_echo_reaches_other_subscribers(
    server: servers.Server, node: pusherjs.Node, kind: str, name: Name
) -> None:
    channel = name("chat")
    ann, bob = await node.echo(server, member=ANN), await node.echo(server, member=BOB)
    for echo in (ann, bob):
        await joined(echo, kind, channel, whisper=["typing"])
    await ann.do("whisper", kind=kind, name=channel, event="typing", data={"on": True})
    assert (await bob.next(what="whispered", event="typing"))["data"] == {"on": True}


async def test_refusal_reaches_the_error_handler_of_echo(
    server: servers.Server, node: pusherjs.Node, name: Name
) -> None:
    room = name("room")
    echo = await node.echo(server, member={"user_id": ""})
    await echo.do("join", kind="presence", name=room)
    refused = await echo.next(what="refused", name=room)
    assert refused["error"]["status"] == 401


async def test_echo_signs_in_and_gets_events_for_its_user(
    server: servers.Server, node: pusherjs.Node, backend: backends.Backend, name: Name
) -> None:
    ann = name("ann")
    echo = await node.echo(server, user={"id": ann})
    await echo.do("echo_signin")
    await has_its_user_channel(server, ann)
    await backend.send_to_user(ann, "paid", {"id": 7})
    assert (await echo.next(what="user", event="paid"))["data"] == {"id": 7}


# -- Pysher ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["news", "private-news", "presence-news", "cache-news", "private-cache-news"])
async def test_pysher_gets_events_of_a_backend(
    subscribe: Subscribe, backend: backends.Backend, name: Name, prefix: str
) -> None:
    channel = name(prefix)
    member = ANN if prefix.startswith("presence-") else None
    subscription: Subscription = await asyncio.to_thread(subscribe, channel, "created", member=member)
    await backend.trigger(channel, "created", {"id": 7})
    assert await asyncio.to_thread(subscription.next, "created") == {"id": 7}


async def test_pysher_and_pusher_js_are_members_of_one_channel(
    server: servers.Server, node: pusherjs.Node, subscribe: Subscribe, name: Name
) -> None:
    room = name("presence-room")
    client = await node.connected(server, member=ANN)
    await client.subscribe(room)
    subscription: Subscription = await asyncio.to_thread(subscribe, room, member=BOB)
    assert sorted(subscription.snapshot["presence"]["ids"]) == ["ann", "bob"]
    assert (await client.event(room, "pusher:member_added"))["data"]["id"] == "bob"


# -- webhooks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver(server: servers.Server) -> Iterator[receivers.Receiver]:
    """A webhook endpoint of the application for all seven types."""
    with receivers.receiver() as made:
        server.deployment.shell(
            "from fanfare.applications.models import WebhookEndpoint\n"
            f"WebhookEndpoint.objects.create(application=Application.objects.get(), url={made.url!r})"
        )
        yield made
        server.deployment.shell(
            "from fanfare.applications.models import WebhookEndpoint\nWebhookEndpoint.objects.all().delete()"
        )


def by_hand(request: receivers.Request, server: servers.Server) -> list[dict[str, Any]] | None:
    """Verify a webhook without an SDK, as documented."""
    page = pages.ROOT / "docs/how-to/webhooks.md"
    (code,) = [block.text for block in pages.blocks(page) if block.language == "python"]
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)
    key, signature = request.headers["X-Pusher-Key"], request.headers["X-Pusher-Signature"]
    try:
        events: list[dict[str, Any]] = names["events_of"](
            request.body, key, signature, {server.application.key: server.application.secret}
        )
    except PermissionError:
        return None
    return events


async def test_backend_accepts_webhooks_and_rejects_forged_ones(
    server: servers.Server,
    node: pusherjs.Node,
    receiver: receivers.Receiver,
    backend: backends.Backend,
    name: Name,
) -> None:
    room = name("presence-room")
    ann = await node.connected(server, member=ANN)
    bob = await node.connected(server, member=BOB)
    await ann.subscribe(room)
    await bob.subscribe(room)
    await ann.do("trigger", channel=room, event="client-typing", data={"on": True})

    async def all_there() -> bool:
        return {"channel_occupied", "member_added", "client_event"} <= {
            event["name"] for event in receiver.events(channel=room)
        }

    await waiting.until_async(all_there, sockets.PATIENCE, "the webhooks came")
    for request in receiver.accepted:
        assert await backend.webhook(request) == request.events
        forged = request._replace(body=request.body.replace(b"ann", b"bob"))
        if forged != request:
            assert await backend.webhook(forged) is None
            assert by_hand(forged, server) is None
        assert by_hand(request, server) == request.events
    (typing,) = receiver.events("client_event", room)
    assert json.loads(typing["data"]) == {"on": True}
    assert (typing["event"], typing["socket_id"], typing["user_id"]) == ("client-typing", ann.socket_id, "ann")
