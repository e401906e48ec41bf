"""Questions about channels: `GET /apps/{id}/channels`, `…/channels/{name}`, `…/channels/{name}/users`.

The answers are those of the whole deployment. A channel exists while somebody is subscribed to it: asked for by name,
an empty one is answered with `"occupied": false`; in a list it does not stand.
"""

from __future__ import annotations

import orjson

from apps.api import attributes, errors, requests, validation
from apps.applications import registry
from apps.hub import hub as hubs
from apps.pusher import names

BODY_BYTES = 1_024  # a question has no body; some clients send an empty JSON object


def body_limit(limits: registry.Limits) -> int:
    return BODY_BYTES


async def channels(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"channels": {name: {attribute: n}}}`. Parameters: `filter_by_prefix`, `info`."""
    fields = request.fields()
    prefix = fields.get("filter_by_prefix") or ""
    if not isinstance(prefix, str):
        raise errors.Invalid("The parameter filter_by_prefix must be a string.", code="invalid_prefix")
    asked = attributes.parse(fields.get("info"))
    if attributes.USER_COUNT in asked and not names.is_presence(prefix):
        raise errors.Invalid(
            f"The attribute {attributes.USER_COUNT} needs a filter_by_prefix that begins with presence-: "
            "only presence channels have users.",
            code="attribute_not_available",
        )
    occupied = await hub.engine.channels(request.application.id, prefix)
    described = {name: attributes.describe(name, counts, asked) for name, counts in occupied.items()}
    return orjson.dumps({"channels": described})


async def channel(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"occupied": true, attribute: n}`. Parameter: `info`."""
    name = validation.channel_name(request.names[0], request.application.limits)
    asked = attributes.parse(request.fields().get("info"))
    if attributes.USER_COUNT in asked and not names.is_presence(name):
        raise errors.Invalid(
            f"The attribute {attributes.USER_COUNT} is not available for {name}: only presence channels have users.",
            code="attribute_not_available",
        )
    counts = await hub.engine.channel(request.application.id, name)
    return orjson.dumps({"occupied": counts.subscriptions > 0, **attributes.describe(name, counts, asked)})


async def users(hub: hubs.Hub, request: requests.Request) -> bytes:
    """`{"users": [{"id": user_id}, …]}`, distinct users of a presence channel."""
    name = validation.channel_name(request.names[0], request.application.limits)
    if not names.is_presence(name):
        raise errors.Invalid(f"{name} is not a presence channel, so it has no users.", code="not_presence")
    members = await hub.engine.members(request.application.id, name)
    return orjson.dumps({"users": [{"id": member.user_id} for member in members]})
