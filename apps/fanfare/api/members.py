"""The operations that change the members of a presence channel: a new info for a member, and members with a time to
live, which are agents and backends without a connection.

All are POST requests, since the SDKs of Pusher sign no other method than GET and POST.
"""

from __future__ import annotations

import asyncio
from typing import Final

import orjson

from fanfare import conf
from fanfare.api import parameters, rates, refusals, requests
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import hub as hubs

TTL_S: Final = 60
MAX_TTL_S: Final = 3_600

_rate: Final = rates.Rate("writes of this member", "too_many_writes")


async def update_user(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Give a member of a presence channel a new info; an extension. Parameter: `user_info`."""
    application = request.application
    channel = parameters.presence_channel(request.names["channel"], application.limits)
    user_id = parameters.user_id(request.names["user_id"], application.limits)
    info = user_info(request.fields().get("user_info"), application.limits)
    updated = await asyncio.to_thread(hub.engine.update_member, application.id, channel, user_id, info)
    return orjson.dumps({"updated": updated})


async def lease(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Make a user a member for `ttl` seconds, or renew that. Parameters: `ttl`, `user_info`."""
    channel, user_id = _member(request)
    application, fields = request.application, request.fields()
    ttl = parameters.number("ttl", fields.get("ttl"), TTL_S, MAX_TTL_S)
    info = user_info(fields.get("user_info"), application.limits) if "user_info" in fields else None
    limit = application.limits.max_presence_members
    answer = await asyncio.to_thread(
        hub.engine.lease_member, application.id, channel, user_id, info, float(ttl), limit=limit
    )
    if isinstance(answer, interface.Refused):
        raise refusals.Invalid(
            f"Too many members: {channel} has {answer.actual}, the allowed maximum is {answer.limit}.",
            code="too_many_members",
        )
    hub.count("members.joined" if answer else "members.renewed")
    return orjson.dumps({"joined": answer, "ttl": ttl})


async def release(hub: hubs.Hub, request: requests.Request) -> bytes:
    """End a member's time to live. Connections of the same user stay members."""
    channel, user_id = _member(request)
    left = await asyncio.to_thread(hub.engine.release_member, request.application.id, channel, user_id)
    return orjson.dumps({"left": left})


def user_info(value: object, limits: registry.Limits) -> str:
    """JSON text. Raises Invalid, TooLarge."""
    try:
        info = orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise refusals.Invalid(f"The parameter user_info cannot be encoded: {error}.", code="invalid_data") from None
    limit = limits.max_member_bytes
    if len(info) > limit:
        raise refusals.TooLarge(f"The user_info exceeds the allowed maximum ({limit} bytes): it has {len(info)} bytes.")
    return info.decode()


def _member(request: requests.Request) -> tuple[str, str]:
    """The channel and the user of the path."""
    limits = request.application.limits
    channel = parameters.presence_channel(request.names["channel"], limits)
    user_id = parameters.user_id(request.names["user_id"], limits)
    most, per_second = conf.settings.MEMBER_MAX_WRITES, limits.max_events_per_second
    _rate.spend((request.application.id, channel, user_id), most if per_second is None else min(most, per_second))
    return channel, user_id
