"""What the protocol wants done, in this order. The shell does it (`fanfare.protocol.sessions`).

Those that most frames lead to are tuples: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from fanfare.engine import interface


class Send(NamedTuple):
    """Give the client this frame (JSON text, UTF-8)."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Send `pusher:error` and close the WebSocket, both with this code. Nothing follows."""

    code: int
    message: str


class Subscribe(NamedTuple):
    """Subscribe at the hub and tell the protocol the outcome.

    On a channel that the connection is subscribed to, this asks for the answer anew: nobody joins a second time.
    `cached`: the answer should hold the channel's last event. `announce`: it should hold the number of subscribers.
    """

    channel: str
    member: interface.Member | None = None
    member_limit: int | None = None
    cached: bool = False
    announce: bool = False
    history: interface.RecoveryRequest | None = None  # which part of the channel's past comes first
    sent_as: tuple[str, ...] = ()  # the socket ids that the client had before


@dataclass(frozen=True, slots=True)
class Ponged:
    """The client has dispatched what was sent before the oldest ping that it had not answered."""


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Read a page of a channel's history, the newest entries first, and send it with `rid`."""

    channel: str
    before: interface.Position | None
    limit: int
    rid: str | int | None


class Unsubscribe(NamedTuple):
    channel: str


@dataclass(frozen=True, slots=True)
class SignIn:
    """Make the connection this user's at the hub and tell the protocol the outcome."""

    user_id: str
    watchlist: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartAuthorizationTimer:
    """Tell the protocol after so many seconds that the time for it is over."""

    seconds: int


@dataclass(frozen=True, slots=True)
class StopAuthorizationTimer:
    pass


class PublishClientEvent(NamedTuple):
    """Publish to the channel's other subscribers. `body`: the frame that they get. `user_id`: the sender's, if any.
    `retention`: None on a channel that keeps no client events."""

    channel: str
    event: str
    body: bytes
    user_id: str | None
    retention: interface.Retention | None = None


class Count(NamedTuple):
    """Something happened that an operator wants to see. `detail` is for the log: short, and safe to print."""

    name: str
    detail: str = ""


Effect: TypeAlias = (
    Send
    | Close
    | Subscribe
    | Unsubscribe
    | Ponged
    | ReadHistory
    | SignIn
    | StartAuthorizationTimer
    | StopAuthorizationTimer
    | PublishClientEvent
    | Count
)
Effects: TypeAlias = Sequence[Effect]

NOTHING: Final[Effects] = ()
