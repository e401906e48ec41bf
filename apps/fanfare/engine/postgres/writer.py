"""The writing side of a worker: what is asked for while one group is under way is the next group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql

from fanfare.engine import errors
from fanfare.engine.postgres import database, operations
from fanfare.runtime import text
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.histograms import Histogram

logger = logging.getLogger(__name__)

T = TypeVar("T")

GROUP_OPERATIONS: Final = 1_000
# A notification wakes every worker: some 0.2 ms of the server's CPU for each. So they are sent at most this often.
NOTIFY_S: Final = 0.005
LONGEST_PAUSE_S: Final = 2.0
MOST_PENDING: Final = 100_000  # calls; beyond it the engine refuses at once
MOST_PENDING_BYTES: Final = 64 * 1_048_576  # of bodies


class Writer:
    """One per worker, on its loop. `worker` is the id under which members and counts are written.

    `reconnected` runs on each new connection before anything is written with it.
    """

    def __init__(
        self,
        address: database.Address,
        *,
        timeout_s: float,
        reconnected: Callable[[], Awaitable[None]],
        logged: Callable[[], None],
    ) -> None:
        self.worker = ""
        self.failure: str | None = "The worker has not connected to the database yet"
        self.is_moved = False  # the log is in another store, which the last answers said
        self.groups = 0
        self.operations = 0
        self.commit_seconds = Histogram()  # from the submission of an operation to its commit
        self.expired = 0
        self.reconnects = 0
        self._address = address
        self._timeout_s = timeout_s
        self._reconnected = reconnected
        self._logged = logged
        self._pending: list[operations.Call] = []
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None  # while calls wait
        self._connection: database.AsyncConnection | None = None
        self._busy = asyncio.Lock()  # one statement at a time
        self._notified_s = 0.0
        self._stopping = False
        self._apply = sql.SQL(operations.APPLY).format(address.function("apply"))

    # -- what is asked for ---------------------------------------------------------------------------------------------

    def submit(self, call: operations.Call) -> None:
        """Refuses the call at once, through its callback, if the queue is full or the writer has stopped."""
        if self._stopping:
            _settle([call], errors.EngineUnavailable("The engine is closed"))
            return
        call.size = 0
        for one in call.operations:
            if one.body:
                call.size += len(one.body)
        if len(self._pending) >= MOST_PENDING or self._pending_bytes + call.size > MOST_PENDING_BYTES:
            why = (
                f"{len(self._pending)} writes of {self._pending_bytes} bytes wait for the database; at most "
                f"{MOST_PENDING} of {MOST_PENDING_BYTES} may"
            )
            _settle([call], errors.EngineUnavailable(why))
        else:
            self._pending_bytes += call.size
            self._pending.append(call)
            self._wake.set()
            self._await_expiry()

    async def run(self) -> None:
        """Write groups until the task is cancelled. A failure of the database is waited out here."""
        backoff = Backoff(first_s=0.05, longest_s=LONGEST_PAUSE_S)
        while True:
            while not self._pending:  # after a failure of this task, calls may wait already
                self._wake.clear()
                await self._wake.wait()
            while self._pending:
                try:
                    await self._write_group()
                except errors.EngineError as error:
                    self._failed(str(error), is_moved=isinstance(error, errors.EngineMoved))
                    await asyncio.sleep(backoff.failed())
                else:
                    backoff.succeeded()

    async def ask(self, query: Any, parameters: Sequence[Any] = (), *, timeout_s: float | None = None) -> list[Any]:
        """A statement between two groups. Raises EngineUnavailable."""
        async with self._busy:
            try:
                async with asyncio.timeout(timeout_s or self._timeout_s):
                    connection = await self._connect()
                async with database.time_limit(connection, timeout_s or self._timeout_s):
                    cursor = await connection.execute(query, parameters)
                    return await cursor.fetchall()
            except (psycopg.Error, OSError, TimeoutError) as error:
                await self._disconnect()
                failure = database.failure(error, f"The database cannot be reached: {describe(error)}", self._address)
                is_moved = isinstance(failure, errors.EngineMoved)
                self._failed(str(failure) if is_moved else describe(error), is_moved=is_moved)
                raise failure from error

    def _await_expiry(self) -> None:
        """While the server does not answer, the statements of `ask` hold the connection one after another. So the calls
        that wait have a timer of their own."""
        if self._expiry is None and self._pending:
            rest_s = self._pending[0].born + self._timeout_s - time.monotonic()
            self._expiry = asyncio.get_running_loop().call_later(max(rest_s, 0.0), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self.expire()
        self._await_expiry()

    def expire(self) -> None:
        """Refuse what has waited for longer than the timeout, and count it."""
        before = time.monotonic() - self._timeout_s
        late = [call for call in self._pending if call.born < before]
        if late:
            self._pending = [call for call in self._pending if call.born >= before]
            self._pending_bytes = sum(call.size for call in self._pending)
            _settle(late, errors.EngineUnavailable(f"Timed out after {self._timeout_s:g} s waiting for the database"))
        self.expired += len(late)

    async def stop(self) -> None:
        """Refuse what waits, and close the connection. Idempotent."""
        self._stopping = True
        if self._expiry is not None:
            self._expiry.cancel()
        waiting, self._pending = self._pending, []
        self._pending_bytes = 0
        _settle(waiting, errors.EngineUnavailable("The engine is closed"))
        await self._disconnect()

    async def flush(self) -> None:
        """Write what waits, as far as the database is there. Raises EngineUnavailable."""
        while self._pending:
            await self._write_group()

    # -- groups --------------------------------------------------------------------------------------------------------

    async def _write_group(self) -> None:
        async with self._busy:
            try:
                async with asyncio.timeout(self._timeout_s):
                    connection = await self._connect()
            except (psycopg.Error, OSError, TimeoutError) as error:
                await self._disconnect()
                self.expire()
                raise errors.EngineUnavailable(f"The database cannot be reached: {describe(error)}") from error
            count = size = 0
            for call in self._pending:
                size += len(call.operations)
                if count and size > GROUP_OPERATIONS:
                    break
                count += 1
            group, self._pending = self._pending[:count], self._pending[count:]
            self._pending_bytes -= sum(call.size for call in group)
            if group:
                await self._apply_group(connection, group)

    async def _apply_group(self, connection: database.AsyncConnection, group: list[operations.Call]) -> None:
        try:
            rows = await self._execute(connection, [one for call in group for one in call.operations])
        except (psycopg.DataError, psycopg.ProgrammingError, psycopg.IntegrityError, ValueError) as error:
            # One operation that the database does not take must not fail its neighbours.
            if len(group) == 1:
                logger.error("An operation was refused by the database: %s", describe(error))  # noqa: TRY400
                _settle(group, errors.EngineUnavailable(f"The database refused it: {describe(error)}"))
                return
            for call in group:
                await self._apply_group(connection, [call])
            return
        except (psycopg.Error, OSError, TimeoutError) as error:
            await self._disconnect()
            failure = database.failure(error, f"The database did not acknowledge: {describe(error)}", self._address)
            _settle(group, failure)
            raise failure from error
        except BaseException:
            # The task was cancelled: the operations may have been committed or not.
            _settle(group, errors.EngineUnavailable("The engine is closing"))
            raise
        self.failure = None
        self.groups += 1
        self.operations += len(rows)
        self.commit_seconds.observe_since([call.born for call in group])
        _distribute(group, rows)
        if any(call.logs for call in group):
            self._logged()

    async def _execute(
        self, connection: database.AsyncConnection, wanted: Sequence[operations.Operation]
    ) -> dict[int, operations.Row]:
        now = time.monotonic()
        notify = now - self._notified_s >= NOTIFY_S
        if notify:
            self._notified_s = now
        elif not self._pending:
            asyncio.get_running_loop().call_later(NOTIFY_S, self._notify_later)
        async with database.time_limit(connection, self._timeout_s):
            cursor = await connection.execute(self._apply, operations.arguments(self.worker, wanted, notify=notify))
            return {row[0] - 1: operations.Row._make(row) for row in await cursor.fetchall()}

    def _notify_later(self) -> None:
        """Send the notification that the last group omitted, in a group without other operations."""
        if not self._stopping and not self._pending and time.monotonic() - self._notified_s >= NOTIFY_S:
            self.submit(operations.Call([operations.Operation("touch")], lambda _rows, _error: None, logs=False))

    # -- the connection ------------------------------------------------------------------------------------------------

    async def _connect(self) -> database.AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = None
            await self._reconnected()
            self._connection = await database.connect(self._address, f"writer {self.worker}")
            self.reconnects += 1
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def recovered(self) -> None:
        """The database answers again. It does in a schema too from which the log was moved away."""
        if self.failure is not None and not self.is_moved:
            logger.info("The database takes writes again")
            self.failure = None

    def follows(self) -> None:
        """The worker is known in the store."""
        self.failure, self.is_moved = None, False

    def _failed(self, why: str, *, is_moved: bool = False) -> None:
        """`is_moved`: an operator has moved the log to another store, so nothing is wrong."""
        if is_moved:
            if self.worker and not self.is_moved:
                logger.warning("%s", why)
            self.is_moved = True
        elif self.failure is None:
            logger.error("The database cannot be written: %s", why)
        self.failure = why


def _distribute(group: Sequence[operations.Call], rows: dict[int, operations.Row]) -> None:
    start = 0
    for call in group:
        end = start + len(call.operations)
        mine = {index - start: rows[index] for index in range(start, end) if index in rows}
        _settle_one(call, mine, None)
        start = end


def _settle(calls: Sequence[operations.Call], error: errors.EngineError) -> None:
    for call in calls:
        _settle_one(call, {}, error)


def _settle_one(call: operations.Call, rows: dict[int, operations.Row], error: errors.EngineError | None) -> None:
    try:
        call.settled(rows, error)
    except Exception:
        # A mistake of one caller must not leave the others without an answer.
        logger.exception("The end of %s could not be handled", call.operations[0].name)


def describe(error: BaseException) -> str:
    """The first line of a database error: the others hold the statement, and may hold data."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    message = str(error).strip() or type(error).__name__
    return text.clean(message.splitlines()[0])
