"""Token-bucket rate limiter."""

from __future__ import annotations


class TokenBucket:
    """Holds at most `burst` tokens and gains `rate` tokens a second; one token pays for one action.

    Rate and burst are arguments of each call, because an application's limits can change while its clients are
    connected. Times are seconds of a monotonic clock.
    """

    __slots__ = ("_tokens", "_updated")

    def __init__(self, burst: float, now: float) -> None:
        self._tokens = burst
        self._updated = now

    def take(self, rate: float, burst: float, now: float) -> bool:
        """Take one token. False: the bucket is empty."""
        self._tokens = min(burst, self._tokens + (now - self._updated) * rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """Undo the last `take`."""
        self._tokens += 1

    def reserve(self, rate: float, burst: float, now: float) -> float:
        """Take one token, which the bucket may not have yet. Returns the seconds until it has it."""
        self._tokens = min(burst, self._tokens + (now - self._updated) * rate) - 1
        self._updated = now
        return max(0.0, -self._tokens / rate)
