"""Bad input gets the protocol's answer and does not affect other clients: in every test a neighbour keeps receiving."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.harness import calls, servers, signing, sockets

Name = Callable[[str], str]

FRAME_LIMIT = 131_072  # bytes, the default of FANFARE_MAX_FRAME_BYTES


@pytest.fixture(params=["uvicorn", "daphne"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    """uvicorn and daphne have different transports; the number of workers does not matter here."""
    chosen: servers.Server = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(autouse=True)
async def neighbour(server: servers.Server, name: Name) -> AsyncIterator[sockets.Socket]:
    """A subscriber that receives the events published after the bad input, and nothing else."""
    channel = name("neighbour")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        yield socket
        await asyncio.to_thread(calls.publish, server, channel, "still-here", "{}")
        await socket.expect("still-here", channel)


def error(frame: sockets.Frame) -> dict[str, Any]:
    """The data of a pusher:error. It must be an object, because Swift SDKs drop other values."""
    assert (frame.event, frame.channel) == ("pusher:error", None), frame
    assert isinstance(frame.data, dict)
    assert set(frame.data) == {"code", "message"}
    assert isinstance(frame.data["message"], str)
    return frame.data


# -- connections ---------------------------------------------------------------------------------------------------


async def test_unknown_key_is_accepted_and_closed_with_error_4001(server: servers.Server) -> None:
    """pusher-js treats a refused upgrade as a network error and would retry forever."""
    async with sockets.open_raw(server, server.socket_url("no-such-key")) as socket:
        assert error(await socket.receive())["code"] == 4001
        assert await socket.closed() == 4001


async def test_disabled_application_gets_error_4003_and_is_closed(server: servers.Server, name: Name) -> None:
    application = await asyncio.to_thread(server.deployment.create_application, name("off"), "--disabled")

    async with asyncio.timeout(15):
        while True:  # the key is unknown until the running server has loaded the application
            async with sockets.open_raw(server, server.socket_url(application.key)) as socket:
                code = error(await socket.receive())["code"]
                assert await socket.closed() == code
            if code != 4001:
                break
    assert code == 4003


async def test_unknown_path_is_closed_with_4005(server: servers.Server) -> None:
    url = f"ws://{servers.HOST}:{server.port}/no/such/place"
    async with sockets.open_raw(server, url) as socket:
        assert error(await socket.receive())["code"] == 4005
        assert await socket.closed() == 4005


@pytest.mark.parametrize("version", ["1", "2", "3"])
async def test_protocol_version_below_4_is_closed_with_4007(server: servers.Server, version: str) -> None:
    async with sockets.open_raw(server, server.socket_url(query=f"protocol={version}")) as socket:
        assert error(await socket.receive())["code"] == 4007
        assert await socket.closed() == 4007


@pytest.mark.parametrize("query", ["protocol=4", "protocol=5", "protocol=6", "protocol=7", "", "flash=true&x=%00"])
async def test_query_strings_of_sdks_are_accepted(server: servers.Server, query: str) -> None:
    async with sockets.connect(server, url=server.socket_url(query=query)) as socket:
        await socket.expect_silence()


async def test_path_with_a_prefix_is_accepted(server: servers.Server) -> None:
    """The option `wsPath` of pusher-js is a prefix of /app/."""
    url = f"ws://{servers.HOST}:{server.port}/some/prefix/app/{server.application.key}?protocol=7"
    async with sockets.connect(server, url=url) as socket:
        await socket.expect_silence()


# -- frames --------------------------------------------------------------------------------------------------------

MALFORMED = {
    "not JSON": "{",
    "empty": "",
    "a number": "7",
    "null": "null",
    "a list": '[{"event": "pusher:ping"}]',
    "a string": '"pusher:ping"',
    "no event": '{"data": {}}',
    "an event that is not a string": '{"event": 7}',
    "an unknown pusher event": '{"event": "pusher:no-such-thing", "data": {}}',
    "a server's event": '{"event": "pusher_internal:member_added", "channel": "presence-x", "data": "{}"}',
    "an event that is neither": '{"event": "created", "channel": "news", "data": {}}',
    "deep nesting": '{"event": "pusher:subscribe", "data": ' + "[" * 5_000 + "]" * 5_000 + "}",
    "a huge integer": '{"event": "pusher:subscribe", "data": {"channel": 1' + "0" * 5_000 + "}}",
    "NaN": '{"event": "pusher:subscribe", "data": {"channel": NaN}}',
    "a lone surrogate": '{"event": "pusher:subscribe", "data": {"channel": "\\ud800"}}',
    "a subscribe without data": '{"event": "pusher:subscribe"}',
    "a subscribe without a channel": '{"event": "pusher:subscribe", "data": {}}',
    "a subscribe to a number": '{"event": "pusher:subscribe", "data": {"channel": 7}}',
    "a subscribe to null": '{"event": "pusher:subscribe", "data": {"channel": null}}',
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_frame_gets_an_error_and_keeps_the_connection(server: servers.Server, text: str) -> None:
    if text == "" and server.command == "daphne":
        text = " "  # daphne drops empty messages
    async with sockets.connect(server) as socket:
        await socket.send_text(text)
        assert error(await socket.receive())["message"]
        await socket.send({"event": "pusher:ping"})
        await socket.skip_to("pusher:pong")


async def test_binary_frame_gets_an_error_and_keeps_the_connection(server: servers.Server) -> None:
    async with sockets.connect(server) as socket:
        await socket.websocket.send(b'{"event": "pusher:ping"}')
        assert error(await socket.receive())["code"] is None
        await socket.expect_silence()


async def test_oversize_frame_closes_its_sender_with_1009(server: servers.Server) -> None:
    async with sockets.connect(server) as socket:
        await socket.send_text(json.dumps({"event": "pusher:ping", "data": "x" * FRAME_LIMIT}))
        assert await socket.closed() == 1009


async def test_frame_just_below_the_limit_is_accepted(server: servers.Server) -> None:
    async with sockets.connect(server) as socket:
        await socket.send_text(json.dumps({"event": "pusher:ping", "data": "x" * (FRAME_LIMIT - 200)}))
        await socket.expect("pusher:pong")


async def test_flood_of_errors_gets_few_answers_and_keeps_the_connection(server: servers.Server) -> None:
    async with sockets.connect(server) as socket:
        for _ in range(300):
            await socket.send_text("{")
        await socket.send({"event": "pusher:ping"})
        errors = 0
        while (await socket.receive()).event != "pusher:pong":
            errors += 1
    assert 1 <= errors < 150


@pytest.mark.parametrize("data", ["{}", '"{}"', '""', None])
async def test_pings_of_all_sdks_are_answered(server: servers.Server, data: str | None) -> None:
    async with sockets.connect(server) as socket:
        await socket.send_text(
            '{"event":"pusher:ping"}' if data is None else f'{{"event":"pusher:ping","data":{data}}}'
        )
        pong = await socket.expect("pusher:pong")
    assert pong.data == "{}"


async def test_data_may_be_a_json_string(server: servers.Server, name: Name) -> None:
    channel = name("news")
    async with sockets.connect(server) as socket:
        await socket.send({"event": "pusher:subscribe", "data": json.dumps({"channel": channel})})
        await socket.expect("pusher_internal:subscription_succeeded", channel)


# -- subscriptions -------------------------------------------------------------------------------------------------


async def refusal(socket: sockets.Socket, channel: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both frames of a refused subscription: the first for Java and Swift SDKs, the second for pusher-js and Echo."""
    general = error(await socket.receive())
    specific = await socket.expect("pusher:subscription_error", channel)
    assert set(specific.decoded) == {"type", "error", "status"}
    return general, specific.decoded


@pytest.mark.parametrize("channel", ["private-orders", "presence-room", "private-encrypted-orders"])
async def test_wrong_signature_gets_an_error_without_secrets(server: servers.Server, channel: str) -> None:
    async with sockets.connect(server) as socket:
        member = {"user_id": "1"} if channel.startswith("presence-") else None
        wrong = f"{server.application.key}:{'0' * 64}"
        await socket.request_subscription(channel, auth=wrong, member=member)
        general, specific = await refusal(socket, channel)
        assert general["code"] == 4009
        assert (specific["type"], specific["status"]) == ("AuthError", 401)
        assert f"{socket.socket_id}:{channel}" in general["message"], "the error shows the string that must be signed"
        data = None if member is None else json.dumps(member)
        right = signing.subscription(server.application, socket.socket_id, channel, data).partition(":")[2]
        assert right not in json.dumps([general, specific])
        assert server.application.secret not in json.dumps([general, specific])
        await socket.subscribe(channel, member=member)


@pytest.mark.parametrize("auth", ["", "nonsense", ":", "other-key:" + "0" * 64, "é:ü", "KEY:"])
async def test_malformed_auth_gets_an_error(server: servers.Server, auth: str, name: Name) -> None:
    channel = name("private-orders")
    async with sockets.connect(server) as socket:
        await socket.request_subscription(channel, auth=auth.replace("KEY", server.application.key))
        _, specific = await refusal(socket, channel)
        assert specific["status"] == 401
        await socket.expect_silence()


@pytest.mark.parametrize(
    "channel", ["", "with space", "news/today", "a" * 201, "ünïcode", "new\nline", "#reserved", "#server-to-user-1"]
)
async def test_invalid_channel_name_gets_an_error(server: servers.Server, channel: str) -> None:
    async with sockets.connect(server) as socket:
        await socket.request_subscription(channel)
        assert error(await socket.receive())["message"]
        await socket.send({"event": "pusher:ping"})
        await socket.skip_to("pusher:pong")


async def test_channel_name_of_the_maximum_length_is_accepted(server: servers.Server, name: Name) -> None:
    channel = name("news").ljust(200, "x")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)


async def test_second_subscribe_succeeds_and_events_are_delivered_once(server: servers.Server, name: Name) -> None:
    channel = name("news")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        await socket.subscribe(channel)
        await asyncio.to_thread(calls.publish, server, channel, "created", "{}")
        await socket.expect("created", channel)
        await socket.expect_silence()


async def test_second_subscribe_to_a_presence_channel_adds_no_member(server: servers.Server, name: Name) -> None:
    room = name("presence-room")
    async with sockets.connect(server) as watcher, sockets.connect(server) as socket:
        await watcher.subscribe(room, member={"user_id": "watcher"})
        await socket.subscribe(room, member={"user_id": "ann"})
        again = await socket.subscribe(room, member={"user_id": "ann"})
        assert again.decoded["presence"]["count"] == 2
        await watcher.expect("pusher_internal:member_added", room)
        await asyncio.to_thread(calls.publish, server, room, "marker", "{}")
        await watcher.expect("marker", room)


@pytest.mark.parametrize("user_id", ["", None, True, 1.5, [], {}, "x" * 129])
async def test_member_with_an_invalid_id_gets_an_error(server: servers.Server, user_id: Any, name: Name) -> None:
    room = name("presence-room")
    async with sockets.connect(server) as socket:
        await socket.request_subscription(room, member={"user_id": user_id})
        await refusal(socket, room)
        await socket.expect_silence()


async def test_oversize_member_gets_an_error_with_both_numbers(server: servers.Server, name: Name) -> None:
    room = name("presence-room")
    member = {"user_id": "1", "user_info": {"name": "x" * 3_000}}
    async with sockets.connect(server) as socket:
        await socket.request_subscription(room, member=member)
        general, specific = await refusal(socket, room)
        assert (specific["type"], specific["status"]) == ("LimitReached", 4301)
        assert "2048" in general["message"].replace(",", "").replace("_", "")
        assert str(len(json.dumps(member))) in general["message"].replace(",", "")


async def test_unsubscribe_without_a_subscription_is_ignored(server: servers.Server) -> None:
    async with sockets.connect(server) as socket:
        await socket.send({"event": "pusher:unsubscribe", "data": {"channel": "never-subscribed"}})
        await socket.expect_silence()


# -- client events -------------------------------------------------------------------------------------------------


async def test_client_event_without_a_subscription_is_not_delivered(server: servers.Server, name: Name) -> None:
    channel = name("private-room")
    async with sockets.connect(server) as member, sockets.connect(server) as stranger:
        await member.subscribe(channel)
        await stranger.trigger(channel, "client-intrusion", {})
        error(await stranger.receive())
        await stranger.expect_silence()
        await member.expect_silence()


async def test_client_event_on_a_public_channel_is_refused(server: servers.Server, name: Name) -> None:
    channel = name("news")
    async with sockets.connect(server) as speaker, sockets.connect(server) as listener:
        await speaker.subscribe(channel)
        await listener.subscribe(channel)
        await speaker.trigger(channel, "client-hello", {})
        error(await speaker.receive())
        await listener.expect_silence()


async def test_client_event_cannot_name_another_user(server: servers.Server, name: Name) -> None:
    room = name("presence-room")
    async with sockets.connect(server) as ann, sockets.connect(server) as mallory:
        await ann.subscribe(room, member={"user_id": "ann"})
        await mallory.subscribe(room, member={"user_id": "mallory"})
        await ann.skip_to("pusher_internal:member_added", room)
        await mallory.send({"event": "client-hello", "channel": room, "data": {}, "user_id": "ann"})
        assert (await ann.expect("client-hello", room)).user_id == "mallory"


async def test_client_events_over_the_rate_are_refused_with_4301(server: servers.Server, name: Name) -> None:
    channel = name("private-room")
    async with sockets.connect(server) as speaker:
        await speaker.subscribe(channel)
        for number in range(60):
            await speaker.trigger(channel, "client-hello", {"n": number})
        assert error(await speaker.receive())["code"] == 4301
        await speaker.send({"event": "pusher:ping"})
        await speaker.skip_to("pusher:pong")


# -- the HTTP API --------------------------------------------------------------------------------------------------

EVENT = {"name": "created", "channels": ["news"], "data": "{}"}


def refused(answer: calls.Answer, status: int) -> str:
    """The message of an error response, after checking its format."""
    assert answer.status == status, answer
    assert set(answer.body) >= {"error", "code"}
    assert answer.headers["content-type"] == "application/json"
    return str(answer.body["error"])


@pytest.mark.parametrize(
    "overrides",
    [
        {"auth_signature": "0" * 64},
        {"auth_signature": "ü"},
        {"body_md5": "0" * 32},
        {"auth_timestamp": -700},
        {"auth_timestamp": +700},
        {"auth_timestamp": "yesterday"},
        {"auth_key": "no-such-key"},
    ],
    ids=str,
)
def test_wrongly_signed_request_is_401(server: servers.Server, overrides: dict[str, str | int]) -> None:
    """Numbers are seconds relative to now, because the parameters are created minutes before."""
    overrides = {
        name: str(int(time.time()) + value) if isinstance(value, int) else value for name, value in overrides.items()
    }
    with calls.Caller(server) as caller:
        answer = caller.signed("POST", "events", EVENT, None, **overrides)
        text = refused(answer, 401)
        assert server.application.secret not in text
        assert caller.signed("POST", "events", EVENT).status == 200, "the connection still works"


def test_expired_timestamp_is_401_with_that_reason(server: servers.Server) -> None:
    with calls.Caller(server) as caller:
        answer = caller.signed("POST", "events", EVENT, auth_timestamp=str(int(time.time()) - 700))
    assert "600" in refused(answer, 401)


def test_unsigned_request_is_401(server: servers.Server) -> None:
    with calls.Caller(server) as caller:
        refused(caller.call("POST", f"/apps/{server.application.id}/events", b"{}"), 401)


def test_modified_body_is_401(server: servers.Server) -> None:
    route = f"/apps/{server.application.id}/events"
    body = json.dumps(EVENT).encode()
    with calls.Caller(server) as caller:
        path = signing.path(server.application, "POST", route, body)
        refused(caller.call("POST", path, body.replace(b"created", b"deleted")), 401)


def test_unknown_application_or_route_is_404(server: servers.Server) -> None:
    with calls.Caller(server) as caller:
        refused(caller.call("GET", "/apps/999999999/channels"), 404)
        refused(caller.signed("GET", "no-such-room"), 404)


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        ({"channels": ["news"], "data": "{}"}, 400),
        ({"name": "created", "data": "{}"}, 400),
        ({"name": "created", "channels": [], "data": "{}"}, 400),
        ({"name": "created", "channels": ["news"]}, 400),
        ({**EVENT, "name": "x" * 201}, 400),
        ({**EVENT, "channels": ["with space"]}, 400),
        ({**EVENT, "channels": ["x" * 201]}, 400),
        ({**EVENT, "channels": ["#reserved"]}, 400),
        ({**EVENT, "channels": [f"news-{n}" for n in range(101)]}, 400),
        ({**EVENT, "channels": ["private-encrypted-a", "news"]}, 400),
        ({**EVENT, "socket_id": "not-a-socket-id"}, 400),
        ({**EVENT, "data": "x" * 103_000}, 413),
    ],
)
def test_invalid_event_is_refused(server: servers.Server, payload: object, status: int) -> None:
    with calls.Caller(server) as caller:
        refused(caller.signed("POST", "events", payload), status)
        assert caller.signed("POST", "events", EVENT).status == 200


def test_oversize_event_gets_an_error_with_both_numbers(server: servers.Server) -> None:
    with calls.Caller(server) as caller:
        text = refused(caller.signed("POST", "events", {**EVENT, "data": "x" * 103_000}), 413)
    assert "content of this event" in text
    assert "102400" in text
    assert "103000" in text


def test_batch_with_too_many_events_is_refused(server: servers.Server) -> None:
    batch = [{"name": "created", "channel": "news", "data": "{}"}] * 11
    with calls.Caller(server) as caller:
        text = refused(caller.signed("POST", "batch_events", {"batch": batch}), 400)
    assert "Batch too large" in text


async def test_batch_with_one_invalid_event_publishes_none(server: servers.Server, name: Name) -> None:
    channel = name("news")
    batch = [{"name": "good", "channel": channel, "data": "{}"}, {"name": "bad", "channel": "with space", "data": "{}"}]
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        with calls.Caller(server) as caller:
            refused(await asyncio.to_thread(caller.signed, "POST", "batch_events", {"batch": batch}), 400)
        await asyncio.to_thread(calls.publish, server, channel, "marker", "{}")
        await socket.expect("marker", channel)


def test_query_for_an_attribute_that_the_channel_lacks_is_400(server: servers.Server) -> None:
    with calls.Caller(server) as caller:
        refused(caller.signed("GET", "channels", None, {"info": "user_count"}), 400)
        refused(caller.signed("GET", "channels/news", None, {"info": "user_count"}), 400)
        refused(caller.signed("GET", "channels/news", None, {"info": "no_such_thing"}), 400)
        refused(caller.signed("GET", "channels/news/users"), 400)


def test_wrong_method_is_405_with_the_allowed_method(server: servers.Server) -> None:
    with calls.Caller(server) as caller:
        answer = caller.signed("DELETE", "events")
    assert answer.status == 405
    assert "POST" in answer.headers["allow"]


# -- origins -------------------------------------------------------------------------------------------------------


async def test_disallowed_origin_is_closed_with_4009(server: servers.Server, name: Name) -> None:
    application = await asyncio.to_thread(server.deployment.create_application, name("origins"))
    await asyncio.to_thread(
        server.deployment.shell,
        f"application = Application.objects.get(app_id={application.id!r})\n"
        "application.allowed_origins = 'https://good.example'\napplication.save()",
    )

    async def code(origin: str | None) -> int | None:
        headers = {} if origin is None else {"Origin": origin}
        url = server.socket_url(application.key)
        async with sockets.open_raw(server, url, application, additional_headers=headers) as socket:
            frame = await socket.receive()
            return None if frame.event == "pusher:connection_established" else int(error(frame)["code"])

    async with asyncio.timeout(15):
        while await code("https://evil.example") != 4009:
            continue
    assert await code("https://good.example") is None
    assert await code(None) is None, "phones and servers send no Origin"
