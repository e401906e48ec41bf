"""The channels of an application, and one of them with its members, history and cached event."""

from __future__ import annotations

from typing import Any, Final

from fanfare.console.requests import Problem, Request, endpoint
from fanfare.engine import interface
from fanfare.hub import history_pages

PAGE: Final = 100
MEMBERS: Final = 200  # of one answer
HISTORY: Final = 50
BODY_CHARACTERS: Final = 4_000  # of one event


@endpoint("channels")
async def channels(request: Request) -> Any:
    """A page of the occupied channels whose names contain `text`, after the name `after`."""
    app = request.application()
    text, after = request.query.get("text", "")[:200], request.query.get("after", "")
    found = await request.ask(lambda queries: queries.search(app.id, text, after, PAGE + 1))
    return {
        "channels": [
            {"name": name, "subscriptions": counts.subscriptions, "users": counts.users}
            for name, counts in found[:PAGE]
        ],
        "next": found[PAGE - 1][0] if len(found) > PAGE else None,
    }


@endpoint("channel")
async def channel(request: Request) -> Any:
    """One channel: its counts, members, kept events and cached event."""
    app = request.application()
    name = request.query.get("channel", "")
    if not 0 < len(name) <= app.limits.max_channel_name:
        raise Problem(400, "The argument `channel` is the name of a channel.")
    before = request.number("before", 0, most=2**60) or None

    def query(queries: interface.Queries) -> dict[str, Any]:
        entries, top = queries.read(
            *(app.id, name, 0, HISTORY + 1), before=before, newest_first=True, max_bytes=history_pages.MAX_BYTES
        )
        counts = queries.channel(app.id, name)
        cached = queries.cached(app.id, name)
        members = queries.members(app.id, name, MEMBERS) if counts.users else []
        page = history_pages.page(history_pages.Range(limit=HISTORY), entries, top)
        return {
            "subscriptions": counts.subscriptions,
            "users": counts.users,
            "members": [{"id": member.user_id, "info": member.info[:500]} for member in members],
            "position": None if top is None else str(top),
            "history": [
                {"offset": one.offset, "event": one.event, "data": _short(one.data), "user": one.user_id}
                for one in page.events
            ],
            "next": None if page.next is None else page.next.offset,
            "cached": None if cached is None else {"frame": _short(cached.body.decode()), "ttl": cached.ttl},
        }

    rule = app.rules.of(name)
    kept = None if rule is None else {"size": rule.history_size, "seconds": rule.history_seconds}
    return {"app": app.id, "channel": name, "keeps": kept, **(await request.ask(query))}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= BODY_CHARACTERS else f"{text[:BODY_CHARACTERS]}… ({len(text):,} characters)"
