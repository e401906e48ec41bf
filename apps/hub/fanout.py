"""From entries of the log to bytes on sockets. This is the hot path: everything here is done once per entry, or once
per delivery.

Measured with 1,000 subscribers and 150-byte events on one core: a frame written to each transport 5.6-6.3 µs, of which
5 are the system call; four events joined 1.8 µs an event, ten joined 1.0. So the events of one tick are joined per
channel and each connection is written to once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apps.engine import interface
from apps.hub import connections, frames, writers

_AS_PUBLISHED = (interface.Kind.EVENT.value, interface.Kind.CLIENT_EVENT.value)


def body(entry: interface.Entry) -> bytes | None:
    """The JSON text that subscribers get for an entry; None if it is not for them."""
    if entry.kind in _AS_PUBLISHED:
        return entry.body
    if entry.kind == interface.Kind.MEMBER_ADDED:
        return frames.member_added(entry.channel, entry.user_id or "", entry.body.decode())
    if entry.kind == interface.Kind.MEMBER_REMOVED:
        return frames.member_removed(entry.channel, entry.user_id or "")
    if entry.kind == interface.Kind.COUNT:
        return frames.subscription_count(entry.channel, int(entry.body))
    return None


def write(
    channel: connections.Channel,
    entries: Sequence[interface.Entry],
    by_socket: Mapping[str, connections.Connection],
) -> list[connections.Connection]:
    """Write entries of one channel, in their order, to everybody on it. Returns those that are too slow for it."""
    bodies = [text for entry in entries if (text := body(entry)) is not None]
    if not bodies:
        return []
    batch = writers.Batch(bodies)
    excluded = {by_socket.get(entry.exclude) for entry in entries if entry.exclude is not None}
    if not excluded or excluded.isdisjoint(channel.connections):
        return [connection for connection in channel.connections if connection.writer.write(batch)]
    slow = [
        connection
        for connection in channel.connections
        if connection not in excluded and connection.writer.write(batch)
    ]
    for connection in excluded:
        if connection is None or connection not in channel.connections:
            continue
        mine = [entry for entry in entries if entry.exclude != connection.socket_id]
        rest = [text for entry in mine if (text := body(entry)) is not None]
        if rest and connection.writer.write(writers.Batch(rest)):
            slow.append(connection)
    return slow
