"""A small ASGI dispatcher: by the type of the scope, then by the start of the path. asgi.py says what goes where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from fanfare.server import errors, interfaces, responses

RETRY_AFTER_SECONDS = 1
# The protocol's "over capacity": clients come back by themselves, each time a little later.
OVER_CAPACITY = 4100
# The reason itself may hold a path or an address of this machine, which is not everybody's business.
REFUSED = "This server cannot work now"
HEALTH = "/health/ready"  # where it stands


class Router:
    """`http`: applications by the prefix of their paths; the first that fits answers.

    Unknown types of scope are ignored.
    """

    def __init__(
        self,
        *,
        lifespan: interfaces.Application,
        websocket: interfaces.Application,
        http: Mapping[str, interfaces.Application],
    ) -> None:
        self.lifespan = lifespan
        self.websocket = websocket
        self.http = tuple(http.items())

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            for prefix, application in self.http:
                if path.startswith(prefix):
                    await application(scope, receive, send)
                    return
            await responses.json(send, 404, {"error": "There is nothing here.", "code": "not_found"})
        elif scope["type"] == "websocket":
            await self.websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.lifespan(scope, receive, send)


# What it is called with: the scope, a code, a message, and `send`.
Refuse = Callable[[Any, str, str, Any], Awaitable[None]]


class Startable(Protocol):
    """What `Started` waits for: lifespan.Server in a worker, a mount on a server without a lifespan."""

    @property
    def running(self) -> bool: ...

    async def started(self) -> None:
        """Raises errors.NotStarted."""


class Started:
    """Lets through to what needs a started worker, and starts it first where the server below runs no lifespan.

    `refuse`: answers a request in another way than with a plain 503, which some clients take for the end of all.
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
    """Accepted, then closed: a refused handshake has no code, and the code is what decides how a client comes back."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    await send({"type": "websocket.close", "code": OVER_CAPACITY, "reason": REFUSED})
