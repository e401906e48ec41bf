"""The project in a server process: Django's set-up and the project's own ASGI application."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
from django.core.exceptions import ImproperlyConfigured

from fanfare.engine import errors as engine_errors
from fanfare.server import interfaces

# The exit code of uvicorn and gunicorn for "cannot start"; their supervisors then do not restart the worker.
CANNOT_START = 3

CALL = "fanfare.asgi.application()"


class Project(NamedTuple):
    """The project's applications by scope type. `lifespan`: None for Django, which has none."""

    http: interfaces.Application
    websocket: interfaces.Application | None
    lifespan: interfaces.Application | None

    def with_lifespan(self, mounted: interfaces.Application) -> Project:
        """Replace the application with the lifespan by `mounted`, which gives requests the lifespan's state."""
        return Project(
            mounted if self.http is self.lifespan else self.http,
            mounted if self.websocket is self.lifespan else self.websocket,
            mounted,
        )


@contextlib.contextmanager
def or_end() -> Iterator[None]:
    """On invalid settings, print the error and end the process, without a traceback."""
    try:
        yield
    except (ImproperlyConfigured, engine_errors.EngineMisconfigured) as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(CANNOT_START) from None


def project(given: Any = None, websocket: Any = None) -> Project:
    """`given`: the project's ASGI application, its dotted path, or None for Django's. `websocket` replaces the
    WebSocket routing of `given`.

    Sets Django up. Raises ImproperlyConfigured.
    """
    from django.apps import apps
    from django.core.asgi import get_asgi_application
    from django.core.handlers.asgi import ASGIHandler

    if given is None:
        given = get_asgi_application()
    elif isinstance(given, str):
        given = load(given, CALL)
    for value in (given, *filter(None, [websocket])):
        if not callable(value):
            raise ImproperlyConfigured(f"{CALL} got {value!r}, which is not an ASGI application.")
    if not apps.ready:
        raise ImproperlyConfigured(
            f"Django is not set up: call get_asgi_application() before {CALL}, or give it no argument."
        )
    if not apps.is_installed("fanfare"):
        raise ImproperlyConfigured('INSTALLED_APPS does not have "fanfare": add it.')

    if isinstance(given, ASGIHandler):
        return Project(given, websocket, None)
    routes = getattr(given, "application_mapping", None)  # Channels' ProtocolTypeRouter
    if not isinstance(routes, dict):
        return Project(given, websocket or given, given)
    return Project(
        routes.get("http") or get_asgi_application(), websocket or routes.get("websocket"), routes.get("lifespan")
    )


def close_connections_after_requests() -> None:
    """Set CONN_MAX_AGE to 0 in this process.

    Under ASGI each request runs in a new thread, so a persistent connection is never used again. WSGI processes keep
    the project's CONN_MAX_AGE; a pool (OPTIONS["pool"]) keeps connections in both.
    """
    from django.db import connections

    for alias in connections:
        connections.settings[alias]["CONN_MAX_AGE"] = 0


def load(target: str, asked_by: str) -> interfaces.Application:
    """Import `module.attribute` or `module:attribute`. Raises ImproperlyConfigured if it does not exist."""
    module_name, _, attribute = target.replace(":", ".").rpartition(".")
    if not module_name:
        raise ImproperlyConfigured(f"{asked_by} has {target!r}; it looks like shop.asgi.application.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ImproperlyConfigured(f"{asked_by} has {target!r}: there is no module {error.name!r}.") from None
    found: interfaces.Application | None = getattr(module, attribute, None)
    if found is None:
        raise ImproperlyConfigured(f"{asked_by} has {target!r}: the module {module_name!r} has no {attribute!r}.")
    return found


def fresh_templates(application: interfaces.Application) -> interfaces.Application:
    """With DEBUG, ASGI middleware that empties Django's cache of templates before each request.

    Django caches templates also with DEBUG, and only the reloader of its own `runserver` empties the cache.
    """
    from django.conf import settings
    from django.template import autoreload

    if not settings.DEBUG:
        return application

    async def fresh(scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        autoreload.reset_loaders()
        await application(scope, receive, send)

    return fresh
