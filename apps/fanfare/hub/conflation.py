"""State channels and slow readers: who cannot read every state gets the newest one when there is room for it.

On a cache channel each event is the whole state, so a reader that is behind need not be closed: what it would have read
in between is not worth its memory. Everything but the events themselves (who came, how many there are) is written as
ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fanfare.engine import interface
from fanfare.hub import connections, fanout, recovery

if TYPE_CHECKING:
    from fanfare.hub.hub import Hub


class Conflation:
    """The readers of one hub that are behind on a state channel."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._newest: dict[tuple[connections.Channel, connections.Connection], interface.Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """States that go out when their readers have read."""
        return len(self._newest)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def write(
        self,
        channel: connections.Channel,
        entries: Sequence[interface.Entry],
        gathered: fanout.Gathered | None,
    ) -> list[connections.Connection]:
        """What `fanout.write` does, for a state channel. Returns those that are too slow even for this."""
        behind = [
            connection
            for connection in channel.connections
            if (channel, connection) in self._newest or recovery.is_behind(connection)
        ]
        if not behind:
            return fanout.write(channel, entries, self._hub.by_socket, gathered=gathered)
        slow = fanout.write(channel, entries, self._hub.by_socket, but=frozenset(behind), gathered=gathered)
        passing = [entry for entry in entries if entry.kind not in fanout.AS_PUBLISHED]
        for connection in behind:
            if passing and connection.writer.write(fanout.batch_of(passing)):
                slow.append(connection)
            for entry in entries:
                if entry.kind in fanout.AS_PUBLISHED and entry.exclude != connection.socket_id:
                    self._keep(channel, connection, entry)
        return slow

    def _keep(self, channel: connections.Channel, connection: connections.Connection, entry: interface.Entry) -> None:
        key = (channel, connection)
        waits = key in self._newest
        if waits:
            self._hub.count("conflated")
        self._newest[key] = entry
        if not waits:
            task = asyncio.get_running_loop().create_task(self._when_drained(channel, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _when_drained(self, channel: connections.Channel, connection: connections.Connection) -> None:
        reads = await recovery.drained(connection)
        entry = self._newest.pop((channel, connection))
        if not reads:
            self._hub.evict(connection)
        elif connection in channel.connections:
            connection.writer.write(fanout.batch_of([entry]))
