"""How a worker reads the log back: on its event loop, in one synchronous step per read.

A read of what is new takes some 20 µs and never waits for a writer (WAL), so it is done where the deliveries are made:
there is no second thread to hand rows over, and nothing can come between a read and what follows from it. An attachment
is settled in the read transaction that found nothing newer, so its snapshot stands exactly where the tail stands.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import sqlite3
import time
from collections.abc import Callable

from fanfare.engine import interface
from fanfare.engine.local import heard, place, presence, replay, schema

logger = logging.getLogger(__name__)

# One step of the loop delivers at most this: between two steps the sockets are flushed and other work gets its turn.
# The byte bound keeps a burst of large events from filling the buffers (1 MiB by default) of readers that are not slow
# at all.
STEP_ENTRIES = 512
STEP_BYTES = 256 * 1024

_AFTER = 'SELECT id, kind, app, channel, "offset", user_id, exclude, body FROM log WHERE id > ? ORDER BY id LIMIT ?'

# What a worker acts on if nobody wants to see the rest: one step looks at no more than `SCAN_ENTRIES` for it, 1 ms.
SCAN_ENTRIES = 8_192
_HEARD_AFTER = (
    f'SELECT id, kind, app, channel, "offset", user_id, exclude, body FROM log WHERE id > ? AND id <= ? '  # noqa: S608
    f"AND (kind = {interface.Kind.CONTROL.value} OR channel = '{interface.USERS}' OR channel = ? OR {heard.IS_HEARD}) "
    "ORDER BY id LIMIT ?"
)

_STATE = f"SELECT {schema.TOP}, trimmed_to FROM state"  # noqa: S608

_ROW_BYTES = 64  # what an entry weighs beside its body


class Tail:
    """This worker's position in the log, and what waits for it."""

    def __init__(
        self,
        where: place.Place,
        loop: asyncio.AbstractEventLoop,
        deliver: interface.Deliver,
        lost: Callable[[str], None],
        damaged: Callable[[], None],
    ) -> None:
        self.where = where
        self.mailbox = ""  # of this worker
        self.position = 0  # the id of the newest entry that was delivered
        self.top = 0  # the newest id in the log, as last seen
        self.reads = 0
        self.delivered = 0
        self.replays = replay.Replays()
        self.heard = heard.Heard()
        self._skipping = False  # entries that nobody here hears
        self._loop = loop
        self._deliver = deliver
        self._lost = lost
        self._damaged = damaged
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._backlog: collections.deque[interface.Entry] = collections.deque()
        self._read_to = 0  # where the tail stands once the backlog is delivered
        self._waiting: list[presence.Attach] = []
        self._scheduled = False
        self._stepping = False
        self._asked = False  # to look at the log, since it was last read
        self._grown: asyncio.Future[None] | None = None

    def follow(self, position: int) -> None:
        """(Re)open the log and go on after `position`. What waits goes on waiting. Raises sqlite3.Error."""
        self.close()
        self._connection = schema.connect(self.where)
        self.heard.open(self._connection)
        self._identity = self.where.identity()
        self.position = self.top = position
        self.advance()

    @property
    def following(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._backlog.clear()

    def give_up(self) -> list[presence.Attach]:
        """The attachments that wait, which nobody will settle now."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def workers(self) -> list[str]:
        """The ids of all workers, as the log has them. Raises sqlite3.Error."""
        if self._connection is None:
            return []
        return [worker for (worker,) in self._connection.execute("SELECT id FROM workers").fetchall()]

    def skip_unheard(self, skip: bool) -> None:
        """See Engine.skip_unheard."""
        if self._skipping and not skip:
            self._backlog.clear()  # it lacks entries, which are wanted now: all is read again
        self._skipping = skip

    def grown(self) -> asyncio.Future[None]:
        """Done when a read after this call finds that the log has newer entries."""
        if self._grown is None or self._grown.done():
            self._grown = self._loop.create_future()
        return self._grown

    def settle(self, attachment: presence.Attach) -> None:
        """Call its `ready` as soon as the tail has reached the end of the log (the caller advances)."""
        self._waiting.append(attachment)

    def advance(self) -> None:
        """Read what is new, deliver it, settle what waits. Tells `lost` when entries may have been missed."""
        self._asked = True
        if self._stepping or self._connection is None:
            return
        self._stepping = True
        try:
            reason = self._step(self._connection)
        finally:
            self._stepping = False
        if reason is not None:
            self._lost(reason)
        elif (self._backlog or self.position < self.top or self._asked) and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._scheduled = False
        self.advance()

    def _step(self, connection: sqlite3.Connection) -> str | None:
        if self._backlog:
            self._hand_over()
            return None
        if self.where.identity() != self._identity:
            return "log_replaced"
        settled: list[tuple[presence.Attach, interface.SubscribeResult]] = []
        try:
            self.heard.update(connection)
            connection.execute("BEGIN")
            try:
                self.reads += 1
                self._asked = False
                top = self.top
                [(self.top, trimmed_to)] = connection.execute(_STATE).fetchall()
                if self.top != top and self._grown is not None and not self._grown.done():
                    self._grown.set_result(None)
                if trimmed_to > self.position:
                    return "trimmed"
                if self.top < self.position:  # an older copy was put in its place
                    return "log_replaced"
                self._read(connection)
                weight = sum([len(entry.body) + _ROW_BYTES for entry in self._backlog])
                if weight <= STEP_BYTES and self._read_to >= self.top and self._waiting:
                    waiting, self._waiting = self._waiting, []
                    now_s = int(time.time())
                    settled = [(one, self._snapshot(connection, one.wanted, now_s)) for one in waiting]
            finally:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            logger.error("The log cannot be read: %s", error)  # noqa: TRY400 - where in here says nothing
            if schema.is_damage(error):
                self._damaged()
            return f"log_unreadable: {error}"
        if self._backlog:
            self._hand_over()
        else:
            self.position = self._read_to
        for attachment, attached in settled:
            self._answer(attachment, attached)
        return None

    def _read(self, connection: sqlite3.Connection) -> None:
        """The next entries into the backlog, which is empty."""
        self._read_to = self.top
        if self.top <= self.position:
            return
        if self._skipping:
            self._read_to = min(self.top, self.position + SCAN_ENTRIES)
            rows = connection.execute(
                _HEARD_AFTER, (self.position, self._read_to, self.mailbox, STEP_ENTRIES)
            ).fetchall()
        else:
            rows = connection.execute(_AFTER, (self.position, STEP_ENTRIES)).fetchall()
        self._backlog.extend(map(interface.Entry._make, rows))
        if len(rows) == STEP_ENTRIES:
            self._read_to = self._backlog[-1].id

    def _answer(self, attachment: presence.Attach, attached: interface.SubscribeResult) -> None:
        try:
            attachment.ready(attached)
        except Exception:
            # A mistake that concerns one client must not leave those behind it without an answer.
            logger.exception("An attachment to %s could not be answered", attachment.wanted.channel)

    def _snapshot(
        self, connection: sqlite3.Connection, wanted: interface.SubscribeRequest, now_s: int
    ) -> interface.SubscribeResult:
        """What is asked for, inside a read transaction."""
        where = (wanted.app, wanted.channel)
        cached = subscribers = None
        if wanted.cached:
            cached = connection.execute(
                "SELECT body FROM cache WHERE app = ? AND channel = ? AND expires_s > ?", (*where, now_s)
            ).fetchone()
        if wanted.counted:
            subscribers = connection.execute(
                "SELECT COALESCE(SUM(subscribers), 0) FROM counts WHERE app = ? AND channel = ?", where
            ).fetchone()
        online: list[str] = []
        if wanted.watch:
            marks = ", ".join("?" * len(wanted.watch))
            query = f"SELECT DISTINCT user_id FROM members WHERE app = ? AND channel = ? AND user_id IN ({marks})"  # noqa: S608
            online = [user_id for (user_id,) in connection.execute(query, (wanted.app, interface.USERS, *wanted.watch))]
        history = wanted.history
        return interface.SubscribeResult(
            members=tuple(members(connection, *where)) if wanted.member and wanted.channel != interface.USERS else (),
            cached=cached[0] if cached else None,
            subscribers=subscribers[0] if subscribers else 0,
            online=tuple(online),
            replayed=None if history is None else self.replays.answer(connection, wanted, history),
        )

    def _hand_over(self) -> None:
        """Deliver one step's worth of the backlog."""
        step: list[interface.Entry] = []
        weight = 0
        while self._backlog and (not step or weight < STEP_BYTES):
            entry = self._backlog.popleft()
            weight += len(entry.body) + _ROW_BYTES
            step.append(entry)
        self.position = step[-1].id if self._backlog else self._read_to
        self.delivered += len(step)
        self._deliver(step)


def entries(connection: sqlite3.Connection, after: int, limit: int) -> list[interface.Entry]:
    return [interface.Entry._make(row) for row in connection.execute(_AFTER, (after, limit)).fetchall()]


def members(connection: sqlite3.Connection, app: str, channel: str) -> list[interface.Member]:
    """Distinct users in the order in which they came, each with the info of its newest connection."""
    rows = connection.execute(
        "SELECT user_id, info FROM members WHERE app = ? AND channel = ? ORDER BY seq", (app, channel)
    ).fetchall()
    return [interface.Member(user_id, info) for user_id, info in dict(rows).items()]
