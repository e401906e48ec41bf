"""The events of channels that keep a history, from any process of the project.

    from fanfare import history

    for event in history.events("orders", limit=20):
        print(event.offset, event.name, event.data)

A channel keeps as many events as its channel rule allows; a channel without a rule keeps none. The async twin is
`aevents`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.integration import queries, target

__all__ = ["Event", "aevents", "events"]

MOST = 1_000  # events per call


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a history.

    `offset`: its position in the channel, 1, 2, 3, … without a gap. `name`: the event's name. `data`: the text that
    subscribers got: JSON, unless a str was published. `user_id`: the member who sent it, for client events only. `id`:
    for `update_message` and `delete_message`. `revised`: of a later version, `{"by": …, "at": …, "version": …}`.
    """

    offset: int
    name: str
    data: str
    user_id: str | None = None
    id: str = field(default="", compare=False)
    revised: dict[str, Any] | None = None

    @classmethod
    def of(cls, entry: interface.Entry, epoch: str) -> Event:
        frame = orjson.loads(entry.body)
        data = frame["data"]
        text = data if isinstance(data, str) else orjson.dumps(data).decode()  # a client may send an object
        offset = entry.stream_offset
        sender = entry.user_id if entry.kind == interface.Kind.CLIENT_EVENT else None
        return cls(offset, frame["event"], text, sender, f"{epoch}:{offset}", frame.get("revised"))


def events(channel: str, *, limit: int = 100, before: int | None = None, app: target.App = None) -> list[Event]:
    """The newest `limit` events of a channel, the oldest of them first.

    `limit`: 1 to 1,000. `before`: an offset; only events before it are returned, for the previous page. `app`: an
    application or its id, by default the project's default application.

    Raises InvalidName, InvalidLimit, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    return queries.ask("history.events", app, lambda application: _events(application, channel, limit, before))


async def aevents(channel: str, *, limit: int = 100, before: int | None = None, app: target.App = None) -> list[Event]:
    """`events` for coroutines."""
    return await queries.aask(app, lambda application: _events(application, channel, limit, before))


def _events(
    application: registry.Application, channel: str, limit: int, before: int | None
) -> queries.Query[list[Event]]:
    queries.check_channel(channel, application.limits)
    if not 1 <= limit <= MOST:
        raise errors.InvalidLimit(f"`limit` is {limit}; it is 1 to {MOST}. Read earlier events with `before=OFFSET`.")

    def query(ask: interface.Queries) -> list[Event]:
        entries, top = ask.read(application.id, channel, 0, limit, before=before, newest_first=True)
        epoch = "" if top is None else top.epoch
        return [Event.of(entry, epoch) for entry in reversed(entries) if entry.is_message]

    return query
