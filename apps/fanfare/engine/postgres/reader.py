"""How a worker follows the log: one look at a time, awaited, and one synchronous step with what it brought.

A look reads the new entries that this worker has subscribers for. Where subscribers wait, the same repeatable-read
transaction reads their snapshots, so a snapshot stands exactly where the entries end: the step that delivers the last
of them also answers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from fanfare.engine import interface, moves
from fanfare.engine.postgres import database, queries, writer

logger = logging.getLogger(__name__)

POLL_S: Final = 0.5  # the timer below the notifications
LOOK_S: Final = 0.005  # looks are at least so far apart: each costs the server some 0.2 ms
LOOK_TIMEOUT_S: Final = 5.0
LOOK_TRIES: Final = 3  # that fail, and not because the database is away, until the subscribers that wait are refused

# One step of the loop delivers at most this much: between two steps the sockets are flushed.
STEP_ENTRIES: Final = 512
STEP_BYTES: Final = 256 * 1024
CHUNK_ENTRIES: Final = 512
CHUNK_BYTES: Final = 256 * 1024

_SNAPSHOTS: Final = frozenset(["members", "cached", "counted"])  # questions that subscriptions of a channel share

# The name of a statement, and its arguments.
Question = tuple[str, tuple[Any, ...]]


@dataclass(slots=True)
class Waiting:
    """A subscriber that waits for its answer."""

    wanted: interface.SubscribeRequest
    ready: interface.Ready
    failed_looks: int = 0


@dataclass(slots=True)
class Look:
    """What one look brought. `snapshots`: the rows by question, decoded on first use; None where the end of the log was
    not reached."""

    generation: str
    trimmed_to: int
    top: int
    entries: list[interface.Entry]
    snapshots: dict[Question, Any] | None


class Reader:
    """This worker's position in the log, and the subscribers that wait for it."""

    def __init__(
        self, address: database.Address, deliver: interface.Deliver, on_gap: Callable[[str], None], name: str
    ) -> None:
        self.position = 0  # the id of the newest entry that was delivered or passed over
        self.top = 0
        self.generation = ""
        self.mailbox = ""  # of this worker
        self.reads = 0
        self.delivered = 0
        self.delivery_failures = 0
        self.history_reads = 0
        self.history_shared = 0
        self.snapshots = 0  # that were read
        self.snapshots_shared = 0  # that cost no read: subscriptions of one channel that are answered together
        self.failure: str | None = "The worker does not follow the log yet"
        self.following = False
        self._address = address
        self._deliver = deliver
        self._on_gap = on_gap
        self._name = name
        self._connection: database.AsyncConnection | None = None
        self._wake = asyncio.Event()
        self._waiting: list[Waiting] = []
        self._interest: set[tuple[str, str]] = set()
        self._listening: set[tuple[str, str]] = set()
        self._changed: set[tuple[str, str]] = set()  # since the last look
        self._listened = False  # to something new, since the last look began
        self._queries = _Queries(address)
        self._grown: asyncio.Future[None] | None = None

    # -- from the engine -----------------------------------------------------------------------------------------------

    def hint(self) -> None:
        """There may be something new."""
        self._wake.set()

    def settle(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        """Answer when the end of the log is reached."""
        self._waiting.append(Waiting(wanted, ready))
        self._wake.set()

    def give_up(self, why: str) -> None:
        """Refuse the subscribers that wait."""
        self._refuse(list(self._waiting), why)

    def _refuse(self, waiting: Sequence[Waiting], why: str) -> None:
        self._forget(waiting)
        for one in waiting:
            _answer(one, lambda: interface.Refused("engine_unavailable", why))

    def _count_failed(self, waiting: Sequence[Waiting]) -> None:
        """The query of one subscriber may be the reason that a look fails, and would fail every look."""
        for one in waiting:
            one.failed_looks += 1
        self._refuse([one for one in waiting if one.failed_looks == LOOK_TRIES], "The snapshot cannot be read")

    def _forget(self, answered: Sequence[Waiting]) -> None:
        identities = set(map(id, answered))
        self._waiting = [one for one in self._waiting if id(one) not in identities]

    def interest(self, app: str, channel: str, wanted: bool) -> None:
        """Whether entries of a channel are delivered, from the next look on."""
        self._set(self._interest, (app, channel), wanted)

    def listen(self, app: str, channel: str, wanted: bool) -> None:
        self._listened |= wanted and (app, channel) not in self._interest
        self._set(self._listening, (app, channel), wanted)

    def _set(self, channels: set[tuple[str, str]], key: tuple[str, str], wanted: bool) -> None:
        if wanted is not (key in channels):
            (channels.add if wanted else channels.discard)(key)
            self._changed.add(key)

    def grown(self) -> asyncio.Future[None]:
        """Done when the next look finds newer entries in the log."""
        if self._grown is None or self._grown.done():
            self._grown = asyncio.get_running_loop().create_future()
        return self._grown

    def follow(self, position: int, generation: str) -> None:
        """Go on after an entry."""
        self.position = self.top = position
        self.generation = generation
        self.following = True
        self._wake.set()

    # -- the tasks -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look when there is a hint, and on a timer. Raises psycopg.Error when the connection breaks: the supervisor
        runs it again, and it goes on where it was."""
        try:
            while True:
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                if self.following:
                    await self._look_and_deliver()
                    await asyncio.sleep(LOOK_S)
        finally:
            await self._disconnect()

    async def receive_notifications(self) -> None:
        """Turn notifications into hints. Raises psycopg.Error when the connection breaks."""
        connection = await database.connect(self._address, f"listener {self._name}")
        try:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._address.topic)))
            self._wake.set()  # a commit before the LISTEN sent its notification before it
            async for _ in connection.notifies():
                self._wake.set()
        finally:
            await connection.close()

    async def _look_and_deliver(self) -> None:
        while self.following:
            waiting = list(self._waiting)
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    connection = await self._connect()
                async with database.time_limit(connection, LOOK_TIMEOUT_S):
                    look = await self._look(connection, waiting)
            except Exception as error:
                self.failure = f"The log cannot be read: {writer.describe(error)}"
                if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, OSError)):
                    self._count_failed(waiting)
                raise
            self.failure = None
            if self._is_lost():
                return
            if self._listened:
                continue  # an entry for the new listener may have come before the server began with the statement
            reason = self._gap(look)
            if reason is not None:
                self.following = False
                self._on_gap(reason)
                return
            if look.top != self.top and self._grown is not None and not self._grown.done():
                self._grown.set_result(None)
            self.top = look.top
            more = await self._step(look, waiting)
            if not more:
                return

    def _is_lost(self) -> bool:
        """Whether a gap was found while the look was under way."""
        return not self.following

    def _gap(self, look: Look) -> str | None:
        if look.generation != self.generation:
            return change_of(look.generation)
        if look.trimmed_to > self.position:
            return "trimmed"
        if look.top < self.position:
            return "log_replaced"
        return None

    async def _step(self, look: Look, waiting: Sequence[Waiting]) -> bool:
        """Deliver, then answer. True: there is more to read."""
        entries, start = look.entries, 0
        while start < len(entries):
            end, weight = start, 0
            while end < len(entries) and (end == start or weight < STEP_BYTES):
                weight += len(entries[end].body) + 64
                end += 1
            step = entries[start:end]
            self.position = step[-1].id
            self.delivered += len(step)
            if end < len(entries):
                if not self._hand_over(step):
                    return False
                await asyncio.sleep(0)  # the sockets are flushed between two steps
                if self._is_lost():
                    return False
            start = end
        # The last step and the answers belong together: nothing comes between them.
        if entries and not self._hand_over(step):
            return False
        if look.snapshots is None:
            return True
        self.position = max(self.position, look.top)
        self._forget(waiting)
        for one in waiting:
            _answer(one, functools.partial(self._result, one.wanted, look.snapshots))
        return bool(self._waiting)

    def _hand_over(self, step: Sequence[interface.Entry]) -> bool:
        """False: the delivery raised, and its entries are a gap."""
        try:
            self._deliver(step)
        except Exception:
            logger.exception("A delivery of the log failed")
            self.delivery_failures += 1
            self.following = False
            self._on_gap("delivery_failed")
            return False
        return True

    # -- one look ------------------------------------------------------------------------------------------------------

    async def _look(self, connection: database.AsyncConnection, waiting: Sequence[Waiting]) -> Look:
        await self._update_interest(connection)
        self.reads += 1
        query = self._queries.interesting
        values = (self.position, self.mailbox, STEP_ENTRIES + 1)
        if not waiting:
            cursor = await connection.execute(query, values)
            return self._read(await cursor.fetchall(), {})
        wanted = [question for one in waiting for question in _questions(one.wanted).items()]
        asked = dict.fromkeys(wanted)
        async with connection.pipeline():
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor = await connection.execute(query, values)
            cursors = {
                (name, arguments): await connection.execute(self._queries.asked[name], _parameters(arguments))
                for name, arguments in asked
            }
            await connection.execute("COMMIT")
            rows = await cursor.fetchall()
            found = {question: await one.fetchall() for question, one in cursors.items()}
        snapshots = sum(name in _SNAPSHOTS for name, _ in found)
        self.snapshots += snapshots
        self.snapshots_shared += sum(name in _SNAPSHOTS for name, _ in wanted) - snapshots
        history_reads = sum(name == "kept" for name, _ in found)
        self.history_reads += history_reads
        self.history_shared += sum(name == "kept" for name, _ in wanted) - history_reads
        return self._read(rows, found)

    def _read(self, rows: list[tuple[Any, ...]], found: dict[Question, Any]) -> Look:
        generation, trimmed_to, top = rows[0][:3]
        entries = [interface.Entry._make(row[3:]) for row in rows if row[3] is not None]
        if len(entries) > STEP_ENTRIES:
            return Look(generation, trimmed_to, top, entries[:STEP_ENTRIES], None)
        return Look(generation, trimmed_to, top, entries, found)

    def _result(self, wanted: interface.SubscribeRequest, found: dict[Question, Any]) -> interface.SubscribeResult:
        values = {question[0]: _value(found, question) for question in _questions(wanted).items()}
        cached, counted, history = values.get("cached"), values.get("counted"), wanted.history
        return interface.SubscribeResult(
            members=values.get("members", ()),
            cached=cached[0][0] if cached else None,
            subscribers=int(counted[0][0]) if counted else 0,
            online=tuple([user for (user,) in values.get("watch", ())]),
            replayed=None if history is None else _recovered(history, values),
            streams=values.get("streams", ()),
        )

    async def _update_interest(self, connection: database.AsyncConnection) -> None:
        self._listened = False
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        try:
            came = [key for key in changed if key in self._interest or key in self._listening]
            went = list(changed.difference(came))
            if came:
                await connection.execute(self._queries.add_interest, tuple(map(list, zip(*came, strict=True))))
            if went:
                await connection.execute(self._queries.ignore, tuple(map(list, zip(*went, strict=True))))
        except BaseException:
            self._changed |= changed
            raise

    # -- the connection ------------------------------------------------------------------------------------------------

    async def _connect(self) -> database.AsyncConnection:
        if self._connection is None or self._connection.closed:
            connection = await database.connect(self._address, f"reader {self._name}")
            try:
                await connection.execute(
                    "CREATE TEMP TABLE interest (app text NOT NULL, channel text NOT NULL, PRIMARY KEY (app, channel))"
                )
            except BaseException:
                await connection.close()
                raise
            self._changed = self._interest | self._listening
            self._connection = connection
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class _Queries:
    """The statements of one schema."""

    def __init__(self, address: database.Address) -> None:
        name = sql.Identifier(address.schema)

        def make(text: str) -> sql.Composed:
            return sql.SQL(text).format(name)

        look = (
            "SELECT s.generation, s.trimmed_to, GREATEST(s.trimmed_to, COALESCE((SELECT MAX(id) FROM {0}.log), 0)), "
            f"{queries.COLUMNS} FROM {{0}}.state s LEFT JOIN LATERAL ("
            "SELECT * FROM {0}.log l WHERE l.id > %s CONDITION ORDER BY l.id LIMIT %s) l ON true ORDER BY l.id"
        )
        heard = (
            f"AND (l.kind = {interface.Kind.CONTROL.value} OR l.channel = '{interface.USERS}' OR l.channel = %s "
            "OR EXISTS (SELECT 1 FROM pg_temp.interest i WHERE i.app = l.app AND i.channel = l.channel))"
        )
        self.interesting = make(look.replace("CONDITION", heard))
        self.add_interest = sql.SQL(
            "INSERT INTO pg_temp.interest SELECT * FROM unnest(%s::text[], %s::text[]) ON CONFLICT DO NOTHING"
        )
        self.ignore = sql.SQL(
            "DELETE FROM pg_temp.interest i USING unnest(%s::text[], %s::text[]) AS gone(app, channel) "
            "WHERE i.app = gone.app AND i.channel = gone.channel"
        )
        self.asked: dict[str, sql.Composed] = {}  # by the names of the questions
        self.asked["members"] = make(
            "SELECT user_id, info FROM {0}.members WHERE app = %s AND channel = %s ORDER BY seq"
        )
        self.asked["cached"] = make(
            "SELECT body FROM {0}.cache WHERE app = %s AND channel = %s AND expires > clock_timestamp()"
        )
        self.asked["counted"] = make(
            "SELECT COALESCE(SUM(subscribers), 0) FROM {0}.counts WHERE app = %s AND channel = %s"
        )
        self.asked["streams"] = make(queries.STREAMS)
        self.asked["watch"] = make(
            "SELECT DISTINCT user_id FROM {0}.members WHERE app = %s AND channel = %s AND user_id = ANY(%s::text[])"
        )
        self.asked["recovery"] = sql.SQL("SELECT * FROM {}(%s, %s, %s::text, %s, %s, %s, %s)").format(
            address.function("recovery")
        )
        self.asked["kept"] = make(
            f"SELECT {queries.COLUMNS} FROM {{0}}.log l WHERE l.app = %s AND l.channel = %s "
            'AND l."offset" > %s ORDER BY l."offset" LIMIT %s'
        )
        self.asked["newest"] = make(
            f"SELECT {queries.COLUMNS} FROM {{0}}.log l "
            "JOIN {0}.streams s ON s.app = l.app AND s.channel = l.channel "
            'WHERE l.app = %s AND l.channel = %s AND l."offset" > s."offset" - s.size AND l.created >= '
            "clock_timestamp() - interval '1 second' * CASE WHEN %s > 0 THEN LEAST(s.seconds, %s) ELSE s.seconds END "
            'ORDER BY l."offset" DESC LIMIT %s'
        )


def change_of(generation: str) -> str:
    """The reason of a gap at a generation that this worker did not follow."""
    return moves.MOVED if generation == moves.MOVED else "generation_changed"


def _questions(wanted: interface.SubscribeRequest) -> dict[str, tuple[Any, ...]]:
    """The questions of a request. Equal ones of several requests are asked once."""
    where = (wanted.app, wanted.channel)
    asked: dict[str, tuple[Any, ...]] = {}
    if wanted.member and wanted.channel != interface.USERS:
        asked["members"] = where
    if wanted.cached:
        asked["cached"] = where
    if wanted.counted:
        asked["counted"] = where
    if wanted.streams:
        asked["streams"] = where
    if wanted.watch:
        asked["watch"] = (wanted.app, interface.USERS, wanted.watch)
    history = wanted.history
    if history is not None:
        after, rewind = history.after, history.rewind
        bounds = (history.max_entries, history.max_bytes, history.continued)
        asked["recovery"] = (*where, *(after or (None, 0)), *bounds)
        if after is not None:
            asked["kept"] = (*where, after.offset, CHUNK_ENTRIES)
        elif rewind is not None:
            limit = min(rewind.count or CHUNK_ENTRIES, CHUNK_ENTRIES)
            asked["newest"] = (*where, rewind.seconds, rewind.seconds, limit)
    return asked


def _parameters(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments of a question as psycopg sends them: a tuple would be a row, not an array."""
    return [list(one) if isinstance(one, tuple) else one for one in arguments]


def _value(found: dict[Question, Any], question: Question) -> Any:
    """The answer to a question, decoded once for all subscribers that asked it."""
    value, decode = found[question], _DECODED.get(question[0])
    if decode is not None and isinstance(value, list):
        value = found[question] = decode(value)
    return value


def _recovered(history: interface.RecoveryRequest, values: dict[str, Any]) -> interface.RecoveryResult:
    """`values`: the answers by the names of the questions."""
    rows = values["recovery"]
    if not rows:
        reason = None if history.after is None else "epoch_changed"
        return interface.RecoveryResult(None, reason=reason, complete=True)
    epoch, top, _size, _seconds, reason, missed = rows[0]
    position = interface.Position(epoch, top)
    if reason is not None:
        return interface.RecoveryResult(position, reason=reason, complete=True)
    if history.after is not None:
        entries = values["kept"]
        reached = entries[-1].offset if entries else history.after.offset
        return interface.RecoveryResult(position, entries, missed, complete=reached == top)
    newest = values.get("newest", ())
    return interface.RecoveryResult(position, newest, len(newest), complete=True)


def _bounded(rows: list[Any]) -> tuple[interface.Entry, ...]:
    """The first entries, up to `CHUNK_BYTES`, one at least."""
    entries: list[interface.Entry] = []
    weight = 0
    for row in rows:
        entry = interface.Entry._make(row)
        weight += len(entry.body)
        if weight > CHUNK_BYTES and entries:
            break
        entries.append(entry)
    return tuple(entries)


_DECODED: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "members": interface.distinct_members,
    "streams": lambda rows: tuple(map(queries.streamed, rows)),
    "kept": _bounded,
    "newest": lambda rows: _bounded(rows)[::-1],  # newest first: those over the bound are the oldest
}


def _answer(one: Waiting, answer: Callable[[], interface.SubscribeResult | interface.Refused]) -> None:
    """A mistake that concerns one client must not leave the others without an answer."""
    try:
        result = answer()
    except Exception:
        logger.exception("The snapshot of a subscription to %s could not be made", one.wanted.channel)
        result = interface.Refused("engine_unavailable", "The snapshot cannot be read")
    try:
        one.ready(result)
    except Exception:
        logger.exception("A subscription to %s could not be answered", one.wanted.channel)
