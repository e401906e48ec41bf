"""One format for the lines of Fanfare and of the server below.

A project that configures logging has its format for Fanfare's lines; the server's lines on the console then get it,
too. A project without such a configuration has no handler for Fanfare's lines: Python would show warnings and errors as
bare text and drop the rest. They then go where the server's lines go, in the server's format.
"""

from __future__ import annotations

import logging
import sys

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from fanfare.runtime import log_lines
from fanfare.runtime.log_lines import JsonLines, TextLines
from fanfare.server import interfaces

NAME = "fanfare"
# The loggers that bring handlers with them; Fanfare's lines go to those of the first that has some.
SERVERS = ("gunicorn.error", "uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.access")


def unify(*, as_json: bool = False) -> None:
    """Idempotent. Called when the application is assembled: the servers have configured their loggers by then.

    The lines on the console end with the ids of their connection, request and trace. `as_json`: each is a JSON object,
    also those of the project.
    """
    own = logging.getLogger(NAME)
    if own.hasHandlers():
        _give_format(own)
    else:
        _take_handlers(own)
    for logger in (logging.getLogger(), own, *map(logging.getLogger, SERVERS)):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr):
                if as_json:
                    handler.setFormatter(JsonLines())
                elif not isinstance(handler.formatter, TextLines):
                    handler.setFormatter(TextLines(handler.formatter or logging.Formatter()))


def with_request_id(application: interfaces.Application) -> interfaces.Application:
    """`application` for HTTP requests, whose log lines have the id of their request."""

    async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        log_lines.scope.set(scope)  # of this request alone: the server runs each in a task of its own
        await application(scope, receive, send)

    return answer


def _give_format(own: logging.Logger) -> None:
    formatter = _formatter(own)
    if formatter is None:
        return
    for server in map(logging.getLogger, SERVERS):
        for handler in server.handlers:
            if type(handler) is logging.StreamHandler and handler.stream in (sys.stdout, sys.stderr):
                handler.setFormatter(formatter)


def _formatter(logger: logging.Logger) -> logging.Formatter | None:
    """That of the handler on the console which gets the logger's lines, if there is one."""
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            if type(handler) is logging.StreamHandler and handler.formatter is not None:
                return handler.formatter
        at = at.parent if at.propagate else None
    return None


def _take_handlers(own: logging.Logger) -> None:
    for server in map(logging.getLogger, SERVERS):
        if server.handlers:
            own.handlers = list(server.handlers)
            own.propagate = False
            if own.level == logging.NOTSET:
                own.setLevel(logging.INFO)
            return
