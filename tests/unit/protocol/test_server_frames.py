"""The shapes of the protocol's frames, as the clients' sources expect them."""

from __future__ import annotations

import time

import orjson

from fanfare.engine import interface
from fanfare.protocol import server_frames


def test_connection_established_has_its_data_as_a_string() -> None:
    frame = orjson.loads(server_frames.connection_established("1.2", 120))
    assert frame["event"] == "pusher:connection_established"
    assert frame["data"] == '{"socket_id":"1.2","activity_timeout":120}'


def test_connection_established_has_the_version_and_the_window_of_positions() -> None:
    frame = orjson.loads(server_frames.connection_established("1.2", 120, window=60))
    assert orjson.loads(frame["data"])["rt"] == {"v": 1, "window": 60}


def test_error_has_its_data_as_an_object() -> None:
    assert orjson.loads(server_frames.error(None, 'it "is"')) == {
        "event": "pusher:error",
        "data": {"code": None, "message": 'it "is"'},
    }


def test_subscription_error_has_its_channel() -> None:
    assert orjson.loads(server_frames.subscription_error("private-x", "AuthError", "no", 401)) == {
        "event": "pusher:subscription_error",
        "channel": "private-x",
        "data": {"type": "AuthError", "error": "no", "status": 401},
    }


def test_cache_miss_has_its_channel_and_no_data() -> None:
    assert orjson.loads(server_frames.cache_miss("cache-x")) == {
        "event": "pusher:cache_miss",
        "channel": "cache-x",
    }


def test_signin_success_has_user_data_as_json_in_json() -> None:
    frame = orjson.loads(server_frames.signin_success('{"id": "42"}'))
    assert frame == {"event": "pusher:signin_success", "data": '{"user_data":"{\\"id\\": \\"42\\"}"}'}


def test_ping_and_pong_have_an_empty_object_as_a_string() -> None:
    assert orjson.loads(server_frames.PING) == {"event": "pusher:ping", "data": "{}"}
    assert orjson.loads(server_frames.PONG) == {"event": "pusher:pong", "data": "{}"}


def test_subscription_succeeded_has_an_empty_object_as_a_string() -> None:
    assert orjson.loads(server_frames.subscription_succeeded("news")) == {
        "event": "pusher_internal:subscription_succeeded",
        "channel": "news",
        "data": "{}",
    }


def test_presence_subscription_succeeded_has_all_members() -> None:
    members = [interface.Member("42", '{"name":"Ann"}'), interface.Member('7"', "null")]
    frame = orjson.loads(server_frames.presence_subscription_succeeded("presence-room", members))
    assert frame["event"] == "pusher_internal:subscription_succeeded"
    assert frame["channel"] == "presence-room"
    assert orjson.loads(frame["data"]) == {
        "presence": {"ids": ["42", '7"'], "hash": {"42": {"name": "Ann"}, '7"': None}, "count": 2}
    }


def test_snapshot_of_ten_thousand_members_takes_milliseconds() -> None:
    members = [interface.Member(str(number), f'{{"name":"user {number}"}}') for number in range(10_000)]
    begin = time.process_time()
    body = server_frames.presence_subscription_succeeded("presence-room", members)
    assert time.process_time() - begin < 0.2  # it is about 0.01; parsing every info again would be far more
    assert orjson.loads(orjson.loads(body)["data"])["presence"]["count"] == 10_000
