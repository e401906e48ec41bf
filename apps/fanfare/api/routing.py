"""Which operation a path asks for. This table is the API's table of contents."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fanfare.api import events, history, queries, requests, users
from fanfare.applications import registry
from fanfare.hub import hub as hubs

Operation = Callable[[hubs.Hub, requests.Request], Awaitable[bytes]]

READ = ("GET", "HEAD")
WRITE = ("POST",)

_PARAMETER = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Route:
    """`path` as OpenAPI writes it; without an `app_id` in it the application is that of the request's key.

    `pattern` matches a path as it was sent, so an escaped slash is in a name.
    """

    methods: tuple[str, ...]
    path: str
    operation: Operation
    body_limit: Callable[[registry.Limits], int]  # bytes
    status: int = 200  # of a good answer
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", self.path)))

    @property
    def allowed(self) -> str:
        """The Allow header."""
        return ", ".join((*self.methods, "OPTIONS"))


# fmt: off
ROUTES = (
    Route(WRITE, "/apps/{app_id}/events", events.trigger, events.body_limit),
    Route(WRITE, "/apps/{app_id}/batch_events", events.trigger_batch, events.batch_body_limit),
    Route(READ, "/apps/{app_id}/channels", queries.channels, requests.small_body_limit),
    Route(READ, "/apps/{app_id}/channels/{channel}", queries.channel, requests.small_body_limit),
    Route(READ, "/apps/{app_id}/channels/{channel}/users", queries.users, requests.small_body_limit),
    Route(READ, "/apps/{app_id}/channels/{channel}/history", history.history, requests.small_body_limit),
    Route(WRITE, "/apps/{app_id}/users/{user_id}/terminate_connections", users.terminate,
          requests.small_body_limit),
    # Where the vendor's Python library sends it.
    Route(WRITE, "/users/{user_id}/terminate_connections", users.terminate, requests.small_body_limit),
    # Out of use since 2012; there are clients that still call them.
    Route(WRITE, "/apps/{app_id}/channels/{channel}/events", events.trigger_on_channel, events.body_limit, status=202),
    Route(READ, "/apps/{app_id}/channels/{channel}/stats", queries.stats, requests.small_body_limit),
)
# fmt: on


def find(path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of a path, and the parts of the path that vary, not decoded."""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match is not None:
            return route, match.groupdict()
    return None
