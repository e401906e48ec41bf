"""Keepalive for many connections: one timer for all of them.

A timer of its own for every connection costs memory and two entries in the loop's heap for each ping. Here connections
stand in the slots of a wheel that turns four times a second, and a turn touches only those of one slot.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

# Intervals are whole turns. A shorter turn spreads the pings of connections that came together, and so the time that
# they take from the loop (about 4 µs each); a longer one wakes an idle process less often.
TURN_S: Final = 0.25
NOT_PINGED: Final = -1


class Pinged(Protocol):
    """What stands in a wheel; the fields are the wheel's."""

    heard: bool  # but for this one: set by the connection whenever bytes arrive
    pinged_at: int  # the turn of the ping that waits for an answer, or NOT_PINGED
    slot: set[Pinged] | None  # where it stands

    def ping(self) -> None: ...
    def timed_out(self) -> None: ...


class Wheel:
    """Pings each connection every `interval` seconds, and tells the one that says nothing for `timeout` s after it.

    Both are rounded to whole turns, one at least. Any byte counts as an answer: who sends is alive. A connection that
    has timed out stands in the wheel no more. The wheel takes no time of the loop while it is empty.
    """

    def __init__(self, interval: float, timeout: float | None) -> None:
        self._interval = _turns(interval)
        self._timeout = None if timeout is None else _turns(timeout)
        self._slots: dict[int, set[Pinged]] = {}  # by the turn that looks at them
        self._turns = 0
        self._standing = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Pinged) -> None:
        """It was heard just now. Once, until it is removed or has timed out."""
        connection.pinged_at = NOT_PINGED
        self._put(connection, self._interval)
        self._standing += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TURN_S, self._turn)

    def remove(self, connection: Pinged) -> None:
        """Idempotent."""
        if connection.slot is None:
            return
        connection.slot.discard(connection)
        connection.slot = None
        self._standing -= 1
        if not self._standing and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._slots.clear()

    def _put(self, connection: Pinged, turns: int) -> None:
        slot = self._slots.setdefault(self._turns + turns, set())
        slot.add(connection)
        connection.slot = slot

    def _turn(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TURN_S, self._turn)
        self._turns += 1
        due = self._slots.pop(self._turns, None)
        while due:  # what is done for one may take another one out
            self._look(due.pop())

    def _look(self, connection: Pinged) -> None:
        if connection.pinged_at != NOT_PINGED and self._timeout is not None:
            rest = self._timeout - (self._turns - connection.pinged_at)
            if not connection.heard and rest <= 0:
                self.remove(connection)
                connection.timed_out()
                return
            if not connection.heard:
                self._put(connection, min(self._interval, rest))
                return
            if self._timeout < self._interval:  # it answered, and the next ping is not due yet
                connection.pinged_at = NOT_PINGED
                self._put(connection, self._interval - self._timeout)
                return
        connection.heard = False
        connection.pinged_at = self._turns
        self._put(connection, self._interval if self._timeout is None else min(self._interval, self._timeout))
        connection.ping()


def _turns(seconds: float) -> int:
    return max(1, round(seconds / TURN_S))
