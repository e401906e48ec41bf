"""Fanfare's log lines in a project that configures no logging for them.

Django's default configuration has no handler for other loggers than its own, so Python would show warnings and errors
as bare text and drop the rest. The lines then go where the server's own lines go, in the same format.
"""

from __future__ import annotations

import logging

NAME = "fanfare"
SERVERS = ("gunicorn.error", "uvicorn", "daphne")  # the loggers that bring handlers with them; the first that has some


def adopt() -> None:
    """Idempotent. Does nothing where a handler receives the lines already, which is the project's configuration."""
    own = logging.getLogger(NAME)
    if own.hasHandlers():
        return
    for server in map(logging.getLogger, SERVERS):
        if server.handlers:
            own.handlers = list(server.handlers)
            own.propagate = False
            if own.level == logging.NOTSET:
                own.setLevel(logging.INFO)
            return
