"""The acknowledged positions of a page, for clients without positions.

A page that wants to resume puts its own token into the path of its socket (pusher-js: `wsPath: '/s/TOKEN'`), the same
for as long as the page is open. A client answers a ping from the queue that passes events to the page, in order, so a
pong shows that all frames before its ping were handled. The positions at the time of the ping are acknowledged then,
and stored in the record of the token. A socket that reconnects with the token gets the entries after these positions.

The token grants no access: each subscription is authorized again.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Mapping
from typing import Any

import orjson

from fanfare.engine import interface

Positions = dict[str, interface.Position]

EARLIER_SOCKETS = 8  # whose client events are not sent back; with more reconnects, a page gets some of them again
# Events of a client that does not answer pings are acknowledged after this time, in which the WebSocket ping (30 s) and
# its timeout (15 s) would have detected a dead client.
UNANSWERED_S = 45.0
# The maximum number of channels in a record, for pages that reconnect with ever new channels.
MAX_CHANNELS = 1_000
# Why a channel that is not in the record is not recovered, though the page may have had it.
RECORD_FULL = "record_full"
TOKEN_SHARED = "token_shared"  # noqa: S105  (a reason: several pages use the token)
EPOCH_CHANGED = "epoch_changed"  # the store has lost records, and this page's may be one of them
SHARED_UNTIL = "shared_until"  # Unix seconds, in the record that replaces the one of a refused token


class AckTracker:
    """The acknowledged positions of one page: in memory while its socket is open, and as a record. Times in seconds of
    any clock.

    `origin` and `user_id` are those of the page that made the record; "" for a client that sends no Origin, and until
    the page has signed in.
    """

    __slots__ = (
        "_acknowledged",
        "_lost",
        "_pinged",
        "_pings",
        "_start",
        "earlier_sockets",
        "full",
        "lost_until",
        "max_channels",
        "origin",
        "shared",
        "socket_id",
        "user_id",
    )

    def __init__(
        self, socket_id: str, record: bytes | None = None, *, origin: str = "", max_channels: int = MAX_CHANNELS
    ) -> None:
        known = _parse(record)
        self.socket_id = socket_id
        self.max_channels = max_channels
        self.earlier_sockets: tuple[str, ...] = tuple(known.get("sockets", ()))[-EARLIER_SOCKETS:]
        self.origin: str = known.get("origin", origin)
        self.user_id: str = known.get("user", "")
        self.full: bool = known.get("full", False)  # some channels are not in the record
        self.lost_until = -math.inf  # until then a channel that is not in the record may have been in a lost one
        self.shared: bool = known.get("shared", SHARED_UNTIL in known)  # the token was refused, and its record lost
        self._acknowledged: Positions = {}
        # By channel, why entries before its position were lost, until the page has acknowledged the report.
        self._lost: dict[str, str] = known.get("lost", {})
        # The positions of the last socket's channels, until this socket has subscribed to them: no channel of
        # `_acknowledged`.
        self._start: Positions = {
            channel: interface.Position(epoch, offset) for channel, (epoch, offset) in known.get("seen", {}).items()
        }
        # The newest position of each channel that a ping was sent for; and, for each ping without an answer, when it
        # was sent and the positions that no ping before it was sent for.
        self._pinged: Positions = {}
        self._pings: collections.deque[tuple[float, Positions]] = collections.deque()

    def start_of(self, channel: str) -> tuple[interface.Position | None, str | None]:
        """The acknowledged position of a channel, or the reason why there is none; both None for a new channel."""
        if channel in self._lost:
            return None, self._lost[channel]
        position = self._acknowledged.get(channel) or self._start.get(channel)
        if position is not None:
            return position, None
        if self.full:
            return None, RECORD_FULL
        if self.shared:
            return None, TOKEN_SHARED
        return None, EPOCH_CHANGED if time.monotonic() < self.lost_until else None

    def begin(self, channel: str, position: interface.Position, lost: str | None = None) -> bool:
        """A subscription gets all entries after `position`. `lost`: why the page missed entries before it, which a
        frame has just reported. Returns False if the record is full."""
        for before in (self._start, self._pinged, self._lost):
            before.pop(channel, None)
        if channel not in self._acknowledged and len(self._acknowledged) >= self.max_channels:
            self.full = True
            return False
        self._acknowledged[channel] = position
        if lost is not None:
            self._lost[channel] = lost
            for _, sent in self._pings:  # they came before the report
                sent.pop(channel, None)
        return True

    def left(self, channel: str) -> None:
        """The page unsubscribed."""
        for known in (self._start, self._pinged, self._acknowledged, self._lost):
            known.pop(channel, None)

    def unpinged(self, channel: str, sent: interface.Position) -> int:
        """The number of frames up to `sent` without a ping: events, and the report of a loss."""
        pinged = self._pinged.get(channel)
        reports = int(pinged is None and channel in self._lost)
        pinged = pinged or self._acknowledged.get(channel)
        events = 0 if pinged is None or pinged.epoch != sent.epoch else sent.offset - pinged.offset
        return events + reports

    def pinged(self, sent: Mapping[str, interface.Position], now: float) -> None:
        """A ping was sent after the events up to `sent`: channels with frames since the last ping."""
        self._pinged.update(sent)
        self._pings.append((now, dict(sent)))

    @property
    def expires(self) -> float:
        """The time of the next `expire`; infinity if no ping waits for a pong."""
        return self._pings[0][0] + UNANSWERED_S if self._pings else math.inf

    @property
    def unanswered(self) -> int:
        """The number of pings without an answer."""
        return len(self._pings)

    def ponged(self) -> bool:
        """The client answered its oldest ping. Returns whether the record has changed."""
        return bool(self._pings) and self._acknowledge(self._pings.popleft()[1])

    def expire(self, now: float) -> bool:
        """Acknowledge old events of a connected client that does not answer pings. Returns whether the record
        has changed."""
        changed = False
        while self._pings and now - self._pings[0][0] > UNANSWERED_S:
            changed |= self._acknowledge(self._pings.popleft()[1])
        return changed

    def record(self) -> bytes:
        """The record to store under the token."""
        positions = self._start | self._acknowledged
        if len(positions) > self.max_channels:
            self.full = True
            for channel in list(self._start)[: len(positions) - self.max_channels]:
                self.left(channel)
            positions = self._start | self._acknowledged
        fields: dict[str, Any] = {
            "sockets": (*self.earlier_sockets, self.socket_id)[-EARLIER_SOCKETS:],
            "seen": {channel: list(position) for channel, position in positions.items()},
            "origin": self.origin,
        }
        if self.user_id:
            fields["user"] = self.user_id
        if self._lost:
            fields["lost"] = self._lost
        if self.full:
            fields["full"] = True
        if self.shared:
            fields["shared"] = True
        return orjson.dumps(fields)

    def _acknowledge(self, sent: Positions) -> bool:
        changed = False
        for channel, position in sent.items():
            changed |= self._lost.pop(channel, None) is not None
            # A channel that was left or subscribed again since that ping keeps its position.
            before = self._acknowledged.get(channel)
            if before is not None and before.epoch == position.epoch and before.offset < position.offset:
                self._acknowledged[channel] = position
                changed = True
        return changed


def _parse(record: bytes | None) -> dict[str, Any]:
    found = orjson.loads(record) if record else {}
    return found if isinstance(found, dict) else {}
