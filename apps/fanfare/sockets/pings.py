"""Keepalive for many connections: one timer wheel that turns four times a second pings all of them."""

from __future__ import annotations

from typing import Final, Protocol

from fanfare.runtime import timer_wheel

# Intervals are whole turns. A shorter turn spreads the pings of connections that came together, and so the time that
# they take from the loop (about 4 µs each); a longer one wakes an idle process less often.
TURN_S: Final = 0.25
NOT_PINGED: Final = -1


class Pinged(Protocol):
    """An entry of the wheel; the fields are the wheel's."""

    heard: bool  # but for this one: set by the connection whenever bytes arrive
    pinged_at: int  # the turn of the ping that waits for an answer, or NOT_PINGED
    slot: set[Pinged] | None  # of the timer wheel

    def ping(self) -> None: ...
    def timed_out(self) -> None: ...


class Wheel:
    """Pings each connection every `interval` seconds, and drops one that sends nothing for `timeout` s after its ping.

    Both are rounded to whole turns, one at least. Any byte counts as an answer. A connection that has timed out is in
    the wheel no more.
    """

    def __init__(self, interval: float, timeout: float | None) -> None:
        self._wheel: timer_wheel.TimerWheel[Pinged] = timer_wheel.TimerWheel("keepalive", TURN_S, self._look)
        self._interval = self._wheel.turns(interval)
        self._timeout = None if timeout is None else self._wheel.turns(timeout)

    def add(self, connection: Pinged) -> None:
        """Begin a new interval. A connection is added once, until it is removed or has timed out."""
        connection.pinged_at = NOT_PINGED
        self._wheel.schedule_turns(connection, self._interval)

    def remove(self, connection: Pinged) -> None:
        """Idempotent."""
        self._wheel.cancel(connection)

    def _look(self, connection: Pinged) -> None:
        wheel = self._wheel
        if connection.pinged_at != NOT_PINGED and self._timeout is not None:
            rest = self._timeout - (wheel.turn - connection.pinged_at)
            if not connection.heard and rest <= 0:
                connection.timed_out()
                return
            if not connection.heard:
                wheel.schedule_turns(connection, min(self._interval, rest))
                return
            if self._timeout < self._interval:  # it answered, and the next ping is not due yet
                connection.pinged_at = NOT_PINGED
                wheel.schedule_turns(connection, self._interval - self._timeout)
                return
        connection.heard = False
        connection.pinged_at = wheel.turn
        turns = self._interval if self._timeout is None else min(self._interval, self._timeout)
        wheel.schedule_turns(connection, turns)
        connection.ping()
