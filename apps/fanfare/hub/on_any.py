"""The portable writer for any ASGI server: a queue, and a task that sends its messages with `send`."""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import Any, Protocol

from fanfare.hub import writers
from fanfare.runtime import text
from fanfare.runtime.log_throttle import LogThrottle, exception_line
from fanfare.runtime.supervisor import Supervisor
from fanfare.sockets import frames

logger = logging.getLogger(__name__)
_tasks = Supervisor(logger)
_log = LogThrottle(logger)


def report(error: Exception) -> None:
    """Writing to one client failed. OSError: it is gone. Servers also have other exceptions for that."""
    if isinstance(error, OSError):
        logger.debug("Writing to a client ended: %r", error)
    else:
        _log.warning("Writing to a client failed; it is dropped: %s", text.clean(exception_line(error)))


class Below(Protocol):
    """Operations on one connection that a known server offers beside ASGI."""

    def buffered(self) -> int: ...
    def close(self, code: int, reason: str) -> bool:
        """Send the close frame. Returns False if it must go through ASGI."""

    def abort(self) -> None: ...
    def is_gone(self) -> bool: ...


class AsgiWriter:
    """`send` may wait for the reader, so a task awaits it, and pending bytes are counted."""

    __slots__ = ("_below", "_closed", "_gone", "_max_bytes", "_queue", "_queued", "_send", "_task")

    def __init__(self, send: Any, max_buffer_bytes: int, below: Below | None = None) -> None:
        self._send = send
        self._max_bytes = max_buffer_bytes
        self._below = below
        self._queue: collections.deque[tuple[dict[str, Any], int]] = collections.deque()  # messages and their bytes
        self._queued = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._gone = False

    def write(self, batch: writers.Batch) -> bool:
        for body in batch.bodies:
            if not self._closed:
                self._put({"type": "websocket.send", "text": body.decode()}, len(body))
        return self.buffered() > self._max_bytes

    def send(self, body: bytes) -> bool:
        return self.write(writers.Batch([body]))

    def close(self, code: int, reason: str = "") -> None:
        if not self._closed:
            self._closed = True
            self._put({"type": "websocket.close", "code": code, "reason": frames.close_reason(reason)}, 0)

    def abort(self) -> None:
        self._closed = self._gone = True
        self._queue.clear()
        self._queued = 0
        if self._task is not None:
            self._task.cancel()
        if self._below is not None:
            self._below.abort()

    def buffered(self) -> int:
        return self._queued + (self._below.buffered() if self._below is not None else 0)

    def is_closing(self) -> bool:
        return self._closed

    def is_gone(self) -> bool:
        return self._gone or (self._below is not None and self._below.is_gone())

    def _put(self, message: dict[str, Any], size: int) -> None:
        self._queue.append((message, size))
        self._queued += size
        if self._task is None:
            self._task = _tasks.spawn("writes of a connection", self._drain())

    async def _drain(self) -> None:
        try:
            while self._queue:
                message, size = self._queue[0]
                if message["type"] == "websocket.close" and self._below is not None:
                    closed = self._below.close(message["code"], message["reason"])
                else:
                    closed = False
                if not closed:
                    await self._send(message)
                if self._queue:  # not aborted meanwhile
                    self._queue.popleft()
                    self._queued -= size
        except Exception as error:  # noqa: BLE001 - each server has its own for a client that is gone
            report(error)
            self._closed = self._gone = True
            self._queue.clear()
            self._queued = 0
        finally:
            self._task = None
