"""Django signals for what happens in the whole deployment, each sent once in it.

    @receiver(signals.joined)
    def note(app, channel, user_id, info, **_): ...

| signal         | arguments                                              | when |
|----------------|--------------------------------------------------------|------------------------------------------------|
| `connected`    | `app`, `user_id`                                       | a user signed in on a first connection | |
`disconnected` | `app`, `user_id`                                       | the last of the user's connections is gone | |
`joined`       | `app`, `channel`, `user_id`, `info`                    | a user's first connection joined a presence |
|                |                                                        | channel | | `left`         | `app`,
`channel`, `user_id`                            | the last one left it | | `occupied`     | `app`, `channel` | a channel
got its first subscriber | | `vacated`      | `app`, `channel`                                       | its last one is
gone | | `client_event` | `app`, `channel`, `event`, `data`, `user_id`, `socket_id` | a client sent an event to its
channel |

`app` is the application's id, `sender` is None. `info` and `data` are values as JSON has them; a client's `data` that
was a string is that string. Who connects without signing in is told by no signal.

One worker sends them, in the log's order, `dispatcher.POLL_S` after they happened at the latest. Receivers run one
after another in a thread with database connections of its own; one that takes long holds up those that follow. One that
raises is logged, counted and not called again for it. After a crash, and only then, the signals of the last moment may
be sent a second time; none is left out unless no worker runs for `interface.CURSOR_SECONDS`.
"""

from __future__ import annotations

from typing import Any

import orjson
from django.dispatch import Signal

from fanfare.engine import interface

connected = Signal()
disconnected = Signal()
joined = Signal()
left = Signal()
occupied = Signal()
vacated = Signal()
client_event = Signal()

ALL = (connected, disconnected, joined, left, occupied, vacated, client_event)


def are_wanted() -> bool:
    """Whether anybody listens."""
    return any(signal.receivers for signal in ALL)


_OF_USERS = {interface.Kind.MEMBER_ADDED: connected, interface.Kind.MEMBER_REMOVED: disconnected}
_OF_CHANNELS = {
    interface.Kind.MEMBER_ADDED: joined,
    interface.Kind.MEMBER_REMOVED: left,
    interface.Kind.OCCUPIED: occupied,
    interface.Kind.VACATED: vacated,
    interface.Kind.CLIENT_EVENT: client_event,
}
Told = tuple[Signal, dict[str, Any]]


def of(entry: interface.Entry) -> Told | None:
    """What an entry of the log is told by, with the arguments; None for what is told by no signal."""
    kind = interface.Kind(entry.kind)
    if entry.channel == interface.USERS:
        signal = _OF_USERS.get(kind)
        return None if signal is None else (signal, {"app": entry.app, "user_id": entry.user_id})
    signal = _OF_CHANNELS.get(kind)
    if signal is None or entry.channel.startswith("#") or entry.channel == interface.CONNECTIONS:
        return None  # such channels are the server's own
    arguments: dict[str, Any] = {"app": entry.app, "channel": entry.channel}
    if signal not in (occupied, vacated):
        arguments["user_id"] = entry.user_id
    if signal is joined:
        arguments["info"] = orjson.loads(entry.body)
    if signal is client_event:
        frame = orjson.loads(entry.body)
        arguments |= {"event": frame["event"], "data": frame["data"], "socket_id": entry.exclude}
    return signal, arguments
