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
        return get_asgi_application()


@contextlib.contextmanager
def or_end() -> Iterator[None]:
    """End the process on wrong settings with their one sentence, not with a page of traceback."""
    try:
        yield
    except ImproperlyConfigured as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(CANNOT_START) from None
