"""Who looks over the hub's shoulder sees every entry of the log, after it was delivered."""

from __future__ import annotations

from collections.abc import Sequence

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from tests.unit.hub.doubles import ScriptedEngine


class Observer:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def delivered(self, entries: Sequence[interface.Entry]) -> None:
        self.seen += [entry.channel for entry in entries]

    def gap_detected(self) -> None:
        self.seen.append("fence")


async def test_an_observer_sees_all_kinds_and_fences_until_it_is_taken_away() -> None:
    engine, observer = ScriptedEngine(), Observer()
    hub = hubs.Hub(engine)
    await hub.start()
    hub.on_control("command", lambda app, body: None)
    hub.observe(observer)
    engine.deliver([engine.entry("news", b"1"), engine.entry("command", b"", kind=interface.Kind.CONTROL)])
    engine.deliver([engine.entry("room", b"", kind=interface.Kind.OCCUPIED)])
    engine.on_gap("suspended: for a minute", None)
    hub.observe(None)
    engine.deliver([engine.entry("news", b"2")])
    await hub.stop()
    assert observer.seen == ["news", "command", "room", "fence"]
