"""The ASGI application of a project in remote mode: its pages, consumers and mounts, and no worker.

The other deployment (FANFARE_REMOTE_URL) serves the sockets and the HTTP API. This process serves none of it, and
opens no engine. A client that connects here by mistake gets close code 4005.
"""

from __future__ import annotations

import logging
from typing import Any

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from fanfare import conf
from fanfare.hub import transports
from fanfare.protocol import refusals, server_frames
from fanfare.server import boot, consumers, interfaces, logs, mounts, proxies, request_bodies, routing, static_files

NOT_HERE = "This project publishes to another deployment: connect to its address (FANFARE_PUBLIC_URL)"

logger = logging.getLogger(__name__)


def application(project: boot.Project, guests: mounts.Mounts, trusted: proxies.Trusted) -> interfaces.Application:
    pages = request_bodies.RequestBodies(
        static_files.before(boot.fresh_templates(project.http)),
        max_bytes=conf.settings.MAX_PAGE_BODY_BYTES,
        count=lambda _name: None,
    )
    sockets = consumers.WebSockets(
        refuse,
        patterns=consumers.discover(),
        own=project.websocket,
        knows=_knows_no_key,
        url_prefix=conf.settings.URL_PREFIX.rstrip("/"),
    )

    async def lifespan(_scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await receive()
        config = transports.server_config(receive)
        if config is not None:
            proxies.take_over(config)
        await guests.start()
        logger.info("Fanfare: remote mode, %s", conf.settings.REMOTE_URL)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await guests.stop()
        await send({"type": "lifespan.shutdown.complete"})

    answers = logs.with_request_id(guests.before(pages))
    router = routing.Router(lifespan=lifespan, websocket=guests.before(sockets), http=answers)
    return proxies.trusting(router, trusted)


async def refuse(_scope: Any, receive: Any, send: Any) -> None:
    """Accept the WebSocket and close it with 4005, after which pusher-js does not reconnect."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    frame = server_frames.error(refusals.UNKNOWN_PATH, NOT_HERE).decode()
    await send({"type": "websocket.send", "text": frame})
    await send({"type": "websocket.close", "code": refusals.UNKNOWN_PATH, "reason": NOT_HERE})


async def _knows_no_key(_key: str) -> bool:
    return False
