"""Recovery of an SSE connection: the request for each channel's kept entries, and the report to the client.

A first visit gets the newest entries, as many as `rewind` or the channel's rule allows, or with `earliest` all kept
ones. A client that reconnects gets all entries after its position, or none and the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import connections
from fanfare.hub import hub as hubs
from fanfare.sse import cursors, refusals, requests


@dataclass(frozen=True, slots=True)
class Asked:
    """`recovery`: the request to the hub; None for a channel without history. `position`: the client's. `reason`: why
    nothing can be recovered, if that is known without the engine.
    """

    recovery: connections.Recovery | None = None
    position: interface.Position | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`position`: the client's before the first delivery. `statement`: the report to the client."""

    position: interface.Position | None
    statement: dict[str, Any]


async def asked(hub: hubs.Hub, app: str, app_rules: rules.Rules, request: requests.Asked) -> dict[str, Asked]:
    """The request for each channel. Raises EngineUnavailable."""
    found = {}
    positions = _positions(request)
    for index, channel in enumerate(request.channels):
        rule = app_rules.of(channel)
        if rule is None:
            found[channel] = Asked(reason="not_enabled" if request.is_back else None)
        elif request.is_back:
            found[channel] = _return(rule, positions, index)
        elif request.cursor == cursors.EARLIEST:
            found[channel] = Asked(connections.Recovery(await _everything(hub, app, channel, rule)))
        else:
            found[channel] = Asked(connections.Recovery(rule.history(rewind=_rewind(rule, request.rewind))))
    return found


def _positions(request: requests.Asked) -> tuple[interface.Position | None, ...] | None:
    """The positions of the cursor; None if there is none, or it belongs to another release or another URL."""
    if request.cursor is None:
        return None
    try:
        return cursors.parse(request.cursor, len(request.channels))
    except refusals.InvalidCursor:
        return None


def _return(rule: rules.Rule, positions: tuple[interface.Position | None, ...] | None, index: int) -> Asked:
    nothing = connections.Recovery(rule.history())
    if positions is None:
        return Asked(nothing, reason="invalid_cursor")
    position = positions[index]
    if position is None:  # the channel had no history when the cursor was made
        return Asked(nothing, reason="not_enabled")
    return Asked(connections.Recovery(rule.history(after=position)), position)


async def _everything(hub: hubs.Hub, app: str, channel: str, rule: rules.Rule) -> interface.RecoveryRequest:
    """All kept entries, including those that are published before the subscribe. If one expires before it, the engine
    answers `position_expired`.
    """
    entries, top = await hub.engine.ask(lambda queries: queries.read(app, channel, 0, 1))
    if top is None:  # nothing is kept yet
        return rule.history(rewind=_rewind(rule, rule.max_replay_entries))
    if not entries:
        return rule.history(after=top)
    return rule.history(after=interface.Position(top.epoch, entries[0].stream_offset - 1))


def _rewind(rule: rules.Rule, count: int | None) -> interface.Rewind | None:
    if count is None:
        return rule.rewind
    return interface.Rewind(min(count, rule.max_replay_entries), 0)


def outcome(asked: Asked, result: interface.RecoveryResult | None, *, is_back: bool) -> Outcome:
    """The outcome of a channel's recovery."""
    reason = asked.reason
    count = 0
    position = None
    if result is not None:
        reason = reason or result.reason
        count = result.count
        position = _before(asked, result)
    recovered = is_back and result is not None and reason is None
    statement: dict[str, Any] = {"recovered": recovered, "was_recovering": is_back, "replayed": count}
    if reason is not None:
        statement["reason"] = reason
    return Outcome(position, statement)


def _before(asked: Asked, result: interface.RecoveryResult) -> interface.Position | None:
    """The position before the first recovered entry."""
    if result.reason is None and asked.position is not None:
        return asked.position
    if result.position is not None and result.entries:
        return interface.Position(result.position.epoch, result.entries[0].stream_offset - 1)
    return result.position
