"""The connections of all workers: searched, and disconnected."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import orjson

from fanfare.console import survey
from fanfare.engine import interface
from fanfare.hub import connections
from fanfare.hub import hub as hubs
from fanfare.protocol import refusals, revocations
from fanfare.runtime import close_codes

CONNECTIONS, DISCONNECT = "connections", "console.disconnect"
MOST: Final = 100  # connections of one answer
CHANNELS_SHOWN: Final = 50  # of one connection
CHUNK: Final = 1_000  # connections between two turns of the loop; they take about 2 ms
MESSAGE: Final = "An operator closed this connection"

# What `by` of a disconnect may be: how a connection is recognized.
MATCHES: Final[Mapping[str, Callable[[connections.Connection, str], bool]]] = {
    "socket": lambda connection, value: connection.socket_id == value,
    "user": lambda connection, value: value in _users(connection),
    "address": lambda connection, value: connection.context.address == value,
}
SORTS: Final[Mapping[str, Callable[[Mapping[str, Any]], float]]] = {
    "newest": lambda item: float(item["opened"]),
    "oldest": lambda item: -float(item["opened"]),
    "buffered": lambda item: float(item["buffered"]),
    "channels": lambda item: float(item["channels"]),
}


class Connections:
    """One per worker, on the hub's loop."""

    def __init__(self, hub: hubs.Hub, questions: survey.Survey) -> None:
        self._hub = hub
        self._worker = questions.worker
        questions.on(CONNECTIONS, self._search)
        hub.on_control(DISCONNECT, self._on_disconnect)

    async def _search(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The first `MOST` connections that match, and how many there are. `apps`: ids, or None for all."""
        text, apps, channel = str(asked["text"]).lower(), asked["apps"], asked["channel"]
        found: list[dict[str, Any]] = []
        matching = 0
        for chunk in _chunks(list(self._hub.by_socket.values())):
            here = [
                describe(connection)
                for connection in chunk
                if (apps is None or connection.app in apps)
                and (not channel or channel in connection.subscriptions)
                and (not text or text in _searched(connection))
            ]
            matching += len(here)
            found = heapq.nlargest(MOST, [*found, *here], key=SORTS[asked["sort"]])
            await asyncio.sleep(0)
        return {"matching": matching, "total": len(self._hub.by_socket), "connections": found}

    async def disconnect(self, app: str, by: str, value: str, *, returns: bool) -> None:
        """Close connections in all workers. `by`: a key of `MATCHES`. `returns`: their clients may reconnect. Raises
        EngineUnavailable."""
        body = orjson.dumps({"by": by, "value": value, "returns": returns})
        await self._hub.engine.append([interface.Publication(app, DISCONNECT, body, interface.Kind.CONTROL)])

    async def revoke(self, app: str, token_id: str) -> None:
        """Revoke a capability token in all workers. Raises EngineUnavailable."""
        await self._hub.engine.append(revocations.publications(app, token_id, expires=None, now=time.time()))

    def _on_disconnect(self, app: str, body: bytes) -> None:
        asked = orjson.loads(body)
        code = close_codes.RECONNECT if asked["returns"] else refusals.UNAUTHORIZED
        matches = MATCHES[asked["by"]]
        closing = [one for one in self._hub.connections_of(app) if matches(one, asked["value"])]
        if closing:
            self._hub.flush()  # earlier events are delivered before the close
        for connection in closing:
            self._hub.count("console.disconnected")
            with self._hub.isolated("A connection could not be closed"):
                connection.close(code, MESSAGE)


def describe(connection: connections.Connection) -> dict[str, Any]:
    """A connection as JSON. `resumes`: its client recovers missed events."""
    client = connection.context
    return {
        "socket": connection.socket_id,
        "app": connection.app,
        "address": client.address,
        "client": client.name,
        "version": client.version,
        "users": sorted(_users(connection)),
        "tokens": sorted(_tokens(connection))[:CHANNELS_SHOWN],
        "channels": len(connection.subscriptions),
        "names": list(itertools.islice(connection.subscriptions, CHANNELS_SHOWN)),
        "buffered": connection.writer.buffered(),
        "opened": connection.opened_s,
        "resumes": connection.with_offsets,
    }


def _users(connection: connections.Connection) -> set[str]:
    """The user that signed in, and those that its client is in presence channels."""
    users = {one.member.user_id for one in connection.subscriptions.values() if one.member is not None}
    return users if connection.user_id is None else users | {connection.user_id}


def _tokens(connection: connections.Connection) -> set[str]:
    """The ids of the capability tokens that its subscriptions use."""
    used = (getattr(one.request, "capability", None) for one in connection.subscriptions.values())
    return {one.token_id for one in used if one is not None and one.token_id is not None}


def _searched(connection: connections.Connection) -> str:
    client = connection.context
    return " ".join([connection.socket_id, client.address, client.name, client.version, *_users(connection)]).lower()


def _chunks(values: list[connections.Connection]) -> Iterable[list[connections.Connection]]:
    for begin in range(0, len(values), CHUNK):
        yield values[begin : begin + CHUNK]
