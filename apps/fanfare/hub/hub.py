"""The hub of a worker: its connections, their subscriptions, and the delivery of each entry of the log."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import logging
import operator
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from fanfare.engine import interface
from fanfare.hub import (
    activity,
    attempts,
    conflation,
    connections,
    fanout,
    pacing,
    recovery,
    streams,
    traces,
    user_directory,
    writers,
)
from fanfare.runtime import close_codes
from fanfare.runtime.histograms import Histogram
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.supervisor import Supervisor, as_future
from fanfare.runtime.timer_wheel import TimerWheel

logger = logging.getLogger(__name__)

Connection = connections.Connection

SWEEP_S = 5.0  # between two checks of all connections; 10,000 take about 2 ms
LOOK_S = 1.0  # between two checks of a closing connection

# After its close frame a client has this long to answer before its transport is dropped; uvicorn waits as long.
CLOSE_S = 10.0
# A slow reader also reads a close frame slowly.
CLOSE_SLOW_S = 1.0

CONTROL = interface.Kind.CONTROL.value
MESSAGE = interface.Kind.MESSAGE.value
SESSION_TAKEN = interface.Kind.SESSION_TAKEN.value
STREAMS = frozenset([interface.Kind.STREAM.value, interface.Kind.STREAM_END.value])
COMMANDS = frozenset([CONTROL, MESSAGE, SESSION_TAKEN])  # for this worker, not for subscribers

_BODY = operator.attrgetter("body")
_CREATED_MS = operator.attrgetter("created_ms")

Control = Callable[[str, bytes], None]  # (application, body)
Message = Callable[[bytes], None]  # (body)
SessionTaken = Callable[[str, str, bytes], None]  # (application, the previous holder, body)


def _call(then: interface.Appended, appended: asyncio.Future[list[interface.Receipt]]) -> None:
    error = asyncio.CancelledError() if appended.cancelled() else appended.exception()
    then(() if error is not None else appended.result(), error)


class Hub:
    """One per worker. All methods are called on its loop.

    `max_buffer_bytes`: the limit of a connection's send buffer. A connection above it is disconnected with 4100.
    `stream_keep_s`: for how long after its end new subscribers get a stream.
    """

    def __init__(
        self,
        engine: interface.Engine,
        *,
        max_buffer_bytes: int = 1024 * 1024,
        stream_keep_s: float = streams.KEEP_S,
    ) -> None:
        self.engine = engine
        self.max_buffer_bytes = max_buffer_bytes
        self._stream_keep_s = stream_keep_s
        self.counters: collections.Counter[str] = collections.Counter()
        self.supervisor = Supervisor(logger, count=self.count)  # of the tasks of this worker's connections
        self.activity = activity.Activity(self.count)
        self.recorder = traces.Recorder(engine)
        # The time from the commit of an event, by the engine's clock, until this worker has read it, and until it is
        # written to the last local subscriber. One observation for each event and worker.
        self.read_lag_seconds = Histogram()
        self.delivery_seconds = Histogram()
        self.by_socket: dict[str, Connection] = {}  # every connection that is not closing, by its socket id
        self._applications: dict[str, dict[Connection, None]] = {}
        self._channels: dict[tuple[str, str], connections.Channel] = {}
        self._users = user_directory.Directory()
        self._pacing = pacing.Pacing(self.disconnect_slow, self._fail)
        self._attempts = attempts.Attempts(engine, self.supervisor, self.count, self._fail)
        self._recoveries = recovery.Recoveries(self._attempts, self._pacing, self.counters, self.recorder)
        self._conflation = conflation.Conflation(self.by_socket, self._pacing, self.counters, max_buffer_bytes)
        self._closing: TimerWheel[Connection] = TimerWheel("closing connections", LOOK_S / 2, self._look_at_closing)
        self._closing_now = 0
        self._controls: dict[str, Control] = {}
        self._mailboxes: dict[str, Message] = {}
        self._session_taken: SessionTaken | None = None
        self._read: dict[connections.Channel, list[interface.Entry]] = {}  # undelivered entries of this read
        self._read_at = 0.0  # Unix time of this read
        self._newest: interface.Entry | None = None  # entry of this read
        self._before_gap_closes: list[Callable[[], None]] = []
        self._gaps: list[int | None] = []  # partitions whose connections are about to be closed; None: all
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._log = LogThrottle(logger)

    # -- start and stop ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises what Engine.open raises."""
        await self.engine.open(self._deliver, self._on_gap)
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    async def stop(self) -> None:
        """Close all connections with 4200, then leave the engine."""
        self._close_all(self.by_socket.values(), close_codes.RECONNECT, "The server is restarting")
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        self._pacing.stop()
        await self.supervisor.stop()
        await self.engine.close()
        self._gaps.clear()  # here, because the engine may find one until it is closed

    async def go_over(self, engine: interface.Engine) -> None:
        """Switch to the engine to which the log was moved. All connections are closed with 4200 and resume there.

        Raises what Engine.open raises; call it again then.
        """
        await self.stop()
        self.engine = self.recorder.engine = self._attempts.engine = engine
        for mailbox in self._mailboxes:
            engine.listen("", mailbox, True)
        await self.start()

    # -- connections ---------------------------------------------------------------------------------------------------

    def connect(self, connection: Connection) -> None:
        connection.hub = self
        self.by_socket[connection.socket_id] = connection
        of_application = self._applications.setdefault(connection.app, {})
        of_application[connection] = None
        self.counters["connections"] += 1
        self.engine.set_subscribers(connection.app, interface.CONNECTIONS, len(of_application))
        if self.activity.tap is not None:
            self.activity.seen(activity.OPENED, connection)

    def admit(self, connection: Connection, limit: int) -> None:
        """Ask the engine whether a connected `connection` is within its application's limit for the deployment. The
        answer goes to `Owner.admitted`."""

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if not connection.closing:
                connection.owner.admitted(answer)

        self.engine.admit(connection.app, limit, answered)

    def disconnect(self, connection: Connection) -> None:
        """The client has disconnected or is closing. Its transport is dropped after `CLOSE_S` at the latest.
        Idempotent.
        """
        connection.closing = True
        self.forget(connection)
        if connection.slot is not None and connection.writer.is_gone():
            self._closing_now -= 1
            self._closing.cancel(connection)

    def forget(self, connection: Connection) -> None:
        """Remove a closing connection from its channels and presence at once. Idempotent."""
        if self.by_socket.get(connection.socket_id) is not connection:
            return
        del self.by_socket[connection.socket_id]
        self._drop_within(connection, CLOSE_S)
        if self.activity.tap is not None:
            code, text = connection.end or (None, "The client has disconnected")
            self.activity.seen(activity.CLOSED, connection, code=code, text=text)
        of_application = self._applications[connection.app]
        del of_application[connection]
        if not of_application:
            del self._applications[connection.app]
        for name in list(connection.subscriptions):
            self.unsubscribe(connection, name)
        if self._users.remove(connection):
            self.engine.leave(connection.app, interface.USERS, connection.socket_id)
        self.engine.set_subscribers(connection.app, interface.CONNECTIONS, len(of_application))

    def disconnect_slow(self, connection: Connection) -> None:
        """Close a connection with 4100 because its client does not read. A client that resumes recovers the missed
        events."""
        if connection.closing:
            return
        self.counters["closed.slow"] += 1
        buffered = connection.writer.buffered()
        text = f"The connection reads too slowly: {buffered} bytes are buffered, {self.max_buffer_bytes} are allowed"
        self.activity.refused("connection", "slow", text, connection=connection)
        self._log.info(
            "Socket %s (%s) is closed with %d. %s.",
            connection.socket_id,
            getattr(connection.context, "address", "") or "an unknown address",
            close_codes.OVER_CAPACITY,
            text,
            key="slow",
        )
        connection.close(close_codes.OVER_CAPACITY, "The connection reads too slowly")
        self._drop_within(connection, CLOSE_SLOW_S)

    def connections_of(self, app: str) -> list[Connection]:
        return list(self._applications.get(app, ()))

    def close_application(self, app: str, code: int, message: str) -> None:
        """Close every connection of an application."""
        several = self.connections_of(app)
        self.counters[f"closed.{code}"] += len(several)
        self._close_all(several, code, message)

    def _close_all(self, several: Iterable[Connection], code: int, message: str) -> None:
        for connection in list(several):
            with self.isolated("A connection could not be closed"):
                connection.close(code, message)

    def _drop_within(self, connection: Connection, seconds: float) -> None:
        """Drop the transport of a closing connection after `seconds`, if it has not ended before."""
        if connection.slot is None:
            self._closing_now += 1
        connection.drop_at_s = asyncio.get_running_loop().time() + seconds
        self._closing.schedule(connection, min(seconds, LOOK_S))

    def _look_at_closing(self, connection: Connection) -> None:
        rest_s = connection.drop_at_s - asyncio.get_running_loop().time()
        if rest_s > 0 and not connection.writer.is_gone():
            self._closing.schedule(connection, min(rest_s, LOOK_S))
            return
        if not connection.writer.is_gone():
            connection.writer.abort()
        self._closing_now -= 1

    def _sweep(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        self._forget_closed()

    def _forget_closed(self) -> None:
        """Find connections that the ASGI server has closed after an unanswered ping. It does not report them while
        their send buffer is not empty.
        """
        for connection in [one for one in self.by_socket.values() if one.writer.is_closing()]:
            self.counters["closed.by_server"] += 1
            connection.closing = True
            self.forget(connection)
            self._drop_within(connection, CLOSE_SLOW_S)

    # -- users ---------------------------------------------------------------------------------------------------------

    def sign_in(self, connection: Connection, user_id: str, *, watchlist: Sequence[str] = ()) -> None:
        """Sign a connection in as a user. The answer, with the online users of the watchlist, goes to
        `Owner.signed_in`; changes follow. The connection must not be signed in already."""
        if connection.closing:
            return
        wanted = interface.SubscribeRequest(
            connection.app,
            interface.USERS,
            connection.socket_id,
            member=interface.Member(user_id, "null"),
            watch=tuple(watchlist),
        )

        def repeated() -> interface.SubscribeRequest | None:
            if not connection.closing:
                return wanted
            self.engine.leave(connection.app, interface.USERS, connection.socket_id)
            return None

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if connection.closing:
                self.engine.leave(connection.app, interface.USERS, connection.socket_id)
                return
            if isinstance(answer, interface.SubscribeResult):
                self._users.add(connection, user_id, watchlist)
                if self.activity.tap is not None:
                    self.activity.seen(activity.SIGNED_IN, connection)
            else:  # it may have been written before the engine failed
                self.engine.leave(connection.app, interface.USERS, connection.socket_id)
            connection.owner.signed_in(answer)

        self._attempts.attach(connection, repeated, answered)

    def connections_of_user(self, app: str, user_id: str) -> list[Connection]:
        """The connections of this worker that are signed in as this user."""
        return self._users.connections_of(app, user_id)

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        connection: Connection,
        name: str,
        *,
        member: interface.Member | None = None,
        member_limit: int | None = None,
        cached: bool = False,
        announce: bool = False,
        recovery: connections.Recovery | None = None,
        request: Any = None,
    ) -> None:
        """Subscribe a connection to a channel. Raises nothing.

        The answer goes to `Owner.subscribed` or `Owner.refused`, possibly before this returns, and not at all if the
        connection leaves the channel before. `cached`: the answer has the cached event. `announce`: it has the
        subscription count, and changes follow. `recovery`: kept entries are sent after the answer. `request`: kept
        with the subscription for the owner.

        On a channel to which the connection is subscribed, nothing changes. The answer, which has no recovery, goes to
        `Owner.refreshed`. While the engine has not answered an earlier subscribe, that answer is the only one.
        """
        if connection.closing:
            return
        subscription = connection.subscriptions.get(name)
        if subscription is not None:
            self._refresh(subscription, request, member_limit, cached=cached, announce=announce)
            return
        channel = self._channels.get((connection.app, name))
        if channel is None:
            channel = connections.Channel(connection.app, name, self._stream_keep_s)
            self._channels[connection.app, name] = channel
        subscription = connections.Subscription(connection, channel, member, recovery, request)
        connection.subscriptions[name] = subscription
        channel.announce, channel.is_cache = announce, cached
        self._count(channel)
        if channel.receives and member is None and not (announce or cached or recovery or channel.streams):
            self._begin(subscription, interface.SubscribeResult())
            return
        wanted = self._wanted(subscription, member_limit)
        if wanted is not None:
            answered = functools.partial(self._answered, subscription, member_limit, time.monotonic())
            self.engine.attach(wanted, answered)

    def _answered(
        self,
        subscription: connections.Subscription,
        member_limit: int | None,
        asked_s: float,
        answer: interface.SubscribeResult | interface.Refused,
    ) -> None:
        """The answer to the first request of a subscribe. Most are good, so only a refused one costs an attempt."""
        if isinstance(answer, interface.Refused):
            wanted = functools.partial(self._wanted, subscription, member_limit)
            ready = functools.partial(self._attached, subscription)
            self._attempts.repeat(subscription.connection, wanted, ready, asked_s, answer)
            return
        try:
            if subscription.state is connections.State.ATTACHING:
                self._begin(subscription, answer)
        except Exception as error:  # noqa: BLE001  (the subscription would wait for ever: the client reconnects)
            self._fail(subscription.connection, error)

    def _wanted(
        self, subscription: connections.Subscription, member_limit: int | None
    ) -> interface.SubscribeRequest | None:
        """What a subscription that is attaching asks of the engine now."""
        if subscription.state is not connections.State.ATTACHING:
            return None
        channel, recovery = subscription.channel, subscription.recovery
        return interface.SubscribeRequest(
            channel.app,
            channel.name,
            subscription.connection.socket_id,
            # Only a channel's first subscriber on this worker waits for the disk. For further ones a count changes,
            # which is written later. Subscribers that get the count wait until it includes them.
            durable=channel.announce or not channel.receives,
            member=subscription.member,
            member_limit=member_limit,
            cached=channel.is_cache,
            counted=channel.announce,
            history=recovery.request if recovery is not None else None,
            # This worker has read all entries since the channel had its first receiver.
            streams=not channel.receives or bool(channel.streams),
        )

    def _fail(self, connection: Connection, error: Exception) -> None:
        """A callback of one connection failed, and its subscriptions may be incomplete."""
        self.counters["callbacks.failed"] += 1
        self._log.error("A callback of a connection failed; its client reconnects", error=error)
        with self.isolated("A connection could not be closed"):
            connection.close(close_codes.RECONNECT, "Events may have been missed; reconnect")

    def _attached(
        self, subscription: connections.Subscription, answer: interface.SubscribeResult | interface.Refused
    ) -> None:
        if subscription.state is not connections.State.ATTACHING:
            return
        if isinstance(answer, interface.SubscribeResult):
            self._begin(subscription, answer)
            return
        self._leave(subscription)  # also for a member, which may have been written before the engine failed
        subscription.connection.owner.refused(subscription, answer)

    def _begin(self, subscription: connections.Subscription, answer: interface.SubscribeResult) -> None:
        self._recoveries.begin(subscription, answer)
        if self.activity.tap is not None:
            self.activity.seen(
                activity.SUBSCRIBED,
                subscription.connection,
                channel=subscription.channel.name,
                recovered=0 if answer.replayed is None else answer.replayed.count,
            )

    def _refresh(
        self,
        subscription: connections.Subscription,
        request: Any,
        member_limit: int | None,
        *,
        cached: bool,
        announce: bool,
    ) -> None:
        if subscription.state is connections.State.ATTACHING or subscription.refreshing:
            return
        connection, channel, member = subscription.connection, subscription.channel, subscription.member
        if member is None and not cached and not announce:
            connection.owner.refreshed(subscription, interface.SubscribeResult(), request)
            return
        subscription.refreshing = True
        wanted = interface.SubscribeRequest(
            channel.app,
            channel.name,
            connection.socket_id,
            durable=announce,
            member=member,
            member_limit=member_limit,
            cached=cached,
            counted=announce,
        )
        self._attempts.attach(
            connection,
            lambda: None if subscription.state is connections.State.LEFT else wanted,
            functools.partial(self._refreshed, subscription, request),
        )

    def _refreshed(
        self,
        subscription: connections.Subscription,
        request: Any,
        answer: interface.SubscribeResult | interface.Refused,
    ) -> None:
        subscription.refreshing = False
        if subscription.state is connections.State.LEFT:
            return
        owner = subscription.connection.owner
        if isinstance(answer, interface.SubscribeResult):
            owner.refreshed(subscription, answer, request)
        else:
            owner.refused(subscription, answer)

    def unsubscribe(self, connection: Connection, name: str) -> None:
        """Nothing is delivered after this returns. Idempotent."""
        subscription = connection.subscriptions.get(name)
        if subscription is not None:
            self._leave(subscription)

    def watch(self, subscription: connections.Subscription) -> None:
        """Call `Owner.event_sent` once, when the next kept event is delivered to this live subscription, unless it
        leaves before.
        """
        if subscription.state is connections.State.LIVE:
            subscription.channel.watched[subscription] = None

    def _leave(self, subscription: connections.Subscription) -> None:
        connection, channel = subscription.connection, subscription.channel
        del connection.subscriptions[channel.name]
        self._recoveries.ended(subscription)
        self._conflation.ended(subscription)
        subscription.leave()
        if self.activity.tap is not None and not connection.closing:
            self.activity.seen(activity.UNSUBSCRIBED, connection, channel=channel.name)
        if not channel.subscriber_count:
            del self._channels[channel.app, channel.name]
        self._count(channel)
        if subscription.member is not None:
            self.engine.leave(channel.app, channel.name, connection.socket_id)

    def _count(self, channel: connections.Channel) -> None:
        self.engine.set_subscribers(channel.app, channel.name, channel.subscriber_count, announce=channel.announce)

    # -- events --------------------------------------------------------------------------------------------------------

    def publish(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        """See Engine.append. The entries are delivered when they are read back."""
        self.counters["published"] += len(publications)
        return self.engine.append(publications, budget=budget)

    def publish_then(
        self,
        publications: Sequence[interface.Publication],
        then: interface.Appended,
        *,
        budget: interface.Budget | None = None,
    ) -> None:
        """`publish` for a callback: `then(receipts, error)` is called later."""
        self.counters["published"] += len(publications)
        if not self.engine.append_then(publications, then, budget=budget):
            appended = as_future(self.engine.append(publications, budget=budget))
            appended.add_done_callback(functools.partial(_call, then))

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        """Publish without waiting for the result. `failed(reason)` is called if the engine does not store it."""
        self.counters["published"] += 1
        self.engine.post(publication, failed)

    def on_control(self, command: str, handler: Control) -> None:
        """`handler(app, body)` runs in every worker for each CONTROL entry of this command.

        Events of the same read are delivered after it, joined, even if they were published before it; otherwise
        frequent commands would prevent joining. A handler that closes connections calls `flush` first.
        """
        self._controls[command] = handler

    def on_message(self, mailbox: str, receive: Message) -> None:
        """`receive(body)` runs for each MESSAGE entry of this mailbox, which this worker gets from now on."""
        self._mailboxes[mailbox] = receive
        self.engine.listen("", mailbox, True)

    def ignore(self, mailbox: str) -> None:
        """Stop the delivery of a mailbox to this worker. Idempotent."""
        if self._mailboxes.pop(mailbox, None) is not None:
            self.engine.listen("", mailbox, False)

    def on_session_taken(self, taken: SessionTaken) -> None:
        """`taken(app, holder, body)` runs when a holder on this worker loses its session, see `Engine.take_session`."""
        self._session_taken = taken

    def on_gap(self, save: Callable[[], None]) -> None:
        """`save` runs after a gap. Its writes to the engine complete before the clients are closed for a reconnect,
        because a new log lacks the state that they need then.
        """
        self._before_gap_closes.append(save)

    def flush(self) -> None:
        """Deliver the entries of the current read that were handled so far. Outside of a read this does nothing."""
        batches, self._read = self._read, {}
        self._fan_out(batches)

    def _deliver(self, entries: Sequence[interface.Entry]) -> None:
        """Deliver one read of the log. There is no await in here, so nothing is delivered after an unsubscribe or
        before a subscription is live.
        """
        if self._gaps:
            entries = [entry for entry in entries if not self._is_after_gap(entry)]
        self._read = {}
        self._read_at = time.time()
        self._newest = entries[-1] if entries else None
        self.read_lag_seconds.observe_since(list(map(_CREATED_MS, entries)), self._read_at * 1000, 1000)
        for entry in entries:
            if entry.kind in COMMANDS:
                self._obey(entry)
                continue
            if entry.kind > interface.NEWEST_KIND:
                self._log.warning("Entries of kind %d are skipped: a newer release wrote them", entry.kind)
                self.counters["entries.unknown"] += 1
                continue
            channel = self._channels.get((entry.app, entry.channel))
            if channel is not None and (channel.live or channel.live_with_offsets or channel.catching_up):
                self._read.setdefault(channel, []).append(entry)
                if entry.kind in STREAMS:
                    channel.streams.read(entry)
            elif entry.channel == interface.USERS:
                self._users.report(entry)
        self.flush()

    def _fan_out(self, batches: dict[connections.Channel, list[interface.Entry]]) -> None:
        gathered: fanout.Gathered | None = {} if len(batches) > 1 else None
        recorded: list[tuple[list[traces.Record], connections.Channel, list[Connection]]] = []
        is_due = self._newest is not None and self.recorder.is_due(self._newest)
        deliveries = size = 0
        for channel, entries in batches.items():
            receivers = len(channel.live) + len(channel.live_with_offsets)
            deliveries += receivers * len(entries)
            size += receivers * sum(map(len, map(_BODY, entries)))
            records = self.recorder.begin(channel, entries, self.by_socket, self._read_at) if is_due else None
            if channel.is_cache:
                slow = self._conflation.write(channel, entries, gathered)
            else:
                slow = fanout.write(channel, entries, self.by_socket, gathered=gathered)
            for connection in slow:
                self.disconnect_slow(connection)
            if records:
                recorded.append((records, channel, slow))
        if gathered:
            for connection, several in gathered.items():
                if not connection.closing and fanout.put(connection, writers.Batch.joined(several)):
                    for _, channel, slow in recorded:
                        if connection in channel.live or connection in channel.live_with_offsets:
                            slow.append(connection)
                    self.disconnect_slow(connection)
        for written in recorded:
            self.recorder.end(*written)
        if batches:
            created_ms = list(map(_CREATED_MS, itertools.chain.from_iterable(batches.values())))
            self.delivery_seconds.observe_since(created_ms, time.time() * 1000, 1000)
            self.counters["deliveries"] += deliveries
            self.counters["delivered_bytes"] += size

    def _obey(self, entry: interface.Entry) -> None:
        try:
            if entry.kind == MESSAGE:
                if (receive := self._mailboxes.get(entry.channel)) is not None:
                    receive(entry.body)
            elif entry.kind == SESSION_TAKEN:
                if self._session_taken is not None:
                    self._session_taken(entry.app, entry.user_id or "", entry.body)
            elif (handler := self._controls.get(entry.channel)) is not None:
                handler(entry.app, entry.body)
            else:
                self._log.warning("No handler for the command %r: written by a newer release?", entry.channel)
                self.counters["controls.unknown"] += 1
        except Exception:
            # A fault of one handler must not stop the deliveries of this read.
            self.counters["controls.failed"] += 1
            logger.exception("The command %r failed", entry.channel)

    def _on_gap(self, reason: str, partition: int | None) -> None:
        """A gap: close all connections, whose clients reconnect and recover, or get the reason why they cannot."""
        self.counters[f"gaps.{reason.partition(':')[0]}"] += 1
        for save in self._before_gap_closes:
            with self.isolated("State could not be saved before the connections are closed"):
                save()
        self._gaps.append(partition)
        self.engine.when_written(functools.partial(self._close_after_gap, partition))

    def _is_after_gap(self, entry: interface.Entry) -> bool:
        """Whether the subscribers of an entry are about to be closed, and must not get it. It would move their position
        beyond the entries that were missed, and the next recovery would begin there."""
        if entry.kind in COMMANDS or entry.channel == interface.USERS:
            return False
        return None in self._gaps or self.engine.partition(entry.app, entry.channel) in self._gaps

    def _close_after_gap(self, partition: int | None) -> None:
        if partition in self._gaps:
            self._gaps.remove(partition)
        affected = [one for one in self.by_socket.values() if partition is None or self._is_in(one, partition)]
        self._close_all(affected, close_codes.RECONNECT, "Events may have been missed; reconnect")

    def _is_in(self, connection: Connection, partition: int) -> bool:
        """Whether a connection has a channel in this partition of the log."""
        return any(self.engine.partition(connection.app, name) == partition for name in connection.subscriptions)

    @contextlib.contextmanager
    def isolated(self, message: str) -> Iterator[None]:
        """Isolate one of several callbacks: its failure is logged and counted, and the others run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self.counters["callbacks.failed"] += 1
            self._log.error(message, error=error)

    # -- statistics ----------------------------------------------------------------------------------------------------

    def count(self, name: str, n: int = 1) -> None:
        """Every drop, refusal and failure has a name and a counter."""
        self.counters[name] += n

    def statistics(self) -> dict[str, int | float]:
        """Counters since the start, by dotted name, and gauges, whose names end with `.now`."""
        return {
            **self.counters,
            "connections.now": len(self.by_socket),
            "channels.now": len(self._channels),
            "closing.now": self._closing_now,
            "recoveries.now": self._recoveries.running,
            "conflated.now": self._conflation.waiting,
            **self.read_lag_seconds.counters("read_lag_seconds"),
            **self.delivery_seconds.counters("delivery_seconds"),
            **{f"engine.{name}": value for name, value in self.engine.statistics().items()},
        }
