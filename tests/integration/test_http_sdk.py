"""The HTTP API with the vendor's Python SDK."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Callable

import pusher
import pytest
from pusher.errors import PusherBadAuth, PusherBadRequest

from tests.harness import calls, sdk, servers, sockets, waiting

Name = Callable[[str], str]


async def test_triggered_event_reaches_a_subscriber_unchanged(
    server: servers.Server, api: pusher.Pusher, name: Name
) -> None:
    channel = name("news")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        answer = await asyncio.to_thread(api.trigger, channel, "created", {"id": 7, "title": "Ärger, 日本, 🎺"})
        frame = await socket.expect("created", channel)
    assert answer == {}
    assert isinstance(frame.data, str)
    assert frame.decoded == {"id": 7, "title": "Ärger, 日本, 🎺"}


async def test_trigger_reaches_several_channels(server: servers.Server, api: pusher.Pusher, name: Name) -> None:
    channels = [name("news") for _ in range(5)]
    async with sockets.connect(server) as socket:
        for channel in channels:
            await socket.subscribe(channel)
        await asyncio.to_thread(api.trigger, channels, "created", {})
        received = {(await socket.receive()).channel for _ in channels}
    assert received == set(channels)


async def test_excluded_socket_gets_no_event_and_other_sockets_do(
    server: servers.Server, api: pusher.Pusher, name: Name
) -> None:
    channel = name("news")
    async with sockets.connect(server) as sender, sockets.connect(server) as neighbour:
        await sender.subscribe(channel)
        await neighbour.subscribe(channel)
        await asyncio.to_thread(api.trigger, channel, "first", {}, sender.socket_id)
        await asyncio.to_thread(api.trigger, channel, "second", {})
        await neighbour.expect("first", channel)
        await neighbour.expect("second", channel)
        await sender.expect("second", channel)


async def test_batch_is_delivered_in_order(server: servers.Server, api: pusher.Pusher, name: Name) -> None:
    channel = name("news")
    batch = [{"channel": channel, "name": f"event-{n}", "data": str(n)} for n in range(10)]
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        answer = await asyncio.to_thread(api.trigger_batch, batch)
        received = [(await socket.receive()).event for _ in batch]
    assert answer == {}
    assert received == [f"event-{n}" for n in range(10)]


async def test_channel_queries_return_counts_and_users(server: servers.Server, api: pusher.Pusher, name: Name) -> None:
    room = name("presence-room")
    news = name("news")
    async with (
        sockets.connect(server) as ann,
        sockets.connect(server) as ann_again,
        sockets.connect(server) as bob,
    ):
        await ann.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Ann"}})
        await ann_again.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Ann"}})
        await bob.subscribe(room, member={"user_id": 7})
        await bob.subscribe(news)

        channels = await asyncio.to_thread(api.channels_info, room, ["user_count"])
        assert channels == {"channels": {room: {"user_count": 2}}}

        one = await asyncio.to_thread(api.channel_info, room, ["user_count", "subscription_count"])
        assert one == {"occupied": True, "user_count": 2, "subscription_count": 3}

        plain = await asyncio.to_thread(api.channel_info, news)
        assert plain["occupied"] is True

        users = await asyncio.to_thread(api.users_info, room)
        assert sorted(user["id"] for user in users["users"]) == ["7", "ann"]

    async def is_vacated() -> bool:
        return bool(await asyncio.to_thread(api.channel_info, room) == {"occupied": False})

    await waiting.until_async(is_vacated, 5.0, "the channel is vacated")


async def test_trigger_can_request_counts(server: servers.Server, name: Name) -> None:
    room = name("presence-room")
    async with sockets.connect(server) as socket:
        await socket.subscribe(room, member={"user_id": "1"})
        with calls.Caller(server) as caller:
            answer = await asyncio.to_thread(
                caller.publish, room, "created", "{}", info="user_count,subscription_count"
            )
        await socket.expect("created", room)
    assert answer.body == {"channels": {room: {"user_count": 1, "subscription_count": 1}}}


def test_users_of_a_public_channel_is_a_bad_request(api: pusher.Pusher) -> None:
    with pytest.raises((PusherBadRequest, ValueError)):
        api.users_info("news")


def test_wrong_secret_is_refused(server: servers.Server) -> None:
    client = sdk.client(server, dataclasses.replace(server.application, secret="not the secret"))
    with pytest.raises(PusherBadAuth):
        client.trigger("news", "created", {})


async def test_channel_signature_of_the_sdk_is_accepted(server: servers.Server, api: pusher.Pusher, name: Name) -> None:
    private, presence = name("private-orders"), name("presence-room")
    async with sockets.connect(server) as socket:
        signed = api.authenticate(channel=private, socket_id=socket.socket_id)
        await socket.send({"event": "pusher:subscribe", "data": {"channel": private, **signed}})
        await socket.expect("pusher_internal:subscription_succeeded", private)

        member = {"user_id": "42", "user_info": {"name": "Ann"}}
        signed = api.authenticate(channel=presence, socket_id=socket.socket_id, custom_data=member)
        await socket.send({"event": "pusher:subscribe", "data": {"channel": presence, **signed}})
        frame = await socket.expect("pusher_internal:subscription_succeeded", presence)
    assert frame.decoded == {"presence": {"ids": ["42"], "hash": {"42": {"name": "Ann"}}, "count": 1}}


async def test_data_encrypted_by_the_sdk_is_delivered_unchanged(server: servers.Server, name: Name) -> None:
    master_key = base64.b64encode(bytes(32)).decode()
    encrypting = sdk.client(server, encryption_master_key_base64=master_key)
    channel = name("private-encrypted-orders")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        await asyncio.to_thread(encrypting.trigger, channel, "created", {"secret": "only for subscribers"})
        frame = await socket.expect("created", channel)
    assert set(json.loads(frame.data)) == {"nonce", "ciphertext"}
    assert "only for subscribers" not in frame.data
