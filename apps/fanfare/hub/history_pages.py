"""Pages of a kept channel's past, for whoever asks for it rather than subscribes: over HTTP, over a socket, in Python.

A page is told by positions, and offsets have no gaps: who asked for what comes after 7 and gets 12 first knows that 8
to 11 are not kept any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import orjson

from fanfare.engine import interface

LIMIT = 100  # events of a page where nobody chose
MOST = 500  # of one page; the largest events make 50 MB of them, in one answer

EPOCH_CHANGED = "epoch_changed"


@dataclass(frozen=True, slots=True)
class Range:
    """What comes after one position and before another, neither included. At most `limit` events."""

    after: interface.Position | None = None
    before: interface.Position | None = None
    limit: int = LIMIT
    newest_first: bool = True


class Event(NamedTuple):
    """A kept event. `data`: as subscribers got it. `user_id`: of the client that sent it, if any."""

    offset: int
    event: str
    data: Any
    user_id: str | None


class Page(NamedTuple):
    """`events`: in the order that was asked for. `position`: the stream's top, None if nothing was ever kept.

    `next`: the `after` of the page that follows (with the newest first, the `before`); None: there is no more.
    `reason`: why there is nothing: `epoch_changed`, the positions that were asked for are those of another stream.
    """

    events: tuple[Event, ...]
    position: interface.Position | None
    next: interface.Position | None = None
    reason: str | None = None


async def read(engine: interface.Engine, app: str, channel: str, wanted: Range) -> Page:
    """Raises EngineUnavailable."""
    after = 0 if wanted.after is None else wanted.after.offset
    before = None if wanted.before is None else wanted.before.offset
    limit = wanted.limit + 1  # one more than is shown: it tells whether there is a next page
    entries, top = await engine.ask(
        lambda queries: queries.read(app, channel, after, limit, before=before, newest_first=wanted.newest_first)
    )
    return page(wanted, entries, top)


def page(wanted: Range, entries: Sequence[interface.Entry], top: interface.Position | None) -> Page:
    """What `interface.Queries.read` found, asked for one entry more than `wanted.limit`."""
    asked = [position for position in (wanted.after, wanted.before) if position is not None]
    if any(top is None or position.epoch != top.epoch for position in asked):
        return Page((), top, reason=EPOCH_CHANGED)
    events = tuple(_event(entry) for entry in entries[: wanted.limit])
    if top is None or len(entries) <= wanted.limit:
        return Page(events, top)
    return Page(events, top, next=interface.Position(top.epoch, events[-1].offset))


def _event(entry: interface.Entry) -> Event:
    """Of a kept entry, which has an offset."""
    frame = orjson.loads(entry.body)
    return Event(cast("int", entry.offset), frame["event"], frame["data"], entry.user_id)
