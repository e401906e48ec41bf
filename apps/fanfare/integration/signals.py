"""Django signals for events of the whole deployment; each is sent once.

    @receiver(signals.joined)
    def note(app, channel, user_id, info, **_): ...

- `connected` (`app`, `user_id`): a user signed in on a first connection.
- `disconnected` (`app`, `user_id`): the last connection of the user is closed.
- `joined` (`app`, `channel`, `user_id`, `info`): the first connection of a user joined a presence channel.
- `left` (`app`, `channel`, `user_id`): the user's last connection left it.
- `occupied` (`app`, `channel`): a channel got its first subscriber.
- `vacated` (`app`, `channel`): a channel lost its last subscriber.
- `client_event` (`app`, `channel`, `event`, `data`, `user_id`, `socket_id`): a client sent an event to its channel.

`app` is the id of the application; `sender` is None. `info` and `data` are JSON values; `data` that a client sent as a
string stays that string. Connections without sign-in send no signals.

One worker sends the signals, in the order of the log. Receivers run one after another in a thread with database
connections of its own, so a slow receiver delays those after it. A receiver that raises is logged and counted, and is
not called again for that signal. After a crash, the last signals may be sent a second time. A signal is
lost only if no worker runs for `interface.CURSOR_SECONDS`.
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


def have_receivers() -> bool:
    """Whether any signal has a receiver."""
    return any(signal.receivers for signal in ALL)


_OF_USERS = {interface.Kind.MEMBER_ADDED: connected, interface.Kind.MEMBER_REMOVED: disconnected}
_OF_CHANNELS = {
    interface.Kind.MEMBER_ADDED: joined,
    interface.Kind.MEMBER_REMOVED: left,
    interface.Kind.OCCUPIED: occupied,
    interface.Kind.VACATED: vacated,
    interface.Kind.CLIENT_EVENT: client_event,
}
KINDS = frozenset(_OF_CHANNELS)

Call = tuple[Signal, dict[str, Any]]


def call_of(entry: interface.Entry) -> Call | None:
    """The signal of an entry and its arguments; None for an entry without a signal."""
    kind = interface.Kind(entry.kind)
    if entry.channel == interface.USERS:
        signal = _OF_USERS.get(kind)
        return None if signal is None else (signal, {"app": entry.app, "user_id": entry.user_id})
    signal = _OF_CHANNELS.get(kind)
    if signal is None or entry.channel.startswith("#") or entry.channel == interface.CONNECTIONS:
        return None  # internal channels of the server
    arguments: dict[str, Any] = {"app": entry.app, "channel": entry.channel}
    if signal not in (occupied, vacated):
        arguments["user_id"] = entry.user_id
    if signal is joined:
        arguments["info"] = orjson.loads(entry.body)
    if signal is client_event:
        frame = orjson.loads(entry.body)
        arguments |= {"event": frame["event"], "data": frame["data"], "socket_id": entry.exclude}
    return signal, arguments
