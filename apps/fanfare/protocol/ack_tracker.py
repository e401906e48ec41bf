"""What one page has surely seen, for a client that knows nothing of it.

A page that asks for it puts a token of its own into the path of its socket (pusher-js: `wsPath: '/s/TOKEN'`), the same
for as long as it lives. The client answers a ping from the same pump that hands events to the page, in order, so a pong
says that every frame before its ping was dispatched. What was sent at the time of that ping is seen then, and is
remembered under the token. A socket that comes back with the token gets what follows.

The token grants nothing: each channel is authorised anew, as on any socket.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any

import orjson

from fanfare.engine import interface

Positions = dict[str, interface.Position]

REMEMBERED_SOCKETS = 8  # whose own events are not replayed; a page that was cut off more often gets a few of them back
# A client that does not answer pings is told nothing by them; its events count as seen after this time, in which the
# WebSocket's own ping (30 s) and its time-out (15 s) would have found it gone.
UNANSWERED_SECONDS = 45.0


class AckTracker:
    """One page's progress, in memory while its socket is here and as a record in between. Times in seconds, any
    clock."""

    __slots__ = ("_asked", "_pings", "_seen", "_start", "earlier_sockets", "socket_id", "token")

    def __init__(self, token: str, socket_id: str, record: bytes | None = None) -> None:
        self.token = token
        self.socket_id = socket_id
        self._seen: Positions = {}
        # Where the channels of the last socket stand, until this one has subscribed to them.
        self._start: Positions = {}
        # The newest position of each channel that a ping asks or asked about; and of each ping that has no answer, when
        # it was sent, and what it asks about that none before it did.
        self._asked: Positions = {}
        self._pings: collections.deque[tuple[float, Positions]] = collections.deque()
        known = _read(record)
        self.earlier_sockets: tuple[str, ...] = tuple(known.get("sockets", ()))[-REMEMBERED_SOCKETS:]
        for channel, (epoch, offset) in known.get("seen", {}).items():
            self._start[channel] = interface.Position(epoch, offset)

    def start_of(self, channel: str) -> interface.Position | None:
        """What the page has seen of a channel; None if nothing is known."""
        return self._seen.get(channel) or self._start.get(channel)

    def subscribed(self, channel: str, position: interface.Position) -> None:
        """Its present begins here: everything up to `position` was seen, or was said to be lost."""
        self._begin(channel, position)

    def replaying(self, channel: str, after: interface.Position) -> None:
        """What follows `after` is on its way to the page."""
        self._begin(channel, after)

    def left(self, channel: str) -> None:
        """The page left the channel: it wants nothing more of it."""
        for positions in (self._start, self._asked, self._seen):
            positions.pop(channel, None)

    def unasked(self, channel: str, sent: interface.Position) -> int:
        """How many events of a channel that stands at `sent` no ping asks about yet."""
        asked = self._asked.get(channel) or self._seen.get(channel)
        return 0 if asked is None or asked.epoch != sent.epoch else sent.offset - asked.offset

    def pinged(self, sent: Mapping[str, interface.Position], now: float) -> None:
        """A ping asks about `sent`: channels that moved since the one before it. The others may be left out."""
        self._asked.update(sent)
        self._pings.append((now, dict(sent)))

    @property
    def expires(self) -> float:
        """When `expire` has something to do; infinity if no ping waits for its answer."""
        return self._pings[0][0] + UNANSWERED_SECONDS if self._pings else math.inf

    def ponged(self) -> bool:
        """The client has dispatched what was sent before its oldest unanswered ping. True: that is news."""
        return bool(self._pings) and self._advance(self._pings.popleft()[1])

    def expire(self, now: float) -> bool:
        """Take as seen what was sent too long ago for a client that is still there and does not answer."""
        changed = False
        while self._pings and now - self._pings[0][0] > UNANSWERED_SECONDS:
            changed |= self._advance(self._pings.popleft()[1])
        return changed

    def record(self) -> bytes:
        """To be kept under the token."""
        sockets = (*self.earlier_sockets, self.socket_id)[-REMEMBERED_SOCKETS:]
        seen = {channel: list(position) for channel, position in (self._start | self._seen).items()}
        return orjson.dumps({"sockets": sockets, "seen": seen})

    def _begin(self, channel: str, position: interface.Position) -> None:
        self._start.pop(channel, None)
        self._asked.pop(channel, None)
        self._seen[channel] = position

    def _advance(self, sent: Positions) -> bool:
        changed = False
        for channel, position in sent.items():
            # One that was left, or subscribed to anew since that ping, stands where it stands.
            before = self._seen.get(channel)
            if before is not None and before.epoch == position.epoch and before.offset < position.offset:
                self._seen[channel] = position
                changed = True
        return changed


def _read(record: bytes | None) -> dict[str, Any]:
    found = orjson.loads(record) if record else {}
    return found if isinstance(found, dict) else {}
