"""A team's own Channels consumers, beside the protocol: `websocket_urlpatterns` in the `routing` module of any app.

They are found as Django finds `admin.py`, and stand behind Channels' AuthMiddlewareStack and a check of the origin. The
protocol keeps `/app/…` to itself and gets what no pattern matches, so an unknown path is still refused with its 4005.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import OriginValidator
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404
from django.utils.module_loading import module_has_submodule

from fanfare.server import interfaces
from fanfare.sockets import asgi

MODULE = "routing"
PATTERNS = "websocket_urlpatterns"

PROTOCOL = "/app/"  # where clients of the protocol connect that have no prefix of their own


def discover() -> list[Any]:
    """The patterns of all apps, in the order of INSTALLED_APPS. Raises ImproperlyConfigured."""
    found: list[Any] = []
    for config in apps.get_app_configs():
        if config.module is None or not module_has_submodule(config.module, MODULE):
            continue
        module = importlib.import_module(f"{config.name}.{MODULE}")
        patterns = getattr(module, PATTERNS, [])
        for pattern in patterns:
            if not hasattr(pattern, "pattern") or not callable(getattr(pattern, "callback", None)):
                raise ImproperlyConfigured(
                    f"{module.__name__}.{PATTERNS} has {pattern!r}; an entry looks like "
                    "path('chat/', ChatConsumer.as_asgi())."
                )
        found.extend(patterns)
    return found


class Consumers:
    """The consumers that `patterns` lead to."""

    def __init__(self, patterns: list[Any]) -> None:
        self._patterns = patterns
        # The router's own __init__ makes a pattern of a nested router a prefix, so it comes before the first match.
        router: Any = URLRouter(patterns)
        authenticated: Any = AuthMiddlewareStack(router)
        self._application: interfaces.Application = AllowedOrigins(asgi.deliver_disconnect(authenticated))

    def before(self, otherwise: interfaces.Application) -> interfaces.Application:
        """An application that gives WebSockets to the patterns that match, and the others to `otherwise`."""
        if not self._patterns:
            return otherwise

        async def application(scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if not path.startswith(PROTOCOL) and _matches(self._patterns, path.lstrip("/")):
                await self._application(scope, receive, send)
            else:
                await otherwise(scope, receive, send)

        return application


class AllowedOrigins(OriginValidator):
    """Lets in pages of ALLOWED_HOSTS and CSRF_TRUSTED_ORIGINS, and whoever sends no Origin; the others get a 403.

    A browser sends the cookies of a session with a WebSocket that any page in the world opens, and always says which
    page that is. A program that says nothing has nobody's cookies but its own; Channels' validator refuses it.
    """

    def __init__(self, application: Any) -> None:
        super().__init__(application, [*settings.ALLOWED_HOSTS, *_as_channels_writes(settings.CSRF_TRUSTED_ORIGINS)])

    def valid_origin(self, parsed_origin: Any) -> bool:
        return parsed_origin is None or bool(self.validate_origin(parsed_origin))


def _as_channels_writes(origins: Iterable[str]) -> list[str]:
    """Django's `https://*.example.com` is `https://.example.com` there."""
    return [origin.replace("://*.", "://.") for origin in origins]


def _matches(patterns: Iterable[Any], path: str) -> bool:
    """Whether the router will find somebody. It cannot be asked: it raises, from within whatever it found."""
    for route in patterns:
        try:
            match = route.pattern.match(path)
        except Resolver404:
            continue
        if match and (not isinstance(route.callback, URLRouter) or _matches(route.callback.routes, match[0])):
            return True
    return False
