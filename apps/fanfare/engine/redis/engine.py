"""The Redis engine: a publisher in every process, and also a worker in a process that opens it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from fanfare.engine import interface
from fanfare.engine.redis import address, consumer
from fanfare.engine.redis.queries import Queries, Store
from fanfare.engine.redis.worker import Worker
from fanfare.engine.shared_store import SharedStoreEngine

T = TypeVar("T")

PARTITIONS: Final = 16


class RedisEngine(SharedStoreEngine[Worker]):
    """See `interface.Engine`. `url` as `address.parse` reads it. `partitions`: the same on every machine.

    `log_seconds`: how long the log keeps an entry for workers that read late. `append_timeout`: seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        partitions: int = PARTITIONS,
        log_seconds: float = 20.0,
        append_timeout: float = interface.APPEND_TIMEOUT_S,
    ) -> None:
        self.address = address.parse(url)
        super().__init__(self.address.public)
        self.partitions = partitions
        self.log_seconds = log_seconds
        self.append_timeout = append_timeout
        self._store = Store(self.address, partitions, append_timeout)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        self._refuse_second_life()
        worker = Worker(self._store, deliver, on_gap, log_seconds=self.log_seconds, append_timeout=self.append_timeout)
        await self._begin(worker, self._store.check)

    def _disconnect(self) -> None:
        self._store.close()

    # -- the log -------------------------------------------------------------------------------------------------------

    def partition(self, app: str, channel: str) -> int:
        return address.partition_of(app, channel, self.partitions)

    def _append_here(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> list[interface.Receipt]:
        return self._store.append(publications, budget)

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        with self._blocking(timeout) as store:
            return store.append(publications)

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]:
        with self._blocking(timeout) as store:
            return store.write_streams(writes)

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None:
        with self._blocking(timeout) as store:
            return store.revise(revision)

    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> interface.Position:
        with self._blocking(timeout) as store:
            return store.open_channel(app, channel)

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        with self._blocking(timeout) as store:
            return store.update_member(app, channel, user_id, info)

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
        with self._blocking(timeout) as store:
            return store.lease_member(app, channel, user_id, info, seconds, limit=limit)

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        with self._blocking(timeout) as store:
            return store.release_member(app, channel, user_id)

    # -- sessions ------------------------------------------------------------------------------------------------------

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        worker = self._worker
        if worker is not None:
            worker.sessions.save(app, token, record, seconds, holder, release=release)

    async def load_session(self, app: str, token: str) -> bytes | None:
        await self._here().settled()
        return await self._ask(lambda asked: asked.session(app, token))

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        return await self._here().sessions.take(app, token, holder)

    # -- queries -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        with self._store.client() as client:
            yield Queries(self._store, client)

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
        worker = self._here()
        return await consumer.begin(worker, worker.all[partition], name, kinds, after, transient=transient)

    # -- inside --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _blocking(self, timeout: float | None) -> Iterator[Store]:
        self._refuse_closed()
        if timeout is None or timeout == self.append_timeout:
            yield self._store
            return
        with contextlib.closing(Store(self.address, self.partitions, timeout)) as store:
            yield store

    async def _ask(self, query: Callable[[Queries], T]) -> T:
        return await asyncio.to_thread(self._store.ask, lambda client: query(Queries(self._store, client)))
