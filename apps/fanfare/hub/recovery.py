"""A channel's past on its way to one client, as fast as it reads.

A replay may be larger than what is ever buffered for a client. So it is written in chunks, and the next one is asked
for when the last one has left. Until the chunk that reaches the tail, the subscription is not live.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from fanfare.engine import interface
from fanfare.hub import connections, event_frames, fanout, writers

if TYPE_CHECKING:
    from fanfare.hub.hub import Hub

# Above this a client has enough to read: the next chunk waits.
PACE_BYTES = 64 * 1024
# How often a buffer is looked at: a fast reader has emptied it in a millisecond, a slow one in seconds.
LOOK_S, LOOK_LONGEST_S = 0.002, 0.1
# A client that reads nothing for so long is gone.
STALL_S = 30.0


class Replays:
    """The replays of one hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._tasks: set[asyncio.Task[None]] = set()  # those that wait for their readers

    @property
    def waiting(self) -> int:
        """Replays that go on when their readers have read."""
        return len(self._tasks)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def begin(
        self,
        connection: connections.Connection,
        subscription: connections.Subscription,
        answer: interface.SubscribeResult,
        ready: interface.Ready,
    ) -> None:
        """The engine answered: say so, and then the past and the present, in this order."""
        replayed, past = answer.replayed, subscription.past
        if replayed is None or past is None or subscription.live:
            self._hub.go_live(connection, subscription)
            ready(answer)
            return
        channel = subscription.channel
        if replayed.position is not None:
            channel.epoch = replayed.position.epoch
        # What is in the client's buffer already (the pasts of its other channels) must leave before this one's.
        waits = bool(replayed.entries) and is_behind(connection)
        if replayed.complete and not waits:
            self._arrive(connection, subscription, replayed)
            ready(answer)
            self._write_past(connection, past, replayed)
            return
        first = replayed.entries[0].offset or 0
        subscription.caught_up_to = first - 1
        channel.catching_up[connection] = None
        ready(answer)
        if not waits:
            self._advance(connection, subscription, past, replayed)
        self._catch_up(connection, subscription, past)

    def _catch_up(
        self, connection: connections.Connection, subscription: connections.Subscription, past: connections.Past
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._next_chunk(connection, subscription, past))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _next_chunk(
        self, connection: connections.Connection, subscription: connections.Subscription, past: connections.Past
    ) -> None:
        channel = subscription.channel
        if not await drained(connection):
            self._hub.evict(connection)
            return

        def attached(answer: interface.SubscribeResult | interface.Refused) -> None:
            if connection.subscriptions.get(channel.name) is not subscription:
                return
            replayed = answer.replayed if isinstance(answer, interface.SubscribeResult) else None
            if replayed is None or replayed.reason is not None:
                reason = "engine_unavailable" if replayed is None else replayed.reason
                self._hub.counters[f"replays.lost.{reason}"] += 1
                self._arrive(connection, subscription, replayed)
                if past.lost is not None:
                    past.lost(reason or "")
            elif replayed.complete:
                self._arrive(connection, subscription, replayed)
                self._write_past(connection, past, replayed)
            else:
                self._advance(connection, subscription, past, replayed)
                self._catch_up(connection, subscription, past)

        after = interface.Position(channel.epoch, subscription.caught_up_to)
        history = dataclasses.replace(past.history, after=after, rewind=None, continued=True)
        self._hub.engine.attach(
            interface.SubscribeRequest(connection.app, channel.name, durable=False, history=history), attached
        )

    def _advance(
        self,
        connection: connections.Connection,
        subscription: connections.Subscription,
        past: connections.Past,
        replayed: interface.RecoveryResult,
    ) -> None:
        self._write_past(connection, past, replayed)
        subscription.caught_up_to = replayed.entries[-1].offset or 0

    def _write_past(
        self, connection: connections.Connection, past: connections.Past, replayed: interface.RecoveryResult
    ) -> None:
        batch = chunk(connection, past, replayed.entries)
        if batch.bodies and not connection.closing:
            self._hub.counters["replayed"] += len(batch.bodies)
            connection.writer.write(batch)  # outside the bound of slow readers: its pace is the reader's own

    def _arrive(
        self,
        connection: connections.Connection,
        subscription: connections.Subscription,
        replayed: interface.RecoveryResult | None,
    ) -> None:
        channel = subscription.channel
        channel.catching_up.pop(connection, None)
        if replayed is not None and replayed.position is not None:
            channel.offset = replayed.position.offset  # the tail stands exactly there
        self._hub.go_live(connection, subscription)


def chunk(
    connection: connections.Connection, past: connections.Past, entries: tuple[interface.Entry, ...]
) -> writers.Batch:
    """What is written of these entries: not what the client sent itself."""
    mine = past.sent_as | {connection.socket_id}
    theirs = [entry for entry in entries if entry.exclude not in mine]
    if not connection.positions:
        return fanout.batch_of(theirs)
    bodies = [event_frames.with_offset(entry.body, entry.offset or 0, replayed=True) for entry in theirs]
    return writers.Batch(bodies, theirs)


def is_behind(connection: connections.Connection) -> bool:
    return connection.writer.buffered() > PACE_BYTES


async def drained(connection: connections.Connection) -> bool:
    """Wait until the client has read nearly all that it was sent. False: it does not read, or is gone."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)  # so that what was just written is given to the kernel first
    wait_s = LOOK_S
    left, since = connection.writer.buffered(), loop.time()
    while left > PACE_BYTES and not connection.closing:
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, LOOK_LONGEST_S)
        now = connection.writer.buffered()
        if now < left:
            left, since, wait_s = now, loop.time(), LOOK_S
        elif loop.time() - since > STALL_S:
            return False
    return not connection.closing
