"""Which part of a channel's past a subscribe asks for, and what the client is told of what became of it.

Three ways lead to it. A client with the plugin says where it stands (`data.resume`), or how far back it wants to begin
(`data.rewind`). One that knows nothing of it, but has a token, stands where its token says. And a rule may give every
new subscriber the newest entries. A client that asked for positions gets a `stream` in the answer in any case.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import history_pages
from fanfare.protocol import ack_tracker, names

EPOCH_CHARACTERS = 32
OFFSET_BOUND = 2**53


class Wanted(NamedTuple):
    """`history`: what the hub is asked for; None: nothing. `recovering`: the client says that it was here before.

    `told`: it asked for positions, so the answer carries a `stream`. `reason`: why nothing can be asked for. `sent_as`:
    the socket ids that the client had before.
    """

    history: interface.RecoveryRequest | None = None
    recovering: bool = False
    told: bool = False
    reason: str | None = None
    sent_as: tuple[str, ...] = ()


NOTHING = Wanted()


def wanted(
    rule: rules.Rule | None, data: dict[str, Any], channel: str, *, told: bool, resumed: ack_tracker.AckTracker | None
) -> Wanted:
    """`data`: of the subscribe frame. `told`: the connection asked for positions."""
    resume, rewind = data.get("resume"), data.get("rewind")
    told = told or resume is not None or rewind is not None
    if rule is None:
        reason = None if resume is None else "not_enabled"
        return Wanted(recovering=resume is not None, told=told, reason=reason) if told else NOTHING
    if resume is not None:
        return _resumed(rule, resume)
    if rewind is not None:
        return Wanted(rule.history(rewind=_rewind(rewind)), told=True)
    after = resumed.start_of(channel) if resumed is not None else None
    if resumed is not None and after is not None:
        return Wanted(rule.history(after), recovering=True, told=told, sent_as=resumed.earlier_sockets)
    if rule.rewind is not None or told or resumed is not None:
        return Wanted(rule.history(rewind=rule.rewind), told=told)
    return NOTHING


def _resumed(rule: rules.Rule, resume: object) -> Wanted:
    after, socket_id = _position(resume)
    if after is None:
        return Wanted(rule.history(), recovering=True, told=True, reason="invalid_position")
    return Wanted(rule.history(after), recovering=True, told=True, sent_as=(socket_id,) if socket_id else ())


def stream(asked: Wanted, replayed: interface.RecoveryResult | None) -> dict[str, Any]:
    """What a client that asked for positions is told in the answer to its subscribe."""
    reason = asked.reason or (replayed.reason if replayed is not None else None)
    position = replayed.position if replayed is not None else None
    told: dict[str, Any] = {
        "epoch": position.epoch if position is not None else None,
        "offset": position.offset if position is not None else 0,
        "was_recovering": asked.recovering,
        "recovered": asked.recovering and reason is None,
        "replayed": replayed.count if replayed is not None else 0,
    }
    if reason is not None:
        told["reason"] = reason
    return told


def stream_frame(channel: str, told: dict[str, Any]) -> bytes:
    """pusher-js hands no data of a presence channel's answer to the page, so it is said once more."""
    return _frame("pusher:stream", channel, told)


def resume_failed(channel: str, reason: str) -> bytes:
    """For a page that knows nothing of positions: `channel.bind('pusher:resume_failed', …)`."""
    return _frame("pusher:resume_failed", channel, {"reason": reason})


def stream_reset(channel: str, position: interface.Position | None, reason: str) -> bytes:
    """A replay that was granted could not be finished: the client stands at `position` now, and has a gap before it."""
    told = {} if position is None else {"epoch": position.epoch, "offset": position.offset}
    return _frame("pusher:stream_reset", channel, {**told, "reason": reason})


def history(channel: str, rid: object, page: history_pages.Page) -> bytes:
    """A page of a channel's history, the newest first. `next`: ask before it for the following page."""
    items = []
    for one in page.events:
        item = {"offset": one.offset, "event": one.event, "data": one.data}
        items.append(item if one.user_id is None else {**item, "user_id": one.user_id})
    following = None if page.next is None else {"epoch": page.next.epoch, "offset": page.next.offset}
    return _frame("pusher:history", channel, {"rid": rid, "items": items, "next": following})


def no_history(channel: str, rid: object, message: str) -> bytes:
    """Why there is no page: with the caller's `rid`, so that it need not wait for its time to be over."""
    return _frame("pusher:history", channel, {"rid": rid, "error": {"message": message}})


def position_of(value: object) -> interface.Position | None:
    """`{"epoch": "…", "offset": 41}` from a client; None if it is none."""
    return _position(value)[0]


def _position(value: object) -> tuple[interface.Position | None, str | None]:
    if not isinstance(value, dict):
        return None, None
    epoch, offset, socket_id = value.get("epoch"), value.get("offset"), value.get("socket_id")
    if not isinstance(epoch, str) or not 0 < len(epoch) <= EPOCH_CHARACTERS:
        return None, None
    if type(offset) is not int or not 0 <= offset < OFFSET_BOUND:
        return None, None
    known = isinstance(socket_id, str) and names.is_valid_socket_id(socket_id)
    return interface.Position(epoch, offset), str(socket_id) if known else None


def _rewind(value: object) -> interface.Rewind:
    """`{"count": 20}` or `{"seconds": 60}`; what is neither is nothing back."""
    numbers = value if isinstance(value, dict) else {}
    count, seconds = (
        number if type(number) is int and number > 0 else 0 for number in (numbers.get("count"), numbers.get("seconds"))
    )
    return interface.Rewind(min(count, OFFSET_BOUND), min(seconds, OFFSET_BOUND))


def _frame(event: str, channel: str, data: dict[str, Any]) -> bytes:
    return orjson.dumps({"event": event, "channel": channel, "data": orjson.dumps(data).decode()})
