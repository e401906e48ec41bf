"""The timer wheel serves each entry once at its time, and an exception of one entry does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fanfare.runtime import timer_wheel
from fanfare.runtime.timer_wheel import TimerWheel
from tests.harness import waiting

TURN_S = 0.01


class Entry:
    def __init__(self, name: str) -> None:
        self.slot: set[Any] | None = None
        self.name = name


def wheel_of(seen: list[str], then: Callable[[Entry], None] = lambda _: None) -> TimerWheel[Entry]:
    def due(entry: Entry) -> None:
        seen.append(entry.name)
        then(entry)

    return TimerWheel("tests", TURN_S, due)


async def rest(wheel: TimerWheel[Entry]) -> None:
    async def resting() -> bool:
        return wheel._timer is None

    await waiting.until_async(resting, 5, "an empty wheel without a timer")


async def test_entries_are_served_once_in_the_order_of_their_times() -> None:
    seen: list[str] = []
    wheel = wheel_of(seen)
    first, second, moved, cancelled = (Entry(name) for name in ("first", "second", "moved", "cancelled"))
    wheel.schedule(second, 2 * TURN_S)
    wheel.schedule(first, 0.0)
    wheel.schedule(moved, TURN_S)
    wheel.schedule(cancelled, TURN_S)
    wheel.schedule(moved, 3 * TURN_S)
    wheel.cancel(cancelled)
    wheel.cancel(cancelled)
    await rest(wheel)
    assert seen == ["first", "second", "moved"]
    assert first.slot is None


async def test_exception_of_one_entry_is_logged_and_the_others_of_the_turn_are_served(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer_wheel, "RETRY_S", TURN_S)
    seen: list[str] = []

    def fail(entry: Entry) -> None:
        if int(entry.name) % 2 and seen.count(entry.name) == 1:
            raise RuntimeError(entry.name)

    wheel = wheel_of(seen, fail)
    for number in range(21):
        wheel.schedule(Entry(str(number)), TURN_S)
    await rest(wheel)
    assert sorted(map(int, seen[:21])) == list(range(21))
    assert wheel.failures == 10
    [record] = caplog.records
    assert record.getMessage() == "The timer of one entry failed (tests)"
    assert record.exc_info is not None


async def test_entry_that_is_cancelled_by_another_one_of_its_turn_is_not_served() -> None:
    seen: list[str] = []
    one, two = Entry("x"), Entry("x")

    def cancel_both(_: Entry) -> None:
        wheel.cancel(one)
        wheel.cancel(two)

    wheel = wheel_of(seen, cancel_both)
    wheel.schedule(one, TURN_S)
    wheel.schedule(two, TURN_S)
    await rest(wheel)
    assert seen == ["x"]


async def test_entry_may_schedule_itself_again() -> None:
    seen: list[str] = []

    def again(entry: Entry) -> None:
        if len(seen) < 3:
            wheel.schedule(entry, TURN_S)

    wheel = wheel_of(seen, again)
    wheel.schedule(Entry("x"), TURN_S)
    await rest(wheel)
    assert seen == ["x"] * 3


async def test_cancelling_the_last_entry_stops_the_timer() -> None:
    wheel, entry = wheel_of([]), Entry("x")
    wheel.schedule(entry, 1_000)
    assert wheel._timer is not None
    wheel.cancel(entry)
    assert wheel._timer is None


async def test_entry_that_failed_is_due_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose ping failed is pinged again."""
    monkeypatch.setattr(timer_wheel, "RETRY_S", TURN_S)
    seen: list[str] = []

    def fail_once(_: Entry) -> None:
        if len(seen) == 1:
            raise ZeroDivisionError

    wheel = wheel_of(seen, fail_once)
    wheel.schedule(Entry("one"), TURN_S)
    await rest(wheel)
    assert seen == ["one", "one"]
    assert wheel.failures == 1
