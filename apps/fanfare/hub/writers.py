"""Writers: the interface through which bytes reach one client.

A connection has exactly one writer. After the accept, *all* output goes through it, including replies and closes:
with two paths, one could overtake the other, and a client would get an event before its `subscription_succeeded`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from fanfare.engine import interface
from fanfare.sockets import frames


class Batch:
    """The frames of one channel from one read, encoded at most once per form, on first use."""

    __slots__ = ("_forms", "bodies", "entries", "frames", "wire")

    # Both are encoded on first use. Afterwards they cost a tenth of a property, and `wire` is read for each delivery.
    frames: list[bytes]  # each text as an unmasked, uncompressed WebSocket frame (RFC 6455 §5.2)
    wire: bytes  # these frames, joined

    def __init__(self, bodies: list[bytes], entries: Sequence[interface.Entry] = ()) -> None:
        self.bodies = bodies  # JSON texts, UTF-8, in the log's order
        self.entries = entries  # the log entry of each; empty for a reply
        self._forms: dict[Hashable, bytes] | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "wire":
                self.wire = b"".join(self.frames)
                return self.wire
            if name == "frames":
                self.frames = list(map(frames.text, self.bodies))
                return self.frames
            raise AttributeError(name)

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """The concatenation of batches, for a connection on several channels."""
        if len(batches) == 1:
            return batches[0]
        whole = cls(
            [body for batch in batches for body in batch.bodies],
            [entry for batch in batches for entry in batch.entries],
        )
        whole.wire = b"".join([batch.wire for batch in batches])
        return whole

    def without(self, socket_id: str) -> Batch:
        """The batch without the entries that a connection must not get."""
        if len(self.entries) == 1 and self.entries[0].exclude == socket_id:
            return NOTHING
        kept = [index for index, entry in enumerate(self.entries) if entry.exclude != socket_id]
        rest = Batch([self.bodies[index] for index in kept], [self.entries[index] for index in kept])
        rest.frames = [self.frames[index] for index in kept]
        return rest

    def form(self, name: Hashable, encode: Callable[[Batch], bytes]) -> bytes:
        """The batch in another form, for transports other than WebSockets; equal names mean equal bytes."""
        if self._forms is None:
            self._forms = {}
        try:
            return self._forms[name]
        except KeyError:
            encoded = self._forms[name] = encode(self)
            return encoded


NOTHING: Final = Batch([])


class Writer(Protocol):
    """Does not wait and does not raise: output that cannot be written now is buffered, up to a limit.

    `write` and `send` return True if more than the limit is buffered: the reader is too slow, and the caller
    disconnects it.
    """

    def write(self, batch: Batch) -> bool:
        """Queue a batch of channel events."""

    def send(self, body: bytes) -> bool:
        """Queue one frame's JSON text: a reply, an error."""

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame after the queued output. Nothing is written afterwards. Idempotent."""

    def abort(self) -> None:
        """Drop the transport and the queued output at once. Idempotent."""

    def buffered(self) -> int:
        """Bytes passed to the writer but not yet to the kernel."""

    def is_closing(self) -> bool:
        """Whether no further output can reach the client."""

    def is_gone(self) -> bool:
        """Whether the transport has ended."""
