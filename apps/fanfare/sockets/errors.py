"""What a client's bytes, and an application's answers, can be wrong in."""

from __future__ import annotations


class SocketError(Exception):
    """The root of this package's errors."""


class ProtocolViolation(SocketError):
    """The client broke RFC 6455, or sent more than it may. `code`: to close with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class HandshakeRefused(SocketError):
    """The request is no WebSocket handshake. `status`: the HTTP status to answer with; `headers`: what goes with it."""

    def __init__(self, status: int, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers


class HeaderInvalid(SocketError):
    """The application gave a header that cannot be sent: it would not end where it should."""


class UnexpectedMessage(SocketError, RuntimeError):
    """The application sent what ASGI does not allow at this point. uvicorn's own classes raise RuntimeError."""
