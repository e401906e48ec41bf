"""The PostgreSQL engine: a publisher in any process, and in a process that opens it a worker too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeVar

from psycopg import sql

from fanfare.engine import consumers, errors, interface
from fanfare.engine.postgres import database, operations, pending
from fanfare.engine.postgres import queries as questions
from fanfare.engine.postgres.worker import Worker

T = TypeVar("T")

POOL_SIZE: Final = 4


class PostgresEngine(interface.Engine):
    """See `interface.Engine`. `url` as `database.parse` reads it. `log_seconds`: how long an announcement stays for a
    worker that is late. `append_timeout`: seconds."""

    partitions = 1

    def __init__(
        self, url: str, *, log_seconds: float = 20.0, append_timeout: float = interface.APPEND_TIMEOUT_S
    ) -> None:
        self.address = database.parse(url)
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._pool = questions.Pool(self.address, size=POOL_SIZE, timeout_s=append_timeout)
        self._worker: Worker | None = None
        self._closed = False
        self._listening: set[tuple[str, str]] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        if self._worker is not None:
            raise errors.EngineMisconfigured("This engine is open already")
        self._closed = False
        worker = Worker(
            self.address,
            deliver,
            on_gap,
            self._sizes,
            log_seconds=self._log_seconds,
            append_timeout=self._append_timeout,
        )
        for app, channel in self._listening:
            worker.reader.listen(app, channel, True)
        self._worker = worker
        try:
            await worker.open()
        except BaseException:
            await self.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._worker is not None

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        self._closed = True
        self._listening.clear()
        if worker is not None:
            await worker.close()
        await asyncio.to_thread(self._pool.close)

    def health(self) -> interface.Health:
        worker = self._worker
        details = {"workers": worker.workers if worker else 0, "log": self.address.public}
        problem = worker.problem() if worker is not None else None
        return interface.Health(problem is None, problem or "ok", details)

    def statistics(self) -> dict[str, int | float]:
        return {} if self._worker is None else self._worker.statistics()

    # -- the log -------------------------------------------------------------------------------------------------------

    def partition(self, app: str, channel: str) -> int:
        return 0

    def listen(self, app: str, channel: str, on: bool) -> None:
        (self._listening.add if on else self._listening.discard)((app, channel))
        if self._worker is not None:
            self._worker.reader.listen(app, channel, on)

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        worker = self._worker
        if worker is None or not worker.is_home():
            return asyncio.to_thread(self._append_here, publications, budget)
        return worker.append(publications, budget)

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        worker = self._worker
        if worker is None:
            failed("The engine is closed")
            return
        worker.post(publication, failed)

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        with self._pool.connection(timeout) as connection:
            return questions.append(connection, self.address, publications)

    @property
    def pending(self) -> pending.Pending:
        """For publications that a transaction of the project writes itself."""
        return pending.Pending(self.address, self._read_generation)

    def move_pending(self) -> int:
        """Move the committed publications of transactions into the log; how many. In any thread. Raises
        EngineUnavailable."""
        query = pending.move_query(self.address)
        moved = 0
        with self._pool.connection() as connection:
            while True:
                [(rows,)] = connection.execute(query, (pending.MOVE_ROWS,)).fetchall()
                moved += rows
                if rows < pending.MOVE_ROWS:
                    break
        if moved and self._worker is not None:
            self._worker.loop.call_soon_threadsafe(self._worker.reader.hint)
        return int(moved)

    def _read_generation(self) -> str:
        query = sql.SQL("SELECT generation FROM {}.state").format(sql.Identifier(self.address.schema))
        with self._pool.connection() as connection:
            [(generation,)] = connection.execute(query).fetchall()
        return str(generation)

    def _append_here(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> list[interface.Receipt]:
        wanted = operations.append(publications, budget)
        query = sql.SQL(operations.APPLY).format(sql.Identifier(self.address.schema))
        with self._pool.connection() as connection:
            rows = connection.execute(query, operations.arguments(None, wanted, notify=True)).fetchall()
        receipts, refused = operations.receipts(wanted, {row[0] - 1: operations.Row._make(row) for row in rows})
        if refused is not None:
            raise refused
        return receipts

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        if not writes:
            return []
        query = sql.SQL(operations.WRITE_STREAMS).format(sql.Identifier(self.address.schema))
        with self._pool.connection(timeout) as connection:
            rows = connection.execute(query, operations.stream_arguments(writes)).fetchall()
        return operations.stream_receipts(rows)

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        query = sql.SQL("SELECT {}.revise_1(%s, %s, %s, %s, %s::bytea, %s::bytea)").format(
            sql.Identifier(self.address.schema)
        )
        app, channel, position, body, notice = revision
        with self._pool.connection(timeout) as connection:
            [(offset,)] = connection.execute(query, (app, channel, *position, body, notice)).fetchall()
        return None if offset is None else interface.Position(position.epoch, offset)

    # -- sessions ------------------------------------------------------------------------------------------------------

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        if self._worker is not None:
            self._worker.submit(
                [
                    operations.Operation(
                        "session", app, key=token, body=record, n=seconds, user=holder, size=int(release)
                    )
                ]
            )

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        row = await self._here().done(operations.Operation("take", app, key=token, user=holder))
        record = None if row.record is None else bytes(row.record)
        return interface.Taken(record, row.epoch, None if row.actual is None else row.actual / 1000)

    async def load_session(self, app: str, token: str) -> bytes | None:
        await self._here().barrier()
        return await self._ask(lambda asked: asked.session(app, token))

    def when_written(self, then: Callable[[], None]) -> None:
        self._here().when_written(then)

    # -- presence and counts -------------------------------------------------------------------------------------------

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        if self._worker is not None:
            self._worker.set_subscribers(app, channel, count, announce=announce)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is closed"))
            return
        self._worker.attach(wanted, ready)

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        query = sql.SQL("SELECT {}.update_member_1(%s, %s, %s, %s)").format(sql.Identifier(self.address.schema))
        with self._pool.connection(timeout) as connection:
            [(is_member,)] = connection.execute(query, (app, channel, user_id, info)).fetchall()
        return bool(is_member)

    def lease_member(
        self,
        app: str,
        channel: str,
        user_id: str,
        info: str | None,
        seconds: float,
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> bool | interface.Refused:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        query = sql.SQL("SELECT * FROM {}.lease_member_1(%s, %s, %s, %s, %s, %s, %s)").format(
            sql.Identifier(self.address.schema)
        )
        values = (app, channel, user_id, interface.lease_socket(user_id), info, seconds, limit)
        with self._pool.connection(timeout) as connection:
            [(joined, users)] = connection.execute(query, values).fetchall()
        if users is not None:
            message = f"The channel has {users} members; {limit} are allowed"
            return interface.Refused("member_limit", message, limit, users)
        return bool(joined)

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        query = sql.SQL("SELECT {}.release_member_1(%s, %s, %s)").format(sql.Identifier(self.address.schema))
        with self._pool.connection(timeout) as connection:
            [(was_member,)] = connection.execute(query, (app, channel, interface.lease_socket(user_id))).fetchall()
        return bool(was_member)

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        if self._worker is not None:
            self._worker.leave((app, channel, socket_id))

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is closed"))
            return
        self._worker.admit(app, limit, ready)

    # -- questions -----------------------------------------------------------------------------------------------------

    async def ask(self, query: Callable[[interface.Queries], T]) -> T:
        await self._here().settled()
        return await self._ask(query)

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        with self._pool.connection() as connection:
            yield questions.Queries(connection, self.address)

    # -- consumers -----------------------------------------------------------------------------------------------------

    async def lease(self, name: str) -> interface.Lease:
        return await self._here().lease(name)

    async def consume(
        self, name: str, partition: int, kinds: frozenset[interface.Kind], *, after: int | None = None
    ) -> interface.Consumer:
        here = self._here()
        mask = consumers.mask(kinds)

        async def scan(after: int, limit: int) -> consumers.Scan:
            return await self._ask(lambda asked: asked.scan(kinds, after, limit))

        async def move(position: int | None) -> None:
            forget = int(position is None)
            await here.done(operations.Operation("cursor", key=name, n=position, seconds=mask, size=forget))

        row = await here.done(operations.Operation("cursor", key=name, n=after, seconds=mask))
        return consumers.ScanningConsumer(
            row.epoch or "", row.actual or 0, scan=scan, grown=here.reader.grown, move=move
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _here(self) -> Worker:
        if self._worker is None:
            raise errors.EngineUnavailable("The engine is not open")
        return self._worker

    async def _ask(self, question: Callable[[questions.Queries], T]) -> T:
        def ask() -> T:
            with self._pool.connection() as connection:
                return question(questions.Queries(connection, self.address))

        return await asyncio.to_thread(ask)

    async def _sizes(self) -> dict[str, int]:
        return await self._ask(questions.Queries.sizes)
