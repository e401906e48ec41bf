"""The refusals of SSE connections.

    SseError
    ├── BadRequest          400  the request cannot be understood
    ├── Unauthorized        401  no token, or an invalid one
    ├── Forbidden           403  the client is known but not allowed
    ├── NotFound            404  no such path or application
    ├── MethodNotAllowed    405
    └── Unavailable         503  the client may try again

    InvalidCursor                the position in the request cannot be read

`code` is for programs and names the counter. The message is for the client's developer; it never contains a token.
"""

from __future__ import annotations


class SseError(Exception):
    """Base class."""

    status = 500

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BadRequest(SseError):
    status = 400


class Unauthorized(SseError):
    status = 401


class Forbidden(SseError):
    status = 403


class NotFound(SseError):
    status = 404


class MethodNotAllowed(SseError):
    status = 405


class Unavailable(SseError):
    status = 503


class InvalidCursor(ValueError):
    """Reported in an event instead of a status: only the client's position is lost."""
