"""Conflation: a slow reader of a cache channel gets the newest state only, not each intermediate state.

On a cache channel each published event is the whole state. So a slow reader need not be disconnected: a newer
state replaces the pending one. Only an EVENT is a state, and only an EVENT replaces one. Client events,
members and counts wait in the same queue, in the order of the log, and are not dropped.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence

from fanfare.engine import interface
from fanfare.hub import connections, fanout, pacing


class Conflation:
    """The readers of one hub that are behind on a cache channel."""

    def __init__(
        self,
        by_socket: Mapping[str, connections.Connection],
        reader_pacing: pacing.Pacing,
        counters: collections.Counter[str],
        max_pending_bytes: int,
    ) -> None:
        self.waiting = 0  # subscriptions with pending entries
        self._by_socket = by_socket
        self._pacing = reader_pacing
        self._counters = counters
        self._max_pending_bytes = max_pending_bytes

    def write(
        self, channel: connections.Channel, entries: Sequence[interface.Entry], gathered: fanout.Gathered | None
    ) -> list[connections.Connection]:
        """`fanout.write` for a cache channel. Returns the connections that are too slow even with conflation."""
        behind = {
            connection: subscription
            for connection, subscription in channel.live.items()
            if subscription.pending is not None or pacing.is_behind(connection)
        }
        slow = fanout.write(channel, entries, self._by_socket, but=behind, gathered=gathered)
        for connection, subscription in behind.items():
            self._hold(subscription, entries)
            if subscription.pending is not None and subscription.pending.bytes > self._max_pending_bytes:
                slow.append(connection)
        return slow

    def ended(self, subscription: connections.Subscription) -> None:
        """A subscription is about to leave."""
        if subscription.pending is not None:
            self.waiting -= 1

    def _hold(self, subscription: connections.Subscription, entries: Sequence[interface.Entry]) -> None:
        socket_id = subscription.connection.socket_id
        pending = subscription.pending
        for entry in entries:
            if entry.exclude == socket_id or fanout.body(entry) is None:
                continue
            if pending is None:
                pending = subscription.pending = connections.PendingEntries()
                self.waiting += 1
                self._pacing.when_drained(subscription.connection, functools.partial(self._drained, subscription))
            if pending.add(entry):
                self._counters["conflated"] += 1

    def _drained(self, subscription: connections.Subscription) -> None:
        pending = subscription.pending
        if pending is None or subscription.state is not connections.State.LIVE:
            return  # it left; a new subscribe creates another subscription
        subscription.pending = None
        self.waiting -= 1
        subscription.connection.writer.write(fanout.batch_of(pending.entries))
