"""Sign-in, and what it allows a connection to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from fanfare.engine import interface
from fanfare.protocol import effects, messages
from tests.unit.protocol import fakes

ANN = '{"id":"42","user_info":{"name":"Ann"}}'
ANN_MEMBER = fakes.member("42", '{"name":"Ann"}')
BOB = '{"id":"7"}'
AWAY = interface.Refused("engine_unavailable", "the disk is full")
PONG = {"event": "pusher:pong", "data": "{}"}


def error(wanted: Sequence[effects.Effect]) -> dict[str, Any]:
    (frame,) = fakes.sent(wanted)
    assert frame["event"] == "pusher:error"
    data: dict[str, Any] = frame["data"]
    return data


def watching(*user_ids: Any) -> str:
    return fakes.text({"id": "42", "watchlist": user_ids})


# -- the sign-in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "user_data",
    [
        ANN,
        '{ "id" : "42" }',
        '{"id":"42","user_info":null,"watchlist":null,"more":[1.50]}',
        '{"id":"42","user_info":"\u00fc\\u2028"}',
        '{"id":"7","id":"42"}',
    ],
)
def test_user_data_is_sent_back_unchanged(user_data: str) -> None:
    machine = fakes.Machine()
    assert machine.receive(fakes.signin(user_data)) == [effects.SignIn("42")]
    (frame,) = fakes.sent(machine.signed_in(interface.SubscribeResult()))
    assert frame["event"] == "pusher:signin_success"
    assert orjson.loads(frame["data"]) == {"user_data": user_data}


def test_integer_id_signs_in_as_text_and_pusher_js_gets_a_string() -> None:
    """PHP's library signs an integer; pusher-js ignores a success whose id is not a string."""
    machine = fakes.Machine()
    assert machine.receive(fakes.signin('{"id":42,"watchlist":[7,"8"]}')) == [effects.SignIn("42", ("7", "8"))]
    success, _ = fakes.sent(machine.signed_in(interface.SubscribeResult()))
    assert orjson.loads(orjson.loads(success["data"])["user_data"])["id"] == "42"
    assert machine.protocol.user == fakes.member("42")
    machine.join("presence-x", '{"user_id":42}', fakes.member("42"))


def test_data_of_a_sign_in_may_be_json_in_a_string() -> None:
    machine = fakes.Machine()
    frame = orjson.loads(fakes.signin(ANN))
    frame["data"] = fakes.text(frame["data"])
    assert machine.receive(fakes.text(frame)) == [effects.SignIn("42")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auth": "no"}, "Invalid key in sign-in auth data: 'no'"),
        ({"auth": ""}, "KEY:SIGNATURE"),
        ({"auth": f"{fakes.APPLICATION.key}:52aab"}, f"digest of 1234.1234::user::{ANN}, but got 52aab"),
        ({"user_data": BOB}, f"digest of 1234.1234::user::{BOB}, but got"),
        ({"auth": None}, "both strings"),
        ({"auth": 5}, "both strings"),
        ({"user_data": None}, "both strings"),
        ({"user_data": {"id": "42"}}, "both strings"),
    ],
)
def test_wrong_sign_in_is_refused_and_the_connection_stays_open(changes: dict[str, Any], message: str) -> None:
    machine = fakes.Machine()
    said = error(machine.receive(fakes.signin(ANN, **changes)))
    assert said["code"] == 4009
    assert message in said["message"]
    assert fakes.sent(machine.receive('{"event":"pusher:ping"}')) == [PONG]
    assert machine.receive(fakes.signin(ANN)) == [effects.SignIn("42")]


@pytest.mark.parametrize(
    ("user_data", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "JSON object with an id"),
        ('"42"', "JSON object with an id"),
        ("{}", "an id that is an integer, or a string"),
        ('{"id":""}', "an id that is an integer, or a string"),
        (r'{"id":"4\u00002"}', "an id that is an integer, or a string"),
        ('{"id":true}', "an id that is an integer, or a string"),
        ('{"id":4.2}', "an id that is an integer, or a string"),
        ('{"id":null}', "an id that is an integer, or a string"),
        ('{"id":["42"]}', "an id that is an integer, or a string"),
        (fakes.text({"id": "4" * 129}), "129 characters; 128 are allowed"),
        (watching(True), "array of user ids"),
        (watching(None), "array of user ids"),
        (watching(""), "array of user ids"),
        (watching("7" * 129), "strings of 1 to 128 characters"),
        ('{"id":"42","watchlist":"7"}', "array of user ids"),
        ('{"id":"42","watchlist":{"7":1}}', "array of user ids"),
        ('{"id":"42","user_info":' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
    ],
)
def test_invalid_user_data_is_refused_though_it_is_signed(user_data: str, message: str) -> None:
    machine = fakes.Machine()
    said = error(machine.receive(fakes.signin(user_data)))
    assert said["code"] == 4009
    assert message in said["message"]
    assert machine.protocol.user is None


def test_longest_ids_of_a_user_and_of_watched_users_are_allowed() -> None:
    machine = fakes.Machine()
    user, watched = "4" * 128, "7" * 128
    claim = fakes.signin(fakes.text({"id": user, "watchlist": [watched]}))
    assert machine.receive(claim) == [effects.SignIn(user, watchlist=(watched,))]


def test_data_of_a_sign_in_must_be_an_object() -> None:
    machine = fakes.Machine()
    assert error(machine.receive('{"event":"pusher:signin","data":[1]}'))["code"] is None
    assert "both strings" in error(machine.receive('{"event":"pusher:signin"}'))["message"]


def test_every_refused_sign_in_has_a_counter() -> None:
    machine = fakes.Machine()
    assert fakes.counts(machine.all_effects(fakes.signin(ANN, auth="no"))) == ["pusher.sign_in_refused.wrong_key"]
    machine.receive(fakes.signin(ANN))
    assert fakes.counts(machine.signed_in(AWAY)) == ["pusher.sign_in_refused.engine_unavailable"]


def test_sign_in_that_the_engine_refused_closes_the_connection_with_4100() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.signin(ANN))
    machine.receive(fakes.subscribe("#server-to-user-42", auth=""))
    (closed,) = (one for one in machine.signed_in(AWAY) if isinstance(one, effects.Close))
    assert closed.code == 4100
    assert "the disk is full" in closed.message
    assert machine.states() == {}


def test_repeated_sign_in_as_the_same_user_succeeds_and_changes_nothing() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    renamed = '{"id":"42","user_info":{"name":"Anna"},"watchlist":["7"]}'
    (frame,) = fakes.sent(machine.receive(fakes.signin(renamed)))
    assert orjson.loads(frame["data"]) == {"user_data": renamed}
    assert machine.protocol.user == ANN_MEMBER


def test_connection_cannot_become_another_user() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    said = error(machine.receive(fakes.signin(BOB)))
    assert said == {"code": 4009, "message": 'This connection is signed in as "42" already'}
    assert machine.protocol.user == ANN_MEMBER


def test_answer_without_a_pending_sign_in_has_no_effects() -> None:
    machine = fakes.Machine()
    assert machine.signed_in(interface.SubscribeResult()) == []
    assert machine.signed_in(AWAY) == []
    machine.sign_in(ANN)
    assert machine.signed_in(interface.SubscribeResult()) == []


# -- the watchlist -----------------------------------------------------------------------------------------------------


def test_online_and_offline_users_come_in_one_frame_after_the_success() -> None:
    machine = fakes.Machine()
    assert machine.receive(fakes.signin(watching("1", "2", "3"))) == [effects.SignIn("42", ("1", "2", "3"))]
    success, watchlist = fakes.sent(machine.signed_in(interface.SubscribeResult(online=("2",))))
    assert success["event"] == "pusher:signin_success"
    assert set(watchlist) == {"event", "data"}
    assert watchlist["event"] == "pusher_internal:watchlist_events"
    assert orjson.loads(watchlist["data"]) == {
        "events": [{"name": "online", "user_ids": ["2"]}, {"name": "offline", "user_ids": ["1", "3"]}]
    }


@pytest.mark.parametrize(("online", "name"), [(("1", "2"), "online"), ((), "offline")])
def test_state_without_users_is_left_out_of_the_watchlist_frame(online: tuple[str, ...], name: str) -> None:
    _, watchlist = fakes.sent(fakes.Machine().sign_in(watching("1", "2"), *online))
    assert orjson.loads(watchlist["data"]) == {"events": [{"name": name, "user_ids": ["1", "2"]}]}


def test_empty_watchlist_gets_no_watchlist_frame() -> None:
    assert [frame["event"] for frame in fakes.sent(fakes.Machine().sign_in(watching()))] == ["pusher:signin_success"]


def test_user_that_is_named_twice_is_watched_once() -> None:
    assert fakes.Machine().receive(fakes.signin(watching("1", "2", "1"))) == [effects.SignIn("42", ("1", "2"))]


def test_long_watchlist_is_cut_and_reported_with_both_numbers_after_the_success() -> None:
    machine = fakes.Machine(fakes.application(max_watchlist=2))
    assert machine.receive(fakes.signin(watching("1", "2", "3"))) == [effects.SignIn("42", ("1", "2"))]
    success, cut, watchlist = fakes.sent(machine.signed_in(interface.SubscribeResult()))
    assert success["event"] == "pusher:signin_success"
    assert cut["event"] == "pusher:error"
    assert cut["data"]["code"] == 4302
    assert "has 3 users; 2 are allowed" in cut["data"]["message"]
    assert orjson.loads(watchlist["data"])["events"] == [{"name": "offline", "user_ids": ["1", "2"]}]


def test_application_can_allow_no_watchlist() -> None:
    machine = fakes.Machine(fakes.application(max_watchlist=0))
    success, cut = fakes.sent(machine.sign_in(watching("1")))
    assert (success["event"], cut["data"]["code"]) == ("pusher:signin_success", 4302)


# -- the user's own channel --------------------------------------------------------------------------------------------


def test_signed_in_connection_may_subscribe_to_its_users_channel() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    asked = machine.receive(fakes.subscribe("#server-to-user-42", auth=""))
    assert asked == [effects.Subscribe("#server-to-user-42")]
    (frame,) = fakes.sent(machine.subscribed("#server-to-user-42"))
    assert frame["event"] == "pusher_internal:subscription_succeeded"


def test_user_id_may_have_characters_that_channel_names_may_not() -> None:
    machine = fakes.Machine()
    machine.sign_in('{"id":"Ann B\u00e4r"}')
    assert machine.receive(fakes.subscribe("#server-to-user-Ann Bär", auth="")) == [
        effects.Subscribe("#server-to-user-Ann Bär")
    ]


@pytest.mark.parametrize(
    "channel", ["#server-to-user-7", "#server-to-user-", "#server-to-user-420", "#server-to-user-42\n", "#x", "#"]
)
def test_other_reserved_channels_are_refused(channel: str) -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    first, second = fakes.sent(machine.receive(fakes.subscribe(channel, auth="")))
    assert (first["event"], first["data"]["code"]) == ("pusher:error", 4009)
    assert (second["event"], second["channel"]) == ("pusher:subscription_error", channel)
    assert machine.states() == {}


def test_client_events_on_a_users_channel_are_refused() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    machine.join("#server-to-user-42")
    assert "private or presence" in error(machine.receive(fakes.client_event("#server-to-user-42")))["message"]


# -- presence by sign-in -----------------------------------------------------------------------------------------------


def test_signed_in_user_is_the_member_where_there_is_no_channel_data() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    assert machine.receive(fakes.subscribe("presence-x")) == [effects.Subscribe("presence-x", ANN_MEMBER, 100)]


def test_channel_data_overrides_the_signed_in_user() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    asked = machine.receive(fakes.subscribe("presence-x", '{"user_id":"7"}'))
    assert asked == [effects.Subscribe("presence-x", fakes.member("7"), 100)]


def test_signed_in_user_needs_a_signature_for_a_presence_channel() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    said, _ = fakes.sent(machine.receive(fakes.subscribe("presence-x", auth=fakes.auth("presence-y"))))
    assert "digest of 1234.1234:presence-x, but got" in said["data"]["message"]


def test_user_info_that_is_too_big_for_a_presence_channel_is_refused_there() -> None:
    machine = fakes.Machine()
    machine.sign_in(fakes.text({"id": "42", "user_info": "x" * 2_047}))
    _, refused = fakes.sent(machine.receive(fakes.subscribe("presence-x")))
    assert refused["data"]["status"] == 4301
    assert "has 2049 bytes; 2048 are allowed" in refused["data"]["error"]


def test_client_events_of_a_signed_in_member_carry_the_user_id() -> None:
    machine = fakes.Machine()
    machine.sign_in(ANN)
    machine.join("presence-x")
    (event,) = machine.receive(fakes.client_event("presence-x"))
    assert isinstance(event, effects.PublishClientEvent)
    assert event.publication.user_id == "42"


# -- frames that wait for the sign-in ----------------------------------------------------------------------------------


def test_frames_that_depend_on_the_user_wait_for_the_sign_in_and_keep_their_order() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.signin(ANN))
    for frame in (
        fakes.subscribe("#server-to-user-42", auth=""),
        fakes.subscribe("presence-x"),
        fakes.signin(BOB),
        fakes.signin(ANN),
    ):
        assert machine.receive(frame) == []
    success, own, presence, other, again = fakes.without_counts(machine.signed_in(interface.SubscribeResult()))
    assert own == effects.Subscribe("#server-to-user-42")
    assert presence == effects.Subscribe("presence-x", ANN_MEMBER, 100)
    assert "signed in as" in error([other])["message"]
    assert again == success


def test_frames_that_do_not_depend_on_the_user_are_answered_at_once() -> None:
    machine = fakes.Machine()
    machine.join("private-x")
    machine.receive(fakes.signin(ANN))
    assert fakes.sent(machine.receive('{"event":"pusher:ping"}')) == [PONG]
    assert machine.receive(fakes.subscribe("private-y")) == [effects.Subscribe("private-y")]
    assert machine.receive(fakes.subscribe("presence-y", '{"user_id":"7"}')) == [
        effects.Subscribe("presence-y", fakes.member("7"), 100)
    ]
    assert len(machine.receive(fakes.client_event("private-x", "x" * 90_000))) == 1
    assert machine.receive(fakes.unsubscribe("private-x")) == [effects.Unsubscribe("private-x")]
    assert "not JSON" in error(machine.receive("nonsense"))["message"]


def test_unsubscribe_drops_a_waiting_subscribe() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.signin(ANN))
    machine.receive(fakes.subscribe("presence-x"))
    machine.receive(fakes.subscribe("presence-y"))
    assert machine.receive(fakes.unsubscribe("presence-x")) == []
    wanted = machine.signed_in(interface.SubscribeResult())
    assert [effect.channel for effect in wanted if isinstance(effect, effects.Subscribe)] == ["presence-y"]


def test_subscribes_to_one_channel_keep_their_order() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.signin(ANN))
    machine.receive(fakes.subscribe("presence-x"))
    assert machine.receive(fakes.subscribe("presence-x", '{"user_id":"7"}')) == []
    _, first, *refused = fakes.without_counts(machine.signed_in(interface.SubscribeResult()))
    assert first == effects.Subscribe("presence-x", ANN_MEMBER, 100)
    assert "another user" in fakes.sent(refused)[0]["data"]["message"]


def test_too_many_waiting_frames_close_with_4100_and_both_numbers() -> None:
    machine = fakes.Machine()
    machine.receive(fakes.signin(ANN))
    wanted = [effect for _ in range(1_000) for effect in machine.receive(fakes.subscribe("presence-x"))]
    (closed,) = wanted
    assert isinstance(closed, effects.Close)
    assert closed.code == 4100
    assert f"{messages.MAX_PENDING_BYTES} are allowed" in closed.message
    assert machine.signed_in(interface.SubscribeResult()) == []


def test_early_sign_in_is_made_after_connection_established() -> None:
    machine = fakes.Machine(opened=False)
    machine.receive(fakes.signin(ANN))
    machine.receive(fakes.subscribe("#server-to-user-42", auth=""))
    established, sign_in = machine.established()
    assert fakes.sent([established])[0]["event"] == "pusher:connection_established"
    assert sign_in == effects.SignIn("42")
    assert effects.Subscribe("#server-to-user-42") in machine.signed_in(interface.SubscribeResult())


# -- authorized connections --------------------------------------------------------------------------------------------

START, STOP = effects.StartAuthorizationTimer(30), effects.StopAuthorizationTimer()


def impatient() -> fakes.Machine:
    """A machine whose application requires an authorization within 30 s."""
    return fakes.Machine(fakes.application(authorization_timeout=30))


def test_authorization_timer_starts_when_the_connection_is_open() -> None:
    machine = fakes.Machine(fakes.application(authorization_timeout=30), opened=False)
    _, timer = machine.established()
    assert timer == START


def test_application_without_a_timeout_has_no_timer() -> None:
    machine = fakes.Machine(opened=False)
    assert len(machine.established()) == 1
    assert STOP not in machine.receive(fakes.signin(ANN))


def test_unauthorized_connection_is_closed_with_4009_when_the_timer_ends() -> None:
    machine = impatient()
    machine.join("news")
    assert machine.protocol.not_authorized_in_time() == (
        effects.Close(4009, "Connection not authorized within timeout"),
    )
    assert machine.receive('{"event":"pusher:ping"}') == []


@pytest.mark.parametrize(
    "frame",
    [
        fakes.signin(ANN),
        fakes.subscribe("private-x"),
        fakes.subscribe("private-encrypted-x"),
        fakes.subscribe("presence-x", '{"user_id":"7"}'),
    ],
)
def test_good_signature_stops_the_timer_once(frame: str) -> None:
    machine = impatient()
    assert machine.receive(frame)[0] == STOP
    assert machine.protocol.not_authorized_in_time() == ()
    assert STOP not in machine.receive(fakes.subscribe("private-y"))


@pytest.mark.parametrize(
    "frame", [fakes.subscribe("news"), fakes.subscribe("private-x", auth="no"), fakes.client_event("private-x")]
)
def test_unsigned_frames_do_not_stop_the_timer(frame: str) -> None:
    machine = impatient()
    assert STOP not in machine.receive(frame)
    assert len(machine.protocol.not_authorized_in_time()) == 1


def test_wrong_sign_in_closes_with_4009_where_authorization_is_required() -> None:
    machine = impatient()
    (closed,) = machine.receive(fakes.signin(ANN, auth="no"))
    assert closed == effects.Close(4009, "Invalid key in sign-in auth data: 'no'")


def test_signed_in_connection_stays_open_after_a_sign_in_as_another_user() -> None:
    machine = impatient()
    machine.sign_in(ANN)
    assert "already" in error(machine.receive(fakes.signin(BOB)))["message"]


def test_timer_does_nothing_when_authorization_is_no_longer_required() -> None:
    machine = impatient()
    machine.registry.put(fakes.APPLICATION)
    assert machine.protocol.not_authorized_in_time() == ()
    assert STOP not in machine.receive(fakes.signin(ANN)), "it ended"
