"""Recovery on the wire: what a subscribe asks for of a channel's kept entries, and the frames that answer it.

There are three ways to ask. A client with the plugin sends its position (`data.resume`) or how far back to begin
(`data.rewind`). A client with a resume token has the position of its token's record. And a channel rule may give every
new subscriber the newest entries. A client that asked for positions gets a `stream` in the answer in any case.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from fanfare.applications import rules
from fanfare.engine import interface
from fanfare.hub import connections, history_pages
from fanfare.protocol import ack_tracker, capabilities, names

REWIND_BOUND = 2**53  # of a count and of seconds

# Reasons of this module; the others are the engine's.
NOT_ENABLED = "not_enabled"  # the channel keeps no history
INVALID_POSITION = "invalid_position"
ALREADY_SUBSCRIBED = (
    "already_subscribed"  # a repeated subscribe with a position that this connection did not start from
)


class Asked(NamedTuple):
    """What one subscribe frame asks for.

    `recovery`: what the hub is asked for. `recovering`: the client says that it was subscribed before. `with_stream`:
    the answer has a `stream`. `reason`: why nothing can be recovered, where that is clear at once. `capability`: of a
    subscribe with a token; it bounds what the subscription may do.
    """

    recovery: connections.Recovery | None = None
    recovering: bool = False
    with_stream: bool = False
    reason: str | None = None
    capability: capabilities.Capability | None = None

    def may(self, right: str) -> bool:
        return self.capability is None or right in self.capability.rights


NOTHING = Asked()


def asked(
    rule: rules.Rule | None,
    data: dict[str, Any],
    channel: str,
    *,
    with_offsets: bool,
    tracker: ack_tracker.AckTracker | None,
) -> Asked:
    """`data`: of the subscribe frame. `with_offsets`: the connection asked for positions. `tracker`: of a page with a
    resume token."""
    resume, rewind = data.get("resume"), data.get("rewind")
    with_stream = with_offsets or resume is not None or rewind is not None
    if rule is None:
        reason = None if resume is None else NOT_ENABLED
        return Asked(recovering=resume is not None, with_stream=True, reason=reason) if with_stream else NOTHING
    if resume is not None:
        return _resume(rule, resume)
    if rewind is not None:
        return Asked(_recovery(rule, rewind=_rewind(rewind)), with_stream=True)
    if tracker is not None and (found := _from_record(rule, tracker, channel, with_stream)) is not None:
        return found
    if rule.rewind is not None or with_stream or tracker is not None:
        return Asked(_recovery(rule, rewind=rule.rewind), with_stream=with_stream)
    return NOTHING


def _from_record(rule: rules.Rule, tracker: ack_tracker.AckTracker, channel: str, with_stream: bool) -> Asked | None:
    """None: the channel is new to the page."""
    after, lost = tracker.start_of(channel)
    if after is not None:
        recovery = _recovery(rule, after, earlier_sockets=tracker.earlier_sockets)
        return Asked(recovery, recovering=True, with_stream=with_stream)
    if lost is not None:
        return Asked(_recovery(rule), recovering=True, with_stream=with_stream, reason=lost)
    return None


def _recovery(
    rule: rules.Rule,
    after: interface.Position | None = None,
    rewind: interface.Rewind | None = None,
    earlier_sockets: tuple[str, ...] = (),
) -> connections.Recovery:
    return connections.Recovery(rule.history(after, rewind), frozenset(earlier_sockets))


def _resume(rule: rules.Rule, resume: Any) -> Asked:
    after = position(resume)
    if after is None:
        return Asked(_recovery(rule), recovering=True, with_stream=True, reason=INVALID_POSITION)
    socket_id = resume.get("socket_id")
    known = isinstance(socket_id, str) and names.is_valid_socket_id(socket_id)
    recovery = _recovery(rule, after, earlier_sockets=(socket_id,) if known else ())
    return Asked(recovery, recovering=True, with_stream=True)


def _rewind(value: object) -> interface.Rewind:
    """`{"count": 20}` or `{"seconds": 60}`; any other value requests no history."""
    numbers = value if isinstance(value, dict) else {}
    count, seconds = (
        max(number, 0) if type(number) is int else 0 for number in (numbers.get("count"), numbers.get("seconds"))
    )
    return interface.Rewind(min(count, REWIND_BOUND), min(seconds, REWIND_BOUND))


def position(value: object) -> interface.Position | None:
    """`{"epoch": "…", "offset": 41}` from a client; None if it is no position."""
    if not isinstance(value, dict) or not isinstance(value.get("epoch"), str) or type(value.get("offset")) is not int:
        return None
    try:
        return interface.Position.parse(f"{value['epoch']}:{value['offset']}")
    except ValueError:
        return None


def failure(asked: Asked, result: interface.RecoveryResult | None) -> str | None:
    """Why a client that was subscribed before may have missed events; None if it has not, or is new."""
    return (asked.reason or (result.reason if result is not None else None)) if asked.recovering else None


# -- the frames --------------------------------------------------------------------------------------------------------


def stream(asked: Asked, result: interface.RecoveryResult | None) -> dict[str, Any]:
    """The `stream` in the answer to a subscribe: the channel's position, and whether all missed events follow."""
    reason = asked.reason or (result.reason if result is not None else None)
    recovered = asked.recovering and reason is None and result is not None
    position = result.position if result is not None else None
    return _stream(asked, position, reason, recovered=recovered, replayed=result.count if result is not None else 0)


def repeated_stream(asked: Asked, subscription: connections.Subscription) -> dict[str, Any]:
    """The `stream` in the answer to a repeated subscribe, which replays nothing.

    `recovered` is true where this connection was sent, or is being sent, all kept entries after the client's position.
    """
    position, since, top = subscription.position, subscription.since, subscription.channel.offset
    after = asked.recovery.request.after if asked.recovery is not None else None
    recovered = (
        position is not None
        and after is not None
        and since is not None
        and after.epoch == position.epoch
        and since <= after.offset <= top
    )
    reason = asked.reason
    if asked.recovering and not recovered and reason is None:
        reason = ALREADY_SUBSCRIBED
    return _stream(asked, position, reason, recovered=recovered, replayed=0)


def _stream(
    asked: Asked, position: interface.Position | None, reason: str | None, *, recovered: bool, replayed: int
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "epoch": position.epoch if position is not None else None,
        "offset": position.offset if position is not None else 0,
        "was_recovering": asked.recovering,
        "recovered": recovered,
        "replayed": replayed,
    }
    if reason is not None:
        fields["reason"] = reason
    return fields


def stream_frame(channel: str, fields: dict[str, Any]) -> bytes:
    """The `stream` in a frame of its own: pusher-js passes no other data of a presence channel's answer to the page."""
    return _frame("pusher:stream", channel, fields)


def resume_failed(channel: str, reason: str) -> bytes:
    """For a page that keeps no positions: `channel.bind('pusher:resume_failed', …)`."""
    return _frame("pusher:resume_failed", channel, {"reason": reason})


def stream_reset(channel: str, position: interface.Position | None, reason: str) -> bytes:
    """A recovery failed after it had begun: events before `position` are missing, and later ones are delivered."""
    fields = {} if position is None else {"epoch": position.epoch, "offset": position.offset}
    return _frame("pusher:stream_reset", channel, {**fields, "reason": reason})


def history_page(channel: str, rid: object, page: history_pages.Page) -> bytes:
    """A page of a channel's history, the newest event first. `next`: the `before` of the following page."""
    items = []
    for event in page.events:
        item = {"offset": event.offset, "event": event.event, "data": event.data}
        items.append(item if event.user_id is None else {**item, "user_id": event.user_id})
    following = None if page.next is None else {"epoch": page.next.epoch, "offset": page.next.offset}
    return _frame("pusher:history", channel, {"rid": rid, "items": items, "next": following})


def history_refused(channel: str, rid: object, message: str) -> bytes:
    """The answer without a page. It carries the `rid` of the request, so the client need not wait for its timeout."""
    return _frame("pusher:history", channel, {"rid": rid, "error": {"message": message}})


def _frame(event: str, channel: str, data: dict[str, Any]) -> bytes:
    return orjson.dumps({"event": event, "channel": channel, "data": orjson.dumps(data).decode()})
