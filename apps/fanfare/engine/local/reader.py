"""How a worker reads the log: on its event loop, in one synchronous step per read.

A read of what is new takes some 20 µs and never waits for a writer (WAL), so it is done where the deliveries are made:
there is no second thread to hand rows over, and nothing can come between a read and what follows from it. A
subscription is answered in the read transaction that found nothing newer, so its snapshot stands exactly where the
reader stands.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from fanfare.engine import interface, moves
from fanfare.engine.local import presence, schema, streams, transactions
from fanfare.engine.local.paths import LogPaths
from fanfare.engine.local.presence import Subscribe
from fanfare.engine.local.recovery import RecoveryReader
from fanfare.runtime import text

logger = logging.getLogger(__name__)

# One step of the loop delivers at most this: between two steps the sockets are flushed and other work gets its turn.
# The byte bound keeps a burst of large events from filling the buffers (1 MiB by default) of readers that are not slow.
STEP_ENTRIES = 512
STEP_BYTES = 256 * 1024
ENTRY_BYTES = 64  # what an entry weighs beside its body

SCAN_ENTRIES = 8_192  # which one step looks at for those that are delivered: 1 ms

CONTROL = interface.Kind.CONTROL.value
MESSAGE = interface.Kind.MESSAGE.value

_LOCAL_AFTER = (
    f"SELECT {schema.ENTRY} FROM log WHERE id > ? AND id <= ? "  # noqa: S608
    f"AND (kind = {interface.Kind.CONTROL.value} OR channel = '{interface.USERS}' OR channel = ? OR "
    "EXISTS (SELECT 1 FROM temp.local_subscriptions here WHERE here.app = log.app AND here.channel = log.channel)) "
    "ORDER BY id LIMIT ?"
)
_STATE = f"SELECT {schema.TOP}, trimmed_to FROM state"  # noqa: S608

_LOCAL_SUBSCRIPTIONS = """
CREATE TEMP TABLE local_subscriptions (
    app TEXT NOT NULL,
    channel TEXT NOT NULL,
    PRIMARY KEY (app, channel)
) WITHOUT ROWID
"""


class LocalSubscriptions:
    """The channels with a subscriber or listener on this worker, in a table that SQLite joins while it reads the log.

    Every worker reads every entry, and has no subscriber for most of them. A row that becomes Python objects costs
    0.7 µs and releases the interpreter's lock, which a publishing thread then takes; one that SQLite steps over costs
    0.15 µs and does not. A change is in force for every read that begins after it.
    """

    def __init__(self) -> None:
        self._subscribed: set[tuple[str, str]] = set()
        self._listening: set[tuple[str, str]] = set()
        self.here: set[tuple[str, str]] = set()  # in either of them; read only
        self._changed: set[tuple[str, str]] = set()  # since `update`

    def subscribe(self, app: str, channel: str, on: bool) -> None:
        self._set(self._subscribed, (app, channel), on)

    def listen(self, app: str, channel: str, on: bool) -> None:
        self._set(self._listening, (app, channel), on)

    def _set(self, channels: set[tuple[str, str]], key: tuple[str, str], on: bool) -> None:
        if on is not (key in channels):
            (channels.add if on else channels.discard)(key)
            is_any = on or key in self._subscribed or key in self._listening
            (self.here.add if is_any else self.here.discard)(key)
            self._changed.add(key)

    def open(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.Error, as `update` does."""
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute(_LOCAL_SUBSCRIPTIONS)
        self._changed = set(self.here)
        self.update(connection)

    def update(self, connection: sqlite3.Connection) -> None:
        if not self._changed:
            return
        came = self._changed & self.here
        connection.executemany("INSERT OR IGNORE INTO temp.local_subscriptions VALUES (?, ?)", came)
        connection.executemany(
            "DELETE FROM temp.local_subscriptions WHERE app = ? AND channel = ?", self._changed - came
        )
        self._changed.clear()


class LogReader:
    """This worker's position in the log, and the subscriptions that wait for it.

    `lost` is called with a reason when entries may have been missed, `suspect` with an error of a read.
    """

    def __init__(
        self,
        paths: LogPaths,
        loop: asyncio.AbstractEventLoop,
        deliver: interface.Deliver,
        lost: Callable[[str], None],
        suspect: Callable[[BaseException], None],
    ) -> None:
        self.paths = paths
        self.mailbox = ""  # of this worker
        self.position = 0  # the id of the newest entry that was delivered or passed
        self.top = 0  # the newest id in the log, as last seen
        self.reads = 0
        self.taken = 0  # groups of entries that needed no read
        self.delivered = 0
        self.snapshots = 0  # that were read
        self.snapshots_shared = 0  # that cost no read: subscriptions of one channel that are answered together
        self.failures = 0  # of deliveries and answers
        self.recovery = RecoveryReader()
        self.local = LocalSubscriptions()
        self._loop = loop
        self._deliver = deliver
        self._lost = lost
        self._suspect = suspect
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._backlog: collections.deque[interface.Entry] = collections.deque()
        self._read_to = 0  # where the reader stands once the backlog is delivered
        self._waiting: list[Subscribe] = []
        self._scheduled = False
        self._stepping = False
        self._asked = False  # to read, since the last read
        self._grown: asyncio.Future[None] | None = None

    def follow(self, position: int) -> None:
        """(Re)open the log and go on after `position`. Subscriptions go on waiting. Raises sqlite3.Error."""
        self.close()
        self._connection = schema.connect(self.paths)
        self.local.open(self._connection)
        self._identity = self.paths.identity()
        self.position = self.top = position
        self.advance()

    @property
    def is_following(self) -> bool:
        return self._connection is not None

    @property
    def is_awaited(self) -> bool:
        """Whether subscriptions wait for a read."""
        return bool(self._waiting)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._backlog.clear()

    def give_up(self) -> list[Subscribe]:
        """The waiting subscriptions, which are not answered here any more."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def workers(self) -> list[str]:
        """The ids of all workers, as the log has them. Raises sqlite3.Error."""
        if self._connection is None:
            return []
        return [worker for (worker,) in self._connection.execute("SELECT id FROM workers").fetchall()]

    def has_expired_members(self) -> bool:
        """Whether the time of a member without a connection is over. Raises sqlite3.Error."""
        return self._connection is not None and bool(
            self._connection.execute(
                "SELECT 1 FROM members WHERE worker > ? AND worker < ? LIMIT 1",
                (interface.LEASE_PREFIX, interface.lease_until(time.time() * 1000)),
            ).fetchall()
        )

    def grown(self) -> asyncio.Future[None]:
        """Done when a read after this call finds that the log has newer entries."""
        if self._grown is None or self._grown.done():
            self._grown = self._loop.create_future()
        return self._grown

    def settle(self, subscription: Subscribe) -> None:
        """Call its `ready` as soon as the reader has reached the end of the log (the caller advances)."""
        self._waiting.append(subscription)

    def advance(self) -> None:
        """Read what is new, deliver it, answer subscriptions. Calls `lost` when entries may have been missed."""
        self._asked = True
        if self._stepping or self._connection is None:
            return
        self._stepping = True
        try:
            reason = self._step(self._connection)
        finally:
            self._stepping = False
        self._go_on(reason)

    def _go_on(self, reason: str | None) -> None:
        if reason is not None:
            self._lost(reason)
        elif (self._backlog or self.position < self.top or self._asked) and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._continue)

    def take(self, added: transactions.Added) -> bool:
        """Deliver entries that this process committed, without a read. False: a read is needed, because there is more
        to do, or something lies between them and the position."""
        if self._stepping or self._connection is None or self._backlog:
            return False
        if added.log != self._identity or added.after != self.position:
            return False
        entries: list[interface.Entry] = []
        here, passing = self.local.here, (interface.USERS, self.mailbox)
        for row in added.rows:  # `_LOCAL_AFTER` has the same condition
            kind = row[1]
            if kind == MESSAGE:
                return False  # the health probe is one, and has to show that the log can be read
            if row[2:4] in here or kind == CONTROL or row[3] in passing:
                entries.append(transactions.entry(row))
        self._at_top(added.top)
        self._backlog.extend(entries)
        self._read_to = added.top
        if not self._backlog:
            self.position = added.top
            return True
        self.taken += 1
        self._stepping = True
        try:
            reason = self._hand_over()
        finally:
            self._stepping = False
        self._go_on(reason)
        return True

    def _continue(self) -> None:
        self._scheduled = False
        self.advance()

    def _step(self, connection: sqlite3.Connection) -> str | None:
        if self._backlog:
            return self._hand_over()
        if self.paths.identity() != self._identity:
            mark = self.paths.mark()
            return moves.MOVED if mark is not None and mark.what == moves.MOVED else "log_replaced"
        answers: list[tuple[Subscribe, interface.SubscribeResult]] = []
        try:
            self.local.update(connection)
            connection.execute("BEGIN")
            try:
                self.reads += 1
                self._asked = False
                reason = self._look(connection)
                if reason is not None:
                    return reason
                self._read(connection)
                weight = sum([len(entry.body) + ENTRY_BYTES for entry in self._backlog])
                if weight <= STEP_BYTES and self._read_to >= self.top and self._waiting:
                    snapshot = Snapshot(connection, self.recovery)
                    answers = [(one, snapshot.of(one.wanted)) for one in self._waiting]
                    self._waiting = []  # only now: a read that fails leaves them to be refused
                    self.snapshots += snapshot.reads
                    self.snapshots_shared += snapshot.shared
            finally:
                connection.execute("COMMIT")
        except (sqlite3.Error, UnicodeError, ValueError, TypeError, OverflowError) as error:
            why = text.clean(str(error))
            logger.error("The log cannot be read: %s", why)  # noqa: TRY400 - the place in here says nothing
            self._suspect(error)
            return f"log_unreadable: {why}"
        if self._backlog:
            reason = self._hand_over()
        else:
            self.position = self._read_to
        for subscription, answer in answers:
            self.answer(subscription, answer)
        return reason

    def _look(self, connection: sqlite3.Connection) -> str | None:
        """Find the end of the log. Answers the reason of a gap."""
        [(top, trimmed_to)] = connection.execute(_STATE).fetchall()
        if trimmed_to > self.position:
            return "trimmed"
        if top < self.position:
            # An older copy was written into the file, or SQLite's index of the WAL is damaged: the writer, which has
            # pages of its own, may not notice.
            self._suspect(schema.corrupt(f"The log ends at entry {top}, and entry {self.position} was read"))
            return "log_replaced"
        self._at_top(top)
        return None

    def _at_top(self, top: int) -> None:
        if self.top != top:
            self.top = top
            if self._grown is not None and not self._grown.done():
                self._grown.set_result(None)

    def _read(self, connection: sqlite3.Connection) -> None:
        """The next entries into the backlog, which is empty."""
        if self.top <= self.position:
            self._read_to = self.top
            return
        self._read_to = min(self.top, self.position + SCAN_ENTRIES)
        values = (self.position, self._read_to, self.mailbox, STEP_ENTRIES)
        rows = connection.execute(_LOCAL_AFTER, values).fetchall()
        self._backlog.extend(map(interface.Entry._make, rows))
        if len(rows) == STEP_ENTRIES:
            self._read_to = self._backlog[-1].id

    def answer(self, subscription: Subscribe, answer: interface.SubscribeResult | interface.Refused) -> None:
        try:
            subscription.ready(answer)
        except Exception:
            # A fault that concerns one client must not leave the others without an answer.
            self.failures += 1
            logger.exception("A subscription to %s could not be answered", subscription.wanted.channel)

    def _hand_over(self) -> str | None:
        """Deliver one step's worth of the backlog."""
        step: list[interface.Entry] = []
        weight = 0
        while self._backlog and (not step or weight < STEP_BYTES):
            entry = self._backlog.popleft()
            weight += len(entry.body) + ENTRY_BYTES
            step.append(entry)
        self.position = step[-1].id if self._backlog else self._read_to
        self.delivered += len(step)
        try:
            self._deliver(step)
        except Exception:
            # Some of these entries may have reached their subscribers and others not.
            self.failures += 1
            logger.exception("The delivery of %d entries failed", len(step))
            return "delivery_failed"
        return None


class Snapshot:
    """Runs the queries of subscriptions inside one read transaction, equal queries only once.

    Otherwise, each of 2,000 clients that join a presence channel would read all its members.
    """

    def __init__(self, connection: sqlite3.Connection, recovery: RecoveryReader) -> None:
        self.reads = 0
        self.shared = 0
        self._connection = connection
        self._recovery = recovery
        self._now_s = int(time.time())
        self._known: dict[tuple[str, str, str], Any] = {}

    def of(self, wanted: interface.SubscribeRequest) -> interface.SubscribeResult:
        """Raises sqlite3.Error."""
        where = (wanted.app, wanted.channel)
        is_presence = wanted.member is not None and wanted.channel != interface.USERS
        history = wanted.history
        return interface.SubscribeResult(
            members=self._once("members", where, self._members) if is_presence else (),
            cached=self._once("cached", where, self._cached) if wanted.cached else None,
            subscribers=self._once("subscribers", where, self._subscribers) if wanted.counted else 0,
            online=self._online(wanted) if wanted.watch else (),
            replayed=None if history is None else self._recovery.answer(self._connection, wanted, history),
            streams=self._once("streams", where, self._streams) if wanted.streams else (),
        )

    def _once(self, what: str, where: tuple[str, str], read: Callable[[str, str], Any]) -> Any:
        key = (what, *where)
        if key in self._known:
            self.shared += 1
        else:
            self.reads += 1
            self._known[key] = read(*where)
        return self._known[key]

    def _members(self, app: str, channel: str) -> tuple[interface.Member, ...]:
        return presence.members_of(self._connection, app, channel)

    def _cached(self, app: str, channel: str) -> bytes | None:
        rows = self._connection.execute(
            "SELECT body FROM cache WHERE app = ? AND channel = ? AND expires_s > ?", (app, channel, self._now_s)
        ).fetchall()
        return rows[0][0] if rows else None

    def _streams(self, app: str, channel: str) -> tuple[interface.Streamed, ...]:
        return tuple(streams.of_channel(self._connection, app, channel))

    def _subscribers(self, app: str, channel: str) -> int:
        [(count,)] = self._connection.execute(
            "SELECT COALESCE(SUM(subscribers), 0) FROM counts WHERE app = ? AND channel = ?", (app, channel)
        ).fetchall()
        return int(count)

    def _online(self, wanted: interface.SubscribeRequest) -> tuple[str, ...]:
        marks = ", ".join("?" * len(wanted.watch))
        query = f"SELECT DISTINCT user_id FROM members WHERE app = ? AND channel = ? AND user_id IN ({marks})"  # noqa: S608
        rows = self._connection.execute(query, (wanted.app, interface.USERS, *wanted.watch)).fetchall()
        return tuple(user_id for (user_id,) in rows)
