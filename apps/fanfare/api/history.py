"""A channel's past: `GET /apps/{id}/channels/{name}/history`. Ours; Pusher has none."""

from __future__ import annotations

import orjson

from fanfare.api import answers, errors, requests, validation
from fanfare.hub import history_pages
from fanfare.hub import hub as hubs

BACKWARDS = "backwards"
FORWARDS = "forwards"
DIRECTIONS = (BACKWARDS, FORWARDS)


async def history(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"items": […], "position": "epoch:offset", "next": "epoch:offset"}`.

    Parameters: `limit`, `after`, `before`, `direction`.
    """
    application = request.application
    channel = validation.channel_name(request.names["channel"], application.limits)
    wanted = _range(request)
    if application.rules.of(channel) is None:
        raise errors.Invalid(f"No history is kept of {channel}: no channel rule fits it.", code="not_enabled")
    page = await history_pages.read(hub.engine, application.id, channel, wanted)
    if page.reason is not None:
        raise errors.Gone(
            f"The history of {channel} began anew, so there is nothing at the position that was asked for. "
            f"Its position now is {page.position or 'none'}.",
            code=page.reason,
        )
    answer: answers.History = {
        "items": [_item(event) for event in page.events],
        "position": None if page.position is None else str(page.position),
        "next": None if page.next is None else str(page.next),
    }
    return orjson.dumps(answer)


def _range(request: requests.Request) -> history_pages.Range:
    fields = request.fields()
    direction = fields.get("direction") or BACKWARDS
    if direction not in DIRECTIONS:
        raise errors.Invalid(f"The parameter direction must be {' or '.join(DIRECTIONS)}.", code="invalid_direction")
    return history_pages.Range(
        after=validation.position("after", fields.get("after")),
        before=validation.position("before", fields.get("before")),
        limit=validation.number("limit", fields.get("limit"), history_pages.LIMIT, history_pages.MOST),
        newest_first=direction == BACKWARDS,
    )


def _item(event: history_pages.Event) -> answers.Item:
    item: answers.Item = {"offset": event.offset, "event": event.event, "data": event.data}
    if event.user_id is not None:
        item["user_id"] = event.user_id
    return item
