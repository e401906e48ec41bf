"""Keepalive for many connections: one timer for all of them.

A timer of its own for every connection costs memory and two entries in the loop's heap for each ping. Here connections
stand in the slots of a wheel that turns once a second, and a turn touches only those of one slot.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

TURN_S: Final = 1.0
NOT_PINGED: Final = -1
NOWHERE: Final = -1


class Pinged(Protocol):
    """What stands in a wheel; the fields are the wheel's."""

    heard: bool  # but for this one: set by the connection whenever bytes arrive
    pinged_at: int  # the turn of the ping that waits for an answer, or NOT_PINGED
    slot: int  # NOWHERE: it does not stand in one

    def ping(self) -> None: ...
    def timed_out(self) -> None: ...


class Wheel:
    """Pings each connection every `interval` seconds, and tells the one that says nothing for `timeout` s after it.

    Both count whole seconds, 1 at least. Any byte counts as an answer: who sends is alive. It takes no time of the loop
    while it is empty.
    """

    def __init__(self, interval: float, timeout: float | None) -> None:
        self._interval = max(1, round(interval))
        self._timeout = None if timeout is None else max(1, round(timeout))
        self._slots: list[set[Pinged]] = [set() for _ in range(max(self._interval, self._timeout or 0) + 1)]
        self._turns = 0
        self._standing = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Pinged) -> None:
        connection.pinged_at = NOT_PINGED
        self._put(connection, self._interval)
        self._standing += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TURN_S, self._turn)

    def remove(self, connection: Pinged) -> None:
        """Idempotent."""
        if connection.slot == NOWHERE:
            return
        self._slots[connection.slot].discard(connection)
        connection.slot = NOWHERE
        self._standing -= 1
        if not self._standing and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _put(self, connection: Pinged, turns: int) -> None:
        connection.slot = (self._turns + turns) % len(self._slots)
        self._slots[connection.slot].add(connection)

    def _turn(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TURN_S, self._turn)
        self._turns += 1
        number = self._turns % len(self._slots)
        due, self._slots[number] = self._slots[number], set()
        for connection in due:
            if connection.slot == number:  # else an earlier one's ping or end took it out
                self._look(connection)

    def _look(self, connection: Pinged) -> None:
        waiting = connection.pinged_at != NOT_PINGED
        if waiting and self._timeout is not None:
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
