"""Background work: coroutines that run beside the server, once in the deployment or once in every worker.

Write them in the `background` module of any app; it is found as Django finds `admin`.

    @periodic(seconds=60)
    async def refresh_rates(): ...

    @background
    async def follow_the_exchange():
        async with connect(URL) as stream:
            async for price in stream:
                await apublish("prices", "tick", price)

`once_per="deployment"`, the default: one worker does it; when that one stops or dies, another takes over within
seconds. `once_per="worker"`: every worker does it. For an instant, while a worker dies, nobody may do it; two never do
on one machine.

`@periodic` runs a function when the worker starts, or takes over, and then again and again; `seconds` lie between two
starts, and a run that takes longer delays the next one. It may be a plain function, which gets a thread. One that
raises is logged and counted, and its next turn comes. `@background` runs a coroutine for as long as the worker lives.
One that raises is logged, counted, and started again after a growing pause; one that returns is done.

When the worker stops they are cancelled, and have `runner.STOP_S` to clean up. Nothing of it runs in a process that is
no worker: a shell, a task queue, a test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from asgiref.sync import iscoroutinefunction

from fanfare.integration import errors

OncePer = Literal["deployment", "worker"]
Coroutine = TypeVar("Coroutine", bound=Callable[[], Awaitable[Any]])
Function = TypeVar("Function", bound=Callable[[], Any])

SHORTEST_SECONDS = 0.1  # a shorter period is a loop, which is what @background is for


@dataclass(frozen=True, slots=True)
class Job:
    """`seconds` between two starts; None for one that runs for as long as the worker."""

    name: str
    function: Callable[[], Any]
    once_per: OncePer
    seconds: float | None = None


class Jobs:
    """By name, in the order of their registration."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def add(self, function: Callable[[], Any], once_per: OncePer, seconds: float | None) -> None:
        """Raises InvalidJob. The same function again replaces itself (its module was reloaded)."""
        name = f"{function.__module__}.{function.__qualname__}"
        if once_per not in ("deployment", "worker"):
            raise errors.InvalidJob(f"{name}: once_per is 'deployment' or 'worker', not {once_per!r}.")
        if seconds is None and not iscoroutinefunction(function):
            raise errors.InvalidJob(f"{name}: background work is an `async def`.")
        if seconds is not None and not seconds >= SHORTEST_SECONDS:
            raise errors.InvalidJob(
                f"{name}: every {seconds} seconds; at least {SHORTEST_SECONDS} lie between two runs."
            )
        self._jobs[name] = Job(name, function, once_per, seconds)

    def all(self) -> list[Job]:
        return list(self._jobs.values())


registered = Jobs()  # those of the project, filled when Django starts


def periodic(*, seconds: float, once_per: OncePer = "deployment") -> Callable[[Function], Function]:
    """Run the function every so many seconds. Raises InvalidJob, when the module is imported."""

    def register(function: Function) -> Function:
        registered.add(function, once_per, seconds)
        return function

    return register


@overload
def background(function: Coroutine, /) -> Coroutine: ...


@overload
def background(*, once_per: OncePer = "deployment") -> Callable[[Coroutine], Coroutine]: ...


def background(function: Any = None, /, *, once_per: OncePer = "deployment") -> Any:
    """Run the coroutine for as long as the worker lives. Raises InvalidJob, when the module is imported."""

    def register(function: Coroutine) -> Coroutine:
        registered.add(function, once_per, None)
        return function

    return register if function is None else register(function)
