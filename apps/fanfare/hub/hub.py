"""The heart of a worker: who is connected, who is on which channel, and what becomes of each entry of the log."""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from fanfare.engine import interface
from fanfare.hub import conflation, connections, fanout, recovery, user_directory, writers

logger = logging.getLogger(__name__)

Connection = connections.Connection

TIMER_S = 1.0  # how often the hub looks for connections that are closing
SWEEP_TURNS = 5  # every so many turns it looks at all of them: 10,000 in about 2 ms

# After its close frame a client has this long to answer before its transport is dropped; uvicorn waits as long.
CLOSE_S = 10.0
# Who was too slow for its events is too slow for the close as well.
EVICT_S = 1.0

# The client comes back at once (pusher-js: 0 ms), or after a pause (1 s): protocol 7, close codes 4200-4299 and
# 4100-4199.
RECONNECT = 4200
OVER_CAPACITY = 4100

CONTROL = interface.Kind.CONTROL.value

Control = Callable[[str, bytes], None]


class Observer(Protocol):
    """Sees every entry that this worker's tail reads. Called on the hub's loop; it must be quick and never raise."""

    def delivered(self, entries: Sequence[interface.Entry], /) -> None:
        """The entries of one read, at least one, after they were delivered."""

    def gap_detected(self) -> None:
        """Entries may have been missed; the next ones are from the present."""


class Hub:
    """One per worker. All methods are called on its loop.

    `max_buffer_bytes` is told to whoever makes writers: no more than this is buffered for one client.
    """

    def __init__(self, engine: interface.Engine, *, max_buffer_bytes: int = 1024 * 1024) -> None:
        self.engine = engine
        self.max_buffer_bytes = max_buffer_bytes
        self.counters: collections.Counter[str] = collections.Counter()
        self.by_socket: dict[str, Connection] = {}  # every connection, by its socket id
        self._applications: dict[str, dict[Connection, None]] = {}
        self._channels: dict[tuple[str, str], connections.Channel] = {}
        self._users = user_directory.Directory()
        self._replays = recovery.Replays(self)
        self._conflation = conflation.Conflation(self)
        self._closing: dict[Connection, float] = {}  # when to drop the transport, in the loop's time
        self._controls: dict[str, Control] = {}
        self._read: dict[connections.Channel, list[interface.Entry]] = {}  # what is to be delivered of this read
        self._observer: Observer | None = None
        self._keepers: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._turns = 0

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises what Engine.open raises."""
        self.engine.skip_unheard(self._observer is None)
        await self.engine.open(self._deliver, self._on_gap)
        self._timer = asyncio.get_running_loop().call_later(TIMER_S, self._turn)

    async def stop(self) -> None:
        """Say goodbye to whoever is left, then leave the engine."""
        for connection in list(self.by_socket.values()):
            connection.close(RECONNECT, "The server is restarting")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._replays.stop()
        self._conflation.stop()
        await self.engine.close()

    # -- connections ---------------------------------------------------------------------------------------------------

    def connect(self, connection: Connection) -> None:
        connection.hub = self
        self.by_socket[connection.socket_id] = connection
        mine = self._applications.setdefault(connection.app, {})
        mine[connection] = None
        self.counters["connections"] += 1
        self.engine.set_subscribers(connection.app, interface.CONNECTIONS, len(mine))

    def admit(self, connection: Connection, limit: int, ready: interface.Ready) -> None:
        """Ask whether `connection`, which is connected, fits under its application's limit in the whole deployment.

        `ready` is not called for a connection that went away meanwhile.
        """

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if not connection.closing:
                ready(answer)

        self.engine.admit(connection.app, limit, answered)

    def disconnect(self, connection: Connection) -> None:
        """The client is going, or the server below says so; the timer sees to it that the transport goes too.
        Idempotent."""
        connection.closing = True
        self.forget(connection)
        if connection.writer.is_gone():
            self._closing.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """Take a closing connection out of every channel and of presence, now; its transport gets `CLOSE_S` to end.
        Idempotent."""
        if self.by_socket.get(connection.socket_id) is not connection:
            return
        del self.by_socket[connection.socket_id]
        self._closing.setdefault(connection, asyncio.get_running_loop().time() + CLOSE_S)
        mine = self._applications[connection.app]
        del mine[connection]
        if not mine:
            del self._applications[connection.app]
        for name in list(connection.subscriptions):
            self.unsubscribe(connection, name)
        if self._users.remove(connection):
            self.engine.leave(connection.app, interface.USERS, connection.socket_id)
        self.engine.set_subscribers(connection.app, interface.CONNECTIONS, len(mine))

    def evict(self, connection: Connection) -> None:
        """It does not read what it is sent: let it go before it costs the others memory. A resume brings it back
        whole."""
        if connection.closing:
            return
        self.counters["evicted.slow"] += 1
        logger.info("Socket %s is too slow: %d bytes wait for it", connection.socket_id, connection.writer.buffered())
        self._closing[connection] = asyncio.get_running_loop().time() + EVICT_S
        connection.close(OVER_CAPACITY, "The connection reads too slowly")

    def connections_of(self, app: str) -> list[Connection]:
        return list(self._applications.get(app, ()))

    def close_application(self, app: str, code: int, message: str) -> None:
        """Close every connection of an application that was disabled (4003) or deleted (4001)."""
        for connection in self.connections_of(app):
            self.counters[f"closed.{code}"] += 1
            connection.close(code, message)

    # -- users ---------------------------------------------------------------------------------------------------------

    def sign_in(
        self, connection: Connection, user_id: str, ready: interface.Ready, *, watchlist: Sequence[str] = ()
    ) -> None:
        """Make a connection a user's. `ready` is told which users of the watchlist are online; changes follow it.

        Not for a connection that is signed in already. `ready` is not called for one that went away meanwhile.
        """
        if connection.closing:
            return
        member = interface.Member(user_id, "null")

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if connection.closing:
                self.engine.leave(connection.app, interface.USERS, connection.socket_id)
                return
            if isinstance(answer, interface.SubscribeResult):
                self._users.add(connection, user_id, watchlist)
            else:  # it may have been written before the engine lost its place
                self.engine.leave(connection.app, interface.USERS, connection.socket_id)
            ready(answer)

        self.engine.attach(
            interface.SubscribeRequest(
                connection.app,
                interface.USERS,
                connection.socket_id,
                member=member,
                watch=tuple(watchlist),
            ),
            answered,
        )

    def connections_of_user(self, app: str, user_id: str) -> list[Connection]:
        """Those of this worker."""
        return self._users.connections_of(app, user_id)

    # -- channels ------------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        connection: Connection,
        name: str,
        ready: interface.Ready,
        *,
        member: interface.Member | None = None,
        member_limit: int | None = None,
        cached: bool = False,
        announce: bool = False,
        past: connections.Past | None = None,
    ) -> None:
        """Put a connection on a channel. `ready` writes the answer; what it writes comes before every event that
        follows.

        `ready` is called once, maybe before this returns, and not at all if the connection left the channel or went
        away meanwhile. A connection that is on the channel already gets a fresh answer and nothing else changes.
        `cached`: the answer holds the cached event. `announce`: it holds the number of subscribers, whose changes
        follow. `past`: what was published before is delivered after `ready`, which is told what became of it. Raises
        nothing.
        """
        if connection.closing:
            return
        subscription = connection.subscriptions.get(name)
        if subscription is None:
            channel = self._channels.get((connection.app, name))
            if channel is None:
                channel = self._channels[connection.app, name] = connections.Channel(connection.app, name)
            subscription = connection.subscriptions[name] = connections.Subscription(channel, member, past)
            channel.announce, channel.is_state = announce, cached
            channel.pending += 1
            self._count(channel)
        joined = subscription

        def attached(answer: interface.SubscribeResult | interface.Refused) -> None:
            if connection.subscriptions.get(name) is not joined:
                return
            if isinstance(answer, interface.SubscribeResult):
                self._replays.begin(connection, joined, answer, ready)
                return
            if not joined.live:
                self._drop(connection, name)
                if joined.member is not None:  # it may have been written before the engine lost its place
                    self.engine.leave(connection.app, name, connection.socket_id)
            ready(answer)

        # Only the first subscriber of a channel here waits for the disk: the others change a number that is written
        # soon. Those who are told the number wait until it has theirs in it.
        durable = announce or joined.channel.count == joined.channel.pending
        history = past.history if past is not None and not joined.live else None
        if joined.member is None and not durable and not cached and history is None:
            attached(interface.SubscribeResult())
            return
        self.engine.attach(
            interface.SubscribeRequest(
                connection.app,
                name,
                connection.socket_id,
                durable=durable,
                member=member if joined.member is not None else None,
                member_limit=member_limit,
                cached=cached,
                counted=announce,
                history=history,
            ),
            attached,
        )

    def unsubscribe(self, connection: Connection, name: str) -> None:
        """Nothing is delivered after this returns. Idempotent."""
        subscription = connection.subscriptions.get(name)
        if subscription is not None:
            self._drop(connection, name)
            if subscription.member is not None:
                self.engine.leave(connection.app, name, connection.socket_id)

    def is_subscribed(self, connection: Connection, name: str) -> bool:
        subscription = connection.subscriptions.get(name)
        return subscription is not None and subscription.live

    def position(self, connection: Connection, name: str) -> interface.Position | None:
        """How far this connection has been sent a kept channel that it is on. None where nobody here asked for the
        channel's past."""
        subscription = connection.subscriptions.get(name)
        if subscription is None or not subscription.channel.epoch:
            return None
        channel = subscription.channel
        return interface.Position(channel.epoch, channel.offset if subscription.live else subscription.caught_up_to)

    def when_moved(self, connection: Connection, name: str, moved: connections.Moved) -> None:
        """Call `moved(name)` once, when the next kept event of a channel is delivered that this connection is live on.
        Not if the connection leaves the channel before."""
        if self.is_subscribed(connection, name):
            connection.subscriptions[name].channel.watchers[connection] = moved

    def go_live(self, connection: Connection, subscription: connections.Subscription) -> None:
        """From now on the connection gets what comes to the channel."""
        if not subscription.live:
            subscription.live = True
            channel = subscription.channel
            channel.pending -= 1
            (channel.positioned if connection.positions else channel.connections)[connection] = None

    def _drop(self, connection: Connection, name: str) -> None:
        subscription = connection.subscriptions.pop(name)
        channel = subscription.channel
        if subscription.live:
            del (channel.positioned if connection.positions else channel.connections)[connection]
        else:
            channel.catching_up.pop(connection, None)
            channel.pending -= 1
        channel.watchers.pop(connection, None)
        if not channel.count:
            del self._channels[channel.app, channel.name]
        self._count(channel)

    def _count(self, channel: connections.Channel) -> None:
        self.engine.set_subscribers(channel.app, channel.name, channel.count, announce=channel.announce)

    # -- events --------------------------------------------------------------------------------------------------------

    def publish(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        """See Engine.append. The deliveries come when the entries are read back."""
        self.counters["published"] += len(publications)
        return self.engine.append(publications, budget=budget)

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        """Publish what nobody waits for. `failed(why)` is called if the engine does not take it."""
        self.counters["published"] += 1
        self.engine.post(publication, failed)

    def on_control(self, command: str, handler: Control) -> None:
        """`handler(app, body)` runs in every worker for each CONTROL entry of this command.

        The events of the same read come after it, joined, even those that were published before: else a storm of
        clients, each with its command, would have every event written alone. A handler that ends connections calls
        `flush` first.
        """
        self._controls[command] = handler

    def on_gap(self, keep: Callable[[], None]) -> None:
        """`keep` runs when entries may have been missed. What it has the engine write is written before the clients are
        told to come back: the log may be another one, which lacks what is needed then.
        """
        self._keepers.append(keep)

    def flush(self) -> None:
        """Deliver now what this read of the log has brought so far. Nothing where none is under way."""
        batches, self._read = self._read, {}
        self._fan_out(batches)

    def observe(self, observer: Observer | None) -> None:
        """Show every entry to `observer`, and to nobody else; None ends it."""
        self._observer = observer
        self.engine.skip_unheard(observer is None)

    def _deliver(self, entries: Sequence[interface.Entry]) -> None:
        """One read of the log. No await in here: nothing is delivered after an unsubscribe or before a subscription
        went live."""
        self._read = {}
        for entry in entries:
            if entry.kind == CONTROL:
                self._obey(entry)
                continue
            channel = self._channels.get((entry.app, entry.channel))
            if channel is not None and channel.is_heard:
                self._read.setdefault(channel, []).append(entry)
            elif entry.channel == interface.USERS:
                self._users.tell(entry)
        self.flush()
        if self._observer is not None and entries:
            self._observer.delivered(entries)

    def _fan_out(self, batches: dict[connections.Channel, list[interface.Entry]]) -> None:
        gathered: fanout.Gathered | None = {} if len(batches) > 1 else None
        for channel, entries in batches.items():
            self.counters["deliveries"] += channel.audience * len(entries)
            if channel.is_state:
                slow = self._conflation.write(channel, entries, gathered)
            else:
                slow = fanout.write(channel, entries, self.by_socket, gathered=gathered)
            for connection in slow:
                self.evict(connection)
        if gathered:
            for connection, several in gathered.items():
                if not connection.closing and connection.writer.write(writers.Batch.joined(several)):
                    self.evict(connection)

    def _obey(self, entry: interface.Entry) -> None:
        handler = self._controls.get(entry.channel)
        if handler is None:
            logger.warning("No handler for the command %r: written by a newer release?", entry.channel)
            self.counters["controls.unknown"] += 1
            return
        try:
            handler(entry.app, entry.body)
        except Exception:
            # A handler's mistake must not take the deliveries of this read with it.
            self.counters["controls.failed"] += 1
            logger.exception("The command %r failed", entry.channel)

    def _on_gap(self, reason: str, _partition: int | None) -> None:
        """Events may have been missed: nobody may go on as if nothing had happened."""
        self.counters[f"gaps.{reason.partition(':')[0]}"] += 1
        if self._observer is not None:
            self._observer.gap_detected()
        for keep in self._keepers:
            keep()
        self.engine.when_written(self._send_away)

    def _send_away(self) -> None:
        for connection in list(self.by_socket.values()):
            connection.close(RECONNECT, "Events may have been missed; reconnect")

    # -- statistics and the timer --------------------------------------------------------------------------------------

    def count(self, name: str, n: int = 1) -> None:
        """Every drop, refusal and failure has a name and a counter."""
        self.counters[name] += n

    def statistics(self) -> dict[str, int | float]:
        """Counters since the start, by dotted name, and what is there now."""
        return {
            **self.counters,
            "connections.now": len(self.by_socket),
            "channels.now": len(self._channels),
            "closing.now": len(self._closing),
            "replays.now": self._replays.waiting,
            "conflated.now": self._conflation.waiting,
            **{f"engine.{name}": value for name, value in self.engine.statistics().items()},
        }

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TIMER_S, self._turn)
        self._turns += 1
        if self._turns % SWEEP_TURNS == 0:
            # A server below that gave up on a client (a ping without an answer) tells nobody while its buffer is not
            # empty.
            for connection in [one for one in self.by_socket.values() if one.writer.is_closing()]:
                self.counters["closed.by_server"] += 1
                connection.closing = True
                self._closing[connection] = loop.time() + EVICT_S
                self.forget(connection)
        now = loop.time()
        for connection, due in list(self._closing.items()):
            gone = connection.writer.is_gone()
            if gone or due <= now:
                del self._closing[connection]
                if not gone:
                    connection.writer.abort()
