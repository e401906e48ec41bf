"""New versions of kept messages: the message keeps its position, and subscribers get a notice.

A message is named by its position, `EPOCH:OFFSET`. Its new version is in the history and in recoveries, with its author
and time; a deleted one is in neither. The notice is an event of the channel, `fanfare:revised` or `fanfare:deleted`,
whose data has `id`, `event`, `by`, `at`, and for a revision the new `data`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, NamedTuple

import orjson

from fanfare.engine import interface
from fanfare.hub import event_frames

REVISED: Final = "fanfare:revised"
DELETED: Final = "fanfare:deleted"


class Author(NamedTuple):
    """`by`: a user's id, None for the project itself. `at`: see `now`."""

    by: str | None
    at: str


def find(asked: interface.Queries, app: str, channel: str, position: interface.Position) -> interface.Entry | None:
    """The kept message at a position; None if there is none any more. Raises EngineUnavailable."""
    entries, top = asked.read(app, channel, position.offset - 1, 1)
    if top is None or top.epoch != position.epoch or not entries:
        return None
    [entry] = entries
    return entry if entry.offset == position.offset and entry.is_message else None


def event_of(entry: interface.Entry) -> str:
    return str(orjson.loads(entry.body)["event"])


def now() -> str:
    """In ISO 8601."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def notice_data(position: interface.Position, event: str, data: str | None, author: Author) -> str:
    """The data of the notice. `data`: None for a deletion."""
    fields: dict[str, Any] = {"id": str(position), "event": event}
    if data is not None:
        fields["data"] = data
    return orjson.dumps({**fields, **author._asdict()}).decode()


def revision(
    entry: interface.Entry, position: interface.Position, data: str | None, notice: str, author: Author
) -> interface.Revision:
    """`data`: the new one, as subscribers get it; None deletes the message. `notice`: the data of the notice."""
    body = b""
    if data is not None:
        frame = orjson.loads(entry.body)
        version = frame.get("revised", {}).get("version", 1) + 1
        body = orjson.dumps({**frame, "data": data, "revised": {**author._asdict(), "version": version}})
    name = DELETED if data is None else REVISED
    return interface.Revision(entry.app, entry.channel, position, body, event_frames.event(name, entry.channel, notice))
