"""Connections, channels, and the subscriptions between them.

A subscription's state is kept here and nowhere else; the protocols read it.

    ATTACHING ──────────────────────────► LIVE        the engine answered, and there is nothing to recover
        │                                   ▲
        └────────► CATCHING_UP ─────────────┘         kept entries are sent first, as fast as the client reads
    any of these ──► LEFT                             refused, unsubscribed, or the connection is gone
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fanfare.engine import interface
from fanfare.hub import streams, writers

# On a cache channel an EVENT is the channel's whole state; an entry of any other kind is not.
STATE = interface.Kind.EVENT.value

ENTRY_BYTES = 250  # of memory for an entry, besides its body


class State(enum.Enum):
    """The state of a subscription. See the module's docstring."""

    ATTACHING = "attaching"  # the engine has not answered; nothing is delivered
    CATCHING_UP = "catching up"  # new entries without an offset are delivered; the recovery sends the others
    LIVE = "live"  # everything is delivered as this worker reads it
    LEFT = "left"  # nothing is delivered; late answers are dropped


@dataclass(frozen=True, slots=True)
class Recovery:
    """The kept entries that a subscriber requests before the new ones.

    `earlier_sockets`: earlier socket ids of the client; it does not get its own client events back.
    """

    request: interface.RecoveryRequest
    earlier_sockets: frozenset[str] = frozenset()

    def brings_state(self, result: interface.RecoveryResult) -> bool:
        """Whether the newest state of a cache channel is among the recovered entries, or the client has it already."""
        if result.reason is not None:
            return False
        return self.request.after is not None or any(entry.kind == STATE for entry in result.entries)


class PendingEntries:
    """Pending entries for a slow reader of a cache channel: the newest state and all entries that are not states."""

    __slots__ = ("_state", "bytes", "entries")

    def __init__(self) -> None:
        self.entries: list[interface.Entry] = []  # in the order of the log
        self.bytes = 0  # of memory, roughly
        self._state: int | None = None  # the index of the state

    def add(self, entry: interface.Entry) -> bool:
        """Returns whether the entry is a state and replaced an older one."""
        displaced = self._state if entry.kind == STATE else None
        if displaced is not None:
            self.bytes -= len(self.entries.pop(displaced).body) + ENTRY_BYTES
        self.entries.append(entry)
        self.bytes += len(entry.body) + ENTRY_BYTES
        if entry.kind == STATE:
            self._state = len(self.entries) - 1
        return displaced is not None

    @property
    def first_offset(self) -> int | None:
        return next((entry.offset for entry in self.entries if entry.offset is not None), None)


class Owner(Protocol):
    """The owner of a connection: a session of the Pusher protocol, or an SSE connection.

    The hub calls these methods on its loop, and never for a connection that is closing.
    """

    def admitted(self, answer: interface.SubscribeResult | interface.Refused, /) -> None:
        """The answer to `Hub.admit`."""

    def signed_in(self, answer: interface.SubscribeResult | interface.Refused, /) -> None:
        """The answer to `Hub.sign_in`."""

    def subscribed(self, subscription: Subscription, answer: interface.SubscribeResult, /) -> None:
        """The answer to the first `Hub.subscribe`. Frames sent in this call precede all later events."""

    def refreshed(self, subscription: Subscription, answer: interface.SubscribeResult, request: Any, /) -> None:
        """The answer to a repeated `Hub.subscribe`, with its `request`. The subscription is unchanged."""

    def refused(self, subscription: Subscription, refusal: interface.Refused, /) -> None:
        """The subscription has LEFT. If its state is another one, a repeated `Hub.subscribe` could not be answered."""

    def recovery_failed(self, subscription: Subscription, reason: str, cached: bytes | None, /) -> None:
        """A recovery failed after it had started. The subscription is LIVE; entries before its position are missing.
        `cached`: the cached event of a cache channel, if it was read."""

    def event_sent(self, subscription: Subscription, /) -> None:
        """The next kept event after `Hub.watch` is being delivered."""


def _nothing(*_: object) -> None:
    """See Ended."""


class Ended:
    """The owner of a connection that has ended.

    A connection and its owner refer to each other. An owner whose client is gone sets `connection.owner` to ENDED, so
    both are freed at once. Otherwise they wait for the garbage collector, which stops the event loop for tens of
    milliseconds to free those of some thousand clients.
    """

    admitted = signed_in = subscribed = refreshed = refused = recovery_failed = event_sent = staticmethod(_nothing)


ENDED: Final = Ended()


class Subscription:
    """One connection on one channel.

    `member`: on a presence channel. `request`: the owner's request; the hub does not read it.
    """

    __slots__ = (
        "channel",
        "connection",
        "member",
        "pending",
        "recovery",
        "refreshing",
        "request",
        "sent",
        "since",
        "state",
    )

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        member: interface.Member | None = None,
        recovery: Recovery | None = None,
        request: Any = None,
    ) -> None:
        self.connection = connection
        self.channel = channel
        self.member = member
        self.recovery = recovery
        self.request = request
        self.state = State.ATTACHING
        self.refreshing = False  # a repeated subscribe waits for the engine
        # All kept entries with an offset above `since` were sent on this connection; None if unknown, because the
        # stream's position was not requested. While the subscription catches up, `sent` is the newest of them.
        self.since: int | None = None
        self.sent = 0
        self.pending: PendingEntries | None = None  # see fanfare.hub.conflation
        channel.attaching += 1

    @property
    def position(self) -> interface.Position | None:
        """The position up to which all kept entries were sent. None if the stream's epoch is unknown."""
        channel = self.channel
        if not channel.epoch or self.state is State.ATTACHING or self.state is State.LEFT:
            return None
        if self.state is State.CATCHING_UP:
            return interface.Position(channel.epoch, self.sent)
        first_pending = self.pending.first_offset if self.pending is not None else None
        return interface.Position(channel.epoch, channel.offset if first_pending is None else first_pending - 1)

    # -- changes of the state ------------------------------------------------------------------------------------------

    def catch_up(self, after: int) -> None:
        """ATTACHING to CATCHING_UP: kept entries after this offset are sent before the subscription goes live."""
        self._leave_state()
        self.state = State.CATCHING_UP
        self.since = self.sent = after
        self.channel.catching_up[self.connection] = self

    def go_live(self) -> None:
        """ATTACHING or CATCHING_UP to LIVE."""
        self._leave_state()
        self.state = State.LIVE
        self.channel.receivers(self.connection)[self.connection] = self

    def leave(self) -> None:
        """Any state to LEFT."""
        self._leave_state()
        self.state = State.LEFT
        self.pending = None
        self.channel.watched.pop(self, None)

    def _leave_state(self) -> None:
        channel = self.channel
        if self.state is State.LIVE:
            del channel.receivers(self.connection)[self.connection]
        elif self.state is State.CATCHING_UP:
            del channel.catching_up[self.connection]
        elif self.state is State.ATTACHING:
            channel.attaching -= 1


class Channel:
    """One channel on one worker. It exists while it has subscriptions here. `stream_keep_s`: see `streams.Known`."""

    __slots__ = (
        "announce",
        "app",
        "attaching",
        "catching_up",
        "epoch",
        "is_cache",
        "live",
        "live_with_offsets",
        "name",
        "offset",
        "streams",
        "watched",
    )

    def __init__(self, app: str, name: str, stream_keep_s: float = streams.KEEP_S) -> None:
        self.app = app
        self.name = name
        self.announce = False  # whether subscribers get subscription counts
        self.is_cache = False  # whether each event is the channel's whole state
        # The subscriptions by state, in the order in which they entered it.
        self.live: dict[Connection, Subscription] = {}
        self.live_with_offsets: dict[Connection, Subscription] = {}
        self.catching_up: dict[Connection, Subscription] = {}
        self.attaching = 0
        # The position of the newest delivered kept entry; "" until a subscriber requests it.
        self.epoch = ""
        self.offset = 0
        self.streams = streams.Known(stream_keep_s)
        self.watched: dict[Subscription, None] = {}  # their owners are called when this position moves

    @property
    def receives(self) -> bool:
        return bool(self.live or self.live_with_offsets or self.catching_up)

    @property
    def subscriber_count(self) -> int:
        """Subscriptions in any state but LEFT."""
        return len(self.live) + len(self.live_with_offsets) + len(self.catching_up) + self.attaching

    def receivers(self, connection: Connection) -> dict[Connection, Subscription]:
        return self.live_with_offsets if connection.with_offsets else self.live


class Connector(Protocol):
    """The methods of the hub that a connection calls."""

    def forget(self, connection: Connection, /) -> None: ...

    def disconnect_slow(self, connection: Connection, /) -> None: ...


class Connection:
    """One client. All output to it goes through `writer`.

    `context` belongs to the owner. `close_frame(code, message)` makes the last frame before a close, for protocols that
    have one. With `with_offsets` the client gets the offset of each kept event.
    """

    __slots__ = (
        "app",
        "close_frame",
        "closing",
        "context",
        "drop_at_s",
        "end",
        "hub",
        "opened_s",
        "owner",
        "slot",
        "socket_id",
        "subscriptions",
        "user_id",
        "watchlist",
        "with_offsets",
        "writer",
    )

    def __init__(
        self,
        app: str,
        socket_id: str,
        writer: writers.Writer,
        owner: Owner,
        *,
        context: Any = None,
        close_frame: Callable[[int, str], bytes] | None = None,
        with_offsets: bool = False,
    ) -> None:
        self.app = app
        self.socket_id = socket_id
        self.writer = writer
        self.owner = owner
        self.context = context
        self.close_frame = close_frame
        self.with_offsets = with_offsets
        self.hub: Connector | None = None  # set by Hub.connect
        self.subscriptions: dict[str, Subscription] = {}  # by channel name; none that has LEFT
        self.user_id: str | None = None  # set by Hub.sign_in
        self.watchlist: tuple[str, ...] = ()  # watched users: the client gets their online and offline events
        self.opened_s = time.time()
        self.closing = False  # nothing is written any more
        self.end: tuple[int, str] | None = None  # the code and the message of a close by this server
        # For a closing connection: the loop time at which its transport is dropped, and its entry in the timer wheel.
        self.drop_at_s = 0.0
        self.slot: set[Connection] | None = None

    def send(self, body: bytes) -> None:
        """One frame to this client: a reply, an error."""
        if not self.closing and self.writer.send(body) and self.hub is not None:
            self.hub.disconnect_slow(self)

    def close(self, code: int, message: str = "") -> None:
        """Close after the buffered data. The hub forgets the connection at once. Idempotent."""
        if self.closing:
            return
        if self.close_frame is not None:
            self.writer.send(self.close_frame(code, message))
        self.closing, self.end = True, (code, message)
        self.writer.close(code, message)
        if self.hub is not None:
            self.hub.forget(self)
