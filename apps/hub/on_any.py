"""The writer for every ASGI server: a queue of its own, and a task that empties it through `send`."""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import Any

from apps.hub import on_daphne, writers

logger = logging.getLogger("fanfare.hub")


class AsgiWriter:
    """`send` may wait for the reader, so it is awaited in a task; what waits meanwhile is counted.

    `below` is the server's transport where it is known: to drop it, and to ask Daphne's, whose `send` does not wait, what it holds.
    """

    __slots__ = ("_below", "_closed", "_max_bytes", "_queue", "_queued", "_send", "_task")

    def __init__(self, send: Any, max_buffer_bytes: int, below: Any | None = None) -> None:
        self._send = send
        self._max_bytes = max_buffer_bytes
        self._below = below
        self._queue: collections.deque[tuple[dict[str, Any], int]] = collections.deque()  # messages and their bytes
        self._queued = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def write(self, batch: writers.Batch) -> bool:
        for body in batch.bodies:
            self._put(body)
        return self.buffered() > self._max_bytes

    def send(self, body: bytes) -> bool:
        self._put(body)
        return self.buffered() > self._max_bytes

    def close(self, code: int, reason: str = "") -> None:
        if not self._closed:
            self._closed = True
            self._queue.append(({"type": "websocket.close", "code": code, "reason": reason}, 0))
            self._wake()

    def abort(self) -> None:
        self._closed = True
        self._queue.clear()
        self._queued = 0
        if self._task is not None:
            self._task.cancel()
        if self._below is not None:
            drop = getattr(self._below, "abort", None) or self._below.abortConnection
            drop()

    def buffered(self) -> int:
        return self._queued + on_daphne.buffered(self._below)

    def is_closing(self) -> bool:
        return self._closed

    def _put(self, body: bytes) -> None:
        if not self._closed:
            self._queue.append(({"type": "websocket.send", "text": body.decode()}, len(body)))
            self._queued += len(body)
            self._wake()

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._queue:
                message, size = self._queue[0]
                await self._send(message)
                if self._queue:  # not aborted meanwhile
                    self._queue.popleft()
                    self._queued -= size
        except Exception as error:  # each server has its own for a client that is gone
            logger.debug("Writing to a client ended: %r", error)
            self._closed = True
            self._queue.clear()
        finally:
            self._task = None
