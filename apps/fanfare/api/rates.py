"""Requests for one thing in the current second, counted in this worker."""

from __future__ import annotations

import collections
import time
from collections.abc import Hashable

from fanfare.api import refusals


class Rate:
    """`what` and `code`: see refusals.TooOften."""

    def __init__(self, what: str, code: str) -> None:
        self._what = what
        self._code = code
        self._second = 0
        self._counts: collections.Counter[Hashable] = collections.Counter()

    def spend(self, key: Hashable, limit: int) -> None:
        """Raises TooOften."""
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._counts.clear()
        self._counts[key] += 1
        if self._counts[key] > limit:
            raise refusals.TooOften(self._what, limit, self._counts[key], code=self._code)
