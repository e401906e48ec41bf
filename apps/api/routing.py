"""Which operation a path asks for. This table is the API's table of contents."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from apps.api import events, queries, requests
from apps.applications import registry
from apps.hub import hub as hubs

Operation = Callable[[hubs.Hub, requests.Request], Awaitable[bytes]]


class Route(NamedTuple):
    """`path` matches a path as it was sent, so an escaped slash is in a name. Its first group: the application's id."""

    methods: tuple[str, ...]
    path: re.Pattern[str]
    operation: Operation
    body_limit: Callable[[registry.Limits], int]  # bytes

    @property
    def allowed(self) -> str:
        """The Allow header."""
        return ", ".join((*self.methods, "OPTIONS"))


READ = ("GET", "HEAD")
WRITE = ("POST",)


ROUTES = (
    Route(WRITE, re.compile(r"/apps/([^/]+)/events"), events.trigger, events.body_limit),
    Route(WRITE, re.compile(r"/apps/([^/]+)/batch_events"), events.trigger_batch, events.batch_body_limit),
    Route(READ, re.compile(r"/apps/([^/]+)/channels"), queries.channels, queries.body_limit),
    Route(READ, re.compile(r"/apps/([^/]+)/channels/([^/]+)"), queries.channel, queries.body_limit),
    Route(READ, re.compile(r"/apps/([^/]+)/channels/([^/]+)/users"), queries.users, queries.body_limit),
)


def find(path: str) -> tuple[Route, tuple[str, ...]] | None:
    """The route of a path and what its groups matched, not decoded."""
    for route in ROUTES:
        match = route.path.fullmatch(path)
        if match is not None:
            return route, match.groups()
    return None
