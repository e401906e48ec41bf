"""Which part of each channel's past a client wants, and what is said of what it got.

First visit: what `rewind` says, or the channel's rule, or with `earliest` all that is kept. Coming back: all after its
place, or an honest no. Then it gets nothing of the past, for what is not whole is worse than nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.sse import cursors, refusals, requests

Refuse = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """`history`: what the engine is asked for; None for a channel that keeps nothing. `place`: where the client says
    that it stopped. `reason`: why it cannot come back to there, if that is clear before the engine is asked.
    """

    history: interface.RecoveryRequest | None = None
    place: interface.Position | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`place`: the client stands there before anything is delivered. `statement`: what it is told."""

    place: interface.Position | None
    statement: dict[str, Any]


async def wishes(hub: hubs.Hub, app: str, app_rules: rules.Rules, asked: requests.Asked) -> dict[str, Wish]:
    """What is wanted of each channel. Raises EngineUnavailable."""
    found = {}
    places = _places(asked)
    for index, channel in enumerate(asked.channels):
        rule = app_rules.of(channel)
        if rule is None:
            found[channel] = Wish(reason="not_enabled" if asked.is_back else None)
        elif asked.is_back:
            found[channel] = _return(rule, places, index)
        elif asked.cursor == cursors.EARLIEST:
            found[channel] = Wish(await _everything(hub, app, channel, rule))
        else:
            found[channel] = Wish(rule.history(rewind=_rewind(rule, asked.rewind)))
    return found


def _places(asked: requests.Asked) -> tuple[interface.Position | None, ...] | None:
    """None if the cursor cannot be read: another release's, or another URL's."""
    if asked.cursor is None or not asked.is_back:
        return None
    try:
        return cursors.parse(asked.cursor, len(asked.channels))
    except refusals.InvalidCursor:
        return None


def _return(rule: rules.Rule, places: tuple[interface.Position | None, ...] | None, index: int) -> Wish:
    if places is None:
        return Wish(rule.history(), reason="invalid_cursor")
    place = places[index]
    if place is None:  # the channel kept nothing when the cursor was made
        return Wish(rule.history(), reason="not_enabled")
    return Wish(rule.history(after=place), place)


async def _everything(hub: hubs.Hub, app: str, channel: str, rule: rules.Rule) -> interface.RecoveryRequest:
    """All that is kept. What is published, or goes, between this look and the attach changes nothing: the first is
    replayed, and of the second the engine says so.
    """
    entries, top = await hub.engine.ask(lambda queries: queries.read(app, channel, 0, 1))
    if top is None:  # nothing yet, so the newest are all there is
        return rule.history(rewind=_rewind(rule, rule.max_replay_entries))
    if not entries:
        return rule.history(after=top)
    return rule.history(after=interface.Position(top.epoch, (entries[0].offset or 1) - 1))


def _rewind(rule: rules.Rule, count: int | None) -> interface.Rewind | None:
    if count is None:
        return rule.rewind
    return interface.Rewind(min(count, rule.max_replay_entries), 0)


def outcome(wish: Wish, replayed: interface.RecoveryResult | None, *, is_back: bool) -> Outcome:
    """What became of a wish."""
    reason = wish.reason
    count = 0
    place = None
    if replayed is not None:
        reason = reason or replayed.reason
        count = replayed.count
        place = _before(wish, replayed)
    recovered = is_back and replayed is not None and reason is None
    statement: dict[str, Any] = {"recovered": recovered, "was_recovering": is_back, "replayed": count}
    if reason is not None:
        statement["reason"] = reason
    return Outcome(place, statement)


def _before(wish: Wish, replayed: interface.RecoveryResult) -> interface.Position | None:
    """The place that the first replayed entry follows."""
    if replayed.reason is None and wish.place is not None:
        return wish.place
    if replayed.position is not None and replayed.entries:
        return interface.Position(replayed.position.epoch, (replayed.entries[0].offset or 1) - 1)
    return replayed.position
