"""The event creator: publish an event from the console, and see what became of it."""

from __future__ import annotations

import time
from typing import Any

import orjson

from fanfare.console import audit
from fanfare.console.endpoints import tracing
from fanfare.console.requests import Problem, Request, endpoint
from fanfare.engine import interface
from fanfare.hub import traces
from fanfare.protocol import names, publications, refusals


@endpoint("publish", method="POST", permission="publish_event", max_body=400_000)
async def publish(request: Request) -> Any:
    """Publish to `channel`, or to the user `user`. `data`: the text that subscribers get. Answers the position of the
    event; `trace` with it says which sockets got it."""
    application = request.application("publish_event")
    channel, event, data = (str(request.body.get(name) or "") for name in ("channel", "event", "data"))
    user, exclude = str(request.body.get("user") or ""), str(request.body.get("exclude") or "") or None
    if bool(channel) == bool(user):
        raise Problem(400, "Name a channel or a user.")
    channel = channel or names.user_channel(user)
    if names.is_encrypted(channel):
        raise Problem(400, "Events of encrypted channels are made by a backend that has the channel's secret.")
    try:
        names.check_publishable_channel(channel, application.limits.max_channel_name)
        publications.check_event_name(event, application.limits)
        publications.check_data(data, application.limits)
        if exclude is not None:
            publications.check_socket_id(exclude)
    except refusals.PusherError as error:
        raise Problem(400, f"{error.message}.") from None
    except UnicodeEncodeError:
        raise Problem(400, "The data has half a surrogate pair, which is no text.") from None
    publication = publications.build(application, channel, event, data, exclude=exclude)
    await audit.record(
        request.access,
        "publish",
        application=application.id,
        target=channel,
        detail={"event": event, "bytes": len(data.encode())},
    )
    # Every worker records what becomes of this event.
    await request.worker.survey.ask("traces", {"app": application.id, "channel": channel, "limit": 1})
    began = time.time()
    receipts: list[interface.Receipt] = await request.worker.hub.publish([publication])
    publisher = {"by": "console", "user": request.access.user}
    request.worker.hub.recorder.published([publication], receipts, publisher, began)
    [receipt] = receipts
    counts = await request.worker.hub.engine.ask(lambda ask: ask.channel(application.id, channel))
    partition = request.worker.hub.engine.partition(application.id, channel)
    return {
        "entry": traces.position(partition, receipt.id) if receipt.id else None,
        "position": None if receipt.position is None else str(receipt.position),
        "channel": channel,
        "subscribers": counts.subscriptions,
        "is_json": _is_json(data),
        "trace_s": tracing.TRACE_S,
    }


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
