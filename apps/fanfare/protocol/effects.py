"""Effects: the actions that the state machine requests. The session performs them in order
(`fanfare.protocol.sessions`).

Effects of frequent frames are tuples, because a frozen dataclass takes three times as long to create.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from fanfare.engine import interface
from fanfare.protocol import capabilities, recovery


class Send(NamedTuple):
    """Send this frame (JSON text, UTF-8)."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Send `pusher:error` and close the WebSocket, both with this code. No effect follows."""

    code: int
    message: str


class Receive(NamedTuple):
    """Pass this pending frame to the state machine after the previous effects."""

    text: str


class Subscribe(NamedTuple):
    """Subscribe at the hub. If the connection is subscribed already, request the answer again.

    `cached`: the answer has the channel's cached event. `announce`: it has the subscription count.
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
class ReadRevocations:
    """Read whether this capability was revoked, then call `StateMachine.revocations_read` for the channel."""

    channel: str
    capability: capabilities.Capability


@dataclass(frozen=True, slots=True)
class SignIn:
    """Sign the connection in as this user at the hub."""

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
    """Publish to the channel's other subscribers. `event`: its name, for the error message."""

    event: str
    publication: interface.Publication


class UpdateMember(NamedTuple):
    """Give a member a new info, JSON text."""

    channel: str
    user_id: str
    info: str


class CancelStream(NamedTuple):
    """End an open stream as cancelled."""

    channel: str
    stream_id: str


class Count(NamedTuple):
    """Add one to a counter. `detail`: why something was refused, for the debug log and the console; short and
    printable. `evidence`: what the client sent as a proof."""

    name: str
    detail: str = ""
    channel: str = ""
    evidence: Mapping[str, str] | None = None


class Log(NamedTuple):
    """A log line at info level: a limit that this connection reached, once per connection."""

    message: str


Effect: TypeAlias = (
    Send
    | Receive
    | Close
    | Subscribe
    | Unsubscribe
    | ReadRevocations
    | Ponged
    | ReadHistory
    | SignIn
    | StartAuthorizationTimer
    | StopAuthorizationTimer
    | PublishClientEvent
    | CancelStream
    | UpdateMember
    | Count
    | Log
)
Effects: TypeAlias = Sequence[Effect]

NOTHING: Final[Effects] = ()
