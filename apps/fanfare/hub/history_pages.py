"""Pages of a channel's history, for queries over HTTP, over a socket and in Python.

Pages are addressed by positions, and offsets have no gaps: if a query for events after 7 returns 12 first, 8 to 11 are
no longer kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from fanfare.engine import interface

LIMIT = 100  # events of a page by default
MOST = 500  # of one page
MAX_BYTES = 8_388_608  # of the events of a page over HTTP

EPOCH_CHANGED = "epoch_changed"


@dataclass(frozen=True, slots=True)
class Range:
    """Events after one position and before another, both exclusive: at most `limit` events with `max_bytes` together. A
    larger event has a page of its own."""

    after: interface.Position | None = None
    before: interface.Position | None = None
    limit: int = LIMIT
    newest_first: bool = True
    max_bytes: int = MAX_BYTES


class Event(NamedTuple):
    """A kept event. `data`: as subscribers received it. `user_id`: the user of the client that sent it, if
    any. `revised`: for a later version, its author and its time."""

    offset: int
    event: str
    data: Any
    user_id: str | None
    revised: dict[str, Any] | None = None


class Page(NamedTuple):
    """`events`: in the requested order. `position`: the newest position of the stream; None if it never had an event.

    `next`: the `after` of the next page (the `before`, if newest first); None at the end. `reason`: why the page is
    empty: `epoch_changed` if the requested positions are of another epoch.
    """

    events: tuple[Event, ...]
    position: interface.Position | None
    next: interface.Position | None = None
    reason: str | None = None


async def read(engine: interface.Engine, app: str, channel: str, wanted: Range) -> Page:
    """Raises EngineUnavailable."""
    after = 0 if wanted.after is None else wanted.after.offset
    before = None if wanted.before is None else wanted.before.offset
    limit = wanted.limit + 1  # one more than returned, which shows whether there is a next page
    entries, top = await engine.ask(
        lambda queries: queries.read(
            *(app, channel, after, limit),
            before=before,
            newest_first=wanted.newest_first,
            max_bytes=wanted.max_bytes,
        )
    )
    return page(wanted, entries, top)


def page(wanted: Range, entries: Sequence[interface.Entry], top: interface.Position | None) -> Page:
    """A page from the result of `interface.Queries.read`, which has one entry more than the page unless the page is
    the last one. If the oldest event alone has more than `max_bytes`, an empty page follows its own."""
    asked = [position for position in (wanted.after, wanted.before) if position is not None]
    if any(top is None or position.epoch != top.epoch for position in asked):
        return Page((), top, reason=EPOCH_CHANGED)
    total = itertools.accumulate(len(entry.body) for entry in entries)
    fitting = sum(bytes_ <= wanted.max_bytes for bytes_ in total)
    shown = entries[: min(wanted.limit, max(fitting, 1))]
    events = tuple(_event(entry) for entry in shown if entry.is_message)
    if top is None or (len(shown) == len(entries) and fitting == len(entries)):
        return Page(events, top)
    return Page(events, top, next=interface.Position(top.epoch, shown[-1].stream_offset))


def _event(entry: interface.Entry) -> Event:
    """The event of a kept entry."""
    frame = orjson.loads(entry.body)
    sender = entry.user_id if entry.kind == interface.Kind.CLIENT_EVENT else None
    return Event(entry.stream_offset, frame["event"], frame["data"], sender, frame.get("revised"))
