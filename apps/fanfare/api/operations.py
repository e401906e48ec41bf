"""The table of the HTTP API's routes, and the operations of users.

Each route has an operation: a function that takes the hub and a signed request, and returns the JSON text of the
response. `fanfare.api.openapi` describes the parameters and responses; tests compare the two.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fanfare.api import events, members, parameters, queries, requests, revisions, streams
from fanfare.applications import registry
from fanfare.hub import hub as hubs
from fanfare.protocol import capabilities, revocations, termination


async def terminate(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Close all connections that are signed in as a user, in every worker. Parameter: `reconnect`, an extension.

    Returns when the command is in the log, also for a user without connections.
    """
    user_id = parameters.user_id(request.names["user_id"], request.application.limits)
    reconnects = parameters.flag("reconnect", request.fields().get("reconnect"))
    await hub.publish(termination.publications(request.application.id, user_id, reconnect=reconnects, now=time.time()))
    return events.EMPTY


async def revoke(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Revoke a capability token by its id, in every worker; an extension. Parameter: `exp`, until when the revocation
    is remembered.

    Returns when the command is in the log, also for an id that no token has.
    """
    token_id = parameters.token_id(request.names["token_id"])
    expires = parameters.number("exp", request.fields().get("exp"), 0, capabilities.LATEST) or None
    await hub.publish(revocations.publications(request.application.id, token_id, expires=expires, now=time.time()))
    return events.EMPTY


_PARAMETER = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Route:
    """`path` as OpenAPI writes it. A path without `app_id` belongs to the application of the request's key.

    `pattern` matches the path as it was sent, so an escaped slash is part of a name.
    """

    methods: tuple[str, ...]
    path: str
    operation: Callable[[hubs.Hub, requests.Request], Awaitable[bytes]]
    body_limit: Callable[[registry.Limits], int] = requests.small_body_limit  # bytes
    status: int = 200  # of a successful answer
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", self.path)))

    @property
    def allowed(self) -> str:
        """The Allow header."""
        return ", ".join((*self.methods, "OPTIONS"))


READ = ("GET", "HEAD")
WRITE = ("POST",)

# fmt: off
ROUTES = (
    Route(WRITE, "/apps/{app_id}/events", events.trigger, events.body_limit),
    Route(WRITE, "/apps/{app_id}/batch_events", events.trigger_batch, events.batch_body_limit),
    Route(READ, "/apps/{app_id}/channels", queries.channels),
    Route(READ, "/apps/{app_id}/channels/{channel}", queries.channel),
    Route(READ, "/apps/{app_id}/channels/{channel}/users", queries.users),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/users/{user_id}/update", members.update_user, events.body_limit),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/members/{user_id}", members.lease, events.body_limit),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/members/{user_id}/leave", members.release),
    Route(READ, "/apps/{app_id}/channels/{channel}/history", queries.history),
    Route(READ, "/apps/{app_id}/users/{user_id}", queries.user),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/history/{position}/revise", revisions.revise, events.body_limit),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/streams", streams.open_stream, streams.body_limit),
    Route(READ, "/apps/{app_id}/channels/{channel}/streams/{stream}", streams.stream),
    Route(
        WRITE, "/apps/{app_id}/channels/{channel}/streams/{stream}/append", streams.append_to_stream, streams.body_limit
    ),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/streams/{stream}/cancel", streams.cancel_stream),
    Route(WRITE, "/apps/{app_id}/streams/append", streams.append_to_streams, streams.batch_body_limit),
    Route(WRITE, "/apps/{app_id}/users/{user_id}/terminate_connections", terminate),
    Route(WRITE, "/users/{user_id}/terminate_connections", terminate),  # the vendor's Python library calls this one
    Route(WRITE, "/apps/{app_id}/capabilities/{token_id}/revoke", revoke),
    # Replaced in 2012; some clients still call them.
    Route(WRITE, "/apps/{app_id}/channels/{channel}/events", events.trigger_on_channel, events.body_limit, status=202),
    Route(READ, "/apps/{app_id}/channels/{channel}/stats", queries.stats),
)
# fmt: on


def find(path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of a path, and the variable parts of the path, not decoded."""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match is not None:
            return route, match.groupdict()
    return None
