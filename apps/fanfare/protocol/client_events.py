"""Events that a client sends to the other subscribers of a channel ("Triggering client events").

The server checks and relays them, and does not read their data. They are off until an application enables
them, because any subscriber then decides what other pages receive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from fanfare.applications import registry
from fanfare.hub import connections
from fanfare.protocol import capabilities, effects, messages, names, publications, refusals


def relay(
    application: registry.Application,
    socket_id: str,
    subscriptions: Mapping[str, connections.Subscription],
    message: messages.Message,
) -> effects.PublishClientEvent:
    """The publication for the other subscribers. `socket_id`, and `subscriptions` by channel: of the sender.
    Raises BadFrame and ClientEventRejected."""
    event, fields = message
    channel = fields.get("channel")
    if not isinstance(channel, str) or "data" not in fields:
        raise refusals.BadFrame("Invalid client event: it must contain channel and data", reason="invalid_client_event")
    _check_allowed(application, channel, event)
    subscription = _subscription(subscriptions, channel, event)
    user_id = None if subscription.member is None else subscription.member.user_id
    data = _check_data(application.limits, channel, event, fields["data"])
    publication = publications.build_client_event(application, channel, event, data, sender=socket_id, user_id=user_id)
    return effects.PublishClientEvent(event, publication)


def cancel(
    application: registry.Application,
    subscriptions: Mapping[str, connections.Subscription],
    message: messages.Message,
) -> effects.CancelStream:
    """The cancellation of a stream by a subscriber of its channel. Raises ClientEventRejected."""
    channel, data = message.fields.get("channel"), message.fields.get("data")
    stream_id = data.get("id") if isinstance(data, dict) else None
    if not isinstance(channel, str) or not isinstance(stream_id, str):
        raise refusals.BadFrame(f'Invalid {message.event}: its data is {{"id": …}}', reason="invalid_client_event")
    _subscription(subscriptions, channel, message.event)
    rule = application.rules.of(channel)
    if rule is None or not rule.stream_cancel:
        raise refusals.ClientEventRejected(
            f"{_shown(channel, message.event)} rejected: the channel rule does not let subscribers cancel streams",
            code=None,
            reason="cancel_not_allowed",
        )
    return effects.CancelStream(channel, stream_id)


def update_member(
    application: registry.Application,
    subscriptions: Mapping[str, connections.Subscription],
    message: messages.Message,
) -> effects.UpdateMember:
    """The new state of the sender as a member of a presence channel: `state` beside what its backend has signed, so a
    client cannot take another name. Raises BadFrame and ClientEventRejected."""
    channel = message.fields.get("channel")
    if not isinstance(channel, str) or "data" not in message.fields:
        raise refusals.BadFrame(
            f"Invalid {message.event}: it must contain channel and data", reason="invalid_client_event"
        )
    _check_allowed(application, channel, message.event)
    member = _subscription(subscriptions, channel, message.event).member
    if member is None:
        raise _not_subscribed(channel, message.event)
    signed = orjson.loads(member.info)
    try:
        info = orjson.dumps({**(signed if isinstance(signed, dict) else {}), "state": message.fields["data"]})
    except orjson.JSONEncodeError:
        raise refusals.BadFrame(
            f"Invalid {message.event}: its data is nested too deeply", reason="invalid_client_event"
        ) from None
    limit = application.limits.max_member_bytes
    if len(info) > limit:
        raise refusals.ClientEventRejected(
            f"{_shown(channel, message.event)} rejected: the member has {len(info)} bytes; {limit} are allowed",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="too_big",
        )
    return effects.UpdateMember(channel, member.user_id, info.decode())


def _check_allowed(application: registry.Application, channel: str, event: str) -> None:
    """Raise ClientEventRejected unless the application and the type of the channel allow client events at all."""
    if not application.client_events:
        raise refusals.ClientEventRejected(
            "To send client events, you must enable this feature in the settings of the application",
            code=None,
            reason="disabled",
        )
    if names.type_of(channel) not in (names.Type.PRIVATE, names.Type.PRESENCE):
        raise refusals.ClientEventRejected(
            f"{_shown(channel, event)} rejected: it takes a private or presence channel that is not encrypted",
            code=None,
            reason="channel_type",
        )


def _subscription(
    subscriptions: Mapping[str, connections.Subscription], channel: str, event: str
) -> connections.Subscription:
    """The sender's subscription to the channel. Raises ClientEventRejected without one, or if its token does not allow
    client events."""
    subscription = subscriptions.get(channel)
    if subscription is None or subscription.state is connections.State.ATTACHING:
        raise _not_subscribed(channel, event)
    if not subscription.request.may(capabilities.PUBLISH):
        raise refusals.ClientEventRejected(
            f'{_shown(channel, event)} rejected: the token does not have the right "publish"',
            code=refusals.UNAUTHORIZED,
            reason="right_not_granted",
        )
    return subscription


def _not_subscribed(channel: str, event: str) -> refusals.ClientEventRejected:
    return refusals.ClientEventRejected(
        f"{_shown(channel, event)} rejected: this connection is not subscribed to the channel",
        code=refusals.UNAUTHORIZED,
        reason="not_subscribed",
    )


def over_rate() -> refusals.ClientEventRejected:
    return refusals.ClientEventRejected(
        "Client event rejected due to rate limit", code=refusals.CLIENT_EVENT_REJECTED, reason="rate_limited"
    )


def _check_data(limits: registry.Limits, channel: str, event: str, data: Any) -> Any:
    """The data, encoded if it is not a string. Raises ClientEventRejected if the event is too large.

    It is relayed as the same JSON value.
    """
    if len(event) > limits.max_event_name:
        raise refusals.ClientEventRejected(
            f"{_shown(channel, event)} rejected: "
            f"its name has {len(event)} characters; {limits.max_event_name} are allowed",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="name_too_long",
        )
    try:
        if isinstance(data, str):
            size = len(data) if data.isascii() else len(data.encode())
        else:
            encoded = orjson.dumps(data)
            size, data = len(encoded), orjson.Fragment(encoded)
    except orjson.JSONEncodeError:  # orjson parses deeper nesting than it serializes
        raise refusals.ClientEventRejected(
            f"{_shown(channel, event)} rejected: its data is nested too deeply",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="too_deep",
        ) from None
    if size > limits.max_event_bytes:
        raise refusals.ClientEventRejected(
            f"{_shown(channel, event)} rejected: its data has {size} bytes; {limits.max_event_bytes} are allowed",
            code=refusals.CLIENT_EVENT_REJECTED,
            reason="too_big",
        )
    return data


def _shown(channel: str, event: str) -> str:
    return f'Client event "{refusals.quoted(event)}" on channel "{refusals.quoted(channel)}"'
