"""A worker's part of the PostgreSQL engine: its writer, reader and heartbeat, its leases, and the upkeep of the log."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from fanfare.engine import errors, interface
from fanfare.engine.postgres import database, operations, pending, reader, writer
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)

BEAT_S: Final = 1.0
LEASE_S: Final = 10  # a worker that has not renewed for so long is dead
SILENCE_S: Final = 2.0  # after which the worker is not healthy
TRIM_S: Final = 2.0
TRIM_ROWS: Final = 5_000
MEASURE_S: Final = 30.0
COUNTS_S: Final = 0.02
MISS_SECONDS: Final = 3600
LEASE_POLL_S: Final = 1.0
GOODBYE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 2.0
_RETRIED: Final = (psycopg.Error, OSError, TimeoutError, errors.EngineUnavailable)


class Lease(interface.Lease):
    """Lost a second before the database may give it to another worker."""

    lost: asyncio.Event

    def __init__(self, worker: Worker, name: str, term: int) -> None:
        self.lost = asyncio.Event()
        self.name = name
        self.term = term
        self._worker = worker

    def release(self) -> None:
        self._worker.release(self)


class Worker:
    """Made and used on one event loop; `open` to `close` is one life. `measure`: the sizes of the log's tables."""

    def __init__(
        self,
        address: database.Address,
        deliver: interface.Deliver,
        on_gap: interface.OnGap,
        measure: Callable[[], Awaitable[dict[str, int]]],
        *,
        log_seconds: float,
        append_timeout: float,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.workers = 0
        self.counters: collections.Counter[str] = collections.Counter()
        self.sizes: dict[str, int] = {}
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._address = address
        self._measure = measure
        self._on_gap = on_gap
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._supervisor = Supervisor(logger, count=self._count, prefix="tasks")
        self.reader = reader.Reader(address, deliver, self._gap, self.id)
        self.writer = writer.Writer(
            address, timeout_s=append_timeout, reconnected=self._reconnected, logged=self.reader.hint
        )
        self._schema = sql.Identifier(address.schema)
        self._beaten_s = float("-inf")  # monotonic: when the last beat that was answered was sent
        self._steady_since_s = float("-inf")  # monotonic: since when the beats follow each other
        self._leases_end: asyncio.TimerHandle | None = None
        self._samples: collections.deque[tuple[float, int]] = collections.deque()
        self._counts: dict[tuple[str, str], tuple[int, bool]] = {}  # not written yet
        self._counts_timer: asyncio.TimerHandle | None = None
        self._counting = 0  # writes of counts under way
        self._announcing: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._leaving: dict[tuple[str, str, str], bool] = {}  # True: it failed and is to be submitted again
        self._leases: list[Lease] = []
        self._releasing: set[str] = set()  # leases that are still this worker's in the database
        self._closing = False
        self._restarting = False
        self._unreported: str | None = None  # the reason of a gap that the hub has not handled yet

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        await asyncio.to_thread(_prepare, self._address)
        await self._join()
        for name, function in (
            ("The writer", self.writer.run),
            ("The reader", self.reader.run),
            ("The listener", self.reader.receive_notifications),
            ("The heartbeat", self._beat),
            ("The upkeep", self._upkeep),
        ):
            self._supervisor.run(name, functools.partial(self._persist, function))

    async def _persist(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run it, and again while the database is away. The heartbeat reports that once; a mistake of the code goes to
        the supervisor."""
        backoff = Backoff(first_s=0.1, longest_s=LONGEST_PAUSE_S)
        while True:
            started = time.monotonic()
            try:
                await function()
            except _RETRIED as error:
                logger.debug("%s: %s", getattr(function, "__name__", ""), writer.describe(error))
                if time.monotonic() - started > LONGEST_PAUSE_S:
                    backoff.succeeded()
                await asyncio.sleep(backoff.failed())
            else:
                return

    async def _join(self) -> None:
        """Become known under a new id, and follow from the present. Raises EngineUnavailable."""
        await self.writer.ask(sql.SQL("SELECT 1 FROM {}.refuse_moved_1()").format(self._schema))
        self.id = self.writer.worker = secrets.token_hex(8)
        self.reader.mailbox = f"#worker-{self.id}"
        node = f"{socket.gethostname()}:{os.getpid()}"
        await self.writer.ask(
            sql.SQL(
                "INSERT INTO {}.workers VALUES (%s, %s, clock_timestamp() + %s * interval '1 second') RETURNING 1"
            ).format(self._schema),
            (self.id, node, LEASE_S),
        )
        [(generation, top)] = await self.writer.ask(
            sql.SQL(
                "SELECT generation, GREATEST(trimmed_to, COALESCE((SELECT MAX(id) FROM {0}.log), 0)) FROM {0}.state"
            ).format(self._schema)
        )
        self.workers = max(self.workers, 1)
        self._beaten(time.monotonic())
        self.reader.follow(top, generation)
        self.writer.failure = None

    async def close(self) -> None:
        self._closing = True
        if self._counts_timer is not None:
            self._counts_timer.cancel()
        for timer in (*self._announcing.values(), self._leases_end):
            if timer is not None:
                timer.cancel()
        for lease in list(self._leases):
            lease.lost.set()
        await self._supervisor.stop()
        with contextlib.suppress(errors.EngineError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                self._leases.clear()
                self.submit([operations.Operation("remove", key=self.id)])
                await self.writer.flush()
        await self.writer.stop()
        self.reader.following = False
        self.reader.give_up("The worker is closing")

    def is_home(self) -> bool:
        return threading.get_ident() == self._thread

    def problem(self) -> str | None:
        """Why this worker cannot publish or does not follow, in one sentence."""
        if self.writer.failure is not None:
            return self.writer.failure
        if self.reader.failure is not None:
            return self.reader.failure
        if (
            pausing := self._supervisor.pausing("The writer", "The reader", "The heartbeat", "The restart")
        ) is not None:
            return pausing
        if not self.reader.following:
            return "The worker does not follow the log (yet)"
        silent_s = time.monotonic() - self._beaten_s
        if silent_s > BEAT_S + SILENCE_S:
            return f"The database has not answered the heartbeat for {silent_s:.0f} s"
        return None

    def statistics(self) -> dict[str, int | float]:
        return {
            "workers": self.workers,
            "position": self.reader.position,
            "behind": max(0, self.reader.top - self.reader.position),
            "reads": self.reader.reads,
            "entries": self.reader.delivered,
            "delivery_failures": self.reader.delivery_failures,
            "snapshots": self.reader.snapshots,
            "snapshots_shared": self.reader.snapshots_shared,
            "history_reads": self.reader.history_reads,
            "history_shared": self.reader.history_shared,
            "groups": self.writer.groups,
            "operations": self.writer.operations,
            "expired": self.writer.expired,
            "reconnects": self.writer.reconnects,
            **self.writer.commit_seconds.counters("commit_seconds"),
            **self.sizes,
            **self.counters,
        }

    def _count(self, name: str) -> None:
        self.counters[name] += 1

    # -- writes --------------------------------------------------------------------------------------------------------

    def submit(self, wanted: Sequence[operations.Operation], settled: operations.Settled | None = None) -> None:
        """Raises EngineUnavailable."""
        self.writer.submit(operations.Call(wanted, settled or _ignore))

    def listen(self, app: str, channel: str, on: bool) -> None:
        self.reader.listen(app, channel, on)

    def append(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> asyncio.Future[list[interface.Receipt]]:
        done: asyncio.Future[list[interface.Receipt]] = self.loop.create_future()
        wanted = operations.append(publications, budget)

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if done.done():
                return
            receipts: list[interface.Receipt] = []
            if error is None:
                receipts, error = operations.receipts(wanted, rows)
            if error is None:
                done.set_result(receipts)
            else:
                done.set_exception(error)

        self.submit(wanted, settled)
        return done

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        def settled(_rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if error is not None:
                failed(str(error))

        try:
            self.submit(operations.append([publication], None), settled)
        except errors.EngineError as error:
            failed(str(error))

    async def done(self, operation: operations.Operation) -> operations.Row:
        """One operation, and its row. Raises EngineUnavailable."""
        done: asyncio.Future[operations.Row] = self.loop.create_future()

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(rows[0])

        self.submit([operation], settled)
        return await done

    async def settled(self) -> None:
        """Return when the counts of this worker are written. Raises EngineUnavailable."""
        if self._counts or self._counting:
            await self.barrier()

    async def barrier(self) -> None:
        """Return when everything that was asked for before is written. Raises EngineUnavailable."""
        self._write_counts()
        await self.done(operations.Operation("touch"))

    def when_written(self, then: Callable[[], None]) -> None:
        self._write_counts()
        try:
            self.submit([operations.Operation("touch")], lambda _rows, _error: then())
        except errors.EngineError:
            then()

    # -- presence and counts -------------------------------------------------------------------------------------------

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        if channel != interface.CONNECTIONS:
            self.reader.interest(app, channel, count > 0)
        self._counts[app, channel] = (count, announce)
        if self._counts_timer is None:
            self._counts_timer = self.loop.call_later(COUNTS_S, self._write_counts)

    def _write_counts(self) -> None:
        if self._counts_timer is not None:
            self._counts_timer.cancel()
            self._counts_timer = None
        if not self._counts or self._closing:
            return
        counts, self._counts = self._counts, {}
        self._counting += 1
        wanted = [
            operations.Operation("counts", *key, n=count, size=int(announce))
            for key, (count, announce) in counts.items()
        ]

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            self._counting -= 1
            if error is None:
                for key, row in zip(counts, (rows[index] for index in range(len(wanted))), strict=True):
                    self._announce_later(key, row.actual)
            else:
                self.counters["counts_retried"] += 1
                self._counts = {**counts, **self._counts}

        try:
            self.submit(wanted, settled)
        except errors.EngineError:
            self._counting -= 1
            self._counts = {**counts, **self._counts}

    def _announce_later(self, channel: tuple[str, str], wait_ms: int | None) -> None:
        if wait_ms and channel not in self._announcing:
            self._announcing[channel] = self.loop.call_later(wait_ms / 1000, self._announce, channel)

    def _announce(self, channel: tuple[str, str]) -> None:
        del self._announcing[channel]

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if error is None:
                self._announce_later(channel, rows[0].actual)

        with contextlib.suppress(errors.EngineError):
            self.submit([operations.Operation("announce", *channel)], settled)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if wanted.cached:
            ready = self._noting_misses(wanted, ready)
        if wanted.history is not None:
            ready = self._opening_streams(wanted, ready)
        if not wanted.durable and wanted.member is None:
            self.reader.settle(wanted, ready)
            return
        self._write_counts()
        self._leaving.pop((wanted.app, wanted.channel, wanted.socket_id), None)
        operation = operations.Operation("touch")
        if wanted.member is not None:
            operation = operations.Operation(
                "join",
                wanted.app,
                wanted.channel,
                user=wanted.member.user_id,
                exclude=wanted.member.info,
                size=wanted.member_limit,
                key=wanted.socket_id,
            )

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if error is not None:
                ready(interface.Refused("engine_unavailable", str(error)))
            elif wanted.member is not None and rows[0].flag:
                limit, actual = rows[0].limit or 0, rows[0].actual or 0
                message = f"The channel has {actual} members; {limit} are allowed"
                ready(interface.Refused("member_limit", message, limit, actual))
            elif self._closing:
                ready(interface.Refused("engine_unavailable", "The worker is closing"))
            else:
                self.reader.settle(wanted, ready)

        try:
            self.submit([operation], settled)
        except errors.EngineError as error:
            ready(interface.Refused("engine_unavailable", str(error)))

    def _noting_misses(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> interface.Ready:
        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            if isinstance(answer, interface.SubscribeResult) and answer.cached is None:
                with contextlib.suppress(errors.EngineError):
                    self.submit([operations.Operation("miss", wanted.app, wanted.channel, n=MISS_SECONDS)])
            ready(answer)

        return answered

    def _opening_streams(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> interface.Ready:
        """A stream that was never written to has no epoch, and its subscribers could not recover: create it and ask
        again."""

        def answered(answer: interface.SubscribeResult | interface.Refused) -> None:
            replayed = answer.replayed if isinstance(answer, interface.SubscribeResult) else None
            if replayed is None or replayed.position is not None:
                ready(answer)
                return

            def opened(_rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
                if error is not None:
                    ready(interface.Refused("engine_unavailable", str(error)))
                else:
                    self.reader.settle(wanted, answered)

            try:
                self.submit([operations.Operation("stream", wanted.app, wanted.channel)], opened)
            except errors.EngineError as error:
                ready(interface.Refused("engine_unavailable", str(error)))

        return answered

    def leave(self, key: tuple[str, str, str]) -> None:
        app, channel, socket_id = key
        self._leaving[key] = False

        def settled(_rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if key not in self._leaving:
                return
            if error is None:
                del self._leaving[key]
            else:
                self.counters["leaves_retried"] += 1
                self._leaving[key] = True

        try:
            self.submit([operations.Operation("leave", app, channel, key=socket_id)], settled)
        except errors.EngineError:
            self._leaving[key] = True

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        self._write_counts()

        def settled(rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
            if error is not None:
                ready(interface.Refused("engine_unavailable", str(error)))
            elif rows[0].flag:
                others = rows[0].actual or 0
                message = f"The application's maximum number of connections is reached ({others} of {limit})"
                ready(interface.Refused("connection_limit", message, limit, others))
            else:
                ready(interface.SubscribeResult())

        try:
            self.submit([operations.Operation("admit", app, n=limit)], settled)
        except errors.EngineError as error:
            ready(interface.Refused("engine_unavailable", str(error)))

    # -- leases --------------------------------------------------------------------------------------------------------

    async def lease(self, name: str) -> Lease:
        """Wait until this worker holds `name`."""
        query = sql.SQL("SELECT {}.lease_1(%s, %s, %s)").format(self._schema)
        while not self._closing:
            with contextlib.suppress(errors.EngineUnavailable):
                await self._release(name)
                [(term,)] = await self.writer.ask(query, (name, self.id, LEASE_S))
                if term is not None:
                    lease = Lease(self, name, term)
                    self._leases.append(lease)
                    return lease
            await asyncio.sleep(LEASE_POLL_S)
        raise errors.EngineUnavailable(f"The engine was closed before the lease {name} was free")

    def release(self, lease: Lease) -> None:
        lease.lost.set()
        if lease in self._leases:
            self._leases.remove(lease)
            if not self._closing:
                self._releasing.add(lease.name)
                self._supervisor.spawn("The release of a lease", self._release(lease.name), expected=_RETRIED)

    async def _release(self, name: str) -> None:
        """Give a released lease back. The heartbeat tries again: it would renew the lease for ever."""
        if name not in self._releasing:
            return
        query = sql.SQL(
            "UPDATE {}.leases SET worker = '', until = '-infinity' WHERE name = %s AND worker = %s RETURNING 1"
        ).format(self._schema)
        await self.writer.ask(query, (name, self.id))
        self._releasing.discard(name)

    # -- on a timer ----------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renew the life and the leases of this worker, notice a new generation, remove dead workers."""
        query = sql.SQL("SELECT * FROM {}.beat_1(%s, %s)").format(self._schema)
        while True:
            sent = time.monotonic()
            try:
                [(known, generation, self.workers, dead)] = await self.writer.ask(
                    query, (self.id, LEASE_S), timeout_s=SILENCE_S
                )
            except errors.EngineUnavailable:
                await asyncio.sleep(BEAT_S / 2)
                continue
            self._beaten(sent)
            self.writer.recovered()
            self.counters["expired"] += self.writer.expire()
            if not known or (self.reader.following and generation != self.reader.generation):
                self._gap("worker_unknown" if not known else "generation_changed")
            for key in [key for key, failed in self._leaving.items() if failed]:
                self.leave(key)
            self._write_counts()
            for name in list(self._releasing):
                await self._release(name)
            await self._move_pending()
            await self._expire_members()
            # While the database was away no worker could renew: the others get their time after it is back.
            for worker in dead if time.monotonic() - self._steady_since_s > LEASE_S else ():
                if worker != self.id:
                    await self._reap(worker)
            await asyncio.sleep(max(0.0, BEAT_S - (time.monotonic() - sent)))

    async def _move_pending(self) -> None:
        """Publications of transactions whose process ended after the commit."""
        moved = pending.MOVE_ROWS
        while moved == pending.MOVE_ROWS:
            [(moved,)] = await self.writer.ask(pending.move_query(self._address), (pending.MOVE_ROWS,))
            self.counters["pending_moved"] += moved
            if moved:
                self.reader.hint()

    async def _expire_members(self) -> None:
        [(expired,)] = await self.writer.ask(sql.SQL("SELECT {}.expire_members_1()").format(self._schema), ())
        if expired:
            self.reader.hint()

    def _beaten(self, sent_s: float) -> None:
        """A beat was answered. Leases end a second before the database gives them away, without another word."""
        if sent_s - self._beaten_s > LEASE_S / 2 + BEAT_S:
            self._steady_since_s = sent_s
        self._beaten_s = sent_s
        if self._leases_end is not None:
            self._leases_end.cancel()
        self._leases_end = self.loop.call_later(
            max(0.0, sent_s + LEASE_S - 1.0 - time.monotonic()), self._expire_leases
        )

    def _expire_leases(self) -> None:
        for lease in self._leases:
            lease.lost.set()

    async def _reap(self, worker: str) -> None:
        [(removed,)] = await self.writer.ask(sql.SQL("SELECT {}.reap_1(%s)").format(self._schema), (worker,))
        if removed:
            self.counters["reaped"] += 1
            logger.warning("Worker %s is dead: its members and counts were removed", worker)
            self.reader.hint()

    async def _upkeep(self) -> None:
        """Trim the log in small deletes, and measure it."""
        trim = sql.SQL("SELECT * FROM {}.trim_2(%s, %s)").format(self._schema)
        measured_s = float("-inf")
        while True:
            await asyncio.sleep(TRIM_S)
            if not self.reader.following:
                continue
            now = time.monotonic()
            self._samples.append((now, self.reader.top))
            upto = 0
            while self._samples and self._samples[0][0] <= now - self._log_seconds:
                upto = self._samples.popleft()[1]
            [(more, dropped)] = await self.writer.ask(trim, (upto, TRIM_ROWS))
            self.counters["sessions_dropped"] += dropped
            if more and upto:
                self._samples.appendleft((now - self._log_seconds, upto))
            if now - measured_s >= MEASURE_S:
                measured_s = now
                self.sizes = await self._measure()

    # -- gaps ----------------------------------------------------------------------------------------------------------

    async def _reconnected(self) -> None:
        """Before the first write on a new connection: is it the same server, on the same timeline?"""

        def check() -> None:
            with database.connect_blocking(self._address, "check") as connection:
                [(recovery,)] = connection.execute("SELECT pg_is_in_recovery()").fetchall()
                if recovery:
                    raise errors.EngineUnavailable(f"{self._address.public} is a standby")
                database.check_generation(connection, self._address)

        await asyncio.to_thread(check)

    def _gap(self, reason: str) -> None:
        """Entries may have been missed: tell the hub, and start again from the present."""
        if self._restarting or self._closing:
            return
        self._restarting = True
        self.reader.following = False
        self.counters["gaps"] += 1
        logger.error("Entries of the log may have been missed (%s): the worker starts again from the present", reason)
        self._samples.clear()
        self.reader.give_up("The worker starts again")
        self._unreported = reason
        try:
            self._report_gap()
        except Exception:
            logger.exception("The gap could not be handled; the restart tries again")
        self._supervisor.run("The restart", functools.partial(self._persist, self._restart))

    def _report_gap(self) -> None:
        if self._unreported is not None:
            self._on_gap(self._unreported, None)
            self._unreported = None

    async def _restart(self) -> None:
        self._report_gap()
        for lease in self._leases:
            lease.lost.set()
        await self._join()
        self._restarting = False


def _ignore(_rows: dict[int, operations.Row], _error: Any) -> None:
    """The outcome does not matter to the caller."""


def _prepare(address: database.Address) -> None:
    """In a thread. Raises EngineError."""
    try:
        with database.connect_blocking(address, "start") as connection:
            database.prepare(connection, address)
            _refuse_pooler(connection, address)
    except psycopg.Error as error:
        raise errors.EngineUnavailable(f"The database cannot be reached: {writer.describe(error)}") from error


def _refuse_pooler(connection: database.Connection, address: database.Address) -> None:
    """Behind a transaction pooler, a connection loses its LISTEN, so it does not get the notification of another
    connection."""
    topic = f"{address.topic}_{secrets.token_hex(4)}"
    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(topic)))
    with database.connect_blocking(address, "start") as other:
        other.execute("SELECT pg_notify(%s, '')", (topic,))
    received = [one for one in connection.notifies(timeout=2.0, stop_after=1) if one.channel == topic]
    connection.execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(topic)))
    if not received:
        raise errors.EngineMisconfigured(
            f"{address.public}: a notification did not come back, as with a transaction pooler (PgBouncer). "
            "Let FANFARE_ENGINE name the server itself, or a pooler in session mode."
        )
