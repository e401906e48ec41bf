"""Django system checks for URLs of the project that Fanfare hides, and for another `runserver`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from django.apps import AppConfig
from django.conf import settings
from django.core import checks

from fanfare import conf
from fanfare.management import runserver
from fanfare.server import consumers, urlconf

# For each route at the root, an example path and the requests that Fanfare answers there. A URL pattern of the project
# that matches the path is hidden for these requests.
SIGNED: Final = "requests that are signed for the HTTP API (auth_key, auth_signature)"
ALL: Final = "GET requests"
SAMPLES: Final = (
    ("/apps/1001/events", SIGNED),
    ("/apps/1001/batch_events", SIGNED),
    ("/apps/1001/channels", SIGNED),
    ("/apps/1001/channels/news", SIGNED),
    ("/apps/1001/channels/news/users", SIGNED),
    ("/apps/1001/channels/news/history", SIGNED),
    ("/apps/1001/users/7/terminate_connections", SIGNED),
    ("/users/7/terminate_connections", SIGNED),
    ("/sse/278d425bdf160c739803", "GET requests with the key of an application"),
    ("/health/live", ALL),
    ("/health/ready", ALL),
)
WEBSOCKET: Final = "app/278d425bdf160c739803"

PREFIX_HINT: Final = (
    "Set FANFARE_URL_PREFIX, for example to /realtime/: Fanfare then answers there, and the root is the project's."
)


@checks.register(checks.Tags.urls)
def hidden_urls(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """URL patterns of the project that Fanfare hides."""
    if conf.settings.URL_PREFIX != "/" or not getattr(settings, "ROOT_URLCONF", None):
        return []
    found: dict[str, tuple[str, str]] = {}
    for path, requests in SAMPLES:
        route = urlconf.route(path)
        if route is not None and urlconf.is_specific(route, path):
            found.setdefault(route, (path, requests))
    return [
        checks.Warning(
            f"The URL pattern {route!r} of the project also matches {path}, where Fanfare answers {requests}.",
            hint=PREFIX_HINT,
            id="fanfare.W010",
        )
        for route, (path, requests) in found.items()
    ]


@checks.register(checks.Tags.urls)
def hidden_websockets(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """Patterns of `websocket_urlpatterns` below /app/."""
    if conf.settings.URL_PREFIX != "/":
        return []
    return [
        checks.Warning(
            f"The WebSocket pattern {str(pattern.pattern)!r} is below /app/, where Fanfare answers every WebSocket.",
            hint=PREFIX_HINT,
            id="fanfare.W010",
        )
        for pattern in consumers.discover()
        if str(pattern.pattern).lstrip("^/").startswith("app/") and consumers.matches([pattern], WEBSOCKET)
    ]


@checks.register(checks.Tags.compatibility)
def other_runserver(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """Another app's `runserver` replaces Fanfare's."""
    owner = runserver.owner()
    if owner == runserver.APP:
        return []
    return [
        checks.Warning(
            f"`manage.py runserver` is that of {owner!r}, which may not serve Fanfare's WebSockets.",
            hint=f'Put "fanfare" before {owner!r} in INSTALLED_APPS, or start uvicorn yourself.',
            id="fanfare.W011",
        )
    ]
