"""When to look at a page again: one timer for all pages of a worker, and none where nobody waits for a look."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

# The shortest wait, and so how finely the looks at pages that came together are spread.
TURN_S: Final = 0.1


class Page(Protocol):
    """What stands in a wheel."""

    slot: set[Page] | None  # the wheel's: where it stands

    def look(self) -> None:
        """Its time has come. It stands in the wheel no more, unless it puts itself there."""


class Wheel:
    """Pages stand in slots, each of them in one at most; a turn touches only those of one slot."""

    def __init__(self) -> None:
        self._slots: dict[int, set[Page]] = {}  # by the turn that looks at them
        self._turns = 0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, page: Page, seconds: float) -> None:
        """Look at it after so many seconds, rounded to turns, and not when it was said before."""
        self.remove(page)
        page.slot = self._slots.setdefault(self._turns + max(1, round(seconds / TURN_S)), set())
        page.slot.add(page)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TURN_S, self._turn)

    def remove(self, page: Page) -> None:
        """Idempotent."""
        if page.slot is not None:
            page.slot.discard(page)
            page.slot = None

    def _turn(self) -> None:
        self._turns += 1
        due = self._slots.pop(self._turns, None)
        # Before the pages, so that the mistake of one does not stop the wheel. An empty one rests.
        self._timer = asyncio.get_running_loop().call_later(TURN_S, self._turn) if due or self._slots else None
        while due:  # a look at one may take another one out
            page = due.pop()
            page.slot = None
            page.look()
