"""Handshakes that open a session without ASGI.

Most WebSockets are a client of the protocol that the server accepts, under a class that passes each message to a
listener. For these the scope, the task and the calls of the ASGI application would end as soon as the client is
greeted. `Direct` opens them in the callback that received the handshake. It takes a handshake only if the client is
accepted: any other one goes through ASGI, where `fanfare.protocol.consumers` refuses it with its reason and counters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fanfare.applications import registry as registries
from fanfare.hub import hub as hubs
from fanfare.protocol import handshake, refusals, session_owners, sessions
from fanfare.sockets import handshake as upgrades
from fanfare.sockets import protocol


class Direct:
    """A handler of `fanfare.sockets.protocol`.

    `place`: the start of the paths that belong to the protocol whatever the project has. `is_open`: whether the worker
    takes new clients. `resolve`: gives a scope the client's address from the headers of a trusted proxy.
    """

    def __init__(
        self,
        hub: hubs.Hub,
        registry: registries.Registry,
        *,
        options: sessions.Options,
        owners: session_owners.SessionOwners | None,
        place: str,
        is_open: Callable[[], bool],
        resolve: Callable[[Any], None],
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._options = options
        self._owners = owners
        self._place = place.encode()
        self._is_open = is_open
        self._resolve = resolve

    def __call__(self, socket: protocol.WebSocketProtocol, request: upgrades.Request) -> bool:
        path, query = request.resource()
        if not path.startswith(self._place) or b"%" in path or not self._is_open():
            return False
        scope: dict[str, Any] = {"type": "websocket", "client": socket.client, "headers": request.headers}
        self._resolve(scope)
        client = scope["client"]
        origin = next((value.decode("latin-1") for name, value in request.headers if name == b"origin"), None)
        try:
            accepted = handshake.accept(
                self._registry,
                path=path.decode("ascii"),
                query=query,
                origin=origin,
                address=client[0] if client else "",
            )
        except refusals.ConnectionRefused:
            return False
        if self._options.addresses.refusal(accepted.client.address):
            return False
        writer = socket.bound(self._hub.max_buffer_bytes)
        session = sessions.Session(
            self._hub, self._registry, writer, accepted, options=self._options, owners=self._owners
        )
        socket.accept_for(session, request, client)
        session.open()
        socket.read_on()
        return True
