"""The writer of one event stream: the hub's port over an HTTP response that does not end."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fanfare.engine import interface
from fanfare.hub import on_any, writers
from fanfare.sse import cursors, encoding

logger = logging.getLogger(__name__)


class StreamWriter:
    """Each event carries the client's place in all its channels, so that it can come back after any of them.

    Until `start` everything waits: the first event says what became of the past of *all* channels, and one channel's
    past may be here while another one's is still asked for. `send` of a server waits for the reader, so it is awaited
    in a task; what waits meanwhile is counted.

    `ended` is done when nothing more will be written, because the stream was closed or the client is gone.
    """

    __slots__ = (
        "_below",
        "_closed",
        "_early",
        "_early_bytes",
        "_gone",
        "_indexes",
        "_max_bytes",
        "_places",
        "_queue",
        "_queued",
        "_send",
        "_started",
        "_task",
        "ended",
        "is_quiet",
    )

    def __init__(
        self, send: Any, channels: Sequence[str], max_buffer_bytes: int, below: on_any.Below | None = None
    ) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_quiet = True  # whether nothing was written since somebody last set this
        self._send = send
        self._max_bytes = max_buffer_bytes
        self._below = below
        self._indexes = {channel: index for index, channel in enumerate(channels)}
        self._places: list[interface.Position | None] = [None] * len(channels)
        self._early: list[Callable[[], object]] = []
        self._early_bytes = 0
        self._queue: list[bytes] = []
        self._queued = 0  # bytes in the queue, and those that `send` has not taken yet
        self._task: asyncio.Task[None] | None = None
        self._started = False
        self._closed = False
        self._gone = False

    def start(self, head: bytes, places: cursors.Places) -> None:
        """Write `head`, and then what came meanwhile. `places`: where the client stands before that."""
        self._started = True
        self._places = list(places)
        self._put(head)
        early, self._early = self._early, []
        self._early_bytes = 0
        for write in early:
            write()

    # -- the hub's port ------------------------------------------------------------------------------------------------

    def write(self, batch: writers.Batch) -> bool:
        if self._closed:
            return False
        if not self._started:
            self._wait_for_start(functools.partial(self.write, batch), sum(map(len, batch.bodies)))
        elif len(self._places) == 1:
            self._write_shared(batch)
        else:
            self._put(self._encode(batch))
        return self.buffered() > self._max_bytes

    def send(self, body: bytes) -> bool:
        if not self._started:
            self._wait_for_start(functools.partial(self.send, body), len(body))
        else:
            self._put(encoding.frame(body))
        return self.buffered() > self._max_bytes

    def close(self, code: int, reason: str = "") -> None:
        """The code means nothing to these clients: they all come back, and are told then if they should not."""
        if self._closed:
            return
        if self._started and reason:
            self._put(encoding.comment(reason))
        self._closed = True
        if self._started:
            self._wake()
        else:
            self._end()

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._below is not None and not self._gone:
            self._below.abort()
        self.lost()

    def buffered(self) -> int:
        below = 0 if self._below is None or self._gone else self._below.buffered()
        return self._early_bytes + self._queued + below

    def is_closing(self) -> bool:
        return self._closed

    def is_gone(self) -> bool:
        return self._gone

    # -- beside it -----------------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """The client is gone. Idempotent."""
        self._closed = True
        self._early.clear()
        self._queue.clear()
        self._early_bytes = self._queued = 0
        self._end()

    def comment(self, piece: bytes) -> None:
        """A heartbeat: nothing before the start needs one."""
        if self._started:
            self._put(piece)

    def state(self, channel: str, statement: dict[str, Any], place: interface.Position | None) -> None:
        """Say anew what became of one channel's past, and where the client stands there now."""
        if not self._started:
            self._wait_for_start(functools.partial(self.state, channel, statement, place), 0)
            return
        self._places[self._indexes[channel]] = place
        self._put(encoding.statement({channel: statement}, self._places))

    # -- encoding ------------------------------------------------------------------------------------------------------

    def _write_shared(self, batch: writers.Batch) -> None:
        """All streams of one channel alone are at the same place, so they get the same bytes."""
        place = self._places[0]
        epoch = None if place is None else place.epoch
        self._put(batch.form((encoding.CONTENT_TYPE, epoch), self._encode))
        last = next((entry.offset for entry in reversed(batch.entries) if entry.offset is not None), None)
        if epoch is not None and last is not None:
            self._places[0] = interface.Position(epoch, last)

    def _encode(self, batch: writers.Batch) -> bytes:
        if not batch.entries:
            return b"".join([encoding.frame(body) for body in batch.bodies])
        pieces = []
        for body, entry in zip(batch.bodies, batch.entries, strict=True):
            index = self._indexes[entry.channel]
            place = self._places[index]
            if place is None or entry.offset is None:
                pieces.append(encoding.frame(body))
            else:
                self._places[index] = interface.Position(place.epoch, entry.offset)
                pieces.append(encoding.positioned_frame(body, cursors.text(self._places)))
        return b"".join(pieces)

    # -- the queue -----------------------------------------------------------------------------------------------------

    def _wait_for_start(self, write: Callable[[], object], size: int) -> None:
        self._early.append(write)
        self._early_bytes += size

    def _put(self, piece: bytes) -> None:
        if not self._closed:
            self.is_quiet = False
            self._queue.append(piece)
            self._queued += len(piece)
            self._wake()

    def _wake(self) -> None:
        if self._task is None and not self._gone:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._queue:
                pieces, self._queue = self._queue, []
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
                self._queued = max(0, self._queued - len(body))
            if self._closed and not self._gone:
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                self._end()
        except Exception as error:  # noqa: BLE001 - each server has its own for a client that is gone
            logger.debug("Writing to a stream ended: %r", error)
            self.lost()
        finally:
            self._task = None

    def _end(self) -> None:
        self._gone = True
        if not self.ended.done():
            self.ended.set_result(None)
