"""The history checker finds planted faults, also in a history that was written and read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kills import followers, histories, rounds
from tests.kills.transcripts import Line, Lost, Received, Subscribed

Change = Callable[[list[Line]], list[Line]]


def history(change: Change = lambda lines: lines) -> histories.History:
    """Twenty events in calls of five, one of which was repeated, and an SSE client with two connections."""
    calls = [
        histories.Call(1, 5, 0.0, 0.1, "acknowledged"),
        histories.Call(6, 10, 1.0, 1.1, "503"),
        histories.Call(6, 10, 2.0, 2.1, "acknowledged"),
        histories.Call(11, 15, 3.0, 3.1, "acknowledged"),
        histories.Call(16, 20, 4.0, 4.1, "acknowledged"),
    ]
    lines: list[Line] = [Subscribed(-1.0)]
    for number in range(1, 21):
        if number == 13:
            lines.append(Subscribed(5.0))
        lines.append(Received(number, 5.0 + number / 100))
    client = histories.Client(followers.SSE, "counts", change(lines), 1, 1)
    return histories.History("A run", {"counts": ()}, True, calls, [client])


def without(number: int) -> Change:
    return lambda lines: [line for line in lines if not (isinstance(line, Received) and line.number == number)]


def with_line(index: int, line: Line) -> Change:
    return lambda lines: [*lines[:index], line, *lines[index:]]


def swapped(lines: list[Line]) -> list[Line]:
    return [*lines[:4], lines[5], lines[4], *lines[6:]]


def test_complete_history_has_no_fault() -> None:
    result = rounds.judge(history())
    assert result.faults == []
    assert (result.published, result.retries) == (20, {"503": 1})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(without(1), "1 events were lost without a report", id="gap at the beginning"),
        pytest.param(without(7), "1 events were lost without a report", id="gap in the middle"),
        pytest.param(without(20), "1 events were lost without a report", id="lost tail"),
        pytest.param(with_line(9, Received(3, 5.09)), "1 duplicates", id="duplicate"),
        pytest.param(swapped, "1 events came after a later one", id="wrong order"),
        pytest.param(
            with_line(1, Received(16, 0.0)), "1 events were received before they were published", id="from the future"
        ),
        pytest.param(with_line(22, Received(21, 6.0)), "1 events were received before they were", id="never published"),
        pytest.param(
            lambda lines: with_line(7, Lost("too_many"))(without(7)(lines)),
            "1 events were lost: too_many",
            id="loss that may not be",
        ),
    ],
)
def test_planted_fault_is_found(change: Change, fault: str, tmp_path: Path) -> None:
    run = history(change)
    assert any(fault in found for found in rounds.judge(run).faults), rounds.judge(run).faults
    run.write(tmp_path / "history.jsonl")
    assert rounds.judge(histories.read(tmp_path / "history.jsonl")).faults == rounds.judge(run).faults


def test_history_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    run = history(with_line(13, Lost("epoch_changed")))
    run.write(tmp_path / "history.jsonl")
    assert histories.read(tmp_path / "history.jsonl") == run


def test_event_whose_call_failed_may_be_received() -> None:
    """The answer of a call may be lost after the event was stored."""
    run = history()
    run.calls.append(histories.Call(21, 21, 6.0, 6.1, "no answer"))
    run.clients[0].lines.append(Received(21, 6.05))
    assert rounds.judge(run).faults == []
