"""The heart of a worker: who is connected, who subscribes to what, and the fan-out. (Interface; the body follows.)"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from apps.engine import interface
from apps.hub import writers

Subscribed = Callable[[interface.Attached | interface.Refused], None]


class Connection:
    """One client. The hub writes to it through `writer`; `context` belongs to whoever made it (the consumer)."""

    def __init__(self, app: str, socket_id: str, writer: writers.Writer, context: Any = None) -> None: ...

    app: str  # the application's id
    socket_id: str
    writer: writers.Writer
    closing: bool  # nothing is written any more

    def send(self, body: bytes) -> None: ...
    def close(self, code: int, message: str = "") -> None:
        """pusher:error is the caller's business; this is only the WebSocket close, and the hub forgets the connection at once."""


class Hub:
    def __init__(self, engine: interface.Engine) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def connect(self, connection: Connection) -> None: ...
    def admit(self, connection: Connection, limit: int, ready: Subscribed) -> None: ...
    def disconnect(self, connection: Connection) -> None:
        """Idempotent: out of every channel and of presence."""
    def subscribe(
        self, connection: Connection, channel: str, ready: Subscribed, *,
        member: interface.Member | None = None, member_limit: int | None = None,
    ) -> None:
        """`ready` is called once, maybe before this returns; then the connection gets what comes after. Not called if the
        connection unsubscribed or went away meanwhile. `ready` writes subscription_succeeded."""
    def unsubscribe(self, connection: Connection, channel: str) -> None: ...
    def is_subscribed(self, connection: Connection, channel: str) -> bool: ...
    def publish(self, publications: Sequence[interface.Publication]) -> Awaitable[list[interface.Receipt]]: ...
    def on_control(self, command: str, handler: Callable[[str, bytes], None]) -> None:
        """handler(app, body) runs in every worker for each CONTROL entry of that command."""
    def connections_of(self, app: str) -> list[Connection]: ...
    def statistics(self) -> dict[str, Any]: ...
