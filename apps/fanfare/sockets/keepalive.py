"""Keepalive pings for the WebSockets of one server, on one timer wheel."""

from __future__ import annotations

from typing import Any, Final, Protocol

from fanfare.runtime.timer_wheel import TimerWheel

# Intervals are whole turns. A shorter turn spreads the pings of connections that were opened together (about 4 µs of
# the loop each); a longer one wakes an idle process less often.
TURN_S: Final = 0.25
NOT_PINGED: Final = -1


class Pinged(Protocol):
    """A connection. It sets `heard` whenever bytes arrive; the other attributes belong to Keepalive."""

    heard: bool
    pinged_at: int  # the turn of the ping that has no answer yet, or NOT_PINGED
    slot: set[Any] | None  # of the wheel

    def ping(self) -> None: ...
    def timed_out(self) -> None: ...


class Keepalive:
    """Pings each connection every `interval_s`, and calls `timed_out` if nothing arrives for `timeout_s` after a ping.

    Both times are rounded to whole turns, one at least. A turn counts once, however late the loop is, and the loop
    reads between two turns: a stall does not time out clients whose answers wait in the socket. Any byte counts as an
    answer. A connection that has timed out is removed.
    """

    def __init__(self, interval_s: float, timeout_s: float | None) -> None:
        self._wheel: TimerWheel[Pinged] = TimerWheel("WebSocket keepalive", TURN_S, self._due)
        self._interval = self._wheel.turns(interval_s)
        self._timeout = None if timeout_s is None else self._wheel.turns(timeout_s)

    def add(self, connection: Pinged) -> None:
        connection.pinged_at = NOT_PINGED
        self._wheel.schedule_turns(connection, self._interval)

    def remove(self, connection: Pinged) -> None:
        """Idempotent."""
        self._wheel.cancel(connection)

    def _due(self, connection: Pinged) -> None:
        if connection.pinged_at != NOT_PINGED and self._timeout is not None:
            remaining = self._timeout - (self._wheel.turn - connection.pinged_at)
            if not connection.heard and remaining <= 0:
                connection.timed_out()
                return
            if not connection.heard:
                self._wheel.schedule_turns(connection, min(self._interval, remaining))
                return
            if self._timeout < self._interval:  # it answered, and the next ping is not due yet
                connection.pinged_at = NOT_PINGED
                self._wheel.schedule_turns(connection, self._interval - self._timeout)
                return
        connection.heard = False
        connection.pinged_at = self._wheel.turn
        turns = self._interval if self._timeout is None else min(self._interval, self._timeout)
        self._wheel.schedule_turns(connection, turns)
        connection.ping()
