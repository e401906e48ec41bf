"""The queries of the HTTP API: occupied channels, users and histories. They cover the whole deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from fanfare.api import parameters, refusals, requests
from fanfare.engine import interface
from fanfare.hub import history_pages
from fanfare.hub import hub as hubs
from fanfare.protocol import names

ENCODED_AT_ONCE = 500  # users of a presence channel: less than 1 ms

BACKWARDS = "backwards"
FORWARDS = "forwards"
DIRECTIONS = (BACKWARDS, FORWARDS)


async def channels(hub: hubs.Hub, request: requests.Request) -> bytes:
    """List the occupied channels. Parameters: `filter_by_prefix`, `info`."""
    fields = request.fields()
    prefix = fields.get("filter_by_prefix") or ""
    if not isinstance(prefix, str) or "\0" in prefix:
        raise refusals.Invalid("The parameter filter_by_prefix must be a string without NUL.", code="invalid_prefix")
    attributes = parameters.info(fields.get("info"), parameters.COUNTS)
    if parameters.USER_COUNT in attributes and not names.is_presence(prefix):
        raise refusals.Invalid(
            f"The attribute {parameters.USER_COUNT} needs a filter_by_prefix that begins with presence-: "
            "only presence channels have users.",
            code="attribute_not_available",
        )
    app = request.application.id
    occupied = await hub.engine.ask(lambda queries: queries.channels(app, prefix))
    return orjson.dumps({"channels": {name: describe(name, counts, attributes) for name, counts in occupied.items()}})


async def channel(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Describe one channel. Parameter: `info`."""
    app, name = request.application.id, _channel(request)
    attributes = parameters.info(request.fields().get("info"), parameters.CHANNEL_ATTRIBUTES)
    parameters.require_available(name, attributes)
    counts = await counts_of(hub, app, name)
    answer = {"occupied": counts.subscriptions > 0, **describe(name, counts, attributes)}
    if parameters.CACHE in attributes:
        cached = await hub.engine.ask(lambda queries: queries.cached(app, name))
        answer["cache"] = None if cached is None else {"data": orjson.loads(cached.body)["data"], "ttl": cached.ttl}
    return orjson.dumps(answer)


async def users(hub: hubs.Hub, request: requests.Request) -> bytes:
    """List the distinct users of a presence channel. Parameter: `with_user_info`."""
    name = parameters.presence_channel(request.names["channel"], request.application.limits)
    with_info = parameters.flag("with_user_info", request.fields().get("with_user_info"))
    app = request.application.id
    # Encoded in the thread of the query and in pieces: for 100,000 users the event loop would stand still otherwise.
    return await hub.engine.ask(lambda queries: _users(queries.members(app, name), with_info=with_info))


async def history(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Return a page of a channel's history; an extension. Parameters: `limit`, `after`, `before`, `direction`,
    `open`."""
    application, name = request.application, _channel(request)
    wanted = _range(request.fields())
    if application.rules.of(name) is None:
        raise refusals.Invalid(f"{name} keeps no history: no channel rule matches it.", code="not_enabled")
    if parameters.flag("open", request.fields().get("open")):
        await asyncio.to_thread(hub.engine.open_channel, application.id, name)
    page = await history_pages.read(hub.engine, application.id, name, wanted)
    if page.reason is not None:
        raise refusals.Gone(
            f"The history of {name} was reset, so it has no events at the position of the request. "
            f"Its position now is {page.position or 'none'}.",
            code=page.reason,
        )
    return orjson.dumps(
        {
            "items": [_history_item(event) for event in page.events],
            "position": None if page.position is None else str(page.position),
            "next": None if page.next is None else str(page.next),
        }
    )


async def stats(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Describe one channel in the form of the API before 2012; no parameters."""
    name = _channel(request)
    counts = await counts_of(hub, request.application.id, name)
    answer: dict[str, Any] = {"occupied": counts.subscriptions > 0, "connection_count": counts.subscriptions}
    if names.is_presence(name):
        answer["user_count"] = counts.users
    return orjson.dumps(answer)


async def user(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Whether a user is signed in on a connection, in any worker; an extension."""
    app, user_id = request.application.id, parameters.user_id(request.names["user_id"], request.application.limits)
    online = await hub.engine.ask(lambda queries: queries.present(app, interface.USERS, [user_id]))
    return orjson.dumps({"online": bool(online)})


async def counts_of(hub: hubs.Hub, app: str, channel: str) -> interface.ChannelCounts:
    return await hub.engine.ask(lambda queries: queries.channel(app, channel))


def _channel(request: requests.Request) -> str:
    return parameters.channel_name(request.names["channel"], request.application.limits)


def describe(channel: str, counts: interface.ChannelCounts, attributes: tuple[str, ...]) -> dict[str, Any]:
    """The counts of one channel. A count that the channel's type does not have is omitted, because an event can go to
    channels of several types.
    """
    values: dict[str, Any] = {}
    if parameters.USER_COUNT in attributes and names.is_presence(channel):
        values["user_count"] = counts.users
    if parameters.SUBSCRIPTION_COUNT in attributes:
        values["subscription_count"] = counts.subscriptions
    return values


def _users(found: Sequence[interface.Member], *, with_info: bool) -> bytes:
    """The answer, encoded in pieces: between two of them the interpreter can turn to other threads."""
    pieces = [
        orjson.dumps([_user(member, with_info=with_info) for member in found[begin : begin + ENCODED_AT_ONCE]])[1:-1]
        for begin in range(0, len(found), ENCODED_AT_ONCE)
    ]
    return b'{"users":[' + b",".join(pieces) + b"]}"


def _user(member: interface.Member, *, with_info: bool) -> dict[str, Any]:
    if not with_info:
        return {"id": member.user_id}
    return {"id": member.user_id, "user_info": orjson.Fragment(member.info)}


def _range(fields: dict[str, Any]) -> history_pages.Range:
    direction = fields.get("direction") or BACKWARDS
    if direction not in DIRECTIONS:
        raise refusals.Invalid(f"The parameter direction must be {' or '.join(DIRECTIONS)}.", code="invalid_direction")
    return history_pages.Range(
        after=parameters.position("after", fields.get("after")),
        before=parameters.position("before", fields.get("before")),
        limit=parameters.number("limit", fields.get("limit"), history_pages.LIMIT, history_pages.MOST),
        newest_first=direction == BACKWARDS,
    )


def _history_item(event: history_pages.Event) -> dict[str, Any]:
    item = {"offset": event.offset, "event": event.event, "data": event.data}
    more = {"user_id": event.user_id, "revised": event.revised}
    return {**item, **{name: value for name, value in more.items() if value is not None}}
