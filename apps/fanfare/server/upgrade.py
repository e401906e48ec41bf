"""`GET …/app/KEY` without an upgrade: a WebSocket whose handshake a proxy did not pass on.

A proxy that drops the Upgrade header turns the handshake into a plain GET, which Django would answer with 404. If the
key belongs to an application, the response is 426 with the cause.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

from fanfare.hub import hub as hubs
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.server import consumers, interfaces, responses, root_path

logger = logging.getLogger(__name__)

CODE: Final = "upgrade_required"
MESSAGE: Final = (
    "This is the address of a WebSocket, and the request came without an Upgrade header. A proxy between the client "
    "and this server dropped it: let it pass Upgrade and Connection on (nginx: proxy_http_version 1.1, "
    'proxy_set_header Upgrade $http_upgrade, proxy_set_header Connection "upgrade").'
)


class UpgradeRequired:
    """ASGI middleware for HTTP requests. `knows(key)`: whether an application has this key."""

    def __init__(
        self, application: interfaces.Application, knows: Callable[[str], Awaitable[bool]], hub: hubs.Hub
    ) -> None:
        self.application = application
        self.knows = knows
        self.hub = hub
        self._log = LogThrottle(logger)

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        found = consumers.KEY.search(root_path.below(scope)) if scope["method"] in {"GET", "HEAD"} else None
        if found is None or not await self.knows(found[1]):
            await self.application(scope, receive, send)
            return
        client = scope.get("client")
        address = client[0] if client else ""
        self.hub.count(f"http.refused.{CODE}")
        self.hub.activity.refused("connection", CODE, MESSAGE, address=address)
        self._log.warning("Connection from %s refused with 426: %s", address or "an unknown address", MESSAGE, key=CODE)
        headers = [(b"upgrade", b"websocket"), (b"connection", b"upgrade"), (b"access-control-allow-origin", b"*")]
        await responses.json(send, 426, {"error": MESSAGE, "code": CODE}, headers)
