"""Webhooks of servers with four workers, to a receiver that fails in every way."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.harness import calls, receivers, sdk, servers, sockets, waiting

Name = Callable[[str], str]

SOON = 10.0  # seconds for a delivery without a retry
LATER = 60.0  # seconds for a delivery with several retries
DEBOUNCE = 3.0


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> servers.Server:
    deployment = fleet.deployment(FANFARE_WEBHOOKS_ALLOW_PRIVATE="1", FANFARE_WEBHOOKS_TIMEOUT="1")
    deployment.shell("Application.objects.update(subscription_counts=True)")
    return fleet.start("gunicorn", deployment)


@pytest.fixture
def receiver() -> Iterator[receivers.Receiver]:
    with receivers.receiver() as made:
        yield made


@pytest.fixture
def told(server: servers.Server, receiver: receivers.Receiver) -> Iterator[receivers.Receiver]:
    """A receiver for the application's webhooks during one test."""
    add(server, receiver.url)
    yield receiver
    remove(server)


def add(server: servers.Server, url: str, **values: Any) -> None:
    server.deployment.shell(
        "from fanfare.applications.models import WebhookEndpoint\n"
        f"application = Application.objects.get(app_id={server.application.id!r})\n"
        f"WebhookEndpoint.objects.create(application=application, url={url!r}, **{values!r})"
    )


def remove(server: servers.Server) -> None:
    server.deployment.shell(
        "from fanfare.applications.models import WebhookEndpoint\nWebhookEndpoint.objects.all().delete()"
    )


def rows(server: servers.Server) -> list[dict[str, Any]]:
    """The delivery log, as the admin shows it."""
    printed = server.deployment.shell(
        "import json\nfrom fanfare.webhooks.models import Delivery\n"
        "fields = ('event', 'channel', 'state', 'attempts', 'status', 'error')\n"
        "print(json.dumps(list(Delivery.objects.order_by('id').values(*fields))))"
    )
    return json.loads(printed)


async def join(socket: sockets.Socket, channel: str) -> None:
    """Subscribe; other frames may come before the success."""
    await socket.request_subscription(channel)
    await socket.skip_to("pusher_internal:subscription_succeeded", channel)


def check(server: servers.Server, request: receivers.Request) -> dict[str, Any]:
    """Verify a request with the vendor's SDK, which also rejects a `time_ms` older than five minutes."""
    assert request.headers["Content-Type"] == "application/json"
    valid = sdk.client(server).validate_webhook(
        request.headers["X-Pusher-Key"], request.headers["X-Pusher-Signature"], request.body.decode()
    )
    assert valid is not None
    return valid


async def until(condition: Callable[[], object], within: float, what: str) -> None:
    async def holds() -> bool:
        return bool(condition())

    await waiting.until_async(holds, within, what)


async def test_every_type_is_delivered_signed_with_one_event_per_request(
    server: servers.Server, told: receivers.Receiver, name: Name
) -> None:
    room, secret, news = name("presence-room"), name("private-chat"), name("cache-news")
    ann = {"user_id": "ann", "user_info": {"name": "Ann"}}
    async with sockets.connect(server) as one, sockets.connect(server) as two:
        await one.subscribe(room, member=ann)
        await two.subscribe(room, member={"user_id": "ben"})
        await one.trigger(room, "client-typing", {"on": True})
        await two.skip_to("client-typing", room)
        await join(two, secret)
        await two.trigger(secret, "client-text", "just text")
        await join(one, news)
        await until(lambda: told.events("client_event", secret), SOON, "the last event was delivered")
        await until(lambda: told.events("cache_miss", news), SOON, "the cache miss was delivered")
        sender = one.socket_id
        await one.unsubscribe(room)
        await until(lambda: told.events("member_removed", room), SOON, "the leave was delivered")
    await until(lambda: told.events("channel_vacated", room), SOON, "channel_vacated was delivered")

    assert {"name": "subscription_count", "channel": news, "subscription_count": 1} in told.events(channel=news)
    assert told.events(channel=room) == [
        {"name": "channel_occupied", "channel": room},
        {"name": "member_added", "channel": room, "user_id": "ann"},
        {"name": "member_added", "channel": room, "user_id": "ben"},
        {
            "name": "client_event",
            "channel": room,
            "event": "client-typing",
            "data": '{"on":true}',
            "socket_id": sender,
            "user_id": "ann",
        },
        {"name": "member_removed", "channel": room, "user_id": "ann"},
        *told.events(channel=room)[5:],
    ]
    assert {event["name"] for event in told.events(channel=room)[5:]} == {"member_removed", "channel_vacated"}
    [text] = told.events("client_event", secret)
    assert text["data"] == "just text"
    assert "user_id" not in text
    for request in told.requests:
        assert len(check(server, request)["events"]) == 1


async def test_reconnect_within_three_seconds_sends_no_webhook(
    server: servers.Server, told: receivers.Receiver, name: Name
) -> None:
    channel, other = name("presence-flap"), name("other")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel, member={"user_id": "ann"})
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel, member={"user_id": "ann"})
        await socket.subscribe(other)
        await socket.unsubscribe(other)
        await until(lambda: told.events("channel_vacated", other), SOON, "a later leave was delivered")
        assert [event["name"] for event in told.events(channel=channel)] == ["channel_occupied", "member_added"]


async def test_batch_contains_several_events(server: servers.Server, receiver: receivers.Receiver, name: Name) -> None:
    prefix = name("batched")
    await asyncio.to_thread(
        add, server, receiver.url, batching=True, channel_prefix=prefix, event_types=["channel_occupied"]
    )
    try:
        async with sockets.connect(server) as socket:
            for number in range(40):
                await socket.request_subscription(f"{prefix}-{number}")
            await until(lambda: len(receiver.events()) == 40, SOON, "all events were delivered")
        assert len(receiver.requests) < 20
        for request in receiver.requests:
            check(server, request)
    finally:
        await asyncio.to_thread(remove, server)


async def test_no_webhook_is_lost_or_reordered_by_receiver_failures_and_a_killed_server(
    fleet: servers.Fleet, receiver: receivers.Receiver, name: Name
) -> None:
    """The receiver answers 500, hangs, resets and redirects; meanwhile all processes of the server are killed."""
    deployment = fleet.deployment(FANFARE_WEBHOOKS_ALLOW_PRIVATE="1", FANFARE_WEBHOOKS_TIMEOUT="1")
    server = fleet.start("gunicorn", deployment)
    add(server, receiver.url, event_types=["client_event"])
    turn = itertools.count()

    def answer(handler: BaseHTTPRequestHandler, events: list[dict[str, Any]]) -> bool:
        if handler.path == "/elsewhere":
            return receivers.accept(handler, events)
        failures = [receivers.refuse, receivers.accept, receivers.reset, receivers.accept, receivers.hang]
        failures += [lambda handler, _: receivers.say(handler, 307, Location="/elsewhere")]
        return failures[next(turn) % len(failures)](handler, events)

    receiver.answer = answer
    channels = [name("private-a"), name("private-b"), name("private-c")]
    sent: dict[str, list[str]] = {channel: [] for channel in channels}

    async def speak(socket: sockets.Socket, first: int) -> None:
        for number in range(first, first + 5):
            for channel in channels:
                await socket.trigger(channel, "client-count", str(number))
                sent[channel].append(str(number))
        await socket.send({"event": "pusher:ping", "data": {}})
        await socket.skip_to("pusher:pong")

    async with sockets.connect(server) as socket, sockets.connect(server) as listener:
        for channel in channels:
            await socket.subscribe(channel)
            await listener.subscribe(channel)
        await speak(socket, 0)
        # A subscriber received it, so it is in the log and survives the kill.
        heard = [await listener.receive() for _ in range(15)]
        assert {frame.event for frame in heard} == {"client-count"}
        await until(lambda: len(receiver.requests) >= 3, SOON, "some requests were made")
        await asyncio.to_thread(server.kill)
    server = await asyncio.to_thread(fleet.start, "gunicorn", deployment)
    async with sockets.connect(server) as socket:
        for channel in channels:
            await socket.subscribe(channel)
        await speak(socket, 5)
        await until(
            lambda: all(first_time(receiver, channel) == sent[channel] for channel in channels),
            LATER,
            "every event was accepted, in order",
        )
    for request in receiver.accepted:
        check(server, request)
    assert len(receiver.requests) > len(receiver.accepted)
    await asyncio.to_thread(server.stop)


def first_time(receiver: receivers.Receiver, channel: str) -> list[str]:
    """The accepted events without duplicates: a server that dies before it records a response sends again."""
    data = [event["data"] for event in receiver.events("client_event", channel)]
    return [value for value, _ in itertools.groupby(data)]


async def test_deliveries_continue_after_each_worker_was_killed(
    server: servers.Server, told: receivers.Receiver, name: Name
) -> None:
    """One of them delivers; each is killed once."""
    for pid in server.workers():
        channel = name("after")
        await asyncio.to_thread(kill_one, server, pid)
        async with sockets.connect(server) as socket:
            await socket.subscribe(channel)
            await until(
                lambda channel=channel: told.events("channel_occupied", channel), SOON, "another worker took over"
            )


def kill_one(server: servers.Server, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    server.wait_until_ready()


async def test_private_address_is_refused_in_every_notation(
    fleet: servers.Fleet, receiver: receivers.Receiver, name: Name
) -> None:
    server = fleet.start("uvicorn")
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    for host in ("127.0.0.1", "localhost", "2130706433", "0", "[::1]", "[::ffff:127.0.0.1]"):
        add(server, f"http://{host}:{port}/hook")
    words = ("FANFARE_WEBHOOKS_ALLOW_PRIVATE", "is not valid")
    channel = name("refused")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)

        async def refused() -> bool:
            found = await asyncio.to_thread(rows, server)
            return len(found) == 6 and all(any(word in row["error"] for word in words) for row in found)

        await waiting.until_async(refused, SOON, "six endpoints were refused")
    assert receiver.requests == []
    await asyncio.to_thread(server.stop)


async def test_publishing_sends_no_webhook(server: servers.Server, told: receivers.Receiver, name: Name) -> None:
    channel = name("quiet")
    await asyncio.to_thread(calls.publish, server, channel, "created", "{}")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        await until(lambda: len(told.events(channel=channel)) == 2, SOON, "the subscription was delivered")
        assert [event["name"] for event in told.events(channel=channel)] == ["channel_occupied", "subscription_count"]
