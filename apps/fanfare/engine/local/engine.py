"""The local engine: a publisher in any process, and in a process that opens it a worker too."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from fanfare.engine import errors, interface, moves
from fanfare.engine.local import (
    appends,
    commit_queue,
    counts,
    log_file,
    notifications,
    presence,
    schema,
    sessions,
    streams,
    transactions,
)
from fanfare.engine.local import queries as log_queries
from fanfare.engine.local import worker as workers
from fanfare.engine.local.paths import LogPaths

T = TypeVar("T")

LOG_MAX_BYTES = 2 * 1024**3


class LocalEngine(interface.Engine):
    """See `interface.Engine`. Engines of one `folder` share everything, engines of two folders nothing.

    `log_seconds`: how long entries without history stay for a worker that is late. `append_timeout`: seconds.
    `log_max_bytes`: of the log's used pages and WAL; a fuller log refuses publications.
    """

    partitions = 1

    def __init__(
        self,
        folder: Path,
        *,
        full_sync: bool = False,
        log_seconds: float = 20.0,
        append_timeout: float = interface.APPEND_TIMEOUT_S,
        log_max_bytes: int = LOG_MAX_BYTES,
    ) -> None:
        self.paths = LogPaths(folder)
        self._log_seconds = log_seconds
        self._append_timeout = append_timeout
        self._log_max_bytes = log_max_bytes
        self._notifier = notifications.Notifier()
        self._full_sync = full_sync
        self._commits = self._new_queue()
        self._worker: workers.Worker | None = None
        self._listening: set[tuple[str, str]] = set()

    def _new_queue(self) -> commit_queue.CommitQueue:
        log = log_file.LogFile(self.paths, full_sync=self._full_sync, max_bytes=self._log_max_bytes)
        return commit_queue.CommitQueue(log, logged=self._logged, written=self._written)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self, deliver: interface.Deliver, on_gap: interface.OnGap) -> None:
        if self._worker is not None:
            raise errors.EngineMisconfigured("This engine is open already")
        mark = self.paths.mark()
        if mark is not None:
            mark.refuse_worker(f"local ({self.paths.folder})")
        self.paths.prepare()
        if self._commits.is_stopped:  # an earlier life ended, or could not begin
            self._commits = self._new_queue()
        worker = self._worker = workers.Worker(
            self.paths,
            self._commits,
            deliver,
            on_gap,
            log_seconds=self._log_seconds,
            append_timeout=self._append_timeout,
        )
        for app, channel in self._listening:
            worker.reader.local.listen(app, channel, True)
        try:
            await worker.open()
        except BaseException:
            await self.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._worker is not None

    @property
    def is_moved(self) -> bool:
        return f"local ({self.paths.folder})" in moves.seen

    async def close(self) -> None:
        closing, self._worker = self._worker, None
        self._listening.clear()
        last = closing is not None and await closing.close()
        await asyncio.get_running_loop().run_in_executor(None, self._commits.stop, last)
        self._notifier.close()
        if closing is not None:
            closing.release()

    def health(self) -> interface.Health:
        here = self._worker
        details = {"workers": here.workers if here else 0, "log": str(self.paths.log)}
        problem = self._commits.failure if here is None else here.problem()
        return interface.Health(problem is None, problem or "ok", details)

    def statistics(self) -> dict[str, int | float]:
        commits, log = self._commits, self._commits.log
        found: dict[str, int | float] = {
            "groups": commits.groups,
            "operations": commits.operations,
            "reopened": log.reopened,
            "set_aside": log.set_aside,
            "checkpoints": log.checkpoints,
            "log_used_bytes": log.space.used,
            "log_limit_bytes": log.space.limit,
            "notify_failures": self._notifier.failures,
            **commits.counters,
            **commits.commit_seconds.counters("commit_seconds"),
        }
        here = self._worker
        if here is not None:
            reader = here.reader
            found |= {
                "workers": here.workers,
                "position": reader.position,
                "behind": reader.top - reader.position,
                "reads": reader.reads,
                "reads_spared": reader.taken,
                "entries": reader.delivered,
                "snapshots": reader.snapshots,
                "snapshots_shared": reader.snapshots_shared,
                "delivery_failures": reader.failures,
                "counts_retried": here.subscribers.retried,
                "history_reads": reader.recovery.reads,
                "history_shared": reader.recovery.shared,
                "history_shared_bytes": reader.recovery.bytes,
                **here.sizes,
                **here.counters,
            }
        return found

    def _logged(self, added: transactions.Added, on_loop: bool) -> None:
        """The log has new entries: notify the other workers, and hand them to this worker's reader. In the thread that
        wrote. `on_loop`: `_written` follows."""
        here = self._worker
        self._notifier.notify(self.paths.sockets, but=here.id if here else None)
        if here is not None:
            here.scheduler.logged(added, soon=not on_loop)

    def _written(self) -> None:
        if self._worker is not None:
            self._worker.scheduler.read_own()

    # -- the log -------------------------------------------------------------------------------------------------------

    def partition(self, app: str, channel: str) -> int:
        return 0

    def listen(self, app: str, channel: str, on: bool) -> None:
        (self._listening.add if on else self._listening.discard)((app, channel))
        if self._worker is not None:
            self._worker.reader.local.listen(app, channel, on)

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        loop = self._loop()
        operation = appends.AwaitedAppend(publications, loop, budget)
        self._commits.submit(operation)
        if self._worker is None:  # whose timer would refuse it
            timer = loop.call_later(self._append_timeout, self._commits.expire, self._append_timeout)
            operation.future.add_done_callback(lambda _: timer.cancel())
        return operation.future

    def append_then(
        self,
        publications: Sequence[interface.Publication],
        then: interface.Appended,
        *,
        budget: interface.Budget | None = None,
    ) -> bool:
        if self._worker is None:  # `append` has a timer then
            return False
        self._commits.submit(appends.CalledAppend(publications, self._loop(), then, budget))
        return True

    def post(self, publication: interface.Publication, failed: Callable[[str], None]) -> None:
        try:
            self._commits.submit(appends.PostedAppend(publication, self._loop(), failed))
        except errors.EngineError as error:
            failed(str(error))

    def _loop(self) -> asyncio.AbstractEventLoop:
        """The caller's: the worker's, as a rule, and then without the system call that asking is up to Python 3.11."""
        here = self._worker
        return here.loop if here is not None and here.is_home() else asyncio.get_running_loop()

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        operation = appends.BlockingAppend(publications)
        self._write(operation, timeout)
        return operation.receipts

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]:
        operation = streams.WriteStreams(writes)
        self._write(operation, timeout)
        return operation.receipts

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None:
        operation = streams.Revise(revision)
        self._write(operation, timeout)
        return operation.position

    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> interface.Position:
        operation = streams.OpenChannel(app, channel)
        self._write(operation, timeout)
        return operation.position

    def _write(self, operation: transactions.BlockingOp, timeout: float | None) -> None:
        """Raises EngineError."""
        timeout = self._append_timeout if timeout is None else timeout
        self._commits.write(operation)
        if not operation.settled and not operation.wait(timeout):
            if self._commits.withdraw(operation):
                raise errors.EngineUnavailable(commit_queue.timed_out(timeout))
            # Its transaction has begun, and SQLite's busy timeout ends it either way; a slow disk may take longer.
            late_s = schema.BUSY_TIMEOUT_MS / 1000
            if not operation.wait(late_s):
                raise errors.EngineUnavailable(
                    f"The commit takes longer than {timeout + late_s:g} s; the publication may still be written"
                )
        if operation.error is not None:
            raise operation.error

    # -- sessions ------------------------------------------------------------------------------------------------------

    def save_session(
        self, app: str, token: str, record: bytes, seconds: int, *, holder: str = "", release: bool = False
    ) -> None:
        here = self._worker
        if here is not None:
            here.submit(
                sessions.SaveSession(here.loop, app, token, record, seconds=seconds, holder=holder, release=release)
            )

    async def take_session(self, app: str, token: str, holder: str) -> interface.Taken:
        here = self._opened()
        taken = (await here.done(sessions.TakeSession(here.loop, app, token, holder))).taken
        return taken._replace(lost_s=here.lost_s)

    async def load_session(self, app: str, token: str) -> bytes | None:
        here = self._opened()
        await here.done(transactions.Barrier(here.loop))  # records that were saved before are written now
        return await here.ask(lambda asked: asked.session(app, token))

    def when_written(self, then: Callable[[], None]) -> None:
        if self._worker is None:
            then()
        else:
            self._worker.submit(transactions.Barrier(self._worker.loop, lambda _operation, _error: then()))

    # -- presence and counts -------------------------------------------------------------------------------------------

    def set_subscribers(self, app: str, channel: str, count: int, *, announce: bool = False) -> None:
        if self._worker is not None:  # a closed worker has no subscribers
            self._worker.reader.local.subscribe(app, channel, count > 0)
            self._worker.subscribers.set(app, channel, count, announce=announce)

    def attach(self, wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is not open"))
        else:
            self._worker.attach(presence.Subscribe(self._worker.loop, wanted, ready))

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        operation = presence.UpdateMember(app, channel, user_id, info)
        self._write(operation, timeout)
        return operation.is_member

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
        operation = presence.LeaseMember(app, channel, user_id, info, seconds=seconds, limit=limit)
        self._write(operation, timeout)
        return operation.full or operation.joined

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        operation = presence.ReleaseMember(app, channel, user_id)
        self._write(operation, timeout)
        return operation.was_member

    def leave(self, app: str, channel: str, socket_id: str) -> None:
        if self._worker is not None:  # a closed worker removed its members
            self._worker.leave(presence.Leave(self._worker.loop, app, channel, socket_id))

    def admit(self, app: str, limit: int, ready: interface.Ready) -> None:
        if self._worker is None:
            ready(interface.Refused("engine_unavailable", "The engine is not open"))
        else:
            self._worker.admit(counts.Admit(self._worker.loop, app, limit, ready))

    # -- queries -------------------------------------------------------------------------------------------------------

    async def ask(self, query: Callable[[interface.Queries], T]) -> T:
        return await self._opened().ask(query)

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        if self.paths.identity() is None:
            self.append_blocking([])  # creates an empty log, which has an answer to everything
        asked = log_queries.LogQueries(self.paths)
        try:
            yield asked
        except sqlite3.Error as error:
            raise errors.EngineUnavailable(f"The log cannot be read: {error}") from error
        finally:
            asked.close()

    # -- coordination --------------------------------------------------------------------------------------------------

    async def lease(self, name: str) -> interface.Lease:
        return await self._opened().leases.acquire(name)

    async def consume(
        self,
        name: str,
        partition: int,
        kinds: frozenset[interface.Kind],
        *,
        after: int | None = None,
        transient: bool = False,
    ) -> interface.Consumer:
        return await self._opened().consume(name, kinds, after, transient=transient)

    def _opened(self) -> workers.Worker:
        if self._worker is None:
            raise errors.EngineUnavailable("The engine is not open")
        return self._worker
