"""Background tasks: each has a strong reference, a name, and a failure that is logged and counted.

asyncio keeps only a weak reference to a task, and reports a failure only when the task is garbage-collected. Therefore
no module outside this package calls `create_task` (tests/lint/tasks.py checks this).
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fanfare.runtime import text
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import Count, LogThrottle, exception_line

STOP_S = 3.0
STEADY_S = 60.0  # the back-off of a task that ran for this time before it failed starts over

T = TypeVar("T")
Expected = tuple[type[Exception], ...]


_pending: set[asyncio.Future[Any]] = set()


def as_future(awaitable: Awaitable[T]) -> asyncio.Future[T]:
    """A future as it is, or the task of a coroutine. Its caller adds a callback, which takes the exception."""
    if isinstance(awaitable, asyncio.Future):
        return awaitable
    future = asyncio.ensure_future(awaitable)
    _pending.add(future)
    future.add_done_callback(_pending.discard)
    return future


class State(enum.Enum):
    """The state of a long-running task."""

    RUNNING = "running"
    WAITING = "waiting"  # for its turn: another worker has the lease
    PAUSING = "pausing"  # it failed, and is restarted at `retry_at`
    DONE = "done"  # it returned
    STOPPED = "stopped"


@dataclass(slots=True)
class Status:
    """The status of a long-running task, for the console. Times are Unix seconds.

    `error`: its last failure; empty if there was none. `runs`: calls of its function, the repetitions of a periodic one
    included.
    """

    name: str
    state: State = State.RUNNING
    since: float = field(default_factory=time.time)  # in this state
    runs: int = 0
    failures: int = 0
    error: str = ""
    failed_at: float | None = None
    retry_at: float | None = None

    def enter(self, state: State) -> None:
        self.state, self.since, self.retry_at = state, time.time(), None

    def failed(self, error: BaseException) -> None:
        self.failures += 1
        self.failed_at = time.time()
        self.error = text.clean(exception_line(error))


class Supervisor:
    """The tasks of one owner (a worker, a hub, a service), in one event loop.

    `count` adds one to a counter: `<prefix>.failed`, `<prefix>.restarted`, `<prefix>.left_behind`.
    """

    def __init__(
        self, logger: logging.Logger | None = None, *, count: Count | None = None, prefix: str = "tasks"
    ) -> None:
        self._logger = logger or logging.getLogger(__name__)
        self._log = LogThrottle(self._logger)
        self._count = count
        self._prefix = prefix
        self._tasks: set[asyncio.Task[Any]] = set()
        self._statuses: dict[str, Status] = {}

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The status of each long-running task, in the order of their start."""
        return tuple(self._statuses.values())

    @property
    def tasks(self) -> int:
        """The number of running tasks, including one-off tasks."""
        return len(self._tasks)

    # -- one-off tasks -------------------------------------------------------------------------------------------------

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, T], *, expected: Expected = ()) -> asyncio.Task[T]:
        """Start a task that ends by itself. Its failure is logged with its traceback; one of the `expected` classes in
        one line. The caller may also await the task, or cancel it."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, expected))
        return task

    def _ended(self, expected: Expected, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        name = task.get_name()
        self._counted("failed")
        if isinstance(error, expected):
            self._log.warning("%s failed: %s", name, text.clean(exception_line(error)), key=(name, type(error)))
        else:
            self._log.error("%s failed", name, key=name, error=error)

    # -- long-running tasks --------------------------------------------------------------------------------------------

    def run(
        self,
        name: str,
        function: Callable[[], Awaitable[object]],
        *,
        expected: Expected = (),
        backoff: Backoff | None = None,
        status: Status | None = None,
    ) -> asyncio.Task[None]:
        """Call `function`, and again after a growing pause whenever it raises. One that returns is done.

        `expected`: failures of external parts (an unavailable engine), which are logged without a traceback. `status`:
        a new one, in which the function itself enters the states of its runs. Raises ValueError if a task of this name
        runs.
        """
        known = self._statuses.get(name)
        if known is not None and known.state not in (State.DONE, State.STOPPED):
            raise ValueError(f"A task named {name!r} runs already")
        is_ours = status is None
        status = self._statuses[name] = status or Status(name)
        task = self.spawn(name, self._supervise(status, function, expected, backoff or Backoff(), is_ours))
        task.add_done_callback(lambda _: None if status.state is State.DONE else status.enter(State.STOPPED))
        return task

    def pausing(self, *prefixes: str) -> str | None:
        """Why a long-running task whose name begins with one of these does not run at present, in one sentence."""
        for status in self._statuses.values():
            if status.state is State.PAUSING and status.name.startswith(prefixes):
                return f"{status.name} failed and is started again: {status.error}"
        return None

    def forget(self, name: str) -> None:
        """Drop the status of a task that has ended."""
        self._statuses.pop(name, None)

    async def _supervise(
        self,
        status: Status,
        function: Callable[[], Awaitable[object]],
        expected: Expected,
        backoff: Backoff,
        is_ours: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            if is_ours:
                status.enter(State.RUNNING)
                status.runs += 1
            error = await self._once(function)
            if error is None:
                status.enter(State.DONE)
                return
            if loop.time() - started >= STEADY_S:
                backoff.succeeded()
            pause_s = backoff.failed()
            status.failed(error)
            status.enter(State.PAUSING)
            status.retry_at = time.time() + pause_s
            self._counted("failed")
            self._report(status, error, expected, pause_s)
            if _is_cancelled():  # and it answered the cancellation with another exception
                return
            await asyncio.sleep(pause_s)
            self._counted("restarted")

    async def _once(self, function: Callable[[], Awaitable[object]]) -> BaseException | None:
        try:
            await function()
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return error  # a future that the function awaited was cancelled, and not this task
        except Exception as error:  # noqa: BLE001  (any failure is reported, and the function is called again)
            return error
        return None

    def _report(self, status: Status, error: BaseException, expected: Expected, pause_s: float) -> None:
        if isinstance(error, expected):
            self._logger.warning("%s failed: %s. It starts again in %.1f s.", status.name, status.error, pause_s)
        else:
            self._logger.error("%s failed. It starts again in %.1f s.", status.name, pause_s, exc_info=error)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """Cancel all tasks and wait for their cleanup. A task that does not end in time is logged and counted.
        Idempotent."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            self._counted("left_behind")
            self._logger.error("%s did not stop within %g s", task.get_name(), timeout_s)

    def _counted(self, what: str) -> None:
        if self._count is not None:
            self._count(f"{self._prefix}.{what}")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
