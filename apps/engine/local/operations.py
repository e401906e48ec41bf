"""What one group of the writer does inside its transaction: each operation is a small object with `run`.

An operation is made on any thread, run in the writer's, and settled where its maker wants to hear of it. It may run
twice (a group that failed because of a neighbour is repeated), so `run` keeps its result in itself and nowhere else.
"""

from __future__ import annotations

import abc
import sqlite3
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apps.engine import errors, interface
from apps.engine.local import schema, streams

# Told of an operation's end on its loop: (operation, None) after the commit, (operation, error) if its group failed.
Settled = Callable[[Any, errors.EngineError | None], None]


class Group:
    """One transaction: gives out ids and offsets, and collects the rows of the log so that they are written in one
    call."""

    def __init__(self, cursor: sqlite3.Cursor, top: int, worker: str | None) -> None:
        self.cursor = cursor
        self.top = top
        self.worker = worker  # whose members and counts are written; None in a process that is no worker
        self.now_ms = int(time.time() * 1000)
        self.streams = streams.Streams(cursor, self.now_ms)
        self._rows: list[tuple[int, int, str, str, int | None, str | None, str | None, bytes, int]] = []

    def log(
        self,
        kind: int,
        app: str,
        channel: str,
        body: bytes,
        *,
        offset: int | None = None,
        user_id: str | None = None,
        exclude: str | None = None,
    ) -> int:
        self.top += 1
        self._rows.append((self.top, kind, app, channel, offset, user_id, exclude, body, self.now_ms))
        return self.top

    def finish(self) -> None:
        """Write what was collected; the commit is the caller's."""
        if self._rows:
            self.cursor.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._rows)
            self.cursor.execute("UPDATE state SET top = ?", (self.top,))
        self.streams.finish()


class Operation(abc.ABC):
    """`born` is the monotonic time of submission, for the time-out of what waits too long."""

    __slots__ = ("born",)

    loop: AbstractEventLoop | None = None  # where `settle` must be called; None: in the writer's thread

    def __init__(self) -> None:
        self.born = time.monotonic()

    @abc.abstractmethod
    def run(self, group: Group) -> None: ...

    @abc.abstractmethod
    def settle(self, error: errors.EngineError | None) -> None:
        """Committed, or failed as a whole with `error`."""


class Append(Operation):
    """Publications, all or none."""

    __slots__ = ("publications", "receipts")

    def __init__(self, publications: Sequence[interface.Publication]) -> None:
        super().__init__()
        self.publications = publications
        self.receipts: list[interface.Receipt] = []

    def run(self, group: Group) -> None:
        self.receipts = [self._one(group, publication) for publication in self.publications]

    def _one(self, group: Group, publication: interface.Publication) -> interface.Receipt:
        if publication.idempotency_key is not None and (known := self._known(group, publication)) is not None:
            return known
        position = None
        if publication.retention is not None:
            position = group.streams.advance(publication.app, publication.channel, publication.retention)
        entry_id = group.log(
            publication.kind,
            publication.app,
            publication.channel,
            publication.body,
            offset=position and position.offset,
            user_id=publication.user_id,
            exclude=publication.exclude,
        )
        if publication.idempotency_key is not None:
            epoch, offset = position or (None, None)
            expires_s = group.now_ms // 1000 + interface.IDEMPOTENCY_SECONDS
            group.cursor.execute(
                "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)",
                (publication.app, publication.channel, publication.idempotency_key, entry_id, epoch, offset, expires_s),
            )
        return interface.Receipt(entry_id, position, duplicate=False)

    def _known(self, group: Group, publication: interface.Publication) -> interface.Receipt | None:
        rows = group.cursor.execute(
            'SELECT id, epoch, "offset" FROM idempotency WHERE app = ? AND channel = ? AND key = ? AND expires_s > ?',
            (publication.app, publication.channel, publication.idempotency_key, group.now_ms // 1000),
        ).fetchall()
        if not rows:
            return None
        entry_id, epoch, offset = rows[0]
        position = None if epoch is None else interface.Position(epoch, offset)
        return interface.Receipt(entry_id, position, duplicate=True)


class AwaitedAppend(Append):
    """For a coroutine: settles a future on its loop."""

    __slots__ = ("future", "loop")

    def __init__(self, publications: Sequence[interface.Publication], loop: AbstractEventLoop) -> None:
        super().__init__(publications)
        self.loop = loop
        self.future: Future[list[interface.Receipt]] = loop.create_future()

    def settle(self, error: errors.EngineError | None) -> None:
        if self.future.done():
            return  # the caller was cancelled: nobody waits
        if error is None:
            self.future.set_result(self.receipts)
        else:
            self.future.set_exception(error)


class BlockingAppend(Append):
    """For a thread: sets an event."""

    __slots__ = ("done", "error")

    def __init__(self, publications: Sequence[interface.Publication]) -> None:
        super().__init__(publications)
        self.done = threading.Event()
        self.error: errors.EngineError | None = None

    def settle(self, error: errors.EngineError | None) -> None:
        self.error = error
        self.done.set()


class WorkerOperation(Operation):
    """What only a worker does; its end is told to `settled`, on the worker's loop."""

    __slots__ = ("loop", "settled")

    def __init__(self, loop: AbstractEventLoop, settled: Settled | None = None) -> None:
        super().__init__()
        self.loop = loop
        self.settled = settled

    def settle(self, error: errors.EngineError | None) -> None:
        if self.settled is not None:
            self.settled(self, error)


class Counts(WorkerOperation):
    """The absolute numbers of this worker's subscribers, one upsert per channel."""

    __slots__ = ("counts",)

    def __init__(self, loop: AbstractEventLoop, counts: Mapping[tuple[str, str], int], settled: Settled) -> None:
        super().__init__(loop, settled)
        self.counts = counts

    def run(self, group: Group) -> None:
        group.cursor.executemany(
            "INSERT INTO counts VALUES (?, ?, ?, ?) "
            "ON CONFLICT (app, channel, worker) DO UPDATE SET subscribers = excluded.subscribers",
            [(app, channel, group.worker, count) for (app, channel), count in self.counts.items() if count],
        )
        group.cursor.executemany(
            "DELETE FROM counts WHERE app = ? AND channel = ? AND worker = ?",
            [(app, channel, group.worker) for (app, channel), count in self.counts.items() if not count],
        )


class Attach(WorkerOperation):
    """A subscription that waits for the log; with `member`, a user's arrival."""

    __slots__ = ("app", "channel", "member", "member_limit", "ready", "refused", "socket_id")

    def __init__(
        self,
        loop: AbstractEventLoop,
        app: str,
        channel: str,
        ready: interface.Ready,
        *,
        socket_id: str | None,
        member: interface.Member | None,
        member_limit: int | None,
    ) -> None:
        super().__init__(loop)
        self.app = app
        self.channel = channel
        self.ready = ready
        self.socket_id = socket_id
        self.member = member
        self.member_limit = member_limit
        self.refused: interface.Refused | None = None

    def run(self, group: Group) -> None:
        self.refused = None
        if self.member is None:
            return
        cursor, where = group.cursor, (self.app, self.channel)
        user_id, info = self.member
        present = cursor.execute(
            "SELECT 1 FROM members WHERE app = ? AND channel = ? AND user_id = ? LIMIT 1", (*where, user_id)
        ).fetchall()
        if not present and self.member_limit is not None:
            [(users,)] = cursor.execute(
                "SELECT COUNT(DISTINCT user_id) FROM members WHERE app = ? AND channel = ?", where
            ).fetchall()
            if users >= self.member_limit:
                message = (
                    f"The maximum number of members of a presence channel is reached ({users} of {self.member_limit})"
                )
                self.refused = interface.Refused("member_limit", message, self.member_limit, users)
                return
        cursor.execute(
            "INSERT INTO members (app, channel, user_id, socket_id, worker, info) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (app, channel, socket_id) DO UPDATE SET info = excluded.info, worker = excluded.worker",
            (*where, user_id, self.socket_id, group.worker, info),
        )
        if not present:
            group.log(interface.Kind.MEMBER_ADDED, self.app, self.channel, info.encode(), user_id=user_id)


class Leave(WorkerOperation):
    """One connection of a user goes; the user, with the last one."""

    __slots__ = ("app", "channel", "failed", "key", "socket_id")

    def __init__(self, loop: AbstractEventLoop, app: str, channel: str, socket_id: str) -> None:
        super().__init__(loop)
        self.app = app
        self.channel = channel
        self.socket_id = socket_id
        self.key = (app, channel, socket_id)
        self.failed = False  # not written, to be submitted again

    def run(self, group: Group) -> None:
        gone = group.cursor.execute(
            "DELETE FROM members WHERE app = ? AND channel = ? AND socket_id = ? RETURNING app, channel, user_id",
            (self.app, self.channel, self.socket_id),
        ).fetchall()
        log_absent(group, gone)


class Admit(WorkerOperation):
    """One more connection of an application, counted already, under a limit for the whole deployment."""

    __slots__ = ("app", "limit", "ready", "refused")

    def __init__(self, loop: AbstractEventLoop, app: str, limit: int, ready: interface.Ready) -> None:
        super().__init__(loop)
        self.app = app
        self.limit = limit
        self.ready = ready
        self.refused: interface.Refused | None = None

    def run(self, group: Group) -> None:
        [(connections,)] = group.cursor.execute(
            "SELECT TOTAL(subscribers) FROM counts WHERE app = ? AND channel = ?", (self.app, interface.CONNECTIONS)
        ).fetchall()
        others = int(connections) - 1
        self.refused = None
        if others >= self.limit:
            message = f"The application's maximum number of connections is reached ({others} of {self.limit})"
            self.refused = interface.Refused("connection_limit", message, self.limit, others)


class Reap(WorkerOperation):
    """A worker is gone (or says goodbye): its members, counts and its own row go, with what must be told, in one
    transaction."""

    __slots__ = ("worker",)

    def __init__(self, loop: AbstractEventLoop, worker: str, settled: Settled | None = None) -> None:
        super().__init__(loop, settled)
        self.worker = worker

    def run(self, group: Group) -> None:
        gone = group.cursor.execute(
            "DELETE FROM members WHERE worker = ? RETURNING app, channel, user_id", (self.worker,)
        ).fetchall()
        log_absent(group, sorted(set(gone)))
        group.cursor.execute("DELETE FROM counts WHERE worker = ?", (self.worker,))
        group.cursor.execute("DELETE FROM workers WHERE id = ?", (self.worker,))


class Trim(WorkerOperation):
    """Forget announcements up to `upto`, record that in the same transaction, and sweep what is too old elsewhere."""

    __slots__ = ("more", "upto")

    def __init__(self, loop: AbstractEventLoop, upto: int, settled: Settled) -> None:
        super().__init__(loop, settled)
        self.upto = upto
        self.more = False  # whether another sweep would find more

    def run(self, group: Group) -> None:
        cursor = group.cursor
        [(trimmed_to,)] = cursor.execute("SELECT trimmed_to FROM state").fetchall()
        if self.upto > trimmed_to:
            # Only the new part of the range: what is below holds nothing but kept entries.
            cursor.execute('DELETE FROM log WHERE id > ? AND id <= ? AND "offset" IS NULL', (trimmed_to, self.upto))
            cursor.execute("UPDATE state SET trimmed_to = ?", (self.upto,))
            trimmed_to = self.upto
        cursor.execute("DELETE FROM idempotency WHERE expires_s <= ?", (group.now_ms // 1000,))
        self.more = streams.sweep(cursor, group.now_ms, trimmed_to)


class Touch(WorkerOperation):
    """Does nothing, durably: shows that what was submitted before is written, and where the log stands."""

    __slots__ = ("top",)

    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__(loop)
        self.top = 0

    def run(self, group: Group) -> None:
        self.top = group.top


def log_absent(group: Group, users: Sequence[tuple[str, str, str]]) -> None:
    """Announce those of (app, channel, user_id) whose last connection is gone."""
    for app, channel, user_id in users:
        present = group.cursor.execute(
            "SELECT 1 FROM members WHERE app = ? AND channel = ? AND user_id = ? LIMIT 1", (app, channel, user_id)
        ).fetchall()
        if not present:
            group.log(interface.Kind.MEMBER_REMOVED, app, channel, b"", user_id=user_id)


def open_group(connection: sqlite3.Connection, worker: str | None) -> Group:
    """Start a transaction. The first write after a clean goodbye takes the goodbye back, on the disk, before anything
    else."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    [(top, clean)] = cursor.execute("SELECT top, clean FROM state").fetchall()
    if clean:
        cursor.execute("ROLLBACK")
        [(mode,)] = cursor.execute("PRAGMA synchronous").fetchall()
        cursor.execute("PRAGMA synchronous=FULL")
        with schema.transaction(connection):
            cursor.execute("UPDATE state SET clean = 0")
        cursor.execute(f"PRAGMA synchronous={mode}")
        cursor.execute("BEGIN IMMEDIATE")
        [(top,)] = cursor.execute("SELECT top FROM state").fetchall()
    return Group(cursor, top, worker)


# What somebody waits for with a time-out; the other operations are kept until they are written.
AWAITED = (AwaitedAppend, Attach, Admit)
