"""The shell around `resumption`: pings, records and the token of one connected page.

A page to which nothing is sent costs nothing but its record's refreshment: the hub says when a channel moves of which
all was asked about, and until then nobody looks at the page.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.protocol import ack_tracker, recovery, server_frames, session_owners

logger = logging.getLogger(__name__)

# How often a page is looked at while something was sent to it that was not asked about. A new connection is looked at
# sooner, for it may not live for long: where each one broke before the first look, a page would be sent the same events
# again and again.
LOOK_S, FIRST_LOOK_S = 1.0, 0.1
PING_AFTER_EVENTS = 100  # so many events are asked about before their time

# In windows. The record of a page that is here is kept for so long, and written anew after a time between these: so a
# whole window and a bit is left of it whenever a worker dies, pages that came together do not write together, and
# 10,000 idle ones write 35 times a second.
KEPT, REFRESHED = 4, (2.0, 2.75)
RECONNECT = 4200

SHARED = "token_shared"  # several pages came with this token, so none of them is resumed


@dataclass(frozen=True, slots=True)
class Options:
    """`window`: how many seconds a page may be away. `ack_interval`: seconds between two questions what it has seen."""

    window: int = 120
    ack_interval: float = 5.0


class PageSession:
    """One page's socket that has a token. `resumption` is None until the token was looked up, and once that `failed`
    or the token turned out to be shared."""

    def __init__(
        self,
        hub: hubs.Hub,
        tokens: session_owners.SessionOwners,
        connection: hubs.Connection,
        token: str,
        *,
        options: Options,
        keeps_history: Callable[[str], bool],
    ) -> None:
        self._keeps_history = keeps_history
        self.socket_id = connection.socket_id
        self.resumption: ack_tracker.AckTracker | None = None
        self.failed: str | None = None  # why the page is not resumed
        self._hub = hub
        self._tokens = tokens
        self._connection = connection
        self._token = token
        self._options = options
        self._loading: asyncio.Task[None] | None = None
        self._unasked: set[str] = set()  # channels of which something was sent that no ping asks about, it may be
        self._began_s = self._asked_s = self._refresh_s = float("-inf")
        self.slot: set[session_owners.Holder] | None = None

    def begin(self, ready: Callable[[], None]) -> None:
        """Find out where the page stands, then call `ready`: with a token or, where that cannot be, without."""
        self._loading = asyncio.get_running_loop().create_task(self._load(ready))

    async def _load(self, ready: Callable[[], None]) -> None:
        app = self._connection.app
        try:
            record = await self._hub.engine.load_session(app, self._token)
        except engine_errors.EngineError as error:
            logger.warning("A resume token could not be looked up: %s", error)
            self._hub.count("resume.not_looked_up")
            self.failed = "engine_unavailable"
        else:
            if self._connection.closing:
                return
            if not self._tokens.take(app, self._token, self):
                self.failed = SHARED
            else:
                self.resumption = ack_tracker.AckTracker(self._token, self.socket_id, record)
                self._hub.count("resume.opened" if record is None else "resume.resumed")
                self._began_s = time.monotonic()
                self._tokens.wheel.schedule(self, FIRST_LOOK_S)
        if not self._connection.closing:
            ready()

    def end(self) -> None:
        """The socket is gone; what is known of the page stays for its window."""
        if self._loading is not None:
            self._loading.cancel()
        self._tokens.wheel.cancel(self)
        if self.resumption is not None:
            self._save(self._options.window)
            self._tokens.release(self._connection.app, self._token, self)

    # -- what the page has seen ----------------------------------------------------------------------------------------

    def answered(
        self, channel: str, replayed: interface.RecoveryResult | None, after: interface.Position | None
    ) -> None:
        """A subscribe was answered; `after` is where its replay began, if one did."""
        if self.resumption is None or replayed is None or replayed.position is None:
            return
        first = replayed.entries[0].offset if replayed.entries else None
        if replayed.reason is None and (after is not None or first is not None):
            begin = after or interface.Position(replayed.position.epoch, (first or 1) - 1)
            self.resumption.replaying(channel, begin)
        else:
            self.resumption.subscribed(channel, replayed.position)
        self._moved(channel)
        self.keep()

    def lost(self, channel: str) -> None:
        """Its replay could not be finished: it begins anew where it stands."""
        position = self._hub.position(self._connection, channel)
        if self.resumption is not None and position is not None:
            self.resumption.subscribed(channel, position)

    def left(self, channel: str) -> None:
        self._unasked.discard(channel)
        if self.resumption is not None:
            self.resumption.left(channel)

    def ponged(self) -> None:
        if self.resumption is not None and self.resumption.ponged():
            self.keep()

    def _moved(self, channel: str) -> None:
        """Something of this channel is being sent."""
        if not self._unasked:
            # What moves one page moves many: they are not all asked in the same instant.
            self._tokens.wheel.schedule(self, random.uniform(FIRST_LOOK_S, self._pause()))  # noqa: S311
        self._unasked.add(channel)

    def _pause(self) -> float:
        """Until the next look at a page to which something was sent."""
        return min(LOOK_S, max(FIRST_LOOK_S, time.monotonic() - self._began_s))

    def look(self) -> None:
        """Ask what the page has seen, if there is something new to ask about; keep its record from expiring."""
        if self._connection.closing or self.resumption is None:
            return
        now = time.monotonic()
        self._ask(self.resumption, now)
        if self.resumption.expire(now) or now >= self._refresh_s:
            self.keep()
        next_s = now + self._pause() if self._unasked else min(self._refresh_s, self.resumption.expires)
        self._tokens.wheel.schedule(self, next_s - now)

    def _ask(self, progress: ack_tracker.AckTracker, now: float) -> None:
        sent: ack_tracker.Positions = {}
        events = 0
        for channel in self._unasked:
            position = self._hub.position(self._connection, channel)
            if position is not None and (unasked := progress.unasked(channel, position)):
                sent[channel] = position
                events += unasked
        if sent:
            if now - self._asked_s < self._options.ack_interval and events < PING_AFTER_EVENTS:
                return
            self._asked_s = now
            progress.pinged(sent, now)
            self._connection.send(server_frames.PING)
        # All was asked about. The hub tells what comes next of a channel that is live, and not how a replay gets on.
        settled = {channel for channel in self._unasked if self._hub.is_subscribed(self._connection, channel)}
        self._unasked -= settled
        for channel in settled:
            self._hub.when_moved(self._connection, channel, self._moved)

    def keep(self) -> None:
        """Keep the record while the page is here."""
        if self.resumption is not None:
            self._refresh_s = time.monotonic() + self._options.window * random.uniform(*REFRESHED)  # noqa: S311
            self._save(KEPT * self._options.window)

    def _save(self, seconds: int) -> None:
        if self.resumption is not None:
            self._hub.engine.save_session(self._connection.app, self._token, self.resumption.record(), seconds)

    # -- the token -----------------------------------------------------------------------------------------------------

    def evict(self) -> None:
        """A newer socket has the token."""
        self._save(self._options.window)
        self.resumption = None
        self._connection.close(RECONNECT, "Another connection of this page took over")

    def forget_token(self) -> None:
        self.resumption = None
        self.failed = SHARED
        for channel in list(self._connection.subscriptions):
            if self._hub.is_subscribed(self._connection, channel):  # the others are told with their answer
                self.tell(channel)

    def tell(self, channel: str) -> None:
        """Whether the page, which thinks that it is resumed on a channel that keeps a history, is not."""
        if self.failed is not None and self._keeps_history(channel):
            self._connection.send(recovery.resume_failed(channel, self.failed))
