"""The live data of the console: how an endpoint is declared.

    @endpoint("channels")
    async def channels(request: Request) -> Any:
        return {"channels": …}

    @stream("tail")
    async def tail(request: Request) -> AsyncIterator[Any]:
        yield …

The name is the path below `<prefix>fanfare/console/`. An answer is JSON; a stream sends one JSON value a line. A
stream's generator runs only as fast as the page reads, and is closed when the page leaves or its token expires.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from fanfare.applications import registry as registries
from fanfare.console import reports as reporting
from fanfare.console.permissions import VIEW, Access
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.runtime import supervisor

MAX_BODY_BYTES: Final = 65_536
MAX_DIGITS: Final = 20  # of a number; `int` refuses texts of more than 4,300

E = TypeVar("E", bound=Callable[..., Any])
T = TypeVar("T")


class Problem(Exception):
    """Answered as JSON with this status; the page shows the sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Jobs(Protocol):
    @property
    def statuses(self) -> Sequence[supervisor.Status]: ...


class Loader(Protocol):
    loaded: bool
    problem: str | None


class Worker(Protocol):
    """The parts of this worker, as `fanfare.server.lifespan.Server` has them."""

    hub: hubs.Hub
    registry: registries.Registry
    reports: reporting.Reports
    tasks: supervisor.Supervisor

    @property
    def background(self) -> Jobs: ...
    @property
    def loader(self) -> Loader: ...


@dataclass(frozen=True, slots=True)
class Request:
    """`query`: the arguments, the last one of each name. `body`: of a POST, a JSON object."""

    worker: Any
    access: Access
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    def require(self, permission: str, app_id: str | None = None) -> None:
        """Raises Problem with 403 if the user lacks a permission for an application."""
        if not self.access.may(permission, app_id):
            where = f" for the application {app_id}" if app_id else ""
            raise Problem(403, f"You need the permission fanfare.{permission}{where}.")

    def application(self, permission: str = VIEW) -> registries.Application:
        """The application that the argument `app` names. Raises Problem if it is missing, unknown or not allowed."""
        app_id = str(self.query.get("app") or self.body.get("app") or "")
        if not app_id:
            raise Problem(400, "The argument `app` is missing: the id of an application.")
        self.require(permission, app_id)
        found: registries.Application | None = self.worker.registry.by_id(app_id)
        if found is None:
            raise Problem(404, f"There is no application with the id {app_id}.")
        return found

    async def ask(self, query: Callable[[interface.Queries], T]) -> T:
        """Run a query in a thread with a connection of its own, so that no client waits for it. Raises EngineError."""

        def run() -> T:
            with self.worker.hub.engine.queries() as queries:
                return query(queries)

        return await asyncio.to_thread(run)

    def number(self, name: str, default: int, *, least: int = 0, most: int) -> int:
        """An argument that is a whole number. Raises Problem."""
        text = self.query.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS) or not least <= int(text) <= most:
            raise Problem(400, f"The argument `{name}` is a whole number from {least} to {most}.")
        return int(text)


@dataclass(frozen=True, slots=True)
class Endpoint:
    path: str
    answer: Callable[[Request], Awaitable[Any]] | None
    stream: Callable[[Request], AsyncIterator[Any]] | None
    method: str
    permission: str
    max_body: int


declared: dict[str, Endpoint] = {}  # by path


def endpoint(
    path: str, *, method: str = "GET", permission: str = VIEW, max_body: int = MAX_BODY_BYTES
) -> Callable[[E], E]:
    """Declare a function that answers with JSON. The user has `permission` for at least one application; the function
    checks it for the application in question."""

    def declare(function: E) -> E:
        _declare(Endpoint(path, function, None, method, permission, max_body))
        return function

    return declare


def stream(path: str, *, permission: str = VIEW) -> Callable[[E], E]:
    """Declare an async generator function whose values a page gets as they come."""

    def declare(function: E) -> E:
        _declare(Endpoint(path, None, function, "GET", permission, 0))
        return function

    return declare


def _declare(one: Endpoint) -> None:
    if one.path in declared:
        raise ValueError(f"The console has an endpoint {one.path!r} already")
    declared[one.path] = one
