"""Who answers what.

lifespan                       the start and the stop of this worker                 lifespan.py
websocket                      the Pusher protocol                                   apps/fanfare/protocol
websocket of an app            a team's own consumers                                consumers.py
http   /apps/…, /users/…       the HTTP API                                          apps/fanfare/api
http   /api/openapi.json       its description, which /api/docs shows                apps/fanfare/api/openapi.py
http   /sse/KEY                event streams                                         apps/fanfare/sse
http   /health/live, /ready    whether this worker lives, and whether it can work    health.py
both   FANFARE_ASGI_MOUNTS     other ASGI applications under their prefixes           mounts.py
http   everything else         static files, then Django's pages                     static_files.py, urls.py
"""

from __future__ import annotations

from fanfare.server import boot

django = boot.django()

from fanfare import conf  # noqa: E402
from fanfare.api.asgi import Api  # noqa: E402
from fanfare.api.openapi import Description  # noqa: E402
from fanfare.protocol import page_sessions  # noqa: E402
from fanfare.protocol.consumers import PusherConsumer  # noqa: E402
from fanfare.server import consumers, health, interfaces, mounts, proxies, request_bodies, routing, static_files  # noqa: E402
from fanfare.server.lifespan import Server  # noqa: E402
from fanfare.sse.answers import not_started  # noqa: E402
from fanfare.sse.application import Sse  # noqa: E402
from fanfare.sse.streams import Times  # noqa: E402

server = Server()

api = routing.Started(server, Api(server.hub, server.registry))
pusher = PusherConsumer.as_asgi(
    hub=server.hub,
    registry=server.registry,
    activity_timeout=conf.settings.ACTIVITY_TIMEOUT,
    max_frame_bytes=conf.settings.MAX_FRAME_BYTES,
    tokens=server.tokens,
    resume=page_sessions.Options(conf.settings.RESUME_WINDOW, conf.settings.RESUME_ACK_SECONDS),
)
event_streams = routing.Started(
    server,
    Sse(
        server.hub,
        server.registry,
        times=Times(heartbeat=conf.settings.SSE_HEARTBEAT, life=conf.settings.SSE_LIFE),
    ),
    refuse=not_started,
)
rooms: dict[str, interfaces.Application] = {
    "/apps/": api,
    "/users/": api,
    "/api/openapi.json": Description(),
    "/sse/": event_streams,
    "/health/": health.Health(server),
}

pages = request_bodies.RequestBodies(
    static_files.StaticFiles(django), max_bytes=conf.settings.MAX_PAGE_BODY_BYTES, count=server.hub.count
)

with boot.or_end():
    server.mounts = mounts.Mounts(conf.settings.ASGI_MOUNTS, taken=[consumers.PROTOCOL, *rooms])
    sockets = routing.Started(server, consumers.Consumers(consumers.discover()).before(pusher))

application = proxies.trusting(
    routing.Router(
        lifespan=server.lifespan,
        websocket=server.mounts.before(sockets),
        http={**rooms, "/": server.mounts.before(pages)},
    ),
    proxies.Trusted(conf.settings.TRUSTED_PROXIES),
)
