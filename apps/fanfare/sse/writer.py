"""The writer of an SSE connection: implements the hub's writer over a streaming HTTP response."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fanfare.engine import interface
from fanfare.hub import on_any, writers
from fanfare.runtime.supervisor import Supervisor
from fanfare.sse import cursors, encoding

logger = logging.getLogger(__name__)
_tasks = Supervisor(logger)


class StreamWriter:
    """Each event contains the client's positions on all its channels, so that the client can resume after any event.

    Output waits until `start`, because the first event reports the recovery of *all* channels, which may be answered at
    different times. The server's `send` waits for the reader, so a task awaits it, and waiting bytes are counted.

    `ended` is done when no more output follows, because the stream was closed or the client has disconnected.
    """

    __slots__ = (
        "_below",
        "_closed",
        "_early",
        "_early_bytes",
        "_gone",
        "_indexes",
        "_max_bytes",
        "_positions",
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
        self.is_quiet = True  # no output since this was last set to True
        self._send = send
        self._max_bytes = max_buffer_bytes
        self._below = below
        self._indexes = {channel: index for index, channel in enumerate(channels)}
        self._positions: list[interface.Position | None] = [None] * len(channels)
        self._early: list[Callable[[], object]] = []
        self._early_bytes = 0
        self._queue: list[bytes] = []
        self._queued = 0  # bytes in the queue, and those that `send` has not taken yet
        self._task: asyncio.Task[None] | None = None
        self._started = False
        self._closed = False
        self._gone = False

    def start(self, head: bytes, positions: cursors.Positions) -> None:
        """Write `head`, and then the events that waited for it. `positions`: the client's, before these events."""
        self._started = True
        self._positions = list(positions)
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
        elif len(self._positions) == 1:
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
        """The code is not sent: these clients reconnect, and are refused then if necessary."""
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
        """The client has disconnected. Idempotent."""
        self._closed = True
        self._early.clear()
        self._queue.clear()
        self._early_bytes = self._queued = 0
        self._end()

    def comment(self, piece: bytes) -> None:
        """Send a heartbeat, unless the response has not started."""
        if self._started:
            self._put(piece)

    def state(self, channel: str, statement: dict[str, Any], position: interface.Position | None) -> None:
        """Report the state of one channel again, with the client's new position."""
        if not self._started:
            self._wait_for_start(functools.partial(self.state, channel, statement, position), 0)
            return
        self._positions[self._indexes[channel]] = position
        self._put(encoding.statement({channel: statement}, self._positions))

    # -- encoding ------------------------------------------------------------------------------------------------------

    def _write_shared(self, batch: writers.Batch) -> None:
        """All connections with only this channel have the same position, so they get the same bytes."""
        position = self._positions[0]
        epoch = None if position is None else position.epoch
        self._put(batch.form((encoding.CONTENT_TYPE, epoch), self._encode))
        last = next((entry.offset for entry in reversed(batch.entries) if entry.offset is not None), None)
        if epoch is not None and last is not None:
            self._positions[0] = interface.Position(epoch, last)

    def _encode(self, batch: writers.Batch) -> bytes:
        if not batch.entries:
            return b"".join([encoding.frame(body) for body in batch.bodies])
        pieces = []
        for body, entry in zip(batch.bodies, batch.entries, strict=True):
            index = self._indexes[entry.channel]
            position = self._positions[index]
            if position is None or entry.offset is None:
                pieces.append(encoding.frame(body))
            else:
                self._positions[index] = interface.Position(position.epoch, entry.offset)
                pieces.append(encoding.frame_with_id(body, cursors.text(self._positions)))
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
            self._task = _tasks.spawn("writes of an SSE connection", self._drain())

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
            on_any.report(error)
            self.lost()
        finally:
            self._task = None

    def _end(self) -> None:
        self._gone = True
        if not self.ended.done():
            self.ended.set_result(None)
