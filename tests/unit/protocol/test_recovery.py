"""Which past a subscribe asks for, and what is said of it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import history_pages
from fanfare.protocol import ack_tracker, recovery

RULE = rules.Rule("c*", history_size=10, history_seconds=60, max_replay_entries=7, max_replay_bytes=700)
REWINDING = rules.Rule("c*", history_size=10, history_seconds=60, rewind_count=3)
AT = interface.Position("E", 5)


def resumed(channel: str = "c") -> ack_tracker.AckTracker:
    one = ack_tracker.AckTracker("token-token-token", "1.1")
    one.subscribed(channel, AT)
    return ack_tracker.AckTracker("token-token-token", "1.2", one.record())


def wanted(rule: rules.Rule | None = RULE, /, **options: Any) -> recovery.Wanted:
    data = options.pop("data", {})
    return recovery.wanted(rule, data, "c", **{"told": False, "resumed": None, **options})


def test_a_plain_client_on_a_plain_channel_asks_for_nothing() -> None:
    assert wanted(None) == recovery.NOTHING
    assert wanted(RULE) == recovery.NOTHING, "a position costs a read, and nobody wants this one"
    assert wanted(None, resumed=resumed()) == recovery.NOTHING


def test_a_client_that_says_where_it_stands_gets_what_follows_within_the_rule() -> None:
    data = {"resume": {"epoch": "E", "offset": 5, "socket_id": "9.9"}}
    history = interface.RecoveryRequest(AT, max_entries=7, max_bytes=700)
    assert wanted(data=data) == recovery.Wanted(history, recovering=True, told=True, sent_as=("9.9",))


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
        {"epoch": "x" * 33, "offset": 1},
        {"epoch": "E", "offset": 2**53},
    ],
)
def test_a_position_that_is_none_is_said_to_be_one(resume: object) -> None:
    asked = wanted(data={"resume": resume})
    assert (asked.recovering, asked.reason) == (True, "invalid_position")
    assert recovery.stream(asked, interface.RecoveryResult(AT, complete=True)) == {
        "epoch": "E",
        "offset": 5,
        "was_recovering": True,
        "recovered": False,
        "replayed": 0,
        "reason": "invalid_position",
    }


@pytest.mark.parametrize(
    ("rewind", "expected"),
    [
        ({"count": 20}, (20, 0)),
        ({"seconds": 60}, (0, 60)),
        ({"count": "20", "seconds": -1}, (0, 0)),
        (7, (0, 0)),
        ({"count": True}, (0, 0)),
    ],
)
def test_a_rewind_is_taken_as_far_as_it_makes_sense(rewind: object, expected: tuple[int, int]) -> None:
    history = wanted(data={"rewind": rewind}).history
    assert history is not None
    assert history.rewind == interface.Rewind(*expected)


def test_a_page_with_a_token_stands_where_it_stood() -> None:
    asked = wanted(resumed=resumed())
    assert asked.history is not None
    assert (asked.history.after, asked.recovering, asked.told, asked.sent_as) == (AT, True, False, ("1.1",))
    new = wanted(resumed=resumed("another"))
    assert (new.history, new.recovering) == (RULE.history(), False)


def test_a_rule_rewinds_whoever_is_new() -> None:
    assert wanted(REWINDING).history == REWINDING.history(rewind=interface.Rewind(3, 0))
    known = wanted(REWINDING, resumed=resumed()).history
    assert known is not None
    assert known.after == AT


def test_positions_that_cannot_be_had_are_said_to_be_none() -> None:
    asked = wanted(None, told=True, data={"resume": {"epoch": "E", "offset": 5}})
    assert recovery.stream(asked, None) == {
        "epoch": None,
        "offset": 0,
        "was_recovering": True,
        "recovered": False,
        "replayed": 0,
        "reason": "not_enabled",
    }
    assert "reason" not in recovery.stream(wanted(None, told=True), None)


def test_a_page_of_history_says_where_the_next_one_begins() -> None:
    events = (history_pages.Event(9, "e", "x", None), history_pages.Event(8, "client-e", {"n": 1}, "ann"))
    page = history_pages.Page(events, interface.Position("E", 9), next=interface.Position("E", 8))
    frame = orjson.loads(recovery.history("c", "r", page))
    assert frame["event"] == "pusher:history"
    assert orjson.loads(frame["data"]) == {
        "rid": "r",
        "items": [
            {"offset": 9, "event": "e", "data": "x"},
            {"offset": 8, "event": "client-e", "data": {"n": 1}, "user_id": "ann"},
        ],
        "next": {"epoch": "E", "offset": 8},
    }
    assert orjson.loads(orjson.loads(recovery.history("c", None, history_pages.Page((), None)))["data"])["next"] is None
