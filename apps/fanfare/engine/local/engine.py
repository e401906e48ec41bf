"""The local engine: a publisher in any process, and in a process that opens it a worker too."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from fanfare.engine import errors, interface
from fanfare.engine.local import occupancy, place, pokes, presence, publishing, queries, upkeep, worker, writer

T = TypeVar("T")


class LocalEngine(interface.Engine):
    """See `interface.Engine`. `folder` is the world: engines of one folder share everything, of two folders nothing.

    `log_seconds`: how long an announcement stays for a worker that is late. `append_timeout`: seconds.
    """

    partitions = 1

    def __init__(
        self, folder: Path, *, full_sync: bool = False, log_seconds: float = 20.0, append_timeout: float = 5.0
    ) -> None:
        self.place = place.Place(folder)
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._ringer = pokes.Ringer()
        self._full_sync = full_sync
        self._writer = self._new_writer()
        self._worker: worker.Worker | None = None
        self._skipping = False
        self._listening: set[tuple[str, str]] = set()

    def _new_writer(self) -> writer.Writer:
        return writer.Writer(self.place, full_sync=self._full_sync, logged=self._logged)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        if self._worker is not None:
            raise errors.EngineMisconfigured("This engine is open already")
        self.place.prepare()
        if self._writer.stopped:  # a life before this one ended, or could not begin
            self._writer = self._new_writer()
        self._worker = worker.Worker(
            self.place,
            self._writer,
            deliver,
            on_gap,
            log_seconds=self._log_seconds,
            append_timeout=self._append_timeout,
        )
        self._worker.tail.skip_unheard(self._skipping)
        for app, channel in self._listening:
            self._worker.tail.heard.listen(app, channel, True)
        try:
            await self._worker.open()
        except BaseException:
            await self.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._worker is not None

    async def close(self) -> None:
        closing, self._worker = self._worker, None
        self._listening.clear()
        last = closing is not None and await closing.close()
        await asyncio.get_running_loop().run_in_executor(None, self._writer.stop, last)
        self._ringer.close()
        if closing is not None:
            closing.release()

    def health(self) -> interface.Health:
        here = self._worker
        if here is not None:
            here.probe()  # the next answer knows
        details = {"workers": here.workers if here else 0, "log": str(self.place.log)}
        if self._writer.failure is not None:
            return interface.Health(False, self._writer.failure, details)
        if here is not None and not here.tail.following:
            return interface.Health(False, "The worker does not follow the log (yet)", details)
        return interface.Health(True, "ok", details)

    def statistics(self) -> dict[str, int | float]:
        written = {
            "groups": self._writer.groups,
            "operations": self._writer.operations,
            "reopened": self._writer.reopened,
            "set_aside": self._writer.set_aside,
            "checkpoints": self._writer.checkpoints,
        }
        here = self._worker
        if here is None:
            return {**written}
        return {
            **written,
            "workers": here.workers,
            "position": here.tail.position,
            "behind": here.tail.top - here.tail.position,
            "reads": here.tail.reads,
            "entries": here.tail.delivered,
            "counts_retried": here.subscribers.retried,
            "history_reads": here.tail.replays.reads,
            "history_shared": here.tail.replays.shared,
            "history_shared_bytes": here.tail.replays.bytes,
            **here.sizes,
            **here.counters,
        }

    def _logged(self) -> None:
        """There is something to read: wake the others, and this worker's own loop. In the thread that wrote."""
        here = self._worker
        self._ringer.ring(self.place.sockets, but=here.id if here else None)
        if here is not None:
            here.logged()

    # -- the log -------------------------------------------------------------------------------------------------------

    def skip_unheard(self, skip: bool) -> None:
        self._skipping = skip
        if self._worker is not None:
            self._worker.tail.skip_unheard(skip)

    def partition(self, app: str, channel: str) -> int:
        return 0

    def listen(self, app: str, channel: str, on: bool) -> None:
        (self._listening.add if on else self._listening.discard)((app, channel))
        if self._worker is not None:
            self._worker.tail.heard.listen(app, channel, on)

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        loop = self._loop()
        operation = publishing.AwaitedAppend(publications, loop, budget)
        self._writer.submit(operation)
        if self._worker is None:  # whose timer would look after it
            timer = loop.call_later(self._append_timeout, self._writer.expire, self._append_timeout)
            operation.future.add_done_callback(lambda _: timer.cancel())
        return operation.future

    def present(self) -> int | None:
        here = self._worker
        return here.tail.position if here is not None and here.tail.following else None

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        try:
            self._writer.submit(publishing.PostedAppend(publication, self._loop(), failed))
        except errors.EngineError as error:
            failed(str(error))

    def _loop(self) -> asyncio.AbstractEventLoop:
        """The caller's: the worker's, as a rule, and then without the system call that asking is up to Python 3.11."""
        here = self._worker
        return here.loop if here is not None and here.is_home() else asyncio.get_running_loop()

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        timeout = self._append_timeout if timeout is None else timeout
        operation = publishing.BlockingAppend(publications)
        self._writer.write(operation)
        if not operation.wait(timeout):
            if self._writer.withdraw(operation):
                raise errors.EngineUnavailable(f"The log's queue did not move for {timeout:g} s")
            # Its transaction has begun: it ends within SQLite's busy time-out, one way or the other.
            if not operation.wait(timeout + 5):
                raise errors.EngineUnavailable(f"The commit takes longer than {2 * timeout + 5:g} s; it may yet happen")
        if operation.error is not None:
            raise operation.error
        return operation.receipts

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        here = self._worker
        if here is not None:
            here.submit(upkeep.Session(here.loop, app, token, record, seconds=seconds, holder=holder, release=release))

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        here = self._opened()
        return (await here.done(upkeep.TakeSession(here.loop, app, token, holder))).taken

    async def load_session(self, app: str, token: str) -> bytes | None:
        here = self._opened()
        await here.done(upkeep.Touch(here.loop))  # what this worker saved before is written now
        return await here.ask(lambda asked: asked.session(app, token))

    def when_written(self, then: Callable[[], None]) -> None:
        if self._worker is None:
            then()
        else:
            self._worker.submit(upkeep.Touch(self._worker.loop, lambda _operation, _error: then()))

    # -- presence and counts -------------------------------------------------------------------------------------------

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        if self._worker is not None:  # a worker that is gone has no subscribers any more
            self._worker.tail.heard.subscribe(app, channel, count > 0)
            self._worker.subscribers.set(app, channel, count, announce=announce)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is not open"))
        else:
            self._worker.attach(presence.Attach(self._worker.loop, wanted, ready))

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        if self._worker is not None:  # it took its members with it
            self._worker.leave(presence.Leave(self._worker.loop, app, channel, socket_id))

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is not open"))
        else:
            self._worker.admit(occupancy.Admit(self._worker.loop, app, limit, ready))

    # -- questions -----------------------------------------------------------------------------------------------------

    async def ask(self, query: Callable[[interface.Queries], T]) -> T:
        return await self._opened().ask(query)

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        if self.place.identity() is None:
            self.append_blocking([])  # makes an empty log, which has an answer to everything
        asked = queries.Queries(self.place)
        try:
            yield asked
        except sqlite3.Error as error:
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error
        finally:
            asked.close()

    # -- consumers that must see every entry ---------------------------------------------------------------------------

    async def lease(self, name: str) -> interface.Lease:
        return await self._opened().leases.acquire(name)

    async def consume(
        self, name: str, partition: int, kinds: frozenset[interface.Kind], *, after: int | None = None
    ) -> interface.Consumer:
        return await self._opened().consume(name, kinds, after)

    async def entries(self, after: int, limit: int) -> list[interface.Entry]:
        return await self._opened().ask(lambda asked: asked.entries(after, limit))

    async def cursor(self, name: str) -> int:
        here = self._opened()
        found = await here.done(upkeep.Cursor(here.loop, name))
        return found.position or 0

    async def move_cursor(self, name: str, position: int) -> None:
        here = self._opened()
        await here.done(upkeep.Cursor(here.loop, name, position))

    async def drop_cursor(self, name: str) -> None:
        here = self._opened()
        await here.done(upkeep.Cursor(here.loop, name, forget=True))

    def _opened(self) -> worker.Worker:
        if self._worker is None:
            raise errors.EngineUnavailable("The engine is not open")
        return self._worker
