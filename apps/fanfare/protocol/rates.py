"""How often somebody may do something."""

from __future__ import annotations


class TokenBucket:
    """Holds at most `burst` tokens and gains `rate` a second; who takes one may go on.

    Rate and burst are given with each call, because an application's limits can change while its clients are connected.
    Times are seconds of any clock that does not go back.
    """

    __slots__ = ("_tokens", "_updated")

    def __init__(self, burst: float, now: float) -> None:
        self._tokens = burst
        self._updated = now

    def take(self, rate: float, burst: float, now: float) -> bool:
        """Take one token, if there is one."""
        self._tokens = min(burst, self._tokens + (now - self._updated) * rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
