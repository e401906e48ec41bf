"""Django's start inside a server process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from django.core.exceptions import ImproperlyConfigured

from fanfare.server import interfaces

# uvicorn's and gunicorn's code for "it cannot start": their supervisors give up instead of starting the worker again
# and again.
CANNOT_START = 3


def django() -> interfaces.Application:
    """Django as an ASGI application. Wrong settings end the process."""
    from django.core.asgi import get_asgi_application

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "myproject.settings")
    with or_end():
        application: interfaces.Application = get_asgi_application()
        close_connections_after_requests()
        return application


def close_connections_after_requests() -> None:
    """Set CONN_MAX_AGE to 0 in this process.

    Under ASGI each request has a thread of its own, so a persistent connection is never used again. A project keeps its
    CONN_MAX_AGE for its WSGI processes; a pool (OPTIONS["pool"]) keeps connections in both.
    """
    from django.db import connections

    for alias in connections:
        connections.settings[alias]["CONN_MAX_AGE"] = 0


@contextlib.contextmanager
def or_end() -> Iterator[None]:
    """End the process on wrong settings with their one sentence, not with a page of traceback."""
    try:
        yield
    except ImproperlyConfigured as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(CANNOT_START) from None
