"""The API's refusals: exceptions that become HTTP responses, with a status, a code and a message.

    ApiError
    ├── Invalid            400  the request is invalid
    ├── Unauthorized       401  not signed, or not with this application's secret
    ├── Forbidden          403  the application is disabled
    ├── NotFound           404  no such route or application
    ├── MethodNotAllowed   405
    ├── BodyTimeout        408  the body did not arrive in time
    ├── Gone               410  the position belongs to a history that was reset
    ├── TooLarge           413  an event's data, or the whole body
    ├── TooMany            429  more events in this second than the application may publish
    └── Unavailable        503  the engine cannot answer now; nothing was published

    Disconnected           the client closed the connection while its body was read; no answer is sent

A message about a limit contains both numbers. No message contains a secret or the expected signature.
"""

from __future__ import annotations

from typing import ClassVar

Headers = list[tuple[bytes, bytes]]


class ApiError(Exception):
    """Base class. `code` replaces the code of the class."""

    status: ClassVar[int]
    code: str

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def headers(self) -> Headers:
        """The response's headers, without those of its content."""
        return []


class Invalid(ApiError):
    status = 400
    code = "invalid"


class Unauthorized(ApiError):
    status = 401
    code = "unauthorized"


class Forbidden(ApiError):
    status = 403
    code = "application_disabled"


class NotFound(ApiError):
    status = 404
    code = "unknown_route"


class MethodNotAllowed(ApiError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed  # the Allow header: "GET, HEAD, OPTIONS"

    def headers(self) -> Headers:
        return [(b"allow", self.allowed.encode())]


class BodyTimeout(ApiError):
    status = 408
    code = "body_timeout"

    def headers(self) -> Headers:
        return [(b"connection", b"close")]  # the rest of the body may still arrive and is not a request


class Gone(ApiError):
    status = 410
    code = "epoch_changed"


class TooLarge(ApiError):
    status = 413
    code = "event_too_large"

    def __init__(self, message: str, *, code: str | None = None, close: bool = False) -> None:
        super().__init__(message, code=code)
        self.close = close  # the rest of the body was not read

    def headers(self) -> Headers:
        return [(b"connection", b"close")] if self.close else []


class TooMany(ApiError):
    status = 429
    code = "too_many_events"

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(
            f"Too many events in this second: with this request they are {actual}, the allowed maximum is {limit}. "
            "An event counts once for each of its channels. Nothing was published."
        )

    def headers(self) -> Headers:
        return [(b"retry-after", b"1")]  # seconds; each second has its own budget


class TooOften(ApiError):
    """`what`: the plural of what is counted, and for what: "appends to this stream"."""

    status = 429

    def __init__(self, what: str, limit: int, actual: int, *, code: str) -> None:
        super().__init__(
            f"Too many {what} in this second: with this request they are {actual}, the allowed maximum is {limit}. "
            "Send this request again after a second.",
            code=code,
        )

    def headers(self) -> Headers:
        return [(b"retry-after", b"1")]


class Unavailable(ApiError):
    status = 503
    code = "engine_unavailable"

    def headers(self) -> Headers:
        return [(b"retry-after", b"1")]  # seconds; an unavailable engine is tried again at least this often


class Disconnected(Exception):
    """Not an ApiError: it has no answer."""
