"""What was published on a channel that keeps a history, from any process of the project.

    from fanfare.integration import history

    for event in history.events("orders", limit=20):
        print(event.offset, event.name, event.data)

A channel keeps what its rule says; one without a rule keeps nothing. The twin for coroutines is `aevents`.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.integration import errors, questions

MOST = 1_000  # events of one answer


@dataclass(frozen=True, slots=True)
class Event:
    """`offset`: its place in the channel's stream. `data`: the text that subscribers got, JSON where an object was
    published. `user_id`: of the member who sent it, for a client event."""

    offset: int
    name: str
    data: str
    user_id: str | None = None


def events(
    channel: str, *, limit: int = 100, before: int | None = None, app: questions.Application = None
) -> list[Event]:
    """The newest `limit` events (1 to 1,000), oldest first; `before` an offset for the page before.

    Raises what the questions of `fanfare.integration.presence` raise, and InvalidLimit.
    """
    return questions.ask("events", app, lambda target: _events(target, channel, limit, before))


async def aevents(
    channel: str, *, limit: int = 100, before: int | None = None, app: questions.Application = None
) -> list[Event]:
    return await questions.aask(app, lambda target: _events(target, channel, limit, before))


def _events(
    target: registry.Application, channel: str, limit: int, before: int | None
) -> questions.Question[list[Event]]:
    name = questions.checked(channel, target.limits)
    if not 1 <= limit <= MOST:
        raise errors.InvalidLimit(f"A limit of {limit} events: it is 1 to {MOST}.")

    def question(ask: interface.Queries) -> list[Event]:
        entries, _ = ask.read(target.id, name, 0, limit, before=before, newest_first=True)
        return [_event(entry) for entry in reversed(entries)]

    return question


def _event(entry: interface.Entry) -> Event:
    frame = orjson.loads(entry.body)
    data = frame["data"]
    text = data if isinstance(data, str) else orjson.dumps(data).decode()  # a client may send an object
    return Event(entry.offset or 0, frame["event"], text, entry.user_id)
