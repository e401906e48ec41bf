"""Recovery on the wire: what a subscribe asks for, and the frames that answer it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import connections, history_pages
from fanfare.protocol import ack_tracker, recovery
from tests.unit.hub.doubles import FakeWriter

RULE = rules.Rule("c*", history_size=10, history_seconds=60, max_replay_entries=7, max_replay_bytes=700)
REWINDING = rules.Rule("c*", history_size=10, history_seconds=60, rewind_count=3)
AT = interface.Position("E", 5)


def resumed(channel: str = "c") -> ack_tracker.AckTracker:
    one = ack_tracker.AckTracker("1.1")
    one.begin(channel, AT)
    return ack_tracker.AckTracker("1.2", one.record())


def asked(rule: rules.Rule | None = RULE, /, **options: Any) -> recovery.Asked:
    data = options.pop("data", {})
    return recovery.asked(rule, data, "c", **{"with_offsets": False, "tracker": None, **options})


def request(of: recovery.Asked) -> interface.RecoveryRequest:
    assert of.recovery is not None
    return of.recovery.request


def test_plain_client_asks_for_no_recovery() -> None:
    assert asked(None) == recovery.NOTHING
    assert asked(RULE) == recovery.NOTHING, "a position costs a read"
    assert asked(None, tracker=resumed()) == recovery.NOTHING


def test_position_of_the_client_asks_for_what_follows_within_the_rule() -> None:
    data = {"resume": {"epoch": "E", "offset": 5, "socket_id": "9.9"}}
    history = interface.RecoveryRequest(AT, max_entries=7, max_bytes=700)
    wanted = connections.Recovery(history, frozenset({"9.9"}))
    assert asked(data=data) == recovery.Asked(wanted, recovering=True, with_stream=True)


@pytest.mark.parametrize(
    "resume",
    [
        True,
        [],
        {},
        {"epoch": "E"},
        {"epoch": "", "offset": 1},
        {"epoch": "E", "offset": -1},
        {"epoch": "E", "offset": "1"},
        {"epoch": "E", "offset": True},
        {"epoch": "x" * 65, "offset": 1},
        {"epoch": "a:b", "offset": 1},
        {"epoch": "E", "offset": 10**18},
    ],
)
def test_invalid_position_is_reported(resume: object) -> None:
    found = asked(data={"resume": resume})
    assert (found.recovering, found.with_stream, found.reason) == (True, True, "invalid_position")
    assert recovery.stream(found, interface.RecoveryResult(AT, complete=True)) == {
        "epoch": "E",
        "offset": 5,
        "was_recovering": True,
        "recovered": False,
        "replayed": 0,
        "reason": "invalid_position",
    }


def test_complete_recovery_is_reported_with_the_number_of_its_events() -> None:
    found = asked(data={"resume": {"epoch": "E", "offset": 5}})
    position = interface.Position("E", 7)
    stream = recovery.stream(found, interface.RecoveryResult(position, count=2, complete=True))
    assert (stream["recovered"], stream["replayed"], stream["offset"]) == (True, 2, 7)
    assert "reason" not in stream
    assert recovery.stream(found, None)["recovered"] is False, "the engine answered without a recovery"


@pytest.mark.parametrize(
    ("rewind", "expected"),
    [
        ({"count": 20}, (20, 0)),
        ({"count": 1}, (1, 0)),
        ({"seconds": 60}, (0, 60)),
        ({"count": "20", "seconds": -1}, (0, 0)),
        ({"count": 0}, (0, 0)),
        (7, (0, 0)),
        ({"count": True}, (0, 0)),
    ],
)
def test_invalid_numbers_of_a_rewind_ask_for_nothing(rewind: object, expected: tuple[int, int]) -> None:
    assert request(asked(data={"rewind": rewind})).rewind == interface.Rewind(*expected)


def test_page_with_a_token_recovers_from_its_record() -> None:
    found = asked(tracker=resumed())
    assert (request(found).after, found.recovering, found.with_stream) == (AT, True, False)
    assert found.recovery is not None
    assert found.recovery.earlier_sockets == {"1.1"}
    new = asked(tracker=resumed("another"))
    assert (request(new), new.recovering) == (RULE.history(), False)


def test_page_whose_record_was_full_does_not_pass_for_a_new_one() -> None:
    one = ack_tracker.AckTracker("1.1", max_channels=1)
    assert one.begin("other", AT)
    assert not one.begin("c", AT)
    found = asked(tracker=ack_tracker.AckTracker("1.2", one.record()))
    assert (found.recovering, found.reason) == (True, "record_full")
    stream = recovery.stream(found, interface.RecoveryResult(AT, complete=True))
    assert (stream["recovered"], stream["reason"]) == (False, "record_full")


def test_rule_rewinds_new_subscribers() -> None:
    assert request(asked(REWINDING)) == REWINDING.history(rewind=interface.Rewind(3, 0))
    assert request(asked(REWINDING, tracker=resumed())).after == AT


def test_channel_without_history_has_a_stream_without_a_position() -> None:
    found = asked(None, with_offsets=True, data={"resume": {"epoch": "E", "offset": 5}})
    assert recovery.stream(found, None) == {
        "epoch": None,
        "offset": 0,
        "was_recovering": True,
        "recovered": False,
        "replayed": 0,
        "reason": "not_enabled",
    }
    assert "reason" not in recovery.stream(asked(None, with_offsets=True), None)


def test_plain_client_that_asks_for_events_without_history_gets_a_stream() -> None:
    resuming = asked(None, data={"resume": {"epoch": "E", "offset": 5}})
    assert resuming == recovery.Asked(recovering=True, with_stream=True, reason="not_enabled")
    assert asked(None, data={"rewind": 3}) == recovery.Asked(with_stream=True)


def test_plain_client_that_rewinds_gets_a_stream() -> None:
    found = asked(data={"rewind": 3})
    assert (found.with_stream, found.recovering, found.reason) == (True, False, None)


def test_stream_reset_names_the_position_and_the_reason() -> None:
    frame = orjson.loads(recovery.stream_reset("c", AT, "position_expired"))
    assert (frame["event"], frame["channel"]) == ("pusher:stream_reset", "c")
    assert orjson.loads(frame["data"]) == {"epoch": "E", "offset": 5, "reason": "position_expired"}
    frame = orjson.loads(recovery.stream_reset("c", None, "engine_unavailable"))
    assert orjson.loads(frame["data"]) == {"reason": "engine_unavailable"}


def test_history_page_names_the_position_of_the_next_page() -> None:
    events = (history_pages.Event(9, "e", "x", None), history_pages.Event(8, "client-e", {"n": 1}, "ann"))
    page = history_pages.Page(events, interface.Position("E", 9), next=interface.Position("E", 8))
    frame = orjson.loads(recovery.history_page("c", "r", page))
    assert frame["event"] == "pusher:history"
    assert orjson.loads(frame["data"]) == {
        "rid": "r",
        "items": [
            {"offset": 9, "event": "e", "data": "x"},
            {"offset": 8, "event": "client-e", "data": {"n": 1}, "user_id": "ann"},
        ],
        "next": {"epoch": "E", "offset": 8},
    }
    assert (
        orjson.loads(orjson.loads(recovery.history_page("c", None, history_pages.Page((), None)))["data"])["next"]
        is None
    )


# -- repeated subscribes -----------------------------------------------------------------------------------------------


def subscription(state: connections.State, *, since: int, sent: int, top: int) -> connections.Subscription:
    channel = connections.Channel("1", "c")
    channel.epoch, channel.offset = "E", top
    connection = connections.Connection("1", "1.1", FakeWriter(), None)  # type: ignore[arg-type]
    found = connections.Subscription(connection, channel)
    if state is connections.State.CATCHING_UP:
        found.catch_up(since)
        found.sent = sent
    else:
        found.go_live()
        found.since = since
    return found


CATCHING_UP, LIVE = connections.State.CATCHING_UP, connections.State.LIVE


@pytest.mark.parametrize(
    ("state", "resume", "recovered", "offset"),
    [
        pytest.param(LIVE, 5, True, 9, id="all after 5 was sent"),
        pytest.param(LIVE, 9, True, 9, id="the newest"),
        pytest.param(LIVE, 4, False, 9, id="before the first subscribe"),
        pytest.param(LIVE, 10, False, 9, id="of the future"),
        pytest.param(CATCHING_UP, 5, True, 7, id="all after 5 was sent or is being sent"),
        pytest.param(CATCHING_UP, 8, True, 7, id="what is still to be sent"),
        pytest.param(CATCHING_UP, 2, False, 7, id="before the recovery"),
    ],
)
def test_repeated_subscribe_claims_only_what_this_connection_was_sent(
    state: connections.State, resume: int, recovered: bool, offset: int
) -> None:
    found = asked(data={"resume": {"epoch": "E", "offset": resume}})
    stream = recovery.repeated_stream(found, subscription(state, since=5, sent=7, top=9))
    reason = {} if recovered else {"reason": "already_subscribed"}
    expected = {"epoch": "E", "offset": offset, "was_recovering": True, "recovered": recovered, "replayed": 0, **reason}
    assert stream == expected


def test_repeated_subscribe_with_another_epoch_is_not_recovered() -> None:
    found = asked(data={"resume": {"epoch": "F", "offset": 9}})
    assert not recovery.repeated_stream(found, subscription(LIVE, since=5, sent=7, top=9))["recovered"]
    new = recovery.repeated_stream(asked(with_offsets=True), subscription(LIVE, since=5, sent=7, top=9))
    assert new == {"epoch": "E", "offset": 9, "was_recovering": False, "recovered": False, "replayed": 0}
