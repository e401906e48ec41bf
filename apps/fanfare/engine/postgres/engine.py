"""The PostgreSQL engine: a publisher in any process, and in a process that opens it a worker too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from psycopg import sql

from fanfare.engine import consumers, errors, interface
from fanfare.engine.postgres import database, operations, pending
from fanfare.engine.postgres import queries as questions
from fanfare.engine.postgres.worker import Worker
from fanfare.engine.shared_store import SharedStoreEngine

T = TypeVar("T")

POOL_SIZE: Final = 4


class PostgresEngine(SharedStoreEngine[Worker]):
    """See `interface.Engine`. `url` as `database.parse` reads it. `log_seconds`: how long an announcement stays for a
    worker that is late. `append_timeout`: seconds."""

    partitions = 1

    def __init__(
        self, url: str, *, log_seconds: float = 20.0, append_timeout: float = interface.APPEND_TIMEOUT_S
    ) -> None:
        self.address = database.parse(url)
        super().__init__(self.address.public)
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._pool = questions.Pool(self.address, size=POOL_SIZE, timeout_s=append_timeout)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        self._refuse_second_life()
        worker = Worker(
            self.address,
            deliver,
            on_gap,
            self._sizes,
            log_seconds=self._log_seconds,
            append_timeout=self._append_timeout,
        )
        await self._begin(worker)

    def _disconnect(self) -> None:
        self._pool.close()

    # -- the log -------------------------------------------------------------------------------------------------------

    def partition(self, app: str, channel: str) -> int:
        return 0

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        self._refuse_closed()
        return self._append_here(publications, None, timeout)

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
        self,
        publications: Sequence[interface.Publication],
        budget: interface.Budget | None,
        timeout: float | None = None,
    ) -> list[interface.Receipt]:
        wanted = operations.append(publications, budget)
        query = sql.SQL(operations.APPLY).format(self.address.function("apply"))
        with self._pool.connection(timeout) as connection:
            rows = connection.execute(query, operations.arguments(None, wanted, notify=True)).fetchall()
        receipts, refused = operations.receipts(wanted, {row[0] - 1: operations.Row._make(row) for row in rows})
        if refused is not None:
            raise refused
        return receipts

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]:
        self._refuse_closed()
        if not writes:
            return []
        query = sql.SQL(operations.WRITE_STREAMS).format(self.address.function("streams"))
        with self._pool.connection(timeout) as connection:
            rows = connection.execute(query, operations.stream_arguments(writes)).fetchall()
        return operations.stream_receipts(rows)

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None:
        self._refuse_closed()
        query = sql.SQL("SELECT {}(%s, %s, %s, %s, %s::bytea, %s::bytea)").format(self.address.function("revise"))
        app, channel, position, body, notice = revision
        with self._pool.connection(timeout) as connection:
            [(offset,)] = connection.execute(query, (app, channel, *position, body, notice)).fetchall()
        return None if offset is None else interface.Position(position.epoch, offset)

    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> interface.Position:
        self._refuse_closed()
        query = sql.SQL(operations.APPLY).format(self.address.function("apply"))
        wanted = [operations.Operation("stream", app, channel)]
        with self._pool.connection(timeout) as connection:
            connection.execute(query, operations.arguments(None, wanted, notify=False))
            _, position = questions.Queries(connection, self.address).read(app, channel, 0, 1, newest_first=True)
        if position is None:
            raise errors.EngineUnavailable(f"The channel {channel} was reset while it was opened")
        return position

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
        here = self._here()
        row = await here.done(operations.Operation("take", app, key=token, user=holder))
        if here.is_restarting:  # it does not know yet what was lost
            raise errors.EngineUnavailable("The worker starts again")
        record = None if row.record is None else bytes(row.record)
        return interface.Taken(record, row.epoch, None if row.actual is None else row.actual / 1000, here.lost_s)

    async def load_session(self, app: str, token: str) -> bytes | None:
        await self._here().barrier()
        return await self._ask(lambda asked: asked.session(app, token))

    # -- presence and counts -------------------------------------------------------------------------------------------

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        self._refuse_closed()
        query = sql.SQL("SELECT {}(%s, %s, %s, %s)").format(self.address.function("update_member"))
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
        self._refuse_closed()
        query = sql.SQL("SELECT * FROM {}(%s, %s, %s, %s, %s, %s, %s)").format(self.address.function("lease_member"))
        values = (app, channel, user_id, interface.lease_socket(user_id), info, seconds, limit)
        with self._pool.connection(timeout) as connection:
            [(joined, users)] = connection.execute(query, values).fetchall()
        if users is not None:
            return interface.too_many_members(limit or 0, users)
        return bool(joined)

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        self._refuse_closed()
        query = sql.SQL("SELECT {}(%s, %s, %s)").format(self.address.function("release_member"))
        with self._pool.connection(timeout) as connection:
            [(was_member,)] = connection.execute(query, (app, channel, interface.lease_socket(user_id))).fetchall()
        return bool(was_member)

    # -- queries -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        with self._pool.connection() as connection:
            yield questions.Queries(connection, self.address)

    # -- consumers -----------------------------------------------------------------------------------------------------

    async def consume(
        self,
        name: str,
        partition: int,
        kinds: frozenset[interface.Kind],
        *,
        after: int | None = None,
        transient: bool = False,
    ) -> interface.Consumer:
        here = self._here()
        mask = consumers.mask(kinds)

        async def scan(after: int, limit: int) -> consumers.Scan:
            return await self._ask(lambda asked: asked.scan(kinds, after, limit))

        async def move(position: int | None) -> None:
            forget = int(position is None)
            await here.done(operations.Operation("cursor", key=name, n=position, seconds=mask, size=forget))

        if transient:
            return await consumers.transient(after, scan=scan, grown=here.reader.grown)
        row = await here.done(operations.Operation("cursor", key=name, n=after, seconds=mask, size=2))
        return consumers.ScanningConsumer(
            row.epoch or "", row.actual or 0, scan=scan, grown=here.reader.grown, move=move
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _ask(self, query: Callable[[questions.Queries], T]) -> T:
        def ask() -> T:
            with self._pool.connection() as connection:
                return query(questions.Queries(connection, self.address))

        return await asyncio.to_thread(ask)

    async def _sizes(self) -> dict[str, int]:
        return await self._ask(questions.Queries.sizes)
