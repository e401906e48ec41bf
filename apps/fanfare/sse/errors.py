"""What is refused before a stream begins.

    SseError
    ├── BadRequest          400  what is asked for cannot be understood
    ├── Unauthorized        401  no token, or none that holds
    ├── Forbidden           403  known, and not allowed
    ├── NotFound            404  no such path or application
    ├── MethodNotAllowed    405
    └── Unavailable         503  not now: come again

    InvalidCursor                where a client says it stopped cannot be read

`code` is for machines: it names the counter. The message is for the developer of the client; it never quotes a token.
A browser's EventSource gives up for good after any of these, so a client that could go on later is not answered with a
status (see `fanfare.sse.answers`).
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
    """Told in the stream and not with a status: the client has lost its place, and everything else is right."""
