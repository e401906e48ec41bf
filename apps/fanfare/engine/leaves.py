"""The leaves of a worker from presence channels that its store has not confirmed."""

from __future__ import annotations

import collections
from collections.abc import Callable

Key = tuple[str, str, str]  # application, channel, socket id


class Leaves:
    """The newest leave of each socket and channel. One whose write failed is repeated, unless the socket has joined
    again since. Counts `leaves_retried`."""

    def __init__(self, counters: collections.Counter[str]) -> None:
        self._counters = counters
        self._newest: dict[Key, _Leave] = {}

    def begin(self, key: Key) -> Callable[[bool], None]:
        """A leave is about to be written. Call the result with whether it was."""
        leave = self._newest[key] = _Leave()

        def settled(written: bool) -> None:
            if self._newest.get(key) is not leave:
                return  # the answer to an older leave says nothing about a later one
            if written:
                del self._newest[key]
            else:
                self._counters["leaves_retried"] += 1
                leave.failed = True

        return settled

    def joined(self, key: Key) -> None:
        """The socket joins again, so an earlier leave must not be repeated."""
        self._newest.pop(key, None)

    def failed(self) -> list[Key]:
        return [key for key, leave in self._newest.items() if leave.failed]


class _Leave:
    __slots__ = ("failed",)

    def __init__(self) -> None:
        self.failed = False
