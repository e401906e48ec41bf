"""The operation that changes or deletes a kept message. See `fanfare.hub.revisions`."""

from __future__ import annotations

import asyncio

import orjson

from fanfare.api import parameters, refusals, requests
from fanfare.hub import hub as hubs
from fanfare.hub import revisions
from fanfare.protocol import names


async def revise(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Give a kept message new data, or delete it. Parameters: `data`, `delete`, `by`."""
    fields, application = request.fields(), request.application
    channel = parameters.channel_name(request.names["channel"], application.limits)
    position = parameters.position("position", request.names["position"])
    if position is None or names.is_encrypted(channel):
        raise refusals.Invalid(
            f"Messages of {channel} are encrypted: a process with the master key changes them.", code="encrypted"
        )
    deletes = parameters.flag("delete", fields.get("delete"))
    data = None if deletes else parameters.event_data(fields, application.limits)
    by = fields.get("by")
    if by is not None and not isinstance(by, str):
        raise refusals.Invalid("The parameter by must be a string.", code="invalid_by")
    entry = await hub.engine.ask(lambda queries: revisions.find(queries, application.id, channel, position))
    if entry is None:
        raise _gone(channel, str(position))
    author = revisions.Author(by, revisions.now())
    notice = revisions.notice_data(position, revisions.event_of(entry), data, author)
    done = await asyncio.to_thread(hub.engine.revise, revisions.revision(entry, position, data, notice, author))
    if done is None:
        raise _gone(channel, str(position))
    hub.count("api.revised")
    return orjson.dumps({"offset": done.offset, "epoch": done.epoch})


def _gone(channel: str, position: str) -> refusals.Gone:
    return refusals.Gone(f"{channel} keeps no message at {position}: it expired or is deleted.", code="message_gone")
