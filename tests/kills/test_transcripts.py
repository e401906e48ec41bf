"""The kill test would notice: what is wrong with a transcript is found in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.kills import followers, rounds, transcripts
from tests.kills.transcripts import Got, Line, Lost, Subscribed


def lines(*told: int | str) -> list[Line]:
    """Numbers are events, a second apart; `|` is a new connection; any other text a loss that was told."""
    found: list[Line] = []
    for at, one in enumerate(told):
        if isinstance(one, int):
            found.append(Got(one, float(at)))
        else:
            found.append(Subscribed(float(at)) if one == "|" else Lost(one))
    return found


def test_a_whole_stream_has_no_fault() -> None:
    found = transcripts.examine(lines("|", 1, 2, "|", 3, 4), 4)
    assert found == transcripts.Findings(events=4, connections=2)


@pytest.mark.parametrize(
    ("told", "silent"),
    [
        pytest.param(["|", 1, 3, 4], 1, id="in the middle"),
        pytest.param(["|", 2, 3, 4], 1, id="at the beginning"),
        pytest.param(["|", 1, 2], 2, id="at the end"),
        pytest.param(["|", 1, "|", "too_many", 2, 4], 1, id="after a loss that was told, and ended"),
        pytest.param(["|"], 4, id="all of it"),
    ],
)
def test_a_gap_that_nobody_told_is_silent(told: Sequence[int | str], silent: int) -> None:
    found = transcripts.examine(lines(*told), 4)
    assert (found.silent, found.told.total()) == (silent, 0)
    assert rounds.faults_of(followers.SSE, found, ())


def test_a_gap_that_was_told_has_its_reason() -> None:
    found = transcripts.examine(lines("|", 1, "|", "too_many", 4, "|", "epoch_changed"), 6)
    assert (found.silent, found.told) == (0, {"too_many": 2, "epoch_changed": 2})
    assert rounds.faults_of(followers.SSE, found, ("too_many", "epoch_changed")) == []
    assert rounds.faults_of(followers.SSE, found, ("too_many",)) == ["2 events are missing: epoch_changed"]


def test_what_comes_again_is_as_old_as_its_last_receipt_before_its_connection_ended() -> None:
    found = transcripts.examine(lines("|", 1, 2, 3, "|", 2, 3, 4), 4)
    assert (found.repeated, found.oldest_s, found.disordered) == (2, 1.0, 0)
    assert rounds.faults_of(followers.SESSION, found, ()) == []
    assert rounds.faults_of(followers.PLUGIN, found, ()) == ["2 events came again"]


def test_an_event_that_comes_again_long_after_it_was_acknowledged_is_a_fault() -> None:
    numbers = range(1, 12)
    found = transcripts.examine(lines("|", *numbers, "|", *numbers), 11)
    assert found.oldest_s == 10.0
    assert len(rounds.faults_of(followers.SESSION, found, ())) == 1


def test_a_late_event_is_out_of_order() -> None:
    found = transcripts.examine(lines("|", 1, 3, 2), 3)
    assert found.disordered == 1
    assert "1 events came after a later one" in rounds.faults_of(followers.SESSION, found, ())


def test_a_run_in_which_nothing_was_at_stake_is_a_fault() -> None:
    found = transcripts.examine(lines("|", 1, 2), 2)
    assert rounds.faults_of(followers.PLAIN, found, ())
    assert rounds.faults_of(followers.SSE, found, ("too_many",))
