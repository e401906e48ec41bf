"""Selects the writer of a connection: one for a known ASGI server, or the portable one."""

from __future__ import annotations

from typing import Any

from fanfare.hub import on_any, on_daphne, on_uvicorn, writers
from fanfare.sockets import asgi, protocol

server_config = on_uvicorn.server_config
tune = on_uvicorn.tune
describe = on_uvicorn.describe
install_log_filters = on_uvicorn.install_log_filters
at_shutdown = on_uvicorn.at_shutdown
respond = on_uvicorn.respond
response = on_uvicorn.response
serves = on_uvicorn.serves
drain_of = on_uvicorn.drain_of


def below(send: Any) -> on_any.Below | None:
    """The known ASGI server of one connection, a WebSocket or a request."""
    return on_daphne.below(send) or on_uvicorn.below(send)


def writer_for(send: Any, *, max_buffer_bytes: int) -> writers.Writer:
    """The writer of a WebSocket that was just accepted. `send`: the ASGI callable of this connection."""
    socket = _own(send)
    if socket is not None:
        return socket.bound(max_buffer_bytes)
    uvicorns = on_uvicorn.protocol_of(send)
    if uvicorns is not None:
        return on_uvicorn.UvicornWriter(uvicorns, max_buffer_bytes)
    return on_any.AsgiWriter(send, max_buffer_bytes, below(send))


def listen(send: Any, listener: protocol.Listener) -> bool:
    """Hand an accepted WebSocket over to `listener`, if the ASGI server supports it; its application then returns.

    Returns False if it does not; the application then continues to receive.
    """
    socket = _own(send)
    if socket is not None:
        socket.listen(listener)
    return socket is not None


def _own(send: Any) -> protocol.WebSocketProtocol | None:
    of = getattr(send, "__self__", None)
    socket = of.socket if isinstance(of, asgi.AsgiConnection) else None
    return socket if isinstance(socket, protocol.WebSocketProtocol) else None


def mute_access_log(send: Any) -> None:
    """Omit one HTTP request from the server's access log."""
    on_uvicorn.mute_access_log(send)
    on_daphne.mute_access_log(send)


def keep_out_of_log(send: Any) -> None:
    """Keep a request with a signature in its query out of the access log; see the modules of the servers."""
    on_uvicorn.mute_access_log(send)
    on_daphne.redact_log(send)
