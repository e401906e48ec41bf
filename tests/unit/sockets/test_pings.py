"""The wheel on a clock of its own: who is pinged and when, who has timed out, and what stays behind."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from fanfare.sockets import pings


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The part of an event loop that the wheel uses, with a time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Timer]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (self.now + seconds, next(self._order), timer))
        return timer

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback()
        self.now = end

    def waiting(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self._timers)


class Peer:
    """A connection in the wheel, with the times of what was done to it."""

    def __init__(self, clock: Clock, *, answers: bool = True) -> None:
        self.heard = True
        self.pinged_at = pings.NOT_PINGED
        self.slot: set[pings.Pinged] | None = None
        self.answers = answers
        self.pings: list[float] = []
        self.dead_at: float | None = None
        self.on_ping: Callable[[], None] = lambda: None
        self._clock = clock

    def ping(self) -> None:
        self.pings.append(self._clock.now)
        self.heard = self.answers
        self.on_ping()

    def timed_out(self) -> None:
        self.dead_at = self._clock.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    yield made


def test_who_answers_is_pinged_each_interval_for_ever(clock: Clock) -> None:
    wheel, peer = pings.Wheel(20, 20), Peer(clock)
    wheel.add(peer)
    clock.run(100)
    assert peer.pings == [20, 40, 60, 80, 100]
    assert peer.dead_at is None


@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 20.0), (20.0, 5.0), (5.0, 20.0), (20.0, 7.0), (7.0, 20.0)])
def test_who_never_answers_is_dead_a_timeout_after_its_ping(clock: Clock, interval: float, timeout: float) -> None:
    wheel, peer = pings.Wheel(interval, timeout), Peer(clock, answers=False)
    wheel.add(peer)
    clock.run(100)
    assert peer.pings == [interval]
    assert peer.dead_at == interval + timeout
    assert clock.waiting() == 0


@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 5.0), (20.0, 20.0), (5.0, 20.0)])
def test_any_bytes_in_time_are_an_answer(clock: Clock, interval: float, timeout: float) -> None:
    wheel, peer = pings.Wheel(interval, timeout), Peer(clock, answers=False)
    wheel.add(peer)
    clock.run(interval + timeout - pings.TURN_S)
    peer.heard = True
    clock.run(timeout)
    assert peer.dead_at is None


def test_bytes_from_before_the_ping_are_no_answer(clock: Clock) -> None:
    wheel, peer = pings.Wheel(20, 5), Peer(clock, answers=False)
    wheel.add(peer)
    clock.run(19)
    peer.heard = True
    clock.run(10)
    assert peer.dead_at == 25


def test_the_interval_holds_whatever_the_timeout_is(clock: Clock) -> None:
    wheel, peer = pings.Wheel(20, 3), Peer(clock)
    wheel.add(peer)
    clock.run(60)
    assert peer.pings == [20, 40, 60]


def test_without_a_timeout_nobody_dies(clock: Clock) -> None:
    wheel, peer = pings.Wheel(20, None), Peer(clock, answers=False)
    wheel.add(peer)
    clock.run(60)
    assert peer.pings == [20, 40, 60]
    assert peer.dead_at is None


@pytest.mark.parametrize(("given", "kept"), [(0.01, 0.25), (0.2, 0.25), (0.3, 0.25), (0.6, 0.5), (1.9, 2.0), (20, 20)])
def test_times_are_rounded_to_whole_turns_and_never_to_none(clock: Clock, given: float, kept: float) -> None:
    wheel, peer = pings.Wheel(given, given), Peer(clock, answers=False)
    wheel.add(peer)
    clock.run(100)
    assert (peer.pings, peer.dead_at) == ([kept], 2 * kept)


def test_who_is_removed_is_left_alone_and_an_empty_wheel_has_no_timer(clock: Clock) -> None:
    wheel, peer = pings.Wheel(1, 1), Peer(clock)
    wheel.add(peer)
    wheel.remove(peer)
    wheel.remove(peer)
    assert clock.waiting() == 0
    clock.run(10)
    assert peer.pings == []


def test_a_ping_may_take_the_others_of_its_turn_out(clock: Clock) -> None:
    """A listener whose write fails may end other connections while the wheel turns."""
    wheel = pings.Wheel(1, 1)
    peers = [Peer(clock) for _ in range(5)]

    def end_all() -> None:
        for peer in peers:
            wheel.remove(peer)

    for peer in peers:
        peer.on_ping = end_all
        wheel.add(peer)
    clock.run(10)
    assert sum(len(peer.pings) for peer in peers) == 1
    assert clock.waiting() == 0


def test_who_has_timed_out_may_be_given_another_interval(clock: Clock) -> None:
    wheel, peer = pings.Wheel(4, 2), Peer(clock, answers=False)

    def once_more() -> None:
        if peer.dead_at is None:
            peer.dead_at = clock.now
            wheel.add(peer)

    peer.timed_out = once_more  # type: ignore[method-assign]
    wheel.add(peer)
    clock.run(10.5)
    assert (peer.dead_at, peer.pings) == (6, [4, 10])


class Connections(RuleBasedStateMachine):
    """Connections come, answer or not, and go, in any order."""

    peers: Bundle[Peer] = Bundle("peers")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(asyncio, "get_running_loop", lambda: self.clock)
        self.interval, self.timeout = 3.0, 2.0
        self.wheel = pings.Wheel(self.interval, self.timeout)
        self.standing: dict[Peer, float] = {}  # since when

    def teardown(self) -> None:
        for peer in self.standing:
            self.wheel.remove(peer)
        assert self.clock.waiting() == 0
        self.patch.undo()

    @rule(target=peers, answers=st.booleans())
    def come(self, answers: bool) -> Peer:
        peer = Peer(self.clock, answers=answers)
        self.wheel.add(peer)
        self.standing[peer] = self.clock.now
        return peer

    @rule(peer=consumes(peers))
    def go(self, peer: Peer) -> None:
        self.wheel.remove(peer)
        self.standing.pop(peer, None)

    @rule(peer=peers)
    def send_something(self, peer: Peer) -> None:
        peer.heard = True

    @rule(turns=st.integers(1, 30))
    def wait(self, turns: int) -> None:
        self.clock.run(turns * pings.TURN_S)
        for peer in [peer for peer in self.standing if peer.dead_at is not None]:
            assert not peer.answers
            assert peer.dead_at is not None
            assert peer.dead_at - peer.pings[-1] >= self.timeout
            del self.standing[peer]

    @invariant()
    def an_empty_wheel_has_no_timer_and_a_used_one_has_one(self) -> None:
        assert self.clock.waiting() == (1 if self.standing else 0)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        for peer, since in self.standing.items():
            last = peer.pings[-1] if peer.pings else since
            assert self.clock.now - last <= self.interval + pings.TURN_S
            assert peer.slot is not None
            assert peer in peer.slot

    @invariant()
    def nobody_is_pinged_more_often_than_agreed(self) -> None:
        for peer in self.standing:
            assert all(later - earlier >= self.interval for earlier, later in itertools.pairwise(peer.pings))


TestConnections: Any = Connections.TestCase
TestConnections.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
