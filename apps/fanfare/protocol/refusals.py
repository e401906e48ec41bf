"""The refusals of the protocol, as exceptions.

    PusherError
    ├── InvalidName             the name of a channel or an event is not allowed
    │   └── NameTooLong
    ├── ConnectionRefused       the handshake ends with a close code
    │   └── ApplicationSuspended
    ├── BadFrame                the frame is no message of the protocol; the connection stays open
    ├── TooManyPendingFrames    too many bytes of frames wait for an answer; the connection is closed
    ├── WrongSignature          the auth string has another key or another signature
    ├── InvalidToken            a capability token that is invalid, expired or revoked
    ├── SubscriptionRefused     answered with two frames; the connection stays open
    │   ├── Unauthorized
    │   └── LimitReached
    ├── SignInRefused           the connection stays open, unless its application requires signed-in users
    └── ClientEventRejected     not relayed; the connection stays open

`reason` is for machines: it is the end of the counter's name, and part of the log line. The message is for developers.
It may quote what the client sent, shortened, and the text to be signed, but no secret and no expected signature.
"""

from __future__ import annotations

from typing import Final

from fanfare.runtime import close_codes
from fanfare.runtime.text import clean

# Close codes and `pusher:error` codes, besides those of `fanfare.runtime.close_codes`.
UNKNOWN_PATH: Final = 4005
INVALID_VERSION: Final = 4006
UNSUPPORTED_PROTOCOL: Final = 4007
UNAUTHORIZED: Final = 4009
CLIENT_EVENT_REJECTED: Final = 4301
WATCHLIST_TOO_LONG: Final = 4302
FRAME_TOO_BIG: Final = 1009  # RFC 6455 §7.4.1

QUOTED_CHARACTERS: Final = 100  # of a client's own text in a message: enough to recognize it


class PusherError(Exception):
    """Base class."""

    reason = "error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason

    @property
    def message(self) -> str:
        return str(self)


class InvalidName(PusherError):
    """A channel or event name with a character that is not allowed, or empty, or reserved."""

    reason = "invalid_name"


class NameTooLong(InvalidName):
    """`actual` and `limit` are characters."""

    reason = "name_too_long"

    def __init__(self, what: str, actual: int, limit: int) -> None:
        super().__init__(f"The {what} name has {actual} characters; {limit} are allowed")
        self.actual = actual
        self.limit = limit


class ConnectionRefused(PusherError):
    """`code` goes into the `pusher:error` frame and into the close frame after it."""

    reason = "connection_refused"

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ApplicationSuspended(ConnectionRefused):
    """The application was disabled a moment ago, and its clients wait."""

    reason = "application_suspended"

    def __init__(self, app_id: str) -> None:
        super().__init__(close_codes.OVER_CAPACITY, "This application was disabled a moment ago; try again")
        self.app_id = app_id


class BadFrame(PusherError):
    """Answered with `pusher:error`, code null."""

    reason = "bad_frame"


class TooManyPendingFrames(PusherError):
    """`actual` and `limit` are bytes."""

    reason = "too_many_pending_frames"

    def __init__(self, actual: int, limit: int) -> None:
        super().__init__(f"{actual} bytes wait for an earlier answer; {limit} are allowed")
        self.actual = actual
        self.limit = limit


class WrongSignature(PusherError):
    """No auth string, another application's, or not a signature of what it should sign."""

    reason = "wrong_signature"


class InvalidToken(PusherError):
    """The message never contains the token."""

    reason = "invalid_token"


class SubscriptionRefused(PusherError):
    """`code` goes into `pusher:error`, `kind` and `status` into `pusher:subscription_error`.

    The kinds `AuthError` and `LimitReached` and their statuses are those that clients of soketi know.
    """

    reason = "subscription_refused"

    def __init__(self, message: str, *, code: int | None, kind: str, status: int, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.code = code
        self.kind = kind
        self.status = status


class Unauthorized(SubscriptionRefused):
    """The client may not subscribe to the channel, or not as this member."""

    def __init__(self, message: str, *, reason: str = "unauthorized") -> None:
        super().__init__(message, code=UNAUTHORIZED, kind="AuthError", status=401, reason=reason)


class LimitReached(SubscriptionRefused):
    """`code` is also the status: 4009 name too long, 4100 channel full, 4301 member too big."""

    def __init__(self, message: str, *, code: int, reason: str = "limit_reached") -> None:
        super().__init__(message, code=code, kind="LimitReached", status=code, reason=reason)


class SignInRefused(PusherError):
    """The client may not sign in as this user, or not on this connection."""

    reason = "sign_in_refused"


class ClientEventRejected(PusherError):
    """`code` goes into `pusher:error`."""

    reason = "client_event_rejected"

    def __init__(self, message: str, *, code: int | None, reason: str) -> None:
        super().__init__(message, reason=reason)
        self.code = code


def quoted(text: str, limit: int = QUOTED_CHARACTERS) -> str:
    """A client's text for a message that is sent back and logged: printable, at most `limit` characters."""
    return clean(text, limit)
