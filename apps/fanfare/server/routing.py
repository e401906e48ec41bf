"""Which application answers a request: by its path below the root path, its method, and what it carries.

Fanfare may be a guest in a project that has paths such as `/users/…` and `/apps/…` itself. A row of the table therefore
answers only what is a route of Fanfare; everything else goes to Django.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from fanfare.server import errors, interfaces, responses, root_path, urlconf

RETRY_AFTER_SECONDS = 1
# The protocol's "over capacity": clients come back by themselves, each time a little later.
OVER_CAPACITY = 4100
# The reason itself may hold a path or an address of this machine, which strangers must not read.
REFUSED = "This server cannot work now"
HEALTH = "/health/ready"

READ = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    `prefix`: the beginning of its paths. `is_ours(method, path)`: whether that is a route of Fanfare. `is_certain`:
    whether the request can be meant for Fanfare only, because of what it carries: it then goes to Fanfare even where
    the project has a page. Without an answer to that, the project's page wins, or only one that was written for the
    place (`yields_to`).
    """

    prefix: str
    application: interfaces.Application
    is_ours: Callable[[str, str], bool]
    is_certain: Callable[[Any, str], Awaitable[bool]] | None = None
    yields_to: Callable[[str], bool] = urlconf.answers


class Http:
    """The routing table of HTTP requests. `otherwise` answers what no row takes.

    `url_prefix`: "" or a path such as "/realtime", below which Fanfare is. Every row is then there, without looking at
    the project's pages, and of the rows at the root those with `at_root` stay, for requests that are certain: server
    SDKs cannot send a prefix.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        otherwise: interfaces.Application,
        *,
        url_prefix: str = "",
        at_root: Sequence[Route] = (),
    ) -> None:
        self._routes = tuple(routes)
        self._otherwise = otherwise
        self._url_prefix = url_prefix
        self._at_root = tuple(at_root)

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        path = root_path.below(scope)
        if not self._url_prefix:
            application = await self._find(scope, path)
        elif path.startswith(f"{self._url_prefix}/"):
            application = self._find_below(scope["method"], path.removeprefix(self._url_prefix))
            if application is not None:
                scope = root_path.deeper(scope, self._url_prefix)
        else:
            application = await self._find_certain(scope, path)
            if application is not None:
                scope = root_path.as_if_below(scope, self._url_prefix)  # it may be signed with the prefix
        await (application or self._otherwise)(scope, receive, send)

    async def _find(self, scope: Any, path: str) -> interfaces.Application | None:
        for route in self._routes:
            if not path.startswith(route.prefix):
                continue
            if route.is_certain is not None and await route.is_certain(scope, path):
                return route.application
            if route.is_ours(scope["method"], path) and not route.yields_to(path):
                return route.application
        return None

    def _find_below(self, method: str, path: str) -> interfaces.Application | None:
        for route in self._routes:
            if path.startswith(route.prefix) and route.is_ours(method, path):
                return route.application
        return None

    async def _find_certain(self, scope: Any, path: str) -> interfaces.Application | None:
        for route in self._at_root:
            if path.startswith(route.prefix) and route.is_certain is not None and await route.is_certain(scope, path):
                return route.application
        return None


def exactly(*paths: str, methods: frozenset[str] = READ) -> Callable[[str, str], bool]:
    """For `Route.is_ours`: these paths, with or without a slash at the end."""
    known = frozenset(paths)
    return lambda method, path: method in methods and path.rstrip("/") in known


def matching(pattern: str, methods: frozenset[str] = READ) -> Callable[[str, str], bool]:
    """For `Route.is_ours`: paths that the whole regular expression matches."""
    compiled = re.compile(pattern, re.ASCII)
    return lambda method, path: method in methods and compiled.fullmatch(path) is not None


class Router:
    """By the type of the scope. Unknown types are ignored."""

    def __init__(
        self, *, lifespan: interfaces.Application, websocket: interfaces.Application, http: interfaces.Application
    ) -> None:
        self._by_type = {"lifespan": lifespan, "websocket": websocket, "http": http}

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        application = self._by_type.get(scope["type"])
        if application is not None:
            await application(scope, receive, send)


# -- applications that need a started worker ---------------------------------------------------------------------------

# Called with the scope, a code, a message, and `send`.
Refuse = Callable[[Any, str, str, Any], Awaitable[None]]


class Startable(Protocol):
    """What `Started` waits for: lifespan.Server in a worker, a mount on a server without a lifespan."""

    @property
    def running(self) -> bool: ...

    async def started(self) -> None:
        """Raises errors.NotStarted."""


class Started:
    """Passes on to an application that needs a started worker. Starts the worker first where the server runs no
    lifespan.

    `refuse`: answers a request in another way than with a plain 503, which some clients take for final.
    """

    def __init__(
        self,
        server: Startable,
        application: interfaces.Application,
        *,
        reason_in: str = HEALTH,
        refuse: Refuse | None = None,
    ) -> None:
        self.server = server
        self.application = application
        self.reason_in = reason_in
        self.refuse = refuse or _refuse_http

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if not self.server.running:
            try:
                await self.server.started()
            except errors.NotStarted as error:
                if scope["type"] == "websocket":
                    await _refuse_websocket(receive, send)
                else:
                    await self.refuse(scope, error.code, f"{REFUSED}; {self.reason_in} says why.", send)
                return
        await self.application(scope, receive, send)


async def _refuse_http(_scope: Scope, code: str, message: str, send: ASGISendCallable) -> None:
    retry_after = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
    await responses.json(send, 503, {"error": message, "code": code}, [retry_after])


async def _refuse_websocket(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Accepts and then closes: a refused handshake carries no code, and the code decides how a client comes back."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    await send({"type": "websocket.close", "code": OVER_CAPACITY, "reason": REFUSED})
