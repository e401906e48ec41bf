"""Time travel: the kept events of a channel with their times, to look at the state as it was."""

from __future__ import annotations

from typing import Any

from fanfare.console import tails
from fanfare.console.requests import Problem, Request, endpoint
from fanfare.protocol import names, refusals

MOST = 500


@endpoint("timeline")
async def timeline(request: Request) -> Any:
    """Kept events of `channel`, oldest first: the newest `limit`, or those before the offset `before`.

    `first` and `last`: the offsets of these events; `top`: of the newest one of the channel.
    """
    application = request.application()
    channel = request.query.get("channel", "")
    try:
        names.check_channel(channel, application.limits.max_channel_name)
    except refusals.InvalidName as error:
        raise Problem(400, f"{error.message}.") from None
    if application.rules.of(channel) is None:
        raise Problem(404, f"{channel} keeps no history: no channel rule of the application matches it.")
    limit = request.number("limit", 200, least=1, most=MOST)
    before = request.number("before", 0, most=2**62) or None
    entries, top = await request.worker.hub.engine.ask(
        lambda ask: ask.read(application.id, channel, 0, limit, before=before, newest_first=True)
    )
    partition = request.worker.hub.engine.partition(application.id, channel)
    items = [tails.item(partition, entry) for entry in reversed(entries)]
    return {
        "channel": channel,
        "is_state": names.is_cache(channel),
        "epoch": None if top is None else top.epoch,
        "top": None if top is None else top.offset,
        "first": items[0]["offset"] if items else None,
        "last": items[-1]["offset"] if items else None,
        "events": items,
    }
