"""How bytes reach one client: the port that every transport implements.

A connection has exactly one writer, and after the accept *everything* to that client goes through it, replies and
closes too: with two paths a paused one is overtaken by the other, and a client sees an event before its
`subscription_succeeded`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from fanfare.engine import interface
from fanfare.sockets import frames


class Batch:
    """The frames of one channel that one tick brought, encoded at most once per form, whoever asks for it first."""

    __slots__ = ("_forms", "_frames", "_wire", "bodies", "entries")

    def __init__(self, bodies: list[bytes], entries: Sequence[interface.Entry] = ()) -> None:
        self.bodies = bodies  # JSON texts, UTF-8, in the log's order
        self.entries = entries  # what each of them is in the log, or nothing: a reply is not in the log
        self._frames: list[bytes] | None = None
        self._wire: bytes | None = None
        self._forms: dict[Hashable, bytes] | None = None

    @property
    def frames(self) -> list[bytes]:
        """Each as an unmasked, uncompressed WebSocket text frame (RFC 6455 §5.2)."""
        if self._frames is None:
            self._frames = [frames.text(body) for body in self.bodies]
        return self._frames

    @property
    def wire(self) -> bytes:
        """These frames, joined."""
        if self._wire is None:
            self._wire = b"".join(self.frames)
        return self._wire

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """All of them, one after the other, for a connection that is on several channels."""
        if len(batches) == 1:
            return batches[0]
        whole = cls(
            [body for batch in batches for body in batch.bodies],
            [entry for batch in batches for entry in batch.entries],
        )
        whole._wire = b"".join([batch.wire for batch in batches])
        return whole

    def without(self, socket_id: str) -> Batch:
        """What is left of it for the connection that must not get some of the entries."""
        kept = [index for index, entry in enumerate(self.entries) if entry.exclude != socket_id]
        rest = Batch([self.bodies[index] for index in kept], [self.entries[index] for index in kept])
        rest._frames = [self.frames[index] for index in kept]
        return rest

    def form(self, name: Hashable, encode: Callable[[Batch], bytes]) -> bytes:
        """The same for transports that are not WebSockets; clients that get equal bytes give equal names."""
        if self._forms is None:
            self._forms = {}
        try:
            return self._forms[name]
        except KeyError:
            encoded = self._forms[name] = encode(self)
            return encoded


def close_reason(text: str) -> str:
    """As much of it as a close frame has room for: 123 bytes (RFC 6455 §5.5)."""
    return text.encode()[:123].decode(errors="ignore")


class Writer(Protocol):
    """Never waits and never raises: what cannot be written now is buffered, and what is buffered is bounded.

    `write` and `send` return True when more than the writer's bound is buffered: the reader is too slow, and the caller
    lets it go.
    """

    def write(self, batch: Batch) -> bool:
        """Queue a batch of channel events."""

    def send(self, body: bytes) -> bool:
        """Queue one frame's JSON text: a reply, an error."""

    def close(self, code: int, reason: str = "") -> None:
        """Say goodbye after what is queued. Nothing is written afterwards. Idempotent."""

    def abort(self) -> None:
        """Drop the transport and what is queued, at once. Idempotent."""

    def buffered(self) -> int:
        """Bytes that were given to the writer and not yet to the kernel."""

    def is_closing(self) -> bool:
        """Whether nothing more can reach the client, whoever decided so."""

    def is_gone(self) -> bool:
        """Whether the transport has ended, and nothing has to be dropped any more."""
