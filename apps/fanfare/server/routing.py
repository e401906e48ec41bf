"""Which application answers a request: by its path below the root path, its method, and what it carries.

The project may have its own paths such as `/users/…` and `/apps/…`. So a row of the table answers only exact routes of
Fanfare; all other requests go to Django.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from fanfare.runtime import close_codes
from fanfare.server import errors, interfaces, responses, root_path, urlconf

RETRY_AFTER_SECONDS = 1
# The protocol's "over capacity", after which clients reconnect by themselves.
# The reason can contain paths and addresses of this machine, so it is not sent.
REFUSED = "This server cannot work now"
HEALTH = "/health/ready"

READ = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table.

    `prefix`: the start of its paths. `is_ours(method, path)`: whether that is a route of Fanfare. `is_certain`: whether
    the request carries something that only Fanfare handles; it then goes to Fanfare even if the project has a page at
    this path. Otherwise the project's page takes precedence, as `yields_to` says.
    """

    prefix: str
    application: interfaces.Application
    is_ours: Callable[[str, str], bool]
    is_certain: Callable[[Any, str], Awaitable[bool]] | None = None
    yields_to: Callable[[str], bool] = urlconf.answers


class Http:
    """The routing table of HTTP requests. `otherwise` answers requests without a matching row.

    `url_prefix`: "" or a path such as "/realtime". With a prefix, all rows are below it and take precedence over the
    project's pages; at the root remain the rows with `at_root`, for certain requests, because server SDKs cannot send
    a prefix.
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


class Router:
    """Routes by scope type. Unknown types are ignored."""

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
    """What `Started` waits for: lifespan.Server in a worker, or a mount without a lifespan."""

    @property
    def running(self) -> bool: ...

    async def started(self) -> None:
        """Raises errors.NotStarted."""


class Started:
    """Middleware for an application that needs a started worker; starts the worker if the server has no lifespan.

    `refuse`: answers a request instead of a plain 503, after which some clients do not retry. `is_closed`: whether
    a running worker refuses new clients, too. `moves`: whether such a client may go to another worker at once.
    """

    def __init__(
        self,
        server: Startable,
        application: interfaces.Application,
        *,
        reason_in: str = HEALTH,
        refuse: Refuse | None = None,
        is_closed: Callable[[], bool] = lambda: False,
        moves: Callable[[], bool] = lambda: False,
    ) -> None:
        self.server = server
        self.application = application
        self.reason_in = reason_in
        self.refuse = refuse or _refuse_http
        self.is_closed = is_closed
        self.moves = moves

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        try:
            await self._check()
        except errors.NotStarted as error:
            if scope["type"] == "websocket":
                code = close_codes.RECONNECT if self.moves() else close_codes.OVER_CAPACITY
                await _refuse_websocket(receive, send, code)
            else:
                await self.refuse(scope, error.code, f"{REFUSED}; {self.reason_in} says why.", send)
            return
        await self.application(scope, receive, send)

    async def _check(self) -> None:
        if not self.server.running:
            await self.server.started()
        elif self.is_closed():
            raise errors.NotStarted("The worker is draining.")


async def _refuse_http(_scope: Scope, code: str, message: str, send: ASGISendCallable) -> None:
    retry_after = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())
    await responses.json(send, 503, {"error": message, "code": code}, [retry_after])


async def _refuse_websocket(receive: ASGIReceiveCallable, send: ASGISendCallable, code: int) -> None:
    """Accept and then close, because a refused handshake has no close code, which clients need to reconnect."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    await send({"type": "websocket.close", "code": code, "reason": REFUSED})
