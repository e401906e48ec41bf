"""One timer for many entries that wait: connections that are pinged, pages whose record expires.

10,000 timers, one per connection, would cost memory and two operations on the event loop's heap per ping. Here entries
are in the slots of a wheel, and a turn touches only the entries of one slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from fanfare.runtime.log_throttle import LogThrottle

RETRY_S = 1.0  # after a failure, unless the entry was scheduled before it failed

_log = LogThrottle(logging.getLogger(__name__))


class Entry(Protocol):
    """An entry of a wheel. The attribute belongs to the wheel: the slot where the entry waits, or None."""

    slot: set[Any] | None


E = TypeVar("E", bound=Entry)


class TimerWheel(Generic[E]):
    """Calls `due` with each entry at its time, and removes it from the wheel unless `due` schedules it again.

    Times are rounded to whole turns of `turn_s` seconds, one at least. An entry waits for one time at most. An
    exception that `due` raises for one entry is logged and counted in `failures`, the other entries are served, and
    this one is due again after `RETRY_S`. An empty wheel has no timer.
    """

    def __init__(self, name: str, turn_s: float, due: Callable[[E], None]) -> None:
        self.turn = 0  # the number of the present turn
        self.failures = 0
        self._name = name
        self._turn_s = turn_s
        self._due = due
        self._slots: dict[int, set[E]] = {}  # by the turn that serves them
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def turns(self, seconds: float) -> int:
        return max(1, round(seconds / self._turn_s))

    def schedule(self, entry: E, seconds: float) -> None:
        """Replaces the time that was set before."""
        self.schedule_turns(entry, self.turns(seconds))

    def schedule_turns(self, entry: E, turns: int) -> None:
        """The same in turns; 1 or more."""
        if entry.slot is None:
            self._waiting += 1
        else:
            entry.slot.discard(entry)
        slot = entry.slot = self._slots.setdefault(self.turn + turns, set())
        slot.add(entry)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._turn_s, self._next_turn)

    def cancel(self, entry: E) -> None:
        """Idempotent."""
        if entry.slot is None:
            return
        entry.slot.discard(entry)
        entry.slot = None
        self._waiting -= 1
        if not self._waiting:
            self._rest()

    def _rest(self) -> None:
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next_turn(self) -> None:
        # Scheduled before the entries are served, so that a failure of one cannot stop the wheel.
        self._timer = asyncio.get_running_loop().call_later(self._turn_s, self._next_turn)
        self.turn += 1
        slot = self._slots.pop(self.turn, None)
        while slot:  # `due` of one entry may cancel others
            entry = slot.pop()
            entry.slot = None
            self._waiting -= 1
            try:
                self._due(entry)
            except Exception as error:  # noqa: BLE001  (of one entry: the others of this turn must be served)
                self.failures += 1
                _log.error("The timer of one entry failed (%s)", self._name, key=self._name, error=error)
                if entry.slot is None:
                    self.schedule(entry, RETRY_S)
        if not self._waiting:
            self._rest()
