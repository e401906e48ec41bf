"""When to try again: the pauses between the attempts of one event, and the circuit breaker of one endpoint."""

from __future__ import annotations

import random

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

# So many failures in a row are the endpoint's fault and not that of one event.
OPENS_AT = 5


def pause(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: 1, 2, 4, … 60, less up to a quarter so that many do not come at
    once."""
    longest = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE_S)
    return longest * random.uniform(0.75, 1.0)  # noqa: S311


class Breaker:
    """Open while an endpoint fails: then it is probed with one request at a time, after growing pauses.

    Times are those of one monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.retry_at = 0.0  # when the next probe may go, while it is open

    @property
    def is_open(self) -> bool:
        return self.failures >= OPENS_AT

    def succeeded(self) -> None:
        self.failures = 0
        self.retry_at = 0.0

    def failed(self, now: float) -> None:
        self.failures += 1
        if self.is_open:
            self.retry_at = now + pause(self.failures - OPENS_AT + 1)
