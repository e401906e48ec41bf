"""The first bytes of a connection, which decide whether it becomes a WebSocket or an HTTP connection of uvicorn.

uvicorn creates an HTTP object with a parser for each connection, parses an upgrade request, writes it out again, and
gives it to the WebSocket class, which parses it a second time. `Opening` waits for the first bytes instead. A plain
upgrade request that arrives in one piece, as browsers and SDKs send it, begins a WebSocket at once. After any other
bytes uvicorn's class gets the transport and the bytes as they came, so all errors are answered there.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from fanfare.sockets import handshake, protocol

# A whole head of RFC 9112: neither a body, nor line folding, nor a bare line break.
_PLAIN: Final = re.compile(
    rb"GET (/[^# \x00-\x20\x7f-\xff]*) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)+)\r\n"
)
_FIELD: Final = re.compile(rb"([^:]+):([^\r]*)\r\n")
_BODY: Final = frozenset([b"content-length", b"transfer-encoding", b"expect", b"te", b"trailer"])  # left to the parser

# When a server stops, idle connections stay open for this long: a request may still arrive. A close with unread bytes
# resets the connection, and browsers do not repeat the first request of a connection. uvicorn itself waits for 0.1 s.
STOP_S: Final = 0.25


def upgrade(data: bytes, *, line_bytes: int, head_bytes: int, headers: int) -> handshake.Request | None:
    """The request, if `data` is a complete upgrade to a WebSocket of the plain form, within these limits."""
    plain = _PLAIN.fullmatch(data) if len(data) <= head_bytes else None
    if plain is None or len(plain[1]) > line_bytes:
        return None
    fields = [(name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(plain[2])]
    names = [name for name, _ in fields]
    if len(names) > headers or not _BODY.isdisjoint(names):
        return None
    # uvicorn uses the last ones, and refuses a request without one host.
    if any(names.count(name) != 1 for name in (b"host", b"connection", b"upgrade")):
        return None
    values = dict(fields)
    tokens = [token.strip() for token in values[b"connection"].lower().split(b",")]
    if b"upgrade" not in tokens or values[b"upgrade"].lower() != b"websocket":
        return None
    return handshake.Request(b"GET", plain[1], fields)


class Opening(asyncio.Protocol):
    """A connection that has sent nothing. `http_limits.install` makes a subclass for a server.

    `http_class`: uvicorn's, with limits. `gate`: the `http_limits.Gate` of both. There is no reference cycle as between
    uvicorn's class and its parser, so a WebSocket leaves nothing for the garbage collector.
    """

    __slots__ = (
        "_app_state",
        "_config",
        "_is_stopping",
        "_loop",
        "_made_s",
        "_server_state",
        "connections",
        "slot",
        "transport",
    )

    http_class: type[Any]
    gate: Any
    has_sent = False  # read by the gate; this object is replaced when the first bytes come

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_event_loop()
        self._made_s = 0.0  # the loop's time
        self._is_stopping = False
        self.connections: set[Any] = server_state.connections
        self.transport: Any = None
        self.slot: set[Any] | None = None  # of the gate's wheel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._made_s = self._loop.time()
        self.connections.add(self)
        self.gate.opened(self)

    def data_received(self, data: bytes) -> None:
        config = self._config
        if issubclass(config.ws_protocol_class or object, protocol.WebSocketProtocol):
            limits = self.gate.limits
            most = {"line_bytes": limits.line_bytes, "head_bytes": limits.head_bytes, "headers": limits.headers}
            request = upgrade(data, **most)
            if request is not None:
                self._leave()
                socket = config.ws_protocol_class(config, self._server_state, self._app_state)
                socket.connection_made(self.transport)
                self.transport.set_protocol(socket)
                socket.begin(request)
                if self._is_stopping:
                    socket.shutdown()
                return
        http = self._http()
        if self._is_stopping:
            http.shutdown()
        http.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def shutdown(self) -> None:
        """uvicorn stops. The first request may still arrive, see `STOP_S`."""
        self._is_stopping = True
        self._loop.call_later(STOP_S, self._stop)

    def _stop(self) -> None:
        if self in self.connections:
            self.transport.close()

    def refuse(self, status: int, reason: str, message: str) -> None:
        """See `http_limits`."""
        self._http().refuse(status, reason, message)

    def _http(self) -> Any:
        """uvicorn's connection, which replaces this one."""
        self._leave()
        http = self.http_class(self._config, self._server_state, self._app_state, self._loop)
        http.opened(self.transport, self._loop.time() - self._made_s)
        self.transport.set_protocol(http)
        return http

    def _leave(self) -> None:
        self.connections.discard(self)
        self.gate.served(self)
