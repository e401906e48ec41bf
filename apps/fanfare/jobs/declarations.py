"""Background jobs of a project: functions that run beside the server, once per deployment or once per worker.

They are declared in the `background` module of an app, which is imported when Django starts, like `admin`.

    @periodic(seconds=60)
    async def refresh_rates(): ...

    @background
    async def follow_exchange():
        async with connect(URL) as stream:
            async for price in stream:
                await apublish("prices", "tick", price)

`once_per="deployment"`, the default: one worker runs the job. When it stops or its process ends, another worker takes
over within seconds; for that time no worker runs the job. On one machine two workers never run it at the same time.
`once_per="worker"`: each worker runs the job.

A `@periodic` function is called when the worker starts or takes over, and then every `seconds`, counted from start to
start; a call that takes longer delays the next one. It may be a plain function, which runs in a thread. An exception is
logged and counted, and does not prevent the next call. A `@background` coroutine runs as long as the worker. One that
raises is logged, counted, and restarted after a growing pause; one that returns is done.

When the worker stops, jobs are cancelled and have `runner.STOP_S` seconds to clean up. Jobs run in workers only, not in
shells, task queues and tests.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, overload

from asgiref.sync import iscoroutinefunction

from fanfare.jobs import errors
from fanfare.runtime import supervisor

OncePer = Literal["deployment", "worker"]
Coroutine = TypeVar("Coroutine", bound=Callable[[], Awaitable[Any]])
Function = TypeVar("Function", bound=Callable[[], Any])

SHORTEST_SECONDS = 0.1  # for a shorter period, use @background


@dataclass(frozen=True, slots=True)
class Job:
    """`seconds` between two calls; None: the function runs as long as the worker.

    `parts`: the statuses of tasks that the function starts itself.
    """

    name: str
    function: Callable[[], Any]
    once_per: OncePer
    seconds: float | None = None
    parts: Callable[[], Sequence[supervisor.Status]] = tuple


class Jobs:
    """The declared jobs by name, in the order of their declaration."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def add(self, function: Callable[[], Any], once_per: OncePer, seconds: float | None) -> None:
        """Raises InvalidJob. A function that is declared again (its module was reloaded) replaces itself."""
        name = f"{function.__module__}.{function.__qualname__}"
        if once_per not in ("deployment", "worker"):
            raise errors.InvalidJob(f"{name}: once_per must be 'deployment' or 'worker', not {once_per!r}.")
        if seconds is None and not iscoroutinefunction(function):
            raise errors.InvalidJob(f"{name}: a @background function must be an `async def`.")
        if seconds is not None and not _is_period(seconds):
            raise errors.InvalidJob(
                f"{name}: seconds must be a number of at least {SHORTEST_SECONDS}, not {seconds!r}. For work without "
                "pauses write an `async def` with @background."
            )
        if needed := _needed_arguments(function):
            raise errors.InvalidJob(f"{name}: a job is called without arguments; give {needed} a default.")
        self._jobs[name] = Job(name, function, once_per, seconds)

    def all(self) -> list[Job]:
        return list(self._jobs.values())


def _is_period(seconds: object) -> bool:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return False
    return seconds >= SHORTEST_SECONDS and math.isfinite(seconds)


def _needed_arguments(function: Callable[..., Any]) -> str:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(one.name for one in parameters if one.default is one.empty and one.kind not in kinds)


declared = Jobs()  # the jobs of the project, filled when Django starts


@overload
def periodic(*, seconds: float, once_per: OncePer = "deployment") -> Callable[[Function], Function]: ...


@overload
def periodic(function: Callable[..., Any], /) -> NoReturn: ...


def periodic(*args: Any, seconds: float | None = None, once_per: OncePer = "deployment") -> Any:
    """Call the function every `seconds`, in a worker. Write it in the `background` module of any app.

        @periodic(seconds=60)
        async def refresh_rates(): ...

    `seconds`: 0.1 or more, from start to start. `once_per`: `"deployment"` (one worker calls the function) or
    `"worker"` (each worker does). A plain function runs in a thread. An exception is logged and counted, and does not
    prevent the next call.

    Raises InvalidJob when its module is imported.
    """
    if args or seconds is None:
        raise errors.InvalidJob("@periodic needs its period: write @periodic(seconds=60) above the function.")

    def register(function: Function) -> Function:
        declared.add(function, once_per, seconds)
        return function

    return register


@overload
def background(function: Coroutine, /) -> Coroutine: ...


@overload
def background(*, once_per: OncePer = "deployment") -> Callable[[Coroutine], Coroutine]: ...


def background(function: Any = None, /, *, once_per: OncePer = "deployment") -> Any:
    """Run the coroutine function while a worker runs. Write it in the `background` module of any app.

        @background
        async def follow_exchange(): ...

    `once_per`: `"deployment"` (in one worker) or `"worker"` (in each worker). If the coroutine raises, the exception is
    logged and counted, and the function is called again after a growing pause. If it returns, the job is finished.

    Raises InvalidJob when its module is imported.
    """

    def register(function: Coroutine) -> Coroutine:
        declared.add(function, once_per, None)
        return function

    return register if function is None else register(function)
