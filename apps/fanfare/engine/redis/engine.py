"""The Redis engine: a publisher in any process, and in a process that opens it a worker too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeVar

from fanfare.engine import errors, interface
from fanfare.engine.redis import address, consumer
from fanfare.engine.redis.queries import Queries, Store
from fanfare.engine.redis.worker import Worker

T = TypeVar("T")

PARTITIONS: Final = 16


class RedisEngine(interface.Engine):
    """See `interface.Engine`. `url` as `address.parse` reads it. `partitions`: the same on every machine.

    `log_seconds`: how long an entry stays for a worker that is late. `append_timeout`: seconds.
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
        self.partitions = partitions
        self.log_seconds = log_seconds
        self.append_timeout = append_timeout
        self._store = Store(self.address, partitions, append_timeout)
        self._worker: Worker | None = None
        self._closed = False
        self._listening: set[tuple[str, str]] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        if self._worker is not None:
            raise errors.EngineMisconfigured("This engine is open already")
        self._closed = False
        worker = Worker(self._store, deliver, on_gap, log_seconds=self.log_seconds, append_timeout=self.append_timeout)
        for app, channel in self._listening:
            worker.of(app, channel).listen(app, channel, on=True)
        self._worker = worker
        try:
            await worker.open()
            await asyncio.to_thread(self._store.check)
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
        await asyncio.to_thread(self._store.close)

    def health(self) -> interface.Health:
        worker = self._worker
        details = {"workers": worker.workers if worker else 0, "log": self.address.public}
        problem = worker.problem() if worker is not None else None
        return interface.Health(problem is None, problem or "ok", details)

    def statistics(self) -> dict[str, int | float]:
        return {} if self._worker is None else self._worker.statistics()

    # -- the log -------------------------------------------------------------------------------------------------------

    def partition(self, app: str, channel: str) -> int:
        return address.partition_of(app, channel, self.partitions)

    def listen(self, app: str, channel: str, on: bool) -> None:
        (self._listening.add if on else self._listening.discard)((app, channel))
        if self._worker is not None:
            self._worker.of(app, channel).listen(app, channel, on=on)

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        worker = self._worker
        if worker is None or not worker.is_home():
            return asyncio.to_thread(self._store.append, publications, budget)
        return worker.append(publications, budget)

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        if self._worker is None:
            failed("The engine is closed")
            return
        self._worker.post(publication, failed)

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

    # -- presence and counts -------------------------------------------------------------------------------------------

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is closed"))
            return
        self._worker.attach(wanted, ready)

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        with self._blocking(timeout) as store:
            return store.update_member(app, channel, user_id, info)

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        if self._worker is not None:
            self._worker.leave((app, channel, socket_id))

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        if self._worker is not None:
            self._worker.set_subscribers(app, channel, count, announce=announce)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is closed"))
            return
        self._worker.admit(app, limit, ready)

    # -- sessions ------------------------------------------------------------------------------------------------------

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        worker = self._worker
        if worker is not None:
            with contextlib.suppress(errors.EngineUnavailable):  # the next record replaces it
                worker.submit(worker.session_partition(app, token), ("s", app, token, record, seconds, holder, release))

    async def load_session(self, app: str, token: str) -> bytes | None:
        await self._here().settled()
        return await self._ask(lambda asked: asked.session(app, token))

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        worker = self._here()
        answer = await worker.done(worker.session_partition(app, token), ("t", app, token, holder))
        record, before, changed_ms = answer.results[0]
        return interface.Taken(record or None, before.decode() or None, changed_ms / 1000 if changed_ms >= 0 else None)

    def when_written(self, then: Callable[[], None]) -> None:
        self._here().when_written(then)

    # -- questions -----------------------------------------------------------------------------------------------------

    async def ask(self, query: Callable[[interface.Queries], T]) -> T:
        await self._here().settled()
        return await self._ask(query)

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        with self._store.client() as client:
            yield Queries(self._store, client)

    # -- consumers -----------------------------------------------------------------------------------------------------

    async def lease(self, name: str) -> interface.Lease:
        return await self._here().lease(name)

    async def consume(
        self, name: str, partition: int, kinds: frozenset[interface.Kind], *, after: int | None = None
    ) -> interface.Consumer:
        worker = self._here()
        return await consumer.begin(worker, worker.all[partition], name, kinds, after)

    # -- inside --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _blocking(self, timeout: float | None) -> Iterator[Store]:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")
        if timeout is None or timeout == self.append_timeout:
            yield self._store
            return
        with contextlib.closing(Store(self.address, self.partitions, timeout)) as store:
            yield store

    def _here(self) -> Worker:
        if self._worker is None:
            raise errors.EngineUnavailable("The engine is not open")
        return self._worker

    async def _ask(self, question: Callable[[Queries], T]) -> T:
        return await asyncio.to_thread(self._store.ask, lambda client: question(Queries(self._store, client)))
