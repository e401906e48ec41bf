"""The kill test finds every kind of fault in a transcript."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.kills import followers, rounds, transcripts
from tests.kills.transcripts import Line, Lost, Received, Subscribed


def lines(*items: int | str) -> list[Line]:
    """Numbers are events, a second apart; `|` is a new connection; other texts are reported losses."""
    found: list[Line] = []
    for at, one in enumerate(items):
        if isinstance(one, int):
            found.append(Received(one, float(at)))
        else:
            found.append(Subscribed(float(at)) if one == "|" else Lost(one))
    return found


def test_complete_stream_has_no_fault() -> None:
    found = transcripts.examine(lines("|", 1, 2, "|", 3, 4), 4)
    assert found == transcripts.Findings(events=4, connections=2)


@pytest.mark.parametrize(
    ("items", "unreported"),
    [
        pytest.param(["|", 1, 3, 4], 1, id="in the middle"),
        pytest.param(["|", 2, 3, 4], 1, id="at the beginning"),
        pytest.param(["|", 1, 2], 2, id="at the end"),
        pytest.param(["|", 1, "|", "too_many", 2, 4], 1, id="after a reported loss that has ended"),
        pytest.param(["|"], 4, id="all of it"),
    ],
)
def test_loss_without_report_is_unreported(items: Sequence[int | str], unreported: int) -> None:
    found = transcripts.examine(lines(*items), 4)
    assert (found.unreported, found.reported.total()) == (unreported, 0)
    assert rounds.faults_of(followers.SSE, found, ())


def test_reported_loss_has_its_reason() -> None:
    found = transcripts.examine(lines("|", 1, "|", "too_many", 4, "|", "epoch_changed"), 6)
    assert (found.unreported, found.reported) == (0, {"too_many": 2, "epoch_changed": 2})
    assert rounds.faults_of(followers.SSE, found, ("too_many", "epoch_changed")) == []
    assert rounds.faults_of(followers.SSE, found, ("too_many",)) == ["2 events were lost: epoch_changed"]


def test_duplicate_is_as_old_as_its_receipt_before_the_end_of_its_connection() -> None:
    found = transcripts.examine(lines("|", 1, 2, 3, "|", 2, 3, 4), 4)
    assert (found.duplicates, found.oldest_duplicate_s, found.out_of_order) == (2, 1.0, 0)
    assert rounds.faults_of(followers.SESSION, found, ()) == []
    assert rounds.faults_of(followers.PLUGIN, found, ()) == ["2 duplicates"]


def test_duplicate_long_after_its_acknowledgement_is_a_fault() -> None:
    numbers = range(1, 12)
    found = transcripts.examine(lines("|", *numbers, "|", *numbers), 11)
    assert found.oldest_duplicate_s == 10.0
    assert len(rounds.faults_of(followers.SESSION, found, ())) == 1


def test_late_event_is_out_of_order() -> None:
    found = transcripts.examine(lines("|", 1, 3, 2), 3)
    assert found.out_of_order == 1
    assert "1 events came after a later one" in rounds.faults_of(followers.SESSION, found, ())


def test_run_without_losses_to_detect_is_a_fault() -> None:
    found = transcripts.examine(lines("|", 1, 2), 2)
    assert rounds.faults_of(followers.PLAIN, found, ())
    assert rounds.faults_of(followers.SSE, found, ("too_many",))
