"""Subscribe and unsubscribe: what is asked of the hub, and the frames that answer the client."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fanfare.engine import interface
from fanfare.hub.connections import State
from fanfare.protocol import effects, server_frames
from tests.unit.protocol import fakes

ANN = '{"user_id":"42","user_info":{"name":"Ann"}}'
ANN_MEMBER = fakes.member("42", '{"name":"Ann"}')
BOB_MEMBER = fakes.member("7")


def succeeded(channel: str) -> list[effects.Effect]:
    return [effects.Send(server_frames.subscription_succeeded(channel))]


def refusal(wanted: list[effects.Effect]) -> dict[str, Any]:
    """What both frames of a refused subscription say, in their order."""
    error, subscription_error = fakes.sent(wanted)
    assert len(wanted) == 2
    assert error["event"] == "pusher:error"
    assert subscription_error["event"] == "pusher:subscription_error"
    assert error["data"]["message"] == subscription_error["data"]["error"]
    return {"channel": subscription_error["channel"], **subscription_error["data"], "code": error["data"]["code"]}


@pytest.mark.parametrize(
    "data",
    [
        {"channel": "news"},
        {"channel": "news", "auth": ""},
        {"channel": "news", "auth": "whatever", "channel_data": 5},
        {"channel": "news", "auth": None},
    ],
)
@pytest.mark.parametrize("encode", [lambda data: data, fakes.text])
def test_public_channel_needs_no_auth(data: Any, encode: Any) -> None:
    machine = fakes.Machine()
    asked = machine.receive(fakes.text({"event": "pusher:subscribe", "data": encode(data)}))
    assert asked == [effects.Subscribe("news")]
    assert machine.subscribed("news") == succeeded("news")


@pytest.mark.parametrize("channel", ["private-x", "private-encrypted-x"])
def test_private_channel_needs_a_signature(channel: str) -> None:
    machine = fakes.Machine()
    assert machine.receive(fakes.subscribe(channel)) == [effects.Subscribe(channel)]
    assert machine.subscribed(channel) == succeeded(channel)


def test_presence_channel_is_answered_with_all_members() -> None:
    machine = fakes.Machine()
    limit = fakes.APPLICATION.limits.max_presence_members
    assert machine.receive(fakes.subscribe("presence-x", ANN)) == [effects.Subscribe("presence-x", ANN_MEMBER, limit)]
    (frame,) = fakes.sent(machine.subscribed("presence-x", members=(BOB_MEMBER, ANN_MEMBER)))
    presence = orjson.loads(frame["data"])["presence"]
    assert presence == {"ids": ["7", "42"], "hash": {"7": None, "42": {"name": "Ann"}}, "count": 2}


def test_wrong_signature_is_answered_with_two_frames_and_the_signed_text() -> None:
    machine = fakes.Machine()
    said = refusal(machine.receive(fakes.subscribe("private-x", auth=f"{fakes.APPLICATION.key}:52aab")))
    assert said == {
        "channel": "private-x",
        "type": "AuthError",
        "error": "Invalid signature: Expected HMAC SHA256 hex digest of 1234.1234:private-x, but got 52aab",
        "status": 401,
        "code": 4009,
    }
    assert machine.states() == {}


@pytest.mark.parametrize(
    ("channel", "changes"),
    [
        ("private-x", {"auth": None}),
        ("private-x", {"auth": ""}),
        ("private-x", {"auth": 5}),
        ("private-x", {"auth": ["x"]}),
        ("private-x", {"auth": fakes.auth("private-x", socket_id="99.99")}),
        ("private-x", {"auth": fakes.auth("private-y")}),
        ("private-x", {"channel_data": {"user_id": "1"}}),
        ("presence-x", {}),
        ("presence-x", {"channel_data": {"user_id": "1"}}),
        ("presence-x", {"channel_data": ANN, "auth": fakes.auth("presence-x")}),
    ],
)
def test_unauthorized_subscribe_is_refused_and_the_connection_stays_open(channel: str, changes: dict[str, Any]) -> None:
    machine = fakes.Machine()
    said = refusal(machine.receive(fakes.subscribe(channel, **changes)))
    assert (said["type"], said["status"], said["code"], said["channel"]) == ("AuthError", 401, 4009, channel)
    assert machine.receive('{"event":"pusher:ping"}') == [effects.Send(server_frames.PONG)]


@pytest.mark.parametrize(
    ("channel", "channel_data", "kind", "status", "numbers"),
    [
        ("x" * 201, None, "LimitReached", 4009, "201 characters; 200 are allowed"),
        ("a b", None, "InvalidChannel", 4009, ""),
        ("", None, "InvalidChannel", 4009, ""),
        ("#server-to-user-1", None, "AuthError", 401, "signed in as that user"),
        ("#other", None, "InvalidChannel", 4009, "reserved"),
        ("news\n", None, "InvalidChannel", 4009, ""),
        ("presence-x", fakes.text({"user_id": "1", "user_info": "x" * 2048}), "LimitReached", 4301, "2048 are allowed"),
        ("presence-x", fakes.text({"user_id": "1" * 129}), "LimitReached", 4301, "129 characters; 128 are allowed"),
        ("presence-x", '{"user_id":true}', "AuthError", 401, ""),
    ],
)
def test_invalid_name_and_invalid_member_are_refused_with_their_kind(
    channel: str, channel_data: str | None, kind: str, status: int, numbers: str
) -> None:
    machine = fakes.Machine()
    said = refusal(machine.receive(fakes.subscribe(channel, channel_data)))
    assert (said["channel"], said["type"], said["status"]) == (channel, kind, status)
    assert numbers in said["error"]
    assert machine.states() == {}


def test_full_presence_channel_is_refused_with_both_numbers() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("presence-x", ANN))
    said = refusal(machine.refused("presence-x", interface.Refused("member_limit", "full", 2, 2)))
    assert (said["type"], said["status"], said["code"]) == ("LimitReached", 4100, 4100)
    assert "has 2 members; 2 are allowed" in said["error"]
    assert machine.states() == {}


def test_subscribe_that_the_engine_refused_closes_the_connection_with_4100() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("news"))
    done = machine.refused("news", interface.Refused("engine_unavailable", "the disk is full"))
    (closed,) = (one for one in done if isinstance(one, effects.Close))
    assert closed.code == 4100
    assert "the disk is full" in closed.message


def test_repeated_subscribe_is_answered_again() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    assert machine.receive(fakes.subscribe("private-x")) == [effects.Subscribe("private-x")]
    assert machine.refreshed("private-x") == succeeded("private-x")


def test_repeated_subscribe_with_a_wrong_signature_leaves_the_subscription() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    assert refusal(machine.receive(fakes.subscribe("private-x", auth="no")))["type"] == "AuthError"
    assert machine.states() == {"private-x": State.LIVE}


def test_repeated_subscribe_to_a_presence_channel_gets_a_new_snapshot() -> None:
    machine = fakes.Machine()
    machine.join("presence-x", ANN, ANN_MEMBER)
    renamed = '{"user_id":42,"user_info":{"name":"Anna"}}'
    assert len(machine.receive(fakes.subscribe("presence-x", renamed))) == 1
    assert machine.receive(fakes.client_event("presence-x")), "meanwhile the subscription is live"
    (frame,) = fakes.sent(machine.refreshed("presence-x", members=(ANN_MEMBER, BOB_MEMBER)))
    assert orjson.loads(frame["data"])["presence"]["count"] == 2
    assert machine.states() == {"presence-x": State.LIVE}


def test_snapshot_that_cannot_be_read_leaves_the_subscription() -> None:
    machine = fakes.Machine()
    machine.join("presence-x", ANN, ANN_MEMBER)
    machine.receive(fakes.subscribe("presence-x", ANN))
    (frame,) = fakes.sent(machine.refused("presence-x", interface.Refused("engine_unavailable", "away")))
    assert frame["event"] == "pusher:error"
    assert machine.states() == {"presence-x": State.LIVE}


@pytest.mark.parametrize("answered", [True, False])
def test_connection_cannot_be_two_members_of_a_channel(answered: bool) -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("presence-x", ANN))
    if answered:
        machine.subscribed("presence-x", members=(ANN_MEMBER,))
    before = machine.states()
    said = refusal(machine.receive(fakes.subscribe("presence-x", '{"user_id":"7"}')))
    assert "another user" in said["error"]
    assert machine.states() == before
    assert machine.receive(fakes.unsubscribe("presence-x")) == [effects.Unsubscribe("presence-x")]
    assert machine.receive(fakes.subscribe("presence-x", '{"user_id":"7"}')) == [
        effects.Subscribe("presence-x", BOB_MEMBER, 100)
    ]


# -- cache channels ----------------------------------------------------------------------------------------------------

CACHE_CHANNELS = ["cache-x", "private-cache-x", "private-encrypted-cache-x"]
LAST_EVENT = b'{"event":"price","channel":"cache-x","data":"17"}'


@pytest.mark.parametrize("channel", CACHE_CHANNELS)
def test_cache_channel_sends_its_cached_event_after_the_success(channel: str) -> None:
    machine = fakes.Machine()
    assert machine.receive(fakes.subscribe(channel)) == [effects.Subscribe(channel, cached=True)]
    answer = machine.subscribed(channel, cached=LAST_EVENT)
    assert answer == [*succeeded(channel), effects.Send(LAST_EVENT)]


@pytest.mark.parametrize("channel", CACHE_CHANNELS)
def test_empty_cache_channel_sends_a_miss_after_the_success(channel: str) -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe(channel))
    success, miss = fakes.sent(machine.subscribed(channel))
    assert success["event"] == "pusher_internal:subscription_succeeded"
    assert miss == {"event": "pusher:cache_miss", "channel": channel}


def test_presence_cache_channel_sends_members_and_then_the_cached_event() -> None:
    machine = fakes.Machine()
    asked = machine.receive(fakes.subscribe("presence-cache-x", ANN))
    assert asked == [effects.Subscribe("presence-cache-x", ANN_MEMBER, 100, cached=True)]
    success, event = fakes.sent(machine.subscribed("presence-cache-x", members=(ANN_MEMBER,), cached=LAST_EVENT))
    assert orjson.loads(success["data"])["presence"]["count"] == 1
    assert event["event"] == "price"


def test_repeated_subscribe_to_a_cache_channel_gets_the_cached_event_of_that_moment() -> None:
    machine = fakes.Machine()
    machine.join("cache-x")
    assert machine.receive(fakes.subscribe("cache-x")) == [effects.Subscribe("cache-x", cached=True)]
    answer = machine.refreshed("cache-x", cached=LAST_EVENT)
    assert answer == [*succeeded("cache-x"), effects.Send(LAST_EVENT)]


# -- subscription counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["news", "private-x", "private-encrypted-x"])
def test_subscription_count_is_sent_where_the_application_enabled_it(channel: str) -> None:
    machine = fakes.Machine(fakes.application(subscription_counts=True))
    assert machine.receive(fakes.subscribe(channel)) == [effects.Subscribe(channel, announce=True)]
    success, count = fakes.sent(machine.subscribed(channel, subscribers=17))
    assert success["event"] == "pusher_internal:subscription_succeeded"
    assert count == {
        "event": "pusher_internal:subscription_count",
        "channel": channel,
        "data": '{"subscription_count":17}',
    }


def test_subscription_count_comes_after_the_cached_event() -> None:
    machine = fakes.Machine(fakes.application(subscription_counts=True))
    assert machine.receive(fakes.subscribe("cache-x")) == [effects.Subscribe("cache-x", cached=True, announce=True)]
    answer = machine.subscribed("cache-x", cached=LAST_EVENT, subscribers=2)
    assert [frame["event"] for frame in fakes.sent(answer)] == [
        "pusher_internal:subscription_succeeded",
        "price",
        "pusher_internal:subscription_count",
    ]


def test_presence_channel_gets_no_subscription_count() -> None:
    machine = fakes.Machine(fakes.application(subscription_counts=True))
    assert machine.receive(fakes.subscribe("presence-x", ANN)) == [effects.Subscribe("presence-x", ANN_MEMBER, 100)]


def test_repeated_subscribe_gets_the_subscription_count_of_that_moment() -> None:
    machine = fakes.Machine(fakes.application(subscription_counts=True))
    machine.join("news")
    assert machine.receive(fakes.subscribe("news")) == [effects.Subscribe("news", announce=True)]
    _, count = fakes.sent(machine.refreshed("news", subscribers=3))
    assert count["data"] == '{"subscription_count":3}'


# -- leaving, and changes ----------------------------------------------------------------------------------------------


def test_unsubscribe_has_no_answer() -> None:
    machine = fakes.Machine()
    machine.join("news")
    assert machine.receive(fakes.unsubscribe("news")) == [effects.Unsubscribe("news")]
    assert machine.receive(fakes.unsubscribe("news")) == []
    assert machine.receive(fakes.unsubscribe("never heard of")) == []


def test_subscribe_after_an_unsubscribe_subscribes_again() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.subscribe("news"))
    machine.receive(fakes.unsubscribe("news"))
    assert machine.receive(fakes.subscribe("news")) == [effects.Subscribe("news")]
    assert machine.states() == {"news": State.ATTACHING}
    assert machine.subscribed("news") == succeeded("news")


def test_rotated_secret_and_changed_limits_hold_for_the_next_frame() -> None:
    machine = fakes.Machine()
    machine.registry.put(fakes.application(max_channel_name=3, secret="another"))
    assert refusal(machine.receive(fakes.subscribe("news")))["type"] == "LimitReached"
    machine.registry.put(fakes.application(secret="another"))
    assert refusal(machine.receive(fakes.subscribe("private-x")))["type"] == "AuthError"
    machine.registry.remove(fakes.APPLICATION.id)
    assert refusal(machine.receive(fakes.subscribe("private-x")))["type"] == "AuthError"


def test_previous_secret_is_accepted_until_its_time_is_over() -> None:
    machine = fakes.Machine(
        fakes.application(
            secret="the new one", previous_secret=fakes.APPLICATION.secret, previous_secret_until=1_700_000_100.0
        )
    )
    machine.wall_now = 1_700_000_099.0
    assert machine.receive(fakes.subscribe("private-x")) == [effects.Subscribe("private-x")]
    assert machine.receive(fakes.signin('{"id":"42"}')) == [effects.SignIn("42")]
    machine.wall_now = 1_700_000_100.0
    assert refusal(machine.receive(fakes.subscribe("private-y")))["type"] == "AuthError"


def test_every_refusal_has_a_counter() -> None:
    machine = fakes.Machine()
    assert fakes.counts(machine.all_effects(fakes.subscribe("private-x", auth="no"))) == [
        "pusher.subscription_refused.wrong_key"
    ]
    assert fakes.counts(machine.all_effects(fakes.subscribe("a b"))) == ["pusher.subscription_refused.invalid_name"]


# -- ceilings ----------------------------------------------------------------------------------------------------------


def test_subscriptions_over_the_limit_are_refused_with_both_numbers_and_logged_once() -> None:
    machine = fakes.Machine(max_subscriptions=2)
    for channel in ("a", "b"):
        machine.join(channel)
    lines = []
    for channel in ("c", "d", "e"):
        wanted = machine.all_effects(fakes.subscribe(channel))
        lines += [effect for effect in wanted if isinstance(effect, effects.Log)]
        first, second = fakes.sent(wanted)
        assert (first["data"]["code"], second["data"]["type"], second["data"]["status"]) == (4100, "LimitReached", 4100)
        assert second["data"]["error"] == "The connection has 2 subscriptions; 2 are allowed"
        assert fakes.counts(wanted) == ["pusher.subscription_refused.too_many_subscriptions"]
    assert lines == [effects.Log("The connection has 2 subscriptions; 2 are allowed")]
    assert machine.receive(fakes.subscribe("a")) == [effects.Subscribe("a")], "a repeated subscribe adds none"
    machine.receive(fakes.unsubscribe("a"))
    assert machine.receive(fakes.subscribe("c")) == [effects.Subscribe("c")]


def test_subscribes_over_the_rate_are_refused_with_both_numbers_and_logged_once() -> None:
    """Each costs a write of the log, also where the channel is left at once."""
    machine = fakes.Machine(max_subscriptions=1)
    wanted = []
    for _ in range(103):
        wanted.append(machine.all_effects(fakes.subscribe("a")))
        machine.receive(fakes.unsubscribe("a"))
    refused = [one for one in wanted if fakes.counts(one)]
    assert refused == wanted[100:]
    assert fakes.counts(refused[0]) == ["pusher.subscription_refused.too_many_subscribes"]
    message = "The connection subscribed more than 100 times at once; 100 subscribes a second are allowed on average"
    assert fakes.sent(refused[0])[1]["data"]["error"] == message
    assert [effect for one in refused for effect in one if isinstance(effect, effects.Log)] == [effects.Log(message)]
    machine.now += 0.01
    assert machine.receive(fakes.subscribe("a")) == [effects.Subscribe("a")]


def test_refused_subscribes_do_not_count_against_the_limit() -> None:
    machine = fakes.Machine(max_subscriptions=1)
    for _ in range(3):
        machine.receive(fakes.subscribe("private-x", auth="no"))
    assert machine.receive(fakes.subscribe("private-x")) == [effects.Subscribe("private-x")]
