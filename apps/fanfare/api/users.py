"""Users: `POST /apps/{id}/users/{user_id}/terminate_connections`.

Source: Pusher Channels, "Terminating user connections". All connections that are signed in as the user are closed, in
every worker. With `reconnect=1`, which is ours, clients come back at once instead of staying away.
"""

from __future__ import annotations

from fanfare.api import requests, validation
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.protocol import termination


async def terminate(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Answers `{}` when the command is in the log. A user who is not there is no error."""
    user_id = validation.user_id(request.names["user_id"], request.application.limits)
    reconnects = validation.flag("reconnect", request.fields().get("reconnect"))
    code = termination.TO_RECONNECT if reconnects else termination.FOR_GOOD
    command = interface.Publication(
        app=request.application.id,
        channel=termination.COMMAND,
        body=termination.body(user_id, code),
        kind=interface.Kind.CONTROL,
    )
    await hub.publish([command])
    return b"{}"
