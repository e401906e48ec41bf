"""The API's exceptions: each is an answer, with an HTTP status, a code for a machine and a message for a person.

    ApiError
    ├── Invalid            400  the request cannot be acted on as it is
    ├── Unauthorized       401  not signed, or not with this application's secret
    ├── Forbidden          403  the application is disabled
    ├── NotFound           404  no such route or application
    ├── MethodNotAllowed   405
    ├── BodyTimeout        408  the body did not come in time
    ├── Gone               410  the history that a position belongs to is no more
    ├── TooLarge           413  an event's data, or the whole body
    ├── TooMany            429  more events in this second than the application may publish
    └── Unavailable        503  the engine cannot answer now; nothing was published

    Disconnected           the client went away while its body was read; there is nobody to answer

Every message about a limit carries both numbers. No message carries a secret or a signature that would have been right.
"""

from __future__ import annotations

from typing import ClassVar

Headers = list[tuple[bytes, bytes]]


class ApiError(Exception):
    """Base class. The raiser may give a narrower `code` than that of the class."""

    status: ClassVar[int]
    code: str

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def headers(self) -> Headers:
        """What the answer carries besides its content headers."""
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
        self.allowed = allowed  # as the Allow header has it: "GET, HEAD, OPTIONS"

    def headers(self) -> Headers:
        return [(b"allow", self.allowed.encode())]


class BodyTimeout(ApiError):
    status = 408
    code = "body_timeout"

    def headers(self) -> Headers:
        return [(b"connection", b"close")]  # the rest of the body may still come, and is not the next request


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
        return [(b"retry-after", b"1")]  # seconds; each second has its own count


class Unavailable(ApiError):
    status = 503
    code = "engine_unavailable"

    def headers(self) -> Headers:
        return [(b"retry-after", b"1")]  # seconds; an engine that is away is asked for again at least this often


class Disconnected(Exception):
    """Not an ApiError: it has no answer."""
