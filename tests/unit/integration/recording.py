"""An engine that remembers what was published."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from fanfare.engine import interface
from tests.unit.applications import fakes


class Event(NamedTuple):
    app: str
    channel: str
    name: str
    data: Any  # as a client gets it: a string
    exclude: str | None


class Recording(fakes.Log):
    @property
    def events(self) -> list[Event]:
        """What subscribers would get, in order; the announcements of changed applications are left out."""
        return [
            Event(entry.app, entry.channel, frame["event"], frame["data"], entry.exclude)
            for entry in self.publications
            if entry.kind is interface.Kind.EVENT
            for frame in [orjson.loads(entry.body)]
        ]

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]
