"""Which requests Fanfare answers, by method, path and query."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fanfare.api import operations
from fanfare.applications import credentials
from fanfare.console import live
from fanfare.server import errors

if TYPE_CHECKING:
    from fanfare.server.lifespan import Server

# Prefixes at which no other ASGI application can be mounted.
PREFIXES: Final = ("/app/", "/apps/", "/users/", "/sse/", "/health/", live.PATH)

READ: Final = frozenset({"GET", "HEAD"})
_SSE: Final = re.compile(r"/sse/(?P<key>[^/]+)")
_SSE_METHODS: Final = READ | {"OPTIONS"}
_CONSOLE_METHODS: Final = frozenset({"GET", "POST", "OPTIONS"})
_HEALTH: Final = frozenset({"/health/live", "/health/ready"})


def is_api(method: str, path: str) -> bool:
    """A route of the HTTP API, with an id that an application can have."""
    found = operations.find(path)
    if found is None:
        return False
    route, names = found
    return (method == "OPTIONS" or method in route.methods) and (
        "app_id" not in names or credentials.ID.fullmatch(names["app_id"]) is not None
    )


async def is_signed(scope: Any, _path: str) -> bool:
    """A request that is signed for the HTTP API. If its route or id is wrong, it gets an error of the API."""
    query: bytes = scope["query_string"]
    return b"auth_signature=" in query and b"auth_key=" in query


def is_sse(method: str, path: str) -> bool:
    return method in _SSE_METHODS and _SSE.fullmatch(path) is not None


def is_health(method: str, path: str) -> bool:
    return method in READ and path.rstrip("/") in _HEALTH


def is_metrics(method: str, path: str) -> bool:
    return method in READ and path == "/metrics"


def is_description(method: str, path: str) -> bool:
    return method in READ and path == "/api/openapi.json"


def is_console(method: str, path: str) -> bool:
    return method in _CONSOLE_METHODS and path.startswith(live.PATH)


async def is_of_console_page(scope: Any, path: str) -> bool:
    """The console's live data, with the token of a page. Without it, an admin at the root has pages at these paths."""
    return is_console(scope["method"], path) and (
        scope["method"] == "OPTIONS" or any(name == b"authorization" for name, _ in scope["headers"])
    )


def to_no_page(_path: str) -> bool:
    """For `Route.yields_to`: Fanfare answers even if the project has a page at this path; a system check reports it."""
    return False


class Keys:
    """The keys of the applications. A worker that has not started knows none, so each query starts it."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def knows(self, key: str) -> bool:
        if not self._server.running:
            try:
                await self._server.started()
            except errors.NotStarted:
                return False
        return self._server.registry.by_key(key) is not None

    async def is_sse(self, _scope: Any, path: str) -> bool:
        """An SSE connection of an application that exists."""
        found = _SSE.fullmatch(path)
        return found is not None and await self.knows(found["key"])
