"""Effects: what the state machine wants done. The session does it, in this order (`fanfare.protocol.sessions`).

The effects of most frames are tuples: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from fanfare.engine import interface
from fanfare.protocol import recovery


class Send(NamedTuple):
    """Give the client this frame (JSON text, UTF-8)."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Send `pusher:error` and close the WebSocket, both with this code. Nothing follows."""

    code: int
    message: str


class Receive(NamedTuple):
    """Give the state machine this frame, which waited, after the effects before it are done."""

    text: str


class Subscribe(NamedTuple):
    """Subscribe at the hub. On a channel to which the connection is subscribed, this asks for the answer again.

    `cached`: the answer has the channel's cached event. `announce`: it has the number of subscribers.
    """

    channel: str
    member: interface.Member | None = None
    member_limit: int | None = None
    cached: bool = False
    announce: bool = False
    asked: recovery.Asked = recovery.NOTHING


@dataclass(frozen=True, slots=True)
class Ponged:
    """The client answered the oldest ping."""


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Read a page of a channel's history, the newest event first, and send it with `rid`."""

    channel: str
    before: interface.Position | None
    limit: int
    rid: str | int | None


class Unsubscribe(NamedTuple):
    channel: str


@dataclass(frozen=True, slots=True)
class SignIn:
    """Make the connection this user's at the hub."""

    user_id: str
    watchlist: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartAuthorizationTimer:
    """Call `StateMachine.not_authorized_in_time` after so many seconds."""

    seconds: int


@dataclass(frozen=True, slots=True)
class StopAuthorizationTimer:
    pass


class PublishClientEvent(NamedTuple):
    """Publish to the channel's other subscribers. `event`: its name, for a message if that fails."""

    event: str
    publication: interface.Publication


class Count(NamedTuple):
    """Add one to a counter. `detail` is for the log at debug level: short, and safe to print."""

    name: str
    detail: str = ""


class Log(NamedTuple):
    """One line for the operator, at info level: a limit that this connection reached, said once per connection."""

    message: str


Effect: TypeAlias = (
    Send
    | Receive
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
    | Log
)
Effects: TypeAlias = Sequence[Effect]

NOTHING: Final[Effects] = ()
