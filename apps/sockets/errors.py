"""What a client's bytes can be wrong in."""

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
