"""Which writer a connection gets: the one that knows the server below, or the one that works on any ASGI server."""

from __future__ import annotations

from typing import Any

from fanfare.hub import on_any, on_daphne, on_uvicorn, writers
from fanfare.sockets import asgi, protocol

server_config = on_uvicorn.server_config
tune = on_uvicorn.tune
describe = on_uvicorn.describe
install_log_filters = on_uvicorn.install_log_filters
at_shutdown = on_uvicorn.at_shutdown


def below(send: Any) -> on_any.Below | None:
    """What is known of the server below one connection, a WebSocket or a request."""
    return on_daphne.below(send) or on_uvicorn.below(send)


def writer_for(send: Any, *, max_buffer_bytes: int) -> writers.Writer:
    """The one writer of a WebSocket that was just accepted. `send`: what the ASGI server gave for this connection."""
    socket = _own(send)
    if socket is not None:
        return socket.bound(max_buffer_bytes)
    uvicorns = on_uvicorn.protocol_of(send)
    if uvicorns is not None:
        return on_uvicorn.UvicornWriter(uvicorns, max_buffer_bytes)
    return on_any.AsgiWriter(send, max_buffer_bytes, below(send))


def listen(send: Any, listener: protocol.Listener) -> bool:
    """Hand an accepted WebSocket over to `listener`, where the server below can do that: its application then returns.

    False: nothing has changed, and the application goes on to receive.
    """
    socket = _own(send)
    if socket is not None:
        socket.listen(listener)
    return socket is not None


def _own(send: Any) -> protocol.WebSocketProtocol | None:
    of = getattr(send, "__self__", None)
    return of.socket if isinstance(of, asgi.AsgiConnection) else None


def mute_access_log(send: Any) -> None:
    """Write no line about one HTTP request, which the server would log once it is answered."""
    on_uvicorn.mute_access_log(send)
    on_daphne.mute_access_log(send)


def keep_out_of_log(send: Any) -> None:
    """An HTTP request whose query holds a signature: see the servers' own modules for what they would write of it."""
    on_uvicorn.mute_access_log(send)
    on_daphne.redact_log(send)
