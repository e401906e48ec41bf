"""The ASGI application of a project with Fanfare: one call in the project's `asgi.py`.

    import os

    import fanfare.asgi

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    application = fanfare.asgi.application()

Routing table:

    lifespan                              start and stop of this worker                      server/lifespan.py
    websocket  …/app/KEY                  the Pusher protocol                                protocol/
    websocket  of the project             consumers of the project                           server/consumers.py
    both       FANFARE_ASGI_MOUNTS        other ASGI applications under their prefixes       server/mounts.py
    http       /apps/ID/…, /users/ID/…    the HTTP API                                       api/
    http       /sse/KEY                   SSE connections                                      sse/
    http       /health/live, /ready       health of this worker                              server/health.py
    http       /metrics                   figures for Prometheus                             console/metrics.py
    http       /fanfare/console/…         live data of the console in the admin              console/live.py
    http       /api/openapi.json          the description of the HTTP API                    api/openapi.py
    http       …/app/KEY                  426: a WebSocket without its Upgrade header        server/upgrade.py
    http       everything else            static files, then the project's pages             server/static_files.py

Requests are matched by method and path, so `/apps/5/edit` and `/users/5/` are the project's. With
FANFARE_URL_PREFIX=/realtime/, all routes are below `/realtime/`; at the root remain the sockets and requests that are
signed for the HTTP API, because some SDKs cannot send a prefix.

In remote mode (FANFARE_REMOTE_URL) only the project's own rows exist: see server/remote_mode.py.

This module imports no models, because `application` sets Django up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanfare.runtime.address_limit import AddressLimit
from fanfare.server import boot, interfaces


def application(
    django: Any = None, *, websocket: Any = None, mounts: Mapping[str, Any] | None = None
) -> interfaces.Application:
    """The ASGI application of this process.

    `django`: the project's own ASGI application, if it has one: the result of `get_asgi_application()`, a
    `ProtocolTypeRouter`, another ASGI application, or the dotted path of one. `websocket`: the project's routing of
    WebSockets, usually an `AuthMiddlewareStack(URLRouter([…]))`; it gets every WebSocket that is not Fanfare's.
    `mounts`: further ASGI applications by prefix, as objects or as "module:attribute", in addition to
    FANFARE_ASGI_MOUNTS.

    Sets Django up. If a setting is invalid, prints the error and ends the process with exit code 3.
    """
    with boot.or_end():
        return _assemble(boot.project(django, websocket), mounts or {})


def _assemble(project: boot.Project, mounts: Mapping[str, Any]) -> interfaces.Application:
    from django.conf import settings

    from fanfare import conf
    from fanfare.api import direct as direct_api
    from fanfare.api.asgi import Api
    from fanfare.api.openapi import Description
    from fanfare.console.live import Live
    from fanfare.console.metrics import Metrics
    from fanfare.protocol import direct as direct_protocol
    from fanfare.protocol import page_sessions, sessions
    from fanfare.protocol.consumers import PusherConsumer
    from fanfare.server import (
        claims,
        consumers,
        health,
        logs,
        proxies,
        remote_mode,
        static_files,
        upgrade,
        urlconf,
    )
    from fanfare.server.lifespan import Server
    from fanfare.server.mounts import Mounts
    from fanfare.server.request_bodies import RequestBodies
    from fanfare.server.root_path import RootPath
    from fanfare.server.routing import Http, Route, Router, Started
    from fanfare.sse.asgi import Sse
    from fanfare.sse.responses import not_started
    from fanfare.sse.streams import Times

    boot.close_connections_after_requests()
    options = conf.settings
    logs.unify(as_json=options.LOG_FORMAT == "json")
    prefix = options.URL_PREFIX.rstrip("/")
    trusted = proxies.Trusted(options.TRUSTED_PROXIES)
    guests = Mounts({**options.ASGI_MOUNTS, **mounts}, taken=[prefix + one for one in claims.PREFIXES])
    if project.lifespan is not None:
        project = project.with_lifespan(guests.of_project(project.lifespan))
    if conf.settings.REMOTE_URL:
        return RootPath(remote_mode.application(project, guests, trusted), settings.FORCE_SCRIPT_NAME)
    server = Server()
    server.mounts = guests

    # The applications.
    def is_closed() -> bool:
        return server.drain.refuses_new

    publishing = Api(server.hub, server.registry)
    api = Started(server, publishing)
    of_sessions = sessions.Options(
        activity_timeout=options.ACTIVITY_TIMEOUT,
        max_subscriptions=options.MAX_SUBSCRIPTIONS,
        subscribes_per_second=options.SUBSCRIBES_PER_SECOND,
        history_pages_per_second=options.HISTORY_PAGES_PER_SECOND,
        max_pending_bytes=options.PENDING_BYTES,
        addresses=AddressLimit(options.SOCKETS_PER_ADDRESS, "WebSockets"),
        resume=page_sessions.Options(options.RESUME_WINDOW, options.RESUME_ACK_SECONDS, options.MAX_RESUME_TOKENS),
    )
    pusher = PusherConsumer.as_asgi(
        hub=server.hub,
        registry=server.registry,
        max_frame_bytes=options.MAX_FRAME_BYTES,
        owners=server.session_owners,
        options=of_sessions,
    )
    sse = Started(
        server,
        Sse(
            server.hub,
            server.registry,
            times=Times(heartbeat=options.SSE_HEARTBEAT, life=options.SSE_LIFE),
            streams_per_address=options.SSE_STREAMS_PER_ADDRESS,
        ),
        refuse=not_started,
        is_closed=is_closed,
    )
    pages = RequestBodies(
        static_files.before(boot.fresh_templates(project.http)),
        max_bytes=options.MAX_PAGE_BODY_BYTES,
        count=server.hub.count,
    )
    metrics = Started(server, Metrics(server.reports, options.METRICS_TOKEN, otherwise=pages))
    console = Started(server, Live(server))
    keys = claims.Keys(server)

    # The routing table. The first matching row answers.
    rows = [
        Route("/apps/", api, claims.is_api, is_certain=claims.is_signed),
        Route("/users/", api, claims.is_api, is_certain=claims.is_signed),
        Route("/sse/", sse, claims.is_sse, is_certain=keys.is_sse),
        Route("/health/", health.Health(server, trusted), claims.is_health, yields_to=claims.to_no_page),
        Route("/metrics", metrics, claims.is_metrics, yields_to=urlconf.has_own),
        Route("/fanfare/console/", console, claims.is_console, is_certain=claims.is_of_console_page),
        Route("/api/", Description(), claims.is_description, yields_to=urlconf.has_own),
    ]
    http = Http(rows, upgrade.UpgradeRequired(pages, keys.knows, server.hub), url_prefix=prefix, at_root=rows[:2])
    sockets = consumers.WebSockets(
        Started(server, pusher, is_closed=is_closed, moves=lambda: server.drain.moves_clients),
        patterns=consumers.discover(),
        own=project.websocket,
        knows=keys.knows,
        url_prefix=prefix,
    )
    answers = logs.with_request_id(guests.before(http))
    router = Router(lifespan=server.lifespan, websocket=guests.before(sockets), http=answers)
    application = RootPath(proxies.trusting(router, trusted), settings.FORCE_SCRIPT_NAME)
    is_below_a_path = bool(settings.FORCE_SCRIPT_NAME)

    def resolve(scope: Any) -> None:
        proxies.resolve(scope, trusted)

    server.answer_directly(
        direct_api.Direct(
            publishing,
            server.hub,
            server.registry,
            is_running=lambda: server.running,
            resolve=resolve,
        ),
        direct_protocol.Direct(
            server.hub,
            server.registry,
            options=of_sessions,
            owners=server.session_owners,
            place=prefix + consumers.PROTOCOL,
            is_open=lambda: server.running and not is_closed() and not is_below_a_path,
            resolve=resolve,
        ),
        below=application,
    )
    return application
