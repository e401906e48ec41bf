"""Consumers of the project beside the protocol, and which WebSocket goes where.

There are two ways to add consumers. `websocket_urlpatterns` in the `routing` module of any app is discovered like
`admin.py`, and wrapped in Channels' AuthMiddlewareStack and an origin check. Or a project passes its own routing, with
its middleware, to `fanfare.asgi.application(websocket=…)`.

The protocol answers all other WebSockets: an unknown path is closed with 4005.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import OriginValidator
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404
from django.utils.module_loading import module_has_submodule

from fanfare.server import interfaces, root_path
from fanfare.sockets import asgi

MODULE = "routing"
PATTERNS = "websocket_urlpatterns"

PROTOCOL = "/app/"  # the path of Pusher clients without a prefix
KEY: Final = re.compile(r"/app/([^/]+)\Z")

NO_ROUTE = "No route found for path"  # the start of URLRouter's ValueError


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


class WebSockets:
    """The routing of WebSockets.

    `protocol`: the Pusher protocol. `patterns`: as `discover` gives them. `own`: the project's routing, an ASGI
    application or None. `knows(key)`: whether an application has this key. `url_prefix`: as for `routing.Http`.
    """

    def __init__(
        self,
        protocol: interfaces.Application,
        *,
        patterns: list[Any] | None = None,
        own: interfaces.Application | None = None,
        knows: Callable[[str], Awaitable[bool]],
        url_prefix: str = "",
    ) -> None:
        self._protocol = protocol
        self._patterns = patterns or []
        # The router's constructor turns the pattern of a nested router into a prefix, so it must run before any match.
        router: Any = URLRouter(self._patterns)
        authenticated: Any = AuthMiddlewareStack(router)
        self._consumers = AllowedOrigins(asgi.deliver_disconnect(authenticated))
        self._own = asgi.deliver_disconnect(own) if own is not None else None
        self._knows = knows
        self._place = url_prefix + PROTOCOL

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        path = root_path.below(scope)
        if path.startswith(self._place) or not (self._patterns or self._own):
            await self._protocol(scope, receive, send)
        elif self._patterns and not path.startswith(PROTOCOL) and matches(self._patterns, path.lstrip("/")):
            await self._consumers(scope, receive, send)
        elif self._own is None or await self._is_of_protocol(path):
            await self._protocol(scope, receive, send)
        else:
            await self._give_to(self._own, scope, receive, send)

    async def _is_of_protocol(self, path: str) -> bool:
        """SDKs may put any prefix before /app/KEY; a known key identifies the protocol."""
        found = KEY.search(path)
        return found is not None and await self._knows(found[1])

    async def _give_to(
        self, own: interfaces.Application, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """If the project's routing has no route, the protocol closes with 4005."""
        has_answered = False

        async def answer(message: Any) -> None:
            nonlocal has_answered
            has_answered = True
            await send(message)

        try:
            await own(scope, receive, answer)
        except (ValueError, Resolver404) as error:
            if has_answered or not str(error).startswith(NO_ROUTE):
                raise
            await self._protocol(scope, receive, send)


class AllowedOrigins(OriginValidator):
    """Accepts pages of ALLOWED_HOSTS and CSRF_TRUSTED_ORIGINS, and clients without an Origin; others get 403.

    A browser sends the session cookies with a WebSocket that a page of any site opens, and always sends that page's
    origin. A client without an Origin is not a browser and has no cookies of a visitor; Channels' validator would
    refuse it.
    """

    def __init__(self, application: Any) -> None:
        super().__init__(application, [*settings.ALLOWED_HOSTS, *_as_channels_writes(settings.CSRF_TRUSTED_ORIGINS)])

    def valid_origin(self, parsed_origin: Any) -> bool:
        return parsed_origin is None or bool(self.validate_origin(parsed_origin))


def _as_channels_writes(origins: Iterable[str]) -> list[str]:
    """Convert Django's `https://*.example.com` to Channels' `https://.example.com`."""
    return [origin.replace("://*.", "://.") for origin in origins]


def matches(patterns: Iterable[Any], path: str) -> bool:
    """Whether the router has a consumer for a path. The router itself raises only when it is called."""
    for route in patterns:
        try:
            match = route.pattern.match(path)
        except Resolver404:
            continue
        if match and (not isinstance(route.callback, URLRouter) or matches(route.callback.routes, match[0])):
            return True
    return False
