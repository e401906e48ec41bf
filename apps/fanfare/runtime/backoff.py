"""Exponential back-off with jitter."""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_S = 1.0
LONGEST_S = 60.0
# Each pause is shortened by up to a quarter at random, so that workers that failed together do not retry together.
SHORTEST_SHARE = 0.75


def pause_s(failures: int, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> float:
    """Seconds to wait after n consecutive failures: `first_s`, doubled for each further failure, at most
    `longest_s`.
    """
    doubled = first_s * 2.0 ** min(max(failures, 1) - 1, 30)
    return min(doubled, longest_s) * random.uniform(SHORTEST_SHARE, 1.0)  # noqa: S311


@dataclass(slots=True)
class Backoff:
    """Counts consecutive failures. `failed` returns the pause before the next attempt; `succeeded` resets the count."""

    first_s: float = FIRST_S
    longest_s: float = LONGEST_S
    failures: int = 0

    def failed(self) -> float:
        """Count a failure. Returns the seconds to wait."""
        self.failures += 1
        return pause_s(self.failures, self.first_s, self.longest_s)

    def succeeded(self) -> None:
        self.failures = 0
