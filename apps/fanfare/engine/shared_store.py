"""What the engines of a shared store, PostgreSQL and Redis, have in common: they pass calls on to their worker."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from fanfare.engine import errors, interface, moves

T = TypeVar("T")


class Worker(Protocol):
    """The worker of an open engine. All methods but `is_home` are called on its loop."""

    workers: int

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def is_home(self) -> bool: ...

    def problem(self) -> str | None: ...

    def statistics(self) -> dict[str, int | float]: ...

    def listen(self, app: str, channel: str, on: bool) -> None: ...

    def append(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> Awaitable[list[interface.Receipt]]: ...

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None: ...

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None: ...

    def leave(self, key: tuple[str, str, str]) -> None: ...

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool) -> None: ...

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None: ...

    def when_written(self, then: Callable[[], None]) -> None: ...

    async def settled(self) -> None: ...

    async def lease(self, name: str) -> interface.Lease: ...


W = TypeVar("W", bound=Worker)


class SharedStoreEngine(interface.Engine, Generic[W]):
    """An engine whose processes share a store over the network. `log`: the store's URL without the password."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._worker: W | None = None
        self._closed = False
        self._listening: set[tuple[str, str]] = set()

    # -- for each store ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _append_here(
        self, publications: Sequence[interface.Publication], budget: interface.Budget | None
    ) -> list[interface.Receipt]:
        """Append in this thread."""

    @abc.abstractmethod
    async def _ask(self, query: Callable[[Any], T]) -> T:
        """Run a query in another thread."""

    @abc.abstractmethod
    def _disconnect(self) -> None:
        """Close the connections of processes without a worker. In another thread."""

    # -- life ----------------------------------------------------------------------------------------------------------

    async def _begin(self, worker: W, check: Callable[[], object] | None = None) -> None:
        """Open a worker. `check` runs in another thread; an error of either closes the engine."""
        for app, channel in self._listening:
            worker.listen(app, channel, True)
        self._worker = worker
        try:
            await worker.open()
            if check is not None:
                await asyncio.to_thread(check)
        except errors.EngineMoved as error:
            await self.close()
            raise errors.EngineMisconfigured(str(error)) from error
        except BaseException:
            await self.close()
            raise

    def _refuse_second_life(self) -> None:
        if self._worker is not None:
            raise errors.EngineMisconfigured("This engine is open already")
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._worker is not None

    @property
    def is_moved(self) -> bool:
        return self._log in moves.seen

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        self._closed = True
        self._listening.clear()
        if worker is not None:
            await worker.close()
        await asyncio.to_thread(self._disconnect)

    def health(self) -> interface.Health:
        worker = self._worker
        details = {"workers": worker.workers if worker else 0, "log": self._log}
        problem = worker.problem() if worker is not None else None
        return interface.Health(problem is None, problem or "ok", details)

    def statistics(self) -> dict[str, int | float]:
        return {} if self._worker is None else self._worker.statistics()

    def _here(self) -> W:
        if self._worker is None:
            raise errors.EngineUnavailable("The engine is not open")
        return self._worker

    def _refuse_closed(self) -> None:
        if self._closed:
            raise errors.EngineUnavailable("The engine is closed")

    # -- the log -------------------------------------------------------------------------------------------------------

    def listen(self, app: str, channel: str, on: bool) -> None:
        (self._listening.add if on else self._listening.discard)((app, channel))
        if self._worker is not None:
            self._worker.listen(app, channel, on)

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        self._refuse_closed()
        worker = self._worker
        if worker is None or not worker.is_home():
            return asyncio.to_thread(self._append_here, publications, budget)
        return worker.append(publications, budget)

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        if self._worker is None:
            failed("The engine is closed")
        else:
            self._worker.post(publication, failed)

    # -- presence and counts -------------------------------------------------------------------------------------------

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is closed"))
        else:
            self._worker.attach(wanted, ready)

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        if self._worker is not None:
            self._worker.leave((app, channel, socket_id))

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        if self._worker is not None:
            self._worker.set_subscribers(app, channel, count, announce=announce)

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is closed"))
        else:
            self._worker.admit(app, limit, ready)

    # -- sessions, queries, leases -------------------------------------------------------------------------------------

    def when_written(self, then: Callable[[], None]) -> None:
        self._here().when_written(then)

    async def ask(self, query: Callable[[interface.Queries], T]) -> T:
        await self._here().settled()
        return await self._ask(query)

    async def lease(self, name: str) -> interface.Lease:
        return await self._here().lease(name)
