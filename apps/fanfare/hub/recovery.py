"""Recovery: the kept entries that a subscriber missed are sent to it before the new ones, as fast as it reads.

A recovery may be larger than the send buffer. It is written in chunks, and the next chunk is read
from the log when the previous one has left the buffer. The subscription catches up until the chunk that reaches the
position of this worker's reader; then it is live.
"""

from __future__ import annotations

import collections
import dataclasses
import functools

from fanfare.engine import interface
from fanfare.hub import attempts, connections, event_frames, fanout, pacing, streams, traces, writers
from fanfare.runtime import close_codes


class Recoveries:
    """The recoveries of one hub."""

    def __init__(
        self,
        requests: attempts.Attempts,
        reader_pacing: pacing.Pacing,
        counters: collections.Counter[str],
        recorder: traces.Recorder,
    ) -> None:
        self.running = 0  # subscriptions that catch up
        self._requests = requests
        self._pacing = reader_pacing
        self._counters = counters
        self._recorder = recorder

    def begin(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> None:
        """Handle the engine's answer to a subscribe: pass it on, send the recovered entries, and go live."""
        connection, channel = subscription.connection, subscription.channel
        recovery = subscription.recovery
        if recovery is not None and answer.replayed is not None:
            answer = dataclasses.replace(answer, replayed=self._known(recovery.request, answer.replayed))
        result = answer.replayed
        if result is not None and recovery is not None and recovery.request.after is not None:
            self._counters[f"recovery.{result.reason or 'complete'}"] += 1
        if result is None or recovery is None:
            subscription.go_live()
            connection.owner.subscribed(subscription, answer)
            self._write_streams(subscription, answer)
            return
        if result.position is not None:
            channel.epoch, channel.offset = result.position  # this worker's reader is exactly at this position
        # Buffered entries (recovered ones of other channels) must be read before these.
        waits = bool(result.entries) and pacing.is_behind(connection)
        if result.complete and not waits:
            self._go_live(subscription, result)
            subscription.since = _first_offset(recovery.request, result)
            connection.owner.subscribed(subscription, answer)
            self._write(subscription, recovery, result.entries)
            self._write_streams(subscription, answer)
            return
        subscription.catch_up(result.entries[0].stream_offset - 1)
        self.running += 1
        connection.owner.subscribed(subscription, answer)
        self._write_streams(subscription, answer)
        if not waits:
            self._write(subscription, recovery, result.entries)
        self._continue(subscription, recovery)

    def _write_streams(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> None:
        """Write the present text of each stream of a channel; later pieces are delivered live."""
        connection, channel = subscription.connection, subscription.channel
        if not answer.streams or subscription.state is connections.State.LEFT:
            return
        channel.streams.found(answer.streams)
        needed = [one for one in answer.streams if not _is_recovered(one, subscription.recovery, answer.replayed)]
        if needed:
            self._counters["streams.caught_up"] += len(needed)
            entries = streams.entries(channel.app, channel.name, needed)
            connection.writer.write(fanout.batch_of(entries))  # bounded by the number of streams and their length

    def ended(self, subscription: connections.Subscription) -> None:
        """A subscription that catches up is about to leave."""
        if subscription.state is connections.State.CATCHING_UP:
            self.running -= 1

    def _continue(self, subscription: connections.Subscription, recovery: connections.Recovery) -> None:
        if subscription.state is connections.State.CATCHING_UP:
            self._pacing.when_drained(
                subscription.connection, functools.partial(self._read_chunk, subscription, recovery)
            )

    def _read_chunk(self, subscription: connections.Subscription, recovery: connections.Recovery) -> None:
        self._requests.attach(
            subscription.connection,
            functools.partial(_next_chunk, subscription, recovery),
            functools.partial(self._chunk_read, subscription, recovery),
        )

    def _chunk_read(
        self,
        subscription: connections.Subscription,
        recovery: connections.Recovery,
        answer: interface.SubscribeResult | interface.Refused,
    ) -> None:
        if subscription.state is not connections.State.CATCHING_UP:
            return
        if isinstance(answer, interface.Refused) or answer.replayed is None:
            # The store has the events, so nothing is reported as lost: the client reconnects and recovers them.
            why = answer.message if isinstance(answer, interface.Refused) else "the history cannot be read"
            self._counters["recoveries.interrupted"] += 1
            subscription.connection.close(close_codes.OVER_CAPACITY, f"The recovery was interrupted: {why}")
            return
        result = self._known(recovery.request, answer.replayed)
        if result.reason is not None:
            self._fail(subscription, result, result.reason, answer.cached)
            return
        if result.complete:
            self._go_live(subscription, result)
        self._write(subscription, recovery, result.entries)
        self._continue(subscription, recovery)

    def _known(self, request: interface.RecoveryRequest, result: interface.RecoveryResult) -> interface.RecoveryResult:
        """The result, or a refusal if a recovery misses an entry that a newer release wrote. A rewind omits it."""
        unknown = sum(entry.kind > interface.NEWEST_KIND for entry in result.entries)
        self._counters["entries.unknown"] += unknown
        if unknown and request.after is not None:
            return interface.RecoveryResult(result.position, reason="engine_unavailable", complete=True)
        return result

    def _fail(
        self,
        subscription: connections.Subscription,
        result: interface.RecoveryResult,
        reason: str,
        cached: bytes | None,
    ) -> None:
        self._counters[f"recoveries.lost.{reason}"] += 1
        self._go_live(subscription, result)
        subscription.since = subscription.channel.offset
        subscription.connection.owner.recovery_failed(subscription, reason, cached)

    def _go_live(self, subscription: connections.Subscription, result: interface.RecoveryResult) -> None:
        self.ended(subscription)
        if result.position is not None:
            subscription.channel.offset = result.position.offset  # this worker's reader is exactly at this position
        subscription.go_live()

    def _write(
        self,
        subscription: connections.Subscription,
        recovery: connections.Recovery,
        entries: tuple[interface.Entry, ...],
    ) -> None:
        connection = subscription.connection
        if not entries or subscription.state is connections.State.LEFT:
            return
        if subscription.state is connections.State.CATCHING_UP:
            subscription.sent = entries[-1].stream_offset
        batch = chunk(connection, recovery, entries)
        if batch.bodies:
            self._counters["recovered"] += len(batch.bodies)
            self._recorder.replayed(connection, subscription.channel, batch.entries)
            connection.writer.write(batch)  # pacing limits its size, so the limit for slow readers does not apply


def _next_chunk(
    subscription: connections.Subscription, recovery: connections.Recovery
) -> interface.SubscribeRequest | None:
    if subscription.state is not connections.State.CATCHING_UP:
        return None
    channel = subscription.channel
    after = interface.Position(channel.epoch, subscription.sent)
    request = dataclasses.replace(recovery.request, after=after, rewind=None, continued=True)
    # The cached event is for a failed recovery, which lacks the newest state otherwise.
    return interface.SubscribeRequest(
        channel.app, channel.name, durable=False, cached=channel.is_cache, history=request
    )


def chunk(
    connection: connections.Connection, recovery: connections.Recovery, entries: tuple[interface.Entry, ...]
) -> writers.Batch:
    """The frames of these entries, without client events of the client itself and entries of a newer release."""
    own = recovery.earlier_sockets | {connection.socket_id}
    # An entry without a body was replaced by a later one.
    sent = [
        entry for entry in entries if entry.exclude not in own and entry.body and entry.kind <= interface.NEWEST_KIND
    ]
    if not connection.with_offsets:
        return fanout.batch_of(sent, fanout.replayed_body)
    bodies = [event_frames.with_offset(entry.body, entry.stream_offset, replayed=True) for entry in sent]
    return writers.Batch(bodies, sent)


def _first_offset(request: interface.RecoveryRequest, result: interface.RecoveryResult) -> int | None:
    """The offset after which all kept entries are sent."""
    if result.reason is None and request.after is not None:
        return request.after.offset
    if result.entries:
        return result.entries[0].stream_offset - 1
    return None if result.position is None else result.position.offset


def _is_recovered(
    stream: interface.Streamed, recovery: connections.Recovery | None, result: interface.RecoveryResult | None
) -> bool:
    """Whether the client has the end of this stream, or gets it with its recovery."""
    if stream.offset is None or recovery is None or result is None or result.reason is not None:
        return False
    if recovery.request.after is not None:
        return True
    return any(entry.offset == stream.offset for entry in result.entries)
