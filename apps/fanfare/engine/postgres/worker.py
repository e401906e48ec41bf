"""A worker on PostgreSQL: its life and heartbeat, what it writes, and how it starts again after a gap."""

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
from typing import Final

import psycopg
from psycopg import sql

from fanfare.engine import errors, interface, moves
from fanfare.engine.postgres import (
    counts,
    database,
    leases,
    operations,
    reader,
    subscriptions,
    upkeep,
    writer,
)
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)

BEAT_S: Final = 1.0
SILENCE_S: Final = 2.0  # after which the worker is not healthy
GOODBYE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 2.0


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
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._address = address
        self._on_gap = on_gap
        self._supervisor = Supervisor(logger, count=self._count, prefix="tasks")
        self.reader = reader.Reader(address, deliver, self._gap, self.id)
        self.writer = writer.Writer(
            address, timeout_s=append_timeout, reconnected=self._reconnected, logged=self.reader.hint
        )
        self.subscribers = counts.SubscriberCounts(self.writer, self.counters)
        self.subscriptions = subscriptions.Subscriptions(self.writer, self.reader, self.subscribers, self.counters)
        self.leases = leases.Leases(address, self.writer, self._supervisor)
        self.upkeep = upkeep.Upkeep(address, self.writer, self.reader, self.counters, measure, log_seconds=log_seconds)
        self._schema = sql.Identifier(address.schema)
        self._beaten_s = float("-inf")  # monotonic: when the last beat that was answered was sent
        self._steady_since_s = float("-inf")  # monotonic: since when the beats follow each other
        self._lost_at_s: float | None = None  # monotonic: see `lost_s`
        self._closing = False
        self.is_restarting = False
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
            ("The upkeep", self.upkeep.run),
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
            except database.RETRIED as error:
                logger.debug("%s: %s", getattr(function, "__name__", ""), writer.describe(error))
                if time.monotonic() - started > LONGEST_PAUSE_S:
                    backoff.succeeded()
                await asyncio.sleep(backoff.failed())
            else:
                return

    async def _join(self) -> None:
        """Become known under a new id, and follow from the present. Raises EngineUnavailable."""
        await self.writer.ask(sql.SQL("SELECT 1 FROM {}()").format(self._address.function("refuse_moved")))
        self.leases.lose_all()  # since the restart began, some may have been acquired under the id before
        self.id = self.writer.worker = secrets.token_hex(8)
        self.reader.mailbox = f"#worker-{self.id}"
        node = f"{socket.gethostname()}:{os.getpid()}"
        await self.writer.ask(
            sql.SQL(
                "INSERT INTO {}.workers VALUES (%s, %s, clock_timestamp() + %s * interval '1 second') RETURNING 1"
            ).format(self._schema),
            (self.id, node, leases.LEASE_S),
        )
        [(generation, top, lost_s)] = await self.writer.ask(
            sql.SQL(
                "SELECT generation, GREATEST(trimmed_to, COALESCE((SELECT MAX(id) FROM {0}.log), 0)), "
                "(SELECT EXTRACT(EPOCH FROM clock_timestamp() - taken)::float8 FROM {0}.sessions "
                "WHERE app = '' AND token = {1}) FROM {0}.state"
            ).format(self._schema, sql.Literal(database.LOST_SESSIONS))
        )
        self._lost_at_s = None if lost_s is None else time.monotonic() - lost_s
        self.workers = max(self.workers, 1)
        self._beaten(time.monotonic())
        self.reader.follow(top, generation)
        self.writer.follows()

    async def close(self) -> None:
        self._closing = True
        self.subscribers.stop()
        self.subscriptions.stop()
        self.leases.stop()
        await self._supervisor.stop()
        with contextlib.suppress(errors.EngineError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                self.submit([operations.Operation("remove", key=self.id)])
                await self.writer.flush()
        await self.writer.stop()
        self.reader.following = False
        self.reader.give_up("The worker is closing")

    @property
    def lost_s(self) -> float | None:
        """The seconds since records of sessions may have been lost, or None."""
        return None if self._lost_at_s is None else time.monotonic() - self._lost_at_s

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
            **self.upkeep.sizes,
            **self.counters,
        }

    def _count(self, name: str) -> None:
        self.counters[name] += 1

    # -- writes --------------------------------------------------------------------------------------------------------

    def submit(self, wanted: Sequence[operations.Operation], settled: operations.Settled = operations.ignore) -> None:
        self.writer.submit(operations.Call(wanted, settled))

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

        self.submit(operations.append([publication], None), settled)

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
        if not self.subscribers.are_written():
            await self.barrier()

    async def barrier(self) -> None:
        """Return when everything that was asked for before is written. Raises EngineUnavailable."""
        self.subscribers.write()
        await self.done(operations.Operation("touch"))

    def when_written(self, then: Callable[[], None]) -> None:
        self.subscribers.write()
        self.submit([operations.Operation("touch")], lambda _rows, _error: then())

    # -- subscriptions and leases --------------------------------------------------------------------------------------

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool) -> None:
        if channel != interface.CONNECTIONS:
            self.reader.interest(app, channel, count > 0)
        self.subscribers.set(app, channel, count, announce=announce)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        self.subscriptions.attach(wanted, ready)

    def leave(self, key: tuple[str, str, str]) -> None:
        self.subscriptions.leave(key)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        self.subscriptions.admit(app, limit, ready)

    async def lease(self, name: str) -> leases.Lease:
        return await self.leases.acquire(name)

    # -- the heartbeat -------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renew the life and the leases of this worker, notice a new generation, remove dead workers."""
        query = sql.SQL("SELECT * FROM {}(%s, %s)").format(self._address.function("beat"))
        while True:
            sent = time.monotonic()
            try:
                [(known, generation, self.workers, dead)] = await self.writer.ask(
                    query, (self.id, leases.LEASE_S), timeout_s=SILENCE_S
                )
            except errors.EngineUnavailable:
                await asyncio.sleep(BEAT_S / 2)
                continue
            self._beaten(sent)
            self.writer.recovered()
            if not known or (self.reader.following and generation != self.reader.generation):
                self._gap(reader.change_of(generation) if known else "worker_unknown")
            self.subscriptions.repeat_leaves()
            self.subscribers.write()
            await self.leases.release_again()
            await self.upkeep.move_pending()
            await self.upkeep.expire_members()
            # While the database was away no worker could renew: the others get their time after it is back.
            for worker in dead if time.monotonic() - self._steady_since_s > leases.LEASE_S else ():
                if worker != self.id:
                    await self.upkeep.reap(worker)
            await asyncio.sleep(max(0.0, BEAT_S - (time.monotonic() - sent)))

    def _beaten(self, sent_s: float) -> None:
        if sent_s - self._beaten_s > leases.LEASE_S / 2 + BEAT_S:
            self._steady_since_s = sent_s
        self._beaten_s = sent_s
        self.leases.renewed(sent_s)

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
        if self.is_restarting or self._closing:
            return
        self.is_restarting = True
        self.reader.following = False
        self.counters["gaps"] += 1
        if reason != moves.MOVED:  # which the writer logs
            logger.error(
                "Entries of the log may have been missed (%s): the worker starts again from the present", reason
            )
        self.upkeep.restart()
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
        self.leases.lose_all()
        await self._join()
        self.is_restarting = False


def _prepare(address: database.Address) -> None:
    """In a thread. Raises EngineError."""
    try:
        with database.connect_blocking(address, "start") as connection:
            database.prepare(connection, address)
            _refuse_pooler(connection, address)
    except psycopg.errors.InsufficientPrivilege as error:
        raise errors.EngineMisconfigured(
            f"The role of FANFARE_ENGINE lacks a right: {writer.describe(error)}. The page “Serve from several "
            "machines” has the GRANT."
        ) from error
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
