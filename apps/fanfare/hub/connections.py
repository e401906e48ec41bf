"""A connection and its subscriptions: what the hub knows of one client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanfare.engine import interface
from fanfare.hub import writers

if TYPE_CHECKING:
    from fanfare.hub.hub import Hub

Farewell = Callable[[int, str], bytes]
Moved = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Past:
    """Which part of a channel's past a subscriber wants before the present.

    `sent_as`: the socket ids that it had before; what it sent as one of them is not replayed to it. `lost(reason)` is
    called if a long replay cannot be finished; the present follows all the same.
    """

    history: interface.RecoveryRequest
    sent_as: frozenset[str] = frozenset()
    lost: Callable[[str], None] | None = None


class Subscription:
    """One connection on one channel. Live: events are delivered; before that it waits for the engine or catches up."""

    __slots__ = ("caught_up_to", "channel", "live", "member", "past")

    def __init__(self, channel: Channel, member: interface.Member | None, past: Past | None) -> None:
        self.channel = channel
        self.member = member
        self.past = past
        self.caught_up_to = 0  # the offset of the last entry that was replayed
        self.live = False


class Connection:
    """One client. Everything to it goes through `writer`.

    `context` belongs to whoever made it. `farewell(code, message)` makes the last frame before a close, for protocols
    that have one.
    """

    __slots__ = (
        "app",
        "closing",
        "context",
        "farewell",
        "hub",
        "opened_s",
        "positions",
        "socket_id",
        "subscriptions",
        "user_id",
        "watchlist",
        "writer",
    )

    def __init__(
        self,
        app: str,
        socket_id: str,
        writer: writers.Writer,
        context: Any = None,
        farewell: Farewell | None = None,
    ) -> None:
        self.app = app
        self.socket_id = socket_id
        self.writer = writer
        self.context = context
        self.farewell = farewell
        self.hub: Hub | None = None  # set by Hub.connect
        self.subscriptions: dict[str, Subscription] = {}
        self.user_id: str | None = None  # as whom it signed in, set by Hub.sign_in
        self.watchlist: tuple[str, ...] = ()  # the users that it hears of
        self.positions = False  # whether its events carry their offsets
        self.opened_s = time.time()
        self.closing = False  # nothing is written any more

    def send(self, body: bytes) -> None:
        """One frame to this client: a reply, an error."""
        if not self.closing and self.writer.send(body) and self.hub is not None:
            self.hub.evict(self)

    def close(self, code: int, message: str = "") -> None:
        """Say goodbye. The hub forgets the connection at once; the client gets what is queued, the farewell, and the
        close."""
        if self.closing:
            return
        if self.farewell is not None:
            self.writer.send(self.farewell(code, message))
        self.closing = True
        self.writer.close(code, message)
        if self.hub is not None:
            self.hub.forget(self)


class Channel:
    """One channel on one worker. It exists while somebody here is on it or about to be."""

    __slots__ = (
        "announce",
        "app",
        "catching_up",
        "connections",
        "epoch",
        "is_state",
        "name",
        "offset",
        "pending",
        "positioned",
        "watchers",
    )

    def __init__(self, app: str, name: str) -> None:
        self.app = app
        self.name = name
        self.announce = False  # whether its subscribers hear how many they are
        self.is_state = False  # whether each event is worth something only until the next one
        # The live ones, in the order of their subscriptions; those who want offsets apart.
        self.connections: dict[Connection, None] = {}
        self.positioned: dict[Connection, None] = {}
        self.catching_up: dict[Connection, None] = {}  # a part of those that are pending
        self.pending = 0  # those that wait for the engine
        # The position of the newest entry that was delivered; "" until somebody asked for it.
        self.epoch = ""
        self.offset = 0
        self.watchers: dict[Connection, Moved] = {}  # who is told, once, that this position moves

    def move_to(self, offset: int) -> None:
        """What has this offset is being delivered."""
        self.offset = offset
        if self.watchers:
            watchers, self.watchers = self.watchers, {}
            for moved in watchers.values():
                moved(self.name)

    @property
    def is_heard(self) -> bool:
        return bool(self.connections or self.positioned or self.catching_up)

    @property
    def audience(self) -> int:
        """How many get what comes to it."""
        return len(self.connections) + len(self.positioned)

    @property
    def count(self) -> int:
        return len(self.connections) + len(self.positioned) + self.pending
