"""The end of all of a user's connections, in every worker, because the application asks for it.

The command travels through the log, like everything that every worker must act on. It ends connections that are signed
in as that user; members of presence channels who did not sign in are none of its business (Pusher Channels,
"Terminating user connections").
"""

from __future__ import annotations

import functools
from typing import Final

import orjson

from fanfare.hub import hub as hubs
from fanfare.protocol import refusals

COMMAND: Final = "user.terminate"
MESSAGE: Final = "The application ended this user's connections"

# pusher-js stays away after the first until its page calls connect(), and is back at once after the second.
FOR_GOOD: Final = refusals.UNAUTHORIZED
TO_RECONNECT: Final = refusals.RECONNECT


def body(user_id: str, code: int = FOR_GOOD) -> bytes:
    """The argument of the CONTROL entry. `code`: with which the connections are closed."""
    return orjson.dumps({"user_id": user_id, "code": code})


def register(hub: hubs.Hub) -> None:
    """Let this worker obey the command."""
    hub.on_control(COMMAND, functools.partial(_terminate, hub))


def _terminate(hub: hubs.Hub, app: str, argument: bytes) -> None:
    command = orjson.loads(argument)
    if hub.connections_of_user(app, command["user_id"]):
        hub.flush()  # what was published before still reaches them
    for connection in hub.connections_of_user(app, command["user_id"]):
        hub.count("pusher.terminated")
        connection.close(command["code"], MESSAGE)
