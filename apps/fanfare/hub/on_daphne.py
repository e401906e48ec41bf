"""All knowledge of daphne's internals. daphne buffers without limit, so the buffered bytes are read from Twisted's
transport."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

MODULES = ("daphne.ws_protocol", "daphne.http_protocol")


class Daphne:
    """The daphne side of one connection."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol  # daphne.ws_protocol.WebSocketProtocol, or daphne.http_protocol.WebRequest

    def buffered(self) -> int:
        """Bytes that Twisted has not yet written to the kernel."""
        transport = self._protocol.transport
        return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)

    def close(self, code: int, reason: str) -> bool:
        """daphne drops the reason, and autobahn's `sendClose` accepts only code 1000 of RFC 6455's codes; this call
        accepts all."""
        self._protocol.sendCloseFrame(code=code, reasonUtf8=reason.encode(), isReply=False)
        return True

    def abort(self) -> None:
        self._protocol.transport.abortConnection()

    def is_gone(self) -> bool:
        return not self._protocol.transport.connected


def below(send: Any) -> Daphne | None:
    """daphne passes each connection a partial of `handle_reply` with its protocol object."""
    if not isinstance(send, functools.partial) or not send.args:
        return None
    protocol = send.args[0]
    return Daphne(protocol) if type(protocol).__module__ in MODULES else None


class _Redacted:
    """daphne's access log without secrets in paths."""

    def __init__(self, log: Callable[[Any, str, dict[str, Any]], None]) -> None:
        self._log = log
        self.muted: set[str] = set()  # "host:port" of clients whose present request has no line

    def __call__(self, protocol: Any, action: str, details: dict[str, Any]) -> None:
        client = details.get("client")
        if action == "complete" and client in self.muted:
            self.muted.discard(client)
            return
        path = details.get("path")
        if isinstance(path, str):
            path = _SIGNATURE.sub(r"\1…", _TOKEN.sub("/s/…/", path))
        self._log(protocol, action, {**details, "path": path})


_SIGNATURE = re.compile(r"((?:auth_signature|token)=)[^&]*")
_TOKEN = re.compile(r"/s/[A-Za-z0-9_-]{16,128}/")


def mute_access_log(send: Any) -> None:
    """Omit one HTTP request from the access log."""
    redact_log(send)
    request = send.args[0] if isinstance(send, functools.partial) and send.args else None
    log = getattr(getattr(request, "server", None), "action_logger", None)
    address = getattr(request, "client_addr", None)
    if isinstance(log, _Redacted) and address:
        log.muted.add(f"{address[0]}:{address[1]}")


def redact_log(send: Any) -> None:
    """Redact signatures in the access log. Called at the first request, which daphne logs after the response."""
    if not isinstance(send, functools.partial) or not send.args:
        return
    server = getattr(send.args[0], "server", None)
    log = getattr(server, "action_logger", None)
    if server is not None and log is not None and not isinstance(log, _Redacted):
        server.action_logger = _Redacted(log)
