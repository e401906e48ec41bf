"""What a client sent and cannot be answered yet: kept in its order, and only so much of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from fanfare.protocol import refusals

# Nothing is held for longer than the engine takes to answer, and a hand-written client that does not wait for the
# answer sends some hundred subscriptions meanwhile.
LIMIT_BYTES: Final = 65_536  # of memory


class PendingFrames:
    """Iterates over the frames' texts, oldest first."""

    __slots__ = ("_bytes", "_frames")

    def __init__(self) -> None:
        self._frames: list[tuple[str, str]] = []  # text, and the channel that it subscribes to
        self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        return iter([text for text, _ in self._frames])

    def add(self, text: str, channel: str = "") -> None:
        """`channel`: the one that the frame subscribes to, where that matters. Raises TooManyPendingFrames."""
        self._frames.append((text, channel))
        self._bytes += sys.getsizeof(text)
        if self._bytes > LIMIT_BYTES:
            raise refusals.TooManyPendingFrames(self._bytes, LIMIT_BYTES)

    def concern(self, channel: str) -> bool:
        """Whether one of them subscribes to this channel."""
        return any(channel == other for _, other in self._frames)

    def drop(self, channel: str) -> None:
        """Forget those that subscribe to this channel. Their bytes stay counted."""
        self._frames = [frame for frame in self._frames if frame[1] != channel]
