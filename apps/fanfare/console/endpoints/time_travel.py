"""Time travel: the kept events of a channel with their times, to look at the state as it was."""

from __future__ import annotations

from typing import Any, Final

from fanfare.console import member_history, tails
from fanfare.console.requests import Problem, Request, endpoint
from fanfare.engine import interface
from fanfare.protocol import names, refusals

MOST: Final = 500
MOST_BYTES: Final = 2_000_000  # of the events of one answer, about
AT_ONCE: Final = 50  # events of one read; the largest have 5 MB


@endpoint("timeline")
async def timeline(request: Request) -> Any:
    """Kept events of `channel`, oldest first: the newest `limit`, or those before the offset `before`. Fewer if they
    have more than `MOST_BYTES`.

    `first` and `last`: the offsets of these events; `top`: of the newest one of the channel. `records_members`: whether
    events have `members` and `member_count`, as far back as they are known; `members_since`: when their recording
    began, or None; `members_behind`: none is known, because the latest changes are not recorded yet.
    """
    application = request.application()
    channel = request.query.get("channel", "")
    try:
        names.check_channel(channel, application.limits.max_channel_name)
    except refusals.InvalidName as error:
        raise Problem(400, f"{error.message}.") from None
    rule = application.rules.of(channel)
    if rule is None:
        raise Problem(404, f"{channel} keeps no history: no channel rule of the application matches it.")
    limit = request.number("limit", 200, least=1, most=MOST)
    before = request.number("before", 0, most=2**62) or None
    records_members = rule.record_members and names.is_presence(channel)

    partition = request.worker.hub.engine.partition(application.id, channel)

    def read(queries: interface.Queries) -> Any:
        found = _read(queries, application.id, channel, before, limit)
        return *found, member_history.members_now(queries, application.id, channel) if records_members else set()

    entries, top, members = await request.ask(read)
    recorded, is_behind = member_history.Recorded(members), False
    if records_members:
        answers = await request.worker.survey.ask(member_history.RECORDED, {"partition": partition})
        is_behind = True not in answers.workers.values()
        if not is_behind:
            recorded = await request.ask(
                lambda queries: member_history.read(queries, application.id, channel, partition, members)
            )
    items = [tails.item(partition, entry) for entry in reversed(entries)]
    member_history.timeline(items, recorded)
    return {
        "channel": channel,
        "is_state": names.is_cache(channel),
        "epoch": None if top is None else top.epoch,
        "top": None if top is None else top.offset,
        "first": items[0]["offset"] if items else None,
        "last": items[-1]["offset"] if items else None,
        "records_members": records_members,
        "members_since": recorded.since,
        "members_behind": is_behind,
        "events": items,
    }


def _read(
    queries: interface.Queries, app: str, channel: str, before: int | None, limit: int
) -> tuple[list[interface.Entry], interface.Position | None]:
    """The newest entries before an offset, the newest first."""
    found: list[interface.Entry] = []
    size = 0
    while True:
        wanted = min(AT_ONCE, limit - len(found))
        entries, top = queries.read(app, channel, 0, wanted, before=before, newest_first=True)
        for entry in entries:
            size += len(entry.body)
            if found and size > MOST_BYTES:
                return found, top
            found.append(entry)
        if len(entries) < wanted or len(found) == limit:
            return found, top
        before = entries[-1].offset
