"""Termination of all connections of a user, in every worker, at an application's request.

The command is a CONTROL entry of the log. It closes the connections that are signed in as the user, and the event
streams whose token is for the user. Members of presence channels that did not sign in are not affected (Pusher
Channels, "Terminating user connections").

Every worker reads the command, unlike the takeover of a resume token, which has one holder. The connections, streams
and tokens of a user may be in any worker, and terminations are rare: to address them, each sign-in and each token
would have to register a mailbox in the engine.

A stream's token would open the next stream, so a record of the termination is kept in the log: tokens that were issued
before it are refused, by every worker, also after a restart.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Final

import orjson

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.protocol import refusals
from fanfare.runtime import close_codes

COMMAND: Final = "user.terminate"
MESSAGE: Final = "The application ended this user's connections"

# pusher-js does not reconnect after the first until its page calls connect(), and reconnects at once after the second.
FOR_GOOD: Final = refusals.UNAUTHORIZED
TO_RECONNECT: Final = close_codes.RECONNECT

RECORD_PREFIX: Final = "#terminated-"  # and the user's id: the channel that keeps the record
RECORD_SECONDS: Final = 30 * 86_400
RECORDS: Final = 1  # that are kept in a channel: the newest

OnTerminated = Callable[[str, str, float | None], None]  # see `on_terminated`

_listeners: weakref.WeakKeyDictionary[Any, list[OnTerminated]] = weakref.WeakKeyDictionary()  # by hub


def publications(app: str, user_id: str, *, reconnect: bool, now: float) -> list[interface.Publication]:
    """The entries to publish together. `reconnect`: clients reconnect at once, and tokens stay valid."""
    if reconnect:
        return [interface.Publication(app, COMMAND, body(user_id, TO_RECONNECT), interface.Kind.CONTROL)]
    return [  # in this order: a client that reconnects because of the command finds the record
        interface.Publication(
            app,
            RECORD_PREFIX + user_id,
            orjson.dumps({"at": now}),
            interface.Kind.MESSAGE,
            retention=interface.Retention(RECORDS, RECORD_SECONDS),
        ),
        interface.Publication(app, COMMAND, body(user_id, at=now), interface.Kind.CONTROL),
    ]


def body(user_id: str, code: int = FOR_GOOD, at: float | None = None) -> bytes:
    """The argument of the command. `code`: the close code. `at`: Unix time, of a termination for good."""
    return orjson.dumps({"user_id": user_id, "code": code, **({} if at is None else {"at": at})})


async def terminated_at(engine: interface.Engine, app: str, user_id: str) -> float | None:
    """Unix time of the user's last termination within RECORD_SECONDS. Raises EngineUnavailable."""
    record = await last_record(engine, app, RECORD_PREFIX + user_id)
    return None if record is None else float(orjson.loads(record)["at"])


async def last_record(engine: interface.Engine, app: str, channel: str) -> bytes | None:
    """The body of a channel's newest record. Raises EngineUnavailable."""

    def read(queries: interface.Queries) -> bytes | None:
        entries, _ = queries.read(app, channel, 0, RECORDS, newest_first=True)
        return entries[0].body if entries else None

    return await engine.ask(read)


def register(hub: hubs.Hub) -> None:
    """Carry out the command in this worker."""
    hub.on_control(COMMAND, functools.partial(_terminate, hub))


def on_terminated(hub: hubs.Hub, listener: OnTerminated) -> None:
    """`listener(app, user_id, at)` runs in this worker for each termination. `at`: Unix time; None if clients are to
    reconnect."""
    _listeners.setdefault(hub, []).append(listener)


def _terminate(hub: hubs.Hub, app: str, argument: bytes) -> None:
    command = orjson.loads(argument)
    user_id: str = command["user_id"]
    if hub.connections_of_user(app, user_id):
        hub.flush()  # earlier events are delivered before the close
    for connection in hub.connections_of_user(app, user_id):
        hub.count("pusher.terminated")
        with hub.isolated("A terminated connection could not be closed"):
            connection.close(command["code"], MESSAGE)
    for listener in _listeners.get(hub, ()):
        with hub.isolated("A terminated SSE connection could not be ended"):
            listener(app, user_id, command.get("at"))
