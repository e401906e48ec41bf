"""Streams on the wire: a stream is a message of a channel that grows. A page joins its text from its events.

Every event of a stream has the published event name and this data, a JSON object:

    id      of the stream
    seq     number of the newest token in it
    at      where `text` begins: the number of UTF-16 code units before it, as JavaScript counts a string
    text    the text at that position
    state   open, done, failed, cancelled or interrupted
    meta    the meta of the producer, if `at` is 0
    error   the message of the producer, if `state` is failed

`text = text.slice(0, at) + piece` is correct for any sequence of pieces and whole texts, also if a piece is repeated: a
whole text is a piece at 0. On an encrypted channel the producer encrypts each piece, and the server cannot join them: a
late subscriber gets the pieces one by one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from fanfare.engine import errors, interface
from fanfare.hub import event_frames

State = interface.StreamState

KEEP_S = 60  # after its end new subscribers still get a stream: the default of FANFARE_STREAM_KEEP
END_TRIES = 20  # attempts to end a stream while its producer appends
LAPSED = 200  # streams without a producer that are ended in one turn


class Head(NamedTuple):
    """The fixed data of a stream. `closings`: for an encrypted stream, the data of the events that end it in place of
    its producer, by state."""

    event: str
    meta: Any = None
    closings: dict[str, str] | None = None

    def encode(self) -> bytes:
        return orjson.dumps(self._asdict())

    @classmethod
    def parse(cls, text: bytes) -> Head:
        return cls(**orjson.loads(text))


def units(text: str) -> int:
    """The length of a text in UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def data(
    stream_id: str, seq: int, at: int | None, text: str, state: State, *, meta: Any = None, error: str | None = None
) -> str:
    """The data of one event. `at`: None for an event that only ends the stream."""
    fields: dict[str, Any] = {"id": stream_id, "seq": seq}
    if at is not None:
        fields["at"] = at
    fields |= {"text": text, "state": state.name.lower()}
    if meta is not None and at == 0:
        fields["meta"] = meta
    if error is not None:
        fields["error"] = error
    return orjson.dumps(fields).decode()


def text_of(stream: interface.Streamed) -> str:
    """The text so far. Not for encrypted streams."""
    if stream.body is None:
        return b"".join(stream.parts).decode()
    return str(orjson.loads(orjson.loads(stream.body)["data"])["text"])


def sealed_pieces(stream: interface.Streamed) -> list[str]:
    """The encrypted data of the events that hold the text of an encrypted stream so far, oldest first."""
    if stream.parts or stream.body is None:
        return [part.decode() for part in stream.parts]
    return [orjson.loads(stream.body)["data"]]


def closing(body: bytes) -> bytes | None:
    """The frame for subscribers that have the text, from the frame with the whole text. The frame of an encrypted
    stream is sent as it is."""
    if not body:
        return None
    frame = orjson.loads(body)
    fields = orjson.loads(frame["data"])
    if "text" not in fields:
        return body
    fields["at"], fields["text"] = units(fields["text"]), ""
    fields.pop("meta", None)
    return orjson.dumps({**frame, "data": orjson.dumps(fields).decode()})


def snapshot(channel: str, stream: interface.Streamed) -> list[bytes]:
    """The frames that bring a new subscriber up to date: one with the whole text; the pieces of an encrypted stream."""
    head = Head.parse(stream.head)
    if head.closings is not None:
        pieces = [event_frames.event(head.event, channel, part.decode()) for part in stream.parts]
        return pieces if stream.body is None else [*pieces, stream.body]
    if stream.body is not None:
        return [stream.body]
    whole = data(stream.id, stream.seq, 0, text_of(stream), State.OPEN, meta=head.meta)
    return [event_frames.event(head.event, channel, whole)]


def entries(app: str, channel: str, streams: Sequence[interface.Streamed]) -> list[interface.Entry]:
    """The frames of `snapshot` as entries for one subscriber."""
    return [
        interface.Entry(0, interface.Kind.STREAM, app, channel, None, stream.id, None, frame)
        for stream in streams
        for frame in snapshot(channel, stream)
    ]


class Known:
    """The streams that a new subscriber of a channel may need, as this worker has read them. If a channel has none,
    the engine is not queried. `keep_s`: how long after its end the engine has a stream."""

    __slots__ = ("_keep_s", "_until")

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._until: dict[str, float] = {}  # monotonic; infinite while the stream is open

    def __bool__(self) -> bool:
        now = time.monotonic()
        for stream in [stream for stream, until in self._until.items() if until < now]:
            del self._until[stream]
        return bool(self._until)

    def found(self, streams: Sequence[interface.Streamed]) -> None:
        """Note the streams that the engine returned."""
        for stream in streams:
            self._note(stream.id, is_open=stream.state is State.OPEN)

    def read(self, entry: interface.Entry) -> None:
        """Note an entry of a stream that is delivered."""
        self._note(entry.user_id or "", is_open=entry.kind == interface.Kind.STREAM)

    def _note(self, stream: str, *, is_open: bool) -> None:
        self._until[stream] = float("inf") if is_open else time.monotonic() + self._keep_s


class Writer(Protocol):
    """The part of an engine that changes streams."""

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]: ...


def end(
    engine: Writer,
    asked: interface.Queries,
    where: interface.StreamName,
    state: State,
    *,
    retention: interface.Retention | None,
    keep_s: int,
) -> interface.Streamed | None:
    """End a stream in place of its producer, whose next append fails. Blocks. Returns the stream as it was; None if
    there is none. A stream that is not open stays as it is. Raises EngineError.
    """
    for _ in range(END_TRIES):
        stream = asked.stream(*where)
        if stream is None or stream.state is not State.OPEN:
            return stream
        [receipt] = engine.write_streams([ending(where, stream, state, retention=retention, keep_s=keep_s)])
        if receipt.done:
            return stream
    raise errors.EngineUnavailable(f"The stream {where.id} changed {END_TRIES} times while it was being ended")


def ending(
    where: interface.StreamName,
    stream: interface.Streamed,
    state: State,
    *,
    retention: interface.Retention | None,
    keep_s: int,
    error: str | None = None,
) -> interface.StreamWrite:
    """The write that ends an open stream with the text that it has."""
    head = Head.parse(stream.head)
    if head.closings is not None:
        text = head.closings[state.name.lower()]
    else:
        text = data(stream.id, stream.seq, 0, text_of(stream), state, meta=head.meta, error=error)
    return interface.StreamWrite(
        *where,
        after=stream.seq,
        seq=stream.seq,
        size=stream.size,
        body=event_frames.event(head.event, where.channel, text),
        state=state,
        retention=retention,
        keeps_parts=head.closings is not None,
        seconds=keep_s,
    )
