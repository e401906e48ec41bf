"""Back-pressure for one reader: large or deferrable output is written after the reader has read earlier output."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from fanfare.hub import connections

# A connection with more buffered bytes than this gets no further deferrable output.
PACE_BYTES = 64 * 1024
# Pauses between two checks of a buffer: a fast reader empties it within a millisecond, a slow one within seconds.
LOOK_S, LONGEST_LOOK_S = 0.002, 0.1
# A client that reads nothing for this long is disconnected.
STALL_S = 30.0

Disconnect = Callable[[connections.Connection], None]
Failed = Callable[[connections.Connection, Exception], None]


def is_behind(connection: connections.Connection) -> bool:
    return connection.writer.buffered() > PACE_BYTES


class _Wait:
    """The callbacks of one connection. `buffered`: the smallest number of buffered bytes since `since_s`."""

    __slots__ = ("buffered", "callbacks", "pause_s", "since_s", "timer")

    def __init__(self, buffered: int, now_s: float) -> None:
        self.callbacks: collections.deque[Callable[[], None]] = collections.deque()
        self.buffered = buffered
        self.since_s = now_s
        self.pause_s = LOOK_S
        self.timer: asyncio.Handle | None = None


class Pacing:
    """The connections of one hub with deferred output.

    `disconnect` is called for a connection that reads nothing for `STALL_S`, `failed` after a callback has raised.
    """

    def __init__(self, disconnect: Disconnect, failed: Failed) -> None:
        self._disconnect = disconnect
        self._failed = failed
        self._waits: dict[connections.Connection, _Wait] = {}

    def stop(self) -> None:
        for wait in self._waits.values():
            if wait.timer is not None:
                wait.timer.cancel()
        self._waits.clear()

    def when_drained(self, connection: connections.Connection, then: Callable[[], None]) -> None:
        """Call `then` when the connection is not behind, in the order of these calls and never before this returns.

        Each callback may fill the buffer again, so the next one waits in turn. Callbacks of a closing connection are
        not called.
        """
        wait = self._waits.get(connection)
        if wait is None:
            loop = asyncio.get_running_loop()
            wait = self._waits[connection] = _Wait(connection.writer.buffered(), loop.time())
            # Not before the next iteration of the loop, when a writer with a queue has written it to the kernel.
            wait.timer = loop.call_soon(self._look, connection, wait)
        wait.callbacks.append(then)

    def _look(self, connection: connections.Connection, wait: _Wait) -> None:
        loop = asyncio.get_running_loop()
        if connection.closing:
            del self._waits[connection]
            return
        buffered = connection.writer.buffered()
        if buffered <= PACE_BYTES:
            then = wait.callbacks.popleft()
            if wait.callbacks:  # before the call, so that its failure does not stop the others
                wait.buffered, wait.since_s, wait.pause_s = buffered, loop.time(), LOOK_S
                wait.timer = loop.call_soon(self._look, connection, wait)
            else:
                del self._waits[connection]
            try:
                then()
            except Exception as error:  # noqa: BLE001
                self._failed(connection, error)
            return
        if buffered < wait.buffered:
            wait.buffered, wait.since_s, wait.pause_s = buffered, loop.time(), LOOK_S
        elif loop.time() - wait.since_s > STALL_S:
            del self._waits[connection]
            self._disconnect(connection)
            return
        wait.timer = loop.call_later(wait.pause_s, self._look, connection, wait)
        wait.pause_s = min(wait.pause_s * 2, LONGEST_LOOK_S)
