"""A connection and its subscriptions: what the hub knows of one client."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from apps.engine import interface
from apps.hub import writers

if TYPE_CHECKING:
    from apps.hub.hub import Hub

Farewell = Callable[[int, str], bytes]


class Subscription:
    """One connection on one channel. Live: events are delivered; before that it waits for the engine."""

    __slots__ = ("channel", "live", "member")

    def __init__(self, channel: Channel, member: interface.Member | None) -> None:
        self.channel = channel
        self.member = member
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

    __slots__ = ("announce", "app", "connections", "name", "pending")

    def __init__(self, app: str, name: str) -> None:
        self.app = app
        self.name = name
        self.announce = False  # whether its subscribers hear how many they are
        self.connections: dict[Connection, None] = {}  # the live ones, in the order of their subscriptions
        self.pending = 0  # those that wait for the engine

    @property
    def count(self) -> int:
        return len(self.connections) + self.pending
