"""Keepalive on a simulated clock: the times of pings, time-outs, and the timers that remain."""

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

from fanfare.sockets import keepalive


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
            due, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            if not timer.cancelled:
                timer.callback()
        self.now = end

    def stall(self, seconds: float) -> None:
        """The loop runs nothing for so long."""
        self.now += seconds

    def waiting(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self._timers)


class Peer:
    """A connection in the wheel, with the times of what was done to it."""

    def __init__(self, clock: Clock, *, answers: bool = True) -> None:
        self.heard = True
        self.pinged_at = keepalive.NOT_PINGED
        self.slot: set[Any] | None = None
        self.answers = answers
        self.pings: list[float] = []
        self.timed_out_at: float | None = None
        self.on_ping: Callable[[], None] = lambda: None
        self._clock = clock

    def ping(self) -> None:
        self.pings.append(self._clock.now)
        self.heard = self.answers
        self.on_ping()

    def timed_out(self) -> None:
        self.timed_out_at = self._clock.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    yield made


def test_answering_connection_is_pinged_every_interval(clock: Clock) -> None:
    pings, peer = keepalive.Keepalive(20, 20), Peer(clock)
    pings.add(peer)
    clock.run(100)
    assert peer.pings == [20, 40, 60, 80, 100]
    assert peer.timed_out_at is None


@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 20.0), (20.0, 5.0), (5.0, 20.0), (20.0, 7.0), (7.0, 20.0)])
def test_silent_connection_times_out_after_its_ping(clock: Clock, interval: float, timeout: float) -> None:
    pings, peer = keepalive.Keepalive(interval, timeout), Peer(clock, answers=False)
    pings.add(peer)
    clock.run(100)
    assert peer.pings == [interval]
    assert peer.timed_out_at == interval + timeout
    assert clock.waiting() == 0


@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 5.0), (20.0, 20.0), (5.0, 20.0)])
def test_any_bytes_before_the_timeout_count_as_an_answer(clock: Clock, interval: float, timeout: float) -> None:
    pings, peer = keepalive.Keepalive(interval, timeout), Peer(clock, answers=False)
    pings.add(peer)
    clock.run(interval + timeout - keepalive.TURN_S)
    peer.heard = True
    clock.run(timeout)
    assert peer.timed_out_at is None


def test_stalled_loop_reads_the_waiting_answer_before_the_client_times_out(clock: Clock) -> None:
    pings, peer = keepalive.Keepalive(20, 5), Peer(clock, answers=False)
    pings.add(peer)
    clock.run(20)
    clock.stall(60)
    clock.run(0)  # uvloop runs the timers that are due before it reads
    assert peer.timed_out_at is None
    peer.heard = True
    clock.run(10)
    assert peer.timed_out_at is None


def test_bytes_before_the_ping_do_not_count_as_an_answer(clock: Clock) -> None:
    pings, peer = keepalive.Keepalive(20, 5), Peer(clock, answers=False)
    pings.add(peer)
    clock.run(19)
    peer.heard = True
    clock.run(10)
    assert peer.timed_out_at == 25


def test_timeout_does_not_shorten_the_interval(clock: Clock) -> None:
    pings, peer = keepalive.Keepalive(20, 3), Peer(clock)
    pings.add(peer)
    clock.run(60)
    assert peer.pings == [20, 40, 60]


def test_without_a_timeout_silent_connections_stay(clock: Clock) -> None:
    pings, peer = keepalive.Keepalive(20, None), Peer(clock, answers=False)
    pings.add(peer)
    clock.run(60)
    assert peer.pings == [20, 40, 60]
    assert peer.timed_out_at is None


@pytest.mark.parametrize(("given", "kept"), [(0.01, 0.25), (0.2, 0.25), (0.3, 0.25), (0.6, 0.5), (1.9, 2.0), (20, 20)])
def test_times_are_rounded_to_at_least_one_turn(clock: Clock, given: float, kept: float) -> None:
    pings, peer = keepalive.Keepalive(given, given), Peer(clock, answers=False)
    pings.add(peer)
    clock.run(100)
    assert (peer.pings, peer.timed_out_at) == ([kept], 2 * kept)


def test_removed_connection_is_not_pinged_and_no_timer_remains(clock: Clock) -> None:
    pings, peer = keepalive.Keepalive(1, 1), Peer(clock)
    pings.add(peer)
    pings.remove(peer)
    pings.remove(peer)
    assert clock.waiting() == 0
    clock.run(10)
    assert peer.pings == []


def test_ping_may_remove_other_connections_of_its_turn(clock: Clock) -> None:
    """A listener whose write fails may close other connections during the turn."""
    pings = keepalive.Keepalive(1, 1)
    peers = [Peer(clock) for _ in range(5)]

    def end_all() -> None:
        for peer in peers:
            pings.remove(peer)

    for peer in peers:
        peer.on_ping = end_all
        pings.add(peer)
    clock.run(10)
    assert sum(len(peer.pings) for peer in peers) == 1
    assert clock.waiting() == 0


def test_timed_out_connection_may_be_added_again(clock: Clock) -> None:
    pings, peer = keepalive.Keepalive(4, 2), Peer(clock, answers=False)

    def once_more() -> None:
        if peer.timed_out_at is None:
            peer.timed_out_at = clock.now
            pings.add(peer)

    peer.timed_out = once_more  # type: ignore[method-assign]
    pings.add(peer)
    clock.run(10.5)
    assert (peer.timed_out_at, peer.pings) == (6, [4, 10])


class Connections(RuleBasedStateMachine):
    """Connections come, answer or not, and go, in any order."""

    peers: Bundle[Peer] = Bundle("peers")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(asyncio, "get_running_loop", lambda: self.clock)
        self.interval, self.timeout = 3.0, 2.0
        self.pings = keepalive.Keepalive(self.interval, self.timeout)
        self.standing: dict[Peer, float] = {}  # since when

    def teardown(self) -> None:
        for peer in self.standing:
            self.pings.remove(peer)
        assert self.clock.waiting() == 0
        self.patch.undo()

    @rule(target=peers, answers=st.booleans())
    def come(self, answers: bool) -> Peer:
        peer = Peer(self.clock, answers=answers)
        self.pings.add(peer)
        self.standing[peer] = self.clock.now
        return peer

    @rule(peer=consumes(peers))
    def go(self, peer: Peer) -> None:
        self.pings.remove(peer)
        self.standing.pop(peer, None)

    @rule(peer=peers)
    def send_something(self, peer: Peer) -> None:
        peer.heard = True

    @rule(turns=st.integers(1, 30))
    def wait(self, turns: int) -> None:
        self.clock.run(turns * keepalive.TURN_S)
        for peer in [peer for peer in self.standing if peer.timed_out_at is not None]:
            assert not peer.answers
            assert peer.timed_out_at is not None
            assert peer.timed_out_at - peer.pings[-1] >= self.timeout
            del self.standing[peer]

    @invariant()
    def an_empty_wheel_has_no_timer_and_a_used_one_has_one(self) -> None:
        assert self.clock.waiting() == (1 if self.standing else 0)

    @invariant()
    def no_connection_is_forgotten(self) -> None:
        for peer, since in self.standing.items():
            last = peer.pings[-1] if peer.pings else since
            assert self.clock.now - last <= self.interval + keepalive.TURN_S
            assert peer.slot is not None
            assert peer in peer.slot

    @invariant()
    def no_connection_is_pinged_more_often_than_the_interval(self) -> None:
        for peer in self.standing:
            assert all(later - earlier >= self.interval for earlier, later in itertools.pairwise(peer.pings))


TestConnections: Any = Connections.TestCase
TestConnections.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
