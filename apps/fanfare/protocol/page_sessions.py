"""The session of one page with a resume token: its pings, its record, and its token.

A page to which nothing is sent costs nothing but a refresh of its record now and then: the hub reports when a channel
moves for which all pings were sent, and until then the page is not looked at.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import connections
from fanfare.hub import hub as hubs
from fanfare.protocol import ack_tracker, recovery, server_frames, session_owners
from fanfare.runtime import close_codes
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle

# Pause between two looks at a page to which events were sent that no ping covers. The first look comes sooner, because
# the connection may be short: a page whose connections all broke before it would be sent the same events again and
# again.
LOOK_S, FIRST_LOOK_S = 1.0, 0.1
PING_AFTER_EVENTS = 100  # so many events are pinged for before the interval has passed

# In windows: for how long the record of a connected page is stored, and when it is stored again. A whole window and a
# bit is left whenever a worker is killed; pages that came together do not write together; and 10,000 idle pages write
# 35 times a second.
STORED, REFRESHED = 4, (2.0, 2.75)

# A page whose record cannot be read waits this long for its greeting, because without the record its events would be
# lost. Then it is closed with 4100 and reconnects. pusher-js shows a connection as unavailable after 10 s.
WAIT_S = 5.0
RETRY_FIRST_S, RETRY_LONGEST_S = 0.1, 1.0  # pauses between two attempts

# A page whose token was taken by a newer socket has this long to answer a ping before its socket is closed.
ANSWER_S = 5.0

# Why a page with a token is not resumed.
TOO_MANY_TOKENS = "too_many_tokens"
TOKEN_FOREIGN = "token_foreign"  # noqa: S105  (a reason: another origin or another user made the record)
ENGINE_UNAVAILABLE = "engine_unavailable"

_log = LogThrottle(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True)
class Options:
    """`window`: seconds that a page may be away. `ack_interval`: seconds between two pings while events are sent.
    `max_tokens`: in their window, in the whole deployment."""

    window: int = 120
    ack_interval: float = 5.0
    max_tokens: int = 1_000_000


class PageSession:
    """One socket of a page with a token. `tracker` is None until the record was read, and where the page is not
    resumed; `failed` says why.

    The record belongs to the origin that made it and, once the page has signed in, to its user. A socket of another
    origin gets nothing. A socket that has not signed in yet recovers from the record, but does not own the token: it
    takes it from no other socket and does not change the record.
    """

    def __init__(
        self,
        hub: hubs.Hub,
        owners: session_owners.SessionOwners,
        connection: hubs.Connection,
        token: str,
        *,
        origin: str,
        options: Options,
        keeps_history: Callable[[str], bool],
        max_channels: int = ack_tracker.MAX_CHANNELS,
    ) -> None:
        self.socket_id = connection.socket_id
        self.slot: set[session_owners.SessionOwner] | None = None
        self.tracker: ack_tracker.AckTracker | None = None
        self.failed: str | None = None
        self._hub = hub
        self._owners = owners
        self._connection = connection
        self._token = token
        self._origin = origin
        self._options = options
        self._keeps_history = keeps_history
        self._max_channels = max_channels
        self._record: bytes | None = None  # as it was read
        self._unpinged: set[str] = set()  # channels of which events may have been sent after the last ping
        # While a newer socket owns the token and this one is about to be closed: the pongs until the one that answers
        # the last ping, and what to call then.
        self._pongs_left = 0
        self._answered: Callable[[], None] | None = None
        self._began_s = self._pinged_s = self._refresh_s = float("-inf")

    # -- the beginning and the end -------------------------------------------------------------------------------------

    def begin(self, ready: Callable[[], None]) -> None:
        """Read the record, then call `ready`, with a tracker or without. If the engine stays unavailable, close."""
        self._hub.supervisor.spawn("read of a resume record", self._load(ready))

    async def _load(self, ready: Callable[[], None]) -> None:
        backoff = Backoff(RETRY_FIRST_S, RETRY_LONGEST_S)
        deadline = time.monotonic() + WAIT_S
        while not self._connection.closing:
            try:
                await self._open()
                break
            except engine_errors.EngineError as error:
                pause = backoff.failed()
                if time.monotonic() >= deadline:
                    self._refuse(error)
                    break
                await asyncio.sleep(pause)
            except Exception as error:  # noqa: BLE001  (the client waits for `ready`)
                _log.error("A resume record could not be read", error=error)
                self._fail(ENGINE_UNAVAILABLE, "resume.not_looked_up")
                break
        if self._connection.closing:
            self._give_back()
        else:
            ready()

    def _refuse(self, error: engine_errors.EngineError) -> None:
        """Close with 4100. The store has the record and the events, so the page recovers them when it reconnects."""
        _log.warning("A resume token could not be looked up or taken: %s", error)
        self._hub.count("resume.not_looked_up")
        self._connection.close(close_codes.OVER_CAPACITY, f"The connection cannot be accepted now: {error}")

    async def _open(self) -> None:
        """Raises EngineUnavailable."""
        record = await self._hub.engine.load_session(self._connection.app, self._token)
        if self._connection.closing:
            return
        if self._owners.is_shared(record):
            self._fail(ack_tracker.TOKEN_SHARED, "resume.token_shared")
            return
        if record is None and self._is_full():
            self._fail(TOO_MANY_TOKENS, "resume.too_many_tokens")
            return
        tracker = self._tracker_of(record)
        if tracker is None:
            return
        if not tracker.user_id:
            taken = await self._owners.take(self._connection.app, self._token, self)
            if taken is None:
                self.failed = ack_tracker.TOKEN_SHARED
                return
            if taken.record != record:  # the socket before has stored a newer one
                record, tracker = taken.record, self._tracker_of(taken.record)
                if tracker is None:
                    self._owners.release(self)
                    return
            tracker.lost_until = self._lost_until(taken)
        self._record, self.tracker = record, tracker
        self._hub.count("resume.opened" if record is None else "resume.resumed")
        self._began_s = time.monotonic()
        self._owners.wheel.schedule(self, FIRST_LOOK_S)

    def _lost_until(self, taken: interface.Taken) -> float:
        """Monotonic. A store that was emptied has no record of a page that was between two connections, and none of a
        new page. For one window both get `epoch_changed`."""
        if taken.lost_s is None:
            return -math.inf
        return time.monotonic() + self._options.window - taken.lost_s

    def _is_full(self) -> bool:
        """Whether the deployment has too many tokens, as the engine last measured (1 to 30 s ago)."""
        found = self._hub.engine.statistics()
        tokens = int(found.get("sessions", 0) - found.get("sessions_late", 0))
        if tokens < self._options.max_tokens:
            return False
        _log.warning(
            "A new resume token is not resumed: the deployment has %d, and %d are allowed (FANFARE_MAX_RESUME_TOKENS)",
            tokens,
            self._options.max_tokens,
            key="too_many_tokens",
        )
        return True

    def _tracker_of(self, record: bytes | None) -> ack_tracker.AckTracker | None:
        """None: the record is another origin's."""
        tracker = ack_tracker.AckTracker(self.socket_id, record, origin=self._origin, max_channels=self._max_channels)
        if tracker.origin == self._origin:
            return tracker
        self._fail(TOKEN_FOREIGN, "resume.token_foreign")
        return None

    def _give_back(self) -> None:
        """The socket was gone before its page was opened: the next one must not find a holder."""
        self._owners.wheel.cancel(self)
        if self._owners.owns(self):
            self._owners.release(self)
            self._save(self._record or b"", self._options.window, release=True)

    async def _take(self) -> None:
        """The page has signed in as the user of the record."""
        try:
            taken = await self._owners.take(self._connection.app, self._token, self)
        except engine_errors.EngineError as error:
            self._refuse(error)
            return
        except Exception:
            self._lose(ENGINE_UNAVAILABLE)
            raise  # the supervisor logs and counts it
        if self._connection.closing:
            self._give_back()
        elif taken is not None:
            if self.tracker is not None:
                self.tracker.lost_until = self._lost_until(taken)
            self.save()
        elif self.failed is None and self._answered is None:
            self._lose(ack_tracker.TOKEN_SHARED)

    def _fail(self, reason: str, counter: str) -> None:
        self._hub.count(counter)
        self.failed = reason

    def signed_in(self, user_id: str) -> None:
        """The record is this user's from now on; or it is another user's, and the page is not resumed."""
        if self.tracker is None:
            return
        if self.tracker.user_id not in ("", user_id):
            self._hub.count("resume.token_foreign")
            self._lose(TOKEN_FOREIGN)
            return
        self.tracker.user_id = user_id
        if self._owners.owns(self):
            self.save()
        else:
            self._hub.supervisor.spawn("takeover of a resume token", self._take())

    def end(self) -> None:
        """The socket is gone. The record is stored for one window."""
        self._owners.wheel.cancel(self)
        if self.tracker is not None:
            self._store(self._options.window, release=True)
            self._owners.release(self)

    # -- what the page has acknowledged --------------------------------------------------------------------------------

    def subscribed(self, subscription: connections.Subscription, result: interface.RecoveryResult | None) -> None:
        """A subscribe was answered, and what it recovers is being sent."""
        channel = subscription.channel.name
        if self.failed is not None:
            self._report(channel)
        if self.tracker is None or result is None or result.position is None or subscription.since is None:
            return
        position = interface.Position(result.position.epoch, subscription.since)
        if not self.tracker.begin(channel, position, recovery.failure(subscription.request, result)):
            self._hub.count("resume.record_full")
            _log.warning(
                "Socket %s has more channels with a history than the %d that a resume record holds",
                self.socket_id,
                self._max_channels,
                key="record_full",
            )
            return
        self._sent(channel)
        self.save()

    def recovery_failed(self, subscription: connections.Subscription, reason: str) -> None:
        """A recovery broke off: the page's position is that of the subscription."""
        position = subscription.position
        if self.tracker is not None and position is not None:
            self.tracker.begin(subscription.channel.name, position, reason)
            self._sent(subscription.channel.name)

    def left(self, channel: str) -> None:
        self._unpinged.discard(channel)
        if self.tracker is not None:
            self.tracker.left(channel)

    def ponged(self) -> None:
        if self._answered is not None:
            self._pongs_left -= 1
            if not self._pongs_left:
                self._answered()
                self._close_older()
        elif self.tracker is not None and self.tracker.ponged():
            self.save()

    def event_sent(self, subscription: connections.Subscription) -> None:
        if self._answered is None:  # the wheel has the time of the close otherwise
            self._sent(subscription.channel.name)

    def _sent(self, channel: str) -> None:
        if not self._unpinged:
            # One event reaches many pages: their pings are spread.
            self._owners.wheel.schedule(self, random.uniform(FIRST_LOOK_S, self._pause_s()))  # noqa: S311
        self._unpinged.add(channel)

    def _pause_s(self) -> float:
        return min(LOOK_S, max(FIRST_LOOK_S, time.monotonic() - self._began_s))

    def due(self) -> None:
        """Ping for what was sent since the last ping, and keep the record from expiring."""
        if self._answered is not None:
            self._close_older()
            return
        if self._connection.closing or self.tracker is None:
            return
        now = time.monotonic()
        self._ping(self.tracker, now)
        if self.tracker.expire(now) or now >= self._refresh_s:
            self.save()
        next_s = now + self._pause_s() if self._unpinged else min(self._refresh_s, self.tracker.expires)
        self._owners.wheel.schedule(self, next_s - now)

    def _ping(self, tracker: ack_tracker.AckTracker, now: float) -> None:
        subscriptions = self._connection.subscriptions
        sent: ack_tracker.Positions = {}
        events = 0
        for channel in self._unpinged:
            position = subscriptions[channel].position
            if position is not None and (unpinged := tracker.unpinged(channel, position)):
                sent[channel] = position
                events += unpinged
        if sent:
            if now - self._pinged_s < self._options.ack_interval and events < PING_AFTER_EVENTS:
                return
            self._pinged_s = now
            tracker.pinged(sent, now)
            self._connection.send(server_frames.PING)
            if self._connection.closing:
                return
        # The hub reports the next event of a channel whose subscription is live and has no pending entries; the other
        # channels are looked at again.
        for channel in list(self._unpinged):
            subscription = subscriptions[channel]
            if subscription.state is connections.State.LIVE and subscription.pending is None:
                self._unpinged.discard(channel)
                self._hub.watch(subscription)

    # -- the record and the token --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Store the record of a connected page."""
        if self.tracker is not None:
            self._refresh_s = time.monotonic() + self._options.window * random.uniform(*REFRESHED)  # noqa: S311
            self._store(STORED * self._options.window)

    def _store(self, seconds: int, *, release: bool = False) -> None:
        """A page that does not own the token keeps the record as it is, unless an owner writes it."""
        if self.tracker is not None and self._owners.owns(self):
            self._save(self.tracker.record(), seconds, release=release)
        elif self._record is not None:
            self._save(self._record, seconds, release=True)

    def _save(self, record: bytes, seconds: int, *, release: bool) -> None:
        self._hub.engine.save_session(
            self._connection.app, self._token, record, seconds, holder=self.socket_id, release=release
        )

    def evict(self, answered: Callable[[], None]) -> None:
        """A newer socket owns the token, and with it the record."""
        if self.tracker is None:  # it was not greeted yet
            self._close_older()
            return
        self._pongs_left = self.tracker.unanswered + 1
        self._answered = answered
        self.tracker = None
        self._connection.send(server_frames.PING)
        self._owners.wheel.schedule(self, ANSWER_S)

    def _close_older(self) -> None:
        self._connection.close(close_codes.RECONNECT, "Another connection of this page took over")

    def lose_token(self) -> None:
        self._lose(ack_tracker.TOKEN_SHARED)

    def _lose(self, reason: str) -> None:
        self._owners.release(self)
        self.tracker = None
        self.failed = reason
        for channel, subscription in list(self._connection.subscriptions.items()):
            if subscription.state is not connections.State.ATTACHING:  # the others get it with their answer
                self._report(channel)

    def _report(self, channel: str) -> None:
        """A page that expects to be resumed learns that it is not, on each channel that keeps a history."""
        if self.failed is not None and self._keeps_history(channel):
            self._connection.send(recovery.resume_failed(channel, self.failed))
