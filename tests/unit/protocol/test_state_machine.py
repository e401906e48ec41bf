"""The opening, the pings, and frames that are no message of the protocol."""

from __future__ import annotations

import json
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanfare.engine import interface
from fanfare.protocol import effects, messages, refusals, server_frames, state_machine
from tests.unit.protocol import fakes

PONG = [effects.Send(server_frames.PONG)]


def error(wanted: list[effects.Effect]) -> dict[str, Any]:
    (frame,) = fakes.sent(wanted)
    assert len(wanted) == 1
    assert frame["event"] == "pusher:error"
    data: dict[str, Any] = frame["data"]
    return data


# -- the opening -------------------------------------------------------------------------------------------------------


def test_connection_established_is_the_first_frame_and_comes_once() -> None:
    machine = fakes.Machine(opened=False)
    assert machine.protocol.established() == [effects.Send(server_frames.connection_established(fakes.SOCKET_ID, 120))]
    assert machine.protocol.established() == ()


def test_early_frames_are_answered_after_connection_established() -> None:
    machine = fakes.Machine(opened=False)
    assert machine.receive('{"event":"pusher:ping"}') == []
    assert machine.receive(fakes.subscribe("news")) == []
    established, pong, subscribe = machine.established()
    assert fakes.sent([established])[0]["event"] == "pusher:connection_established"
    assert [pong] == PONG
    assert subscribe == effects.Subscribe("news")


def test_too_many_early_frames_close_with_4100() -> None:
    machine = fakes.Machine(opened=False)
    wanted: list[effects.Effect] = []
    for _ in range(10_000):
        wanted += machine.receive("x")
    (closed,) = wanted
    assert isinstance(closed, effects.Close)
    assert closed.code == 4100
    assert machine.protocol.established() == ()
    assert machine.receive('{"event":"pusher:ping"}') == []


def test_connection_over_the_limit_is_closed_with_4100_and_both_numbers() -> None:
    machine = fakes.Machine(opened=False)
    assert machine.protocol.not_admitted(interface.Refused("connection_limit", "full", 10, 11)) == (
        effects.Close(4100, "The application has 11 connections; 10 are allowed"),
    )


@pytest.mark.parametrize("limit", [None, 10])
def test_connection_is_closed_with_4100_while_the_engine_cannot_admit_it(limit: int | None) -> None:
    machine = fakes.Machine(opened=False)
    (closed,) = machine.protocol.not_admitted(interface.Refused("engine_unavailable", "the disk is full", limit))
    assert isinstance(closed, effects.Close)
    assert closed.code == 4100
    assert "the disk is full" in closed.message


# -- liveness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        '{"event":"pusher:ping","data":{}}',
        '{"event": "pusher:ping"}',
        '{"event":"pusher:ping","data":""}',
        '{"event":"pusher:ping","data":null}',
        '{"event":"pusher:ping","data":[[[1]]]}',
    ],
)
def test_ping_of_every_client_is_answered_at_once(frame: str) -> None:
    machine = fakes.Machine()
    assert [machine.receive(frame) for _ in range(100)] == [PONG] * 100


def test_pong_has_no_answer() -> None:
    assert fakes.Machine().receive('{"event":"pusher:pong","data":{}}') == [effects.Ponged()]


# -- bad frames --------------------------------------------------------------------------------------------------------

DEEP = "[" * 2_000 + "]" * 2_000


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("", "not JSON"),
        ("nonsense", "not JSON"),
        ("{", "not JSON"),
        (DEEP, "not JSON"),
        ("NaN", "not JSON"),
        ('{"event":"pusher:ping","data":NaN}', "not JSON"),
        ('{"event":"pusher:ping","data":1e999}', "not JSON"),
        ('{"event":"\\ud800"}', "not JSON"),
        ('{"event":"\ud800"}', "not JSON"),
        ('{"event":"pusher:ping"}{"event":"pusher:ping"}', "not JSON"),
        ("null", "not a JSON object"),
        ("1", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('"pusher:ping"', "not a JSON object"),
        ("{}", "event is not a string"),
        ('{"event":null}', "event is not a string"),
        ('{"event":5}', "event is not a string"),
        ('{"event":["pusher:ping"]}', "event is not a string"),
        ('{"event":{"pusher:ping":1}}', "event is not a string"),
        ('{"event":"pusher:ping","event":5}', "event is not a string"),
        ('{"event":""}', "Unsupported event received on socket: ''"),
        ('{"event":"pusher:nothing"}', "Unsupported event received on socket: 'pusher:nothing'"),
        ('{"event":"pusher_internal:member_added","data":{}}', "Unsupported event"),
        ('{"event":"Client-x","channel":"private-x","data":1}', "Unsupported event"),
        ('{"event":"' + "x" * 10_000 + '"}', "…"),
        ('{"event":"pusher:subscribe"}', "names no channel"),
        ('{"event":"pusher:subscribe","data":null}', "names no channel"),
        ('{"event":"pusher:subscribe","data":""}', "names no channel"),
        ('{"event":"pusher:subscribe","data":"\\"\\""}', "names no channel"),
        ('{"event":"pusher:subscribe","data":"null"}', "names no channel"),
        ('{"event":"pusher:subscribe","data":"x"}', "not JSON"),
        ('{"event":"pusher:subscribe","data":"[1]"}', "not a JSON object"),
        ('{"event":"pusher:subscribe","data":"\\"news\\""}', "not a JSON object"),
        ('{"event":"pusher:subscribe","data":5}', "not a JSON object"),
        ('{"event":"pusher:subscribe","data":0}', "not a JSON object"),
        ('{"event":"pusher:subscribe","data":false}', "not a JSON object"),
        ('{"event":"pusher:subscribe","data":[]}', "not a JSON object"),
        ('{"event":"pusher:subscribe","data":{"channel":5}}', "names no channel"),
        ('{"event":"pusher:subscribe","data":{"channel":null}}', "names no channel"),
        ('{"event":"pusher:subscribe","data":{"channel":["news"]}}', "names no channel"),
        ('{"event":"pusher:unsubscribe"}', "names no channel"),
        ('{"event":"pusher:unsubscribe","data":{"channel":{}}}', "names no channel"),
    ],
)
def test_frame_that_is_no_message_gets_an_error_and_the_connection_stays_open(frame: str, message: str) -> None:
    machine = fakes.Machine()
    said = error(machine.receive(frame))
    assert said["code"] is None
    assert message in said["message"]
    assert len(said["message"]) < 250
    assert machine.receive('{"event":"pusher:ping"}') == PONG


def test_binary_frame_is_answered_with_an_error() -> None:
    machine = fakes.Machine()
    assert "Binary" in error(fakes.without_counts(machine.protocol.received_binary()))["message"]
    assert fakes.Machine(opened=False).protocol.received_binary() == (effects.Count("pusher.error.binary"),)


def test_errors_are_rate_limited_and_all_are_counted() -> None:
    machine = fakes.Machine()
    wanted = [effect for _ in range(1_000) for effect in machine.all_effects("nonsense")]
    assert len(fakes.sent(wanted)) == state_machine.ERRORS_PER_SECOND
    names = fakes.counts(wanted)
    assert names.count("pusher.error.malformed_json") == 1_000
    assert names.count("pusher.error.rate_limited") == 990
    machine.now += 0.5
    assert (
        len([frame for _ in range(100) for frame in machine.receive("nonsense")]) == state_machine.ERRORS_PER_SECOND / 2
    )


def test_rate_limited_errors_do_not_silence_other_answers() -> None:
    machine = fakes.Machine()
    for _ in range(100):
        machine.receive("nonsense")
    assert machine.receive('{"event":"pusher:ping"}') == PONG
    assert len(fakes.sent(machine.receive(fakes.subscribe("private-x", auth="no")))) == 2


# -- any frame ---------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
channels = st.sampled_from(["news", "private-x", "presence-x", "private-encrypted-x", "#x", "", "a b", "\ud800"])
events = st.sampled_from(
    ["pusher:subscribe", "pusher:unsubscribe", "pusher:ping", "pusher:pong", "client-x", "pusher:signin", ""]
)


def as_json(value: Any) -> str:
    """Python's own encoder writes NaN, lone surrogates and huge integers; orjson would refuse them."""
    return json.dumps(value, ensure_ascii=False)


frames_of_clients = st.one_of(
    st.text(),
    st.builds(as_json, json_values),
    st.builds(
        lambda event, channel, data: as_json({"event": event, "channel": channel, "data": data}),
        events | json_values,
        channels | json_values,
        json_values,
    ),
    st.builds(
        lambda event, channel, auth, data: as_json(
            {"event": event, "data": {"channel": channel, "auth": auth, "channel_data": data}}
        ),
        events,
        channels | json_values,
        json_values,
        json_values,
    ),
)


@given(st.lists(frames_of_clients, max_size=10))
def test_no_frame_raises_and_every_answer_is_a_frame(sent_by_client: list[str]) -> None:
    machine = fakes.Machine()
    for frame in sent_by_client:
        for answer in fakes.sent(machine.receive(frame)):
            assert answer["event"].startswith("pusher")


def test_orjson_reads_what_the_strategies_write() -> None:
    """The property tests reach beyond the parser only if most of their frames are JSON."""
    assert orjson.loads(as_json({"event": "client-x", "data": {"a": [1, 2.5, None, "ü"]}}))


def test_frames_wait_up_to_their_limit_in_bytes_of_memory() -> None:
    text = "a" * 100
    frames = messages.PendingFrames(2 * sys.getsizeof(text))
    frames.add(text)
    frames.add(text)
    with pytest.raises(refusals.TooManyPendingFrames):
        frames.add("a")
