"""Who answers what.

lifespan                       the start and the stop of this worker                 lifespan.py
websocket                      the Pusher protocol                                   apps/pusher
http   /apps/…                 the HTTP API                                          apps/api
http   /health/live, /ready    whether this worker lives, and whether it can work    health.py
http   everything else         static files, then Django's pages                     static_files.py, urls.py
"""

from __future__ import annotations

from myproject import boot

django = boot.django()

from django.conf import settings  # noqa: E402

from apps.api.application import Api  # noqa: E402
from apps.pusher.consumers import PusherConsumer  # noqa: E402
from myproject import health, proxies, routing, static_files  # noqa: E402
from myproject.lifespan import Server  # noqa: E402

server = Server()

application = proxies.trusting(
    routing.Router(
        lifespan=server.lifespan,
        websocket=routing.Started(
            server,
            PusherConsumer.as_asgi(
                hub=server.hub,
                registry=server.registry,
                activity_timeout=settings.FANFARE_ACTIVITY_TIMEOUT,
                max_frame_bytes=settings.FANFARE_MAX_FRAME_BYTES,
            ),
        ),
        http={
            "/apps/": routing.Started(server, Api(server.hub, server.registry)),
            "/health/": health.Health(server),
            "/": static_files.StaticFiles(django),
        },
    ),
    settings.FANFARE_TRUSTED_PROXIES,
)
