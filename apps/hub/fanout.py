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

_EVENT, _ADDED = interface.Kind.EVENT.value, interface.Kind.MEMBER_ADDED.value


def body(entry: interface.Entry) -> bytes:
    """The JSON text that subscribers get for an entry."""
    if entry.kind == _EVENT:
        return entry.body
    if entry.kind == _ADDED:
        return frames.member_added(entry.channel, entry.user_id or "", entry.body.decode())
    return frames.member_removed(entry.channel, entry.user_id or "")


def write(
    channel: connections.Channel,
    entries: Sequence[interface.Entry],
    by_socket: Mapping[str, connections.Connection],
) -> list[connections.Connection]:
    """Write entries of one channel, in their order, to everybody on it. Returns those that are too slow for it."""
    bodies = [body(entry) for entry in entries]
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
        rest = [text for text, entry in zip(bodies, entries, strict=True) if entry.exclude != connection.socket_id]
        if rest and connection.writer.write(writers.Batch(rest)):
            slow.append(connection)
    return slow
