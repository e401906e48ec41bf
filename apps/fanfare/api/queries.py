"""Queries about channels: `GET /apps/{id}/channels`, `…/channels/{name}`, `…/channels/{name}/users`.

The answers are those of the whole deployment. A channel exists while somebody is subscribed to it: asked for by name,
an empty one is answered with `"occupied": false`; in a list it does not stand.
"""

from __future__ import annotations

import orjson

from fanfare.api import answers, attributes, errors, requests, validation
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.protocol import names


async def channels(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"channels": {name: {attribute: n}}}`. Parameters: `filter_by_prefix`, `info`."""
    fields = request.fields()
    prefix = fields.get("filter_by_prefix") or ""
    if not isinstance(prefix, str):
        raise errors.Invalid("The parameter filter_by_prefix must be a string.", code="invalid_prefix")
    asked = attributes.parse(fields.get("info"), attributes.COUNTS)
    if attributes.USER_COUNT in asked and not names.is_presence(prefix):
        raise errors.Invalid(
            f"The attribute {attributes.USER_COUNT} needs a filter_by_prefix that begins with presence-: "
            "only presence channels have users.",
            code="attribute_not_available",
        )
    occupied = await hub.engine.channels(request.application.id, prefix)
    answer: answers.Channels = {
        "channels": {name: attributes.describe(name, counts, asked) for name, counts in occupied.items()}
    }
    return orjson.dumps(answer)


async def channel(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"occupied": true, attribute: value}`. Parameter: `info`."""
    app, name = request.application.id, validation.channel_name(request.names["channel"], request.application.limits)
    asked = attributes.parse(request.fields().get("info"), attributes.OF_CHANNEL)
    attributes.require(name, asked)
    counts = await hub.engine.channel(app, name)
    occupancy: answers.Occupancy = {"occupied": counts.subscriptions > 0, **attributes.describe(name, counts, asked)}
    if attributes.CACHE not in asked:
        return orjson.dumps(occupancy)
    answer: answers.Channel = {**occupancy, "cache": _cached(await hub.engine.cached(app, name))}
    return orjson.dumps(answer)


async def users(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"users": [{"id": user_id}, …]}`, distinct users of a presence channel. Parameter: `with_user_info`."""
    name = validation.channel_name(request.names["channel"], request.application.limits)
    if not names.is_presence(name):
        raise errors.Invalid(f"{name} is not a presence channel, so it has no users.", code="not_presence")
    with_info = validation.flag("with_user_info", request.fields().get("with_user_info"))
    members = await hub.engine.members(request.application.id, name)
    answer: answers.Users = {"users": [_user(member, with_info=with_info) for member in members]}
    return orjson.dumps(answer)


async def stats(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"occupied": true, "connection_count": n}`, of presence channels with a `user_count`; no parameters."""
    name = validation.channel_name(request.names["channel"], request.application.limits)
    counts = await hub.engine.channel(request.application.id, name)
    answer: answers.Stats = {"occupied": counts.subscriptions > 0, "connection_count": counts.subscriptions}
    if names.is_presence(name):
        answer["user_count"] = counts.users
    return orjson.dumps(answer)


def _cached(cached: interface.Cached | None) -> answers.Cached | None:
    return None if cached is None else {"data": orjson.loads(cached.body)["data"], "ttl": cached.ttl}


def _user(member: interface.Member, *, with_info: bool) -> answers.User:
    if not with_info:
        return {"id": member.user_id}
    return {"id": member.user_id, "user_info": orjson.Fragment(member.info)}
