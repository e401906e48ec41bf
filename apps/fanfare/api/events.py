"""Publishing: `POST /apps/{id}/events`, `…/batch_events`, and the older `…/channels/{name}/events`.

A request becomes one call of `hub.publish`, whatever the number of its channels or events: all of it gets into the log,
or nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from fanfare.api import answers, attributes, errors, requests, validation
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.hub import hub as hubs
from fanfare.protocol import names

logger = logging.getLogger(__name__)

ESCAPED_BYTES = 6  # the most that a JSON encoder makes of one byte, \u0000; a character is at most two of these
ITEM_BYTES = 1_024  # of JSON around an event's name, data and channels: socket_id, info, idempotency key, punctuation
BODY_BYTES = 4_096  # around all of it, blanks included

EMPTY = b"{}"


class Event(NamedTuple):
    name: str
    channels: list[str]
    data: str
    exclude: str | None
    attributes: tuple[str, ...]
    idempotency_key: str | None


async def trigger(hub: hubs.Hub, request: requests.Request) -> bytes:
    """One event to one or several channels. Answers `{}`, or with `info` `{"channels": {name: {attribute: n}}}`."""
    fields = request.fields()
    limits = request.application.limits
    event = _event(fields, validation.channel_names(fields, limits), limits, request.idempotency_key)
    receipts = await _publish(hub, request.application, [event])
    if not event.attributes:
        return EMPTY
    answer: answers.Triggered = {"channels": await _describe(hub, request.application, event, receipts)}
    return orjson.dumps(answer)


async def trigger_batch(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Several events, each to one channel, in order. Answers `{}`, or with `info` `{"batch": [{attribute: n}, …]}`."""
    batch = request.fields().get("batch")
    limits = request.application.limits
    if not isinstance(batch, list):
        raise errors.Invalid("The parameter batch is missing: a list of events.", code="missing_batch")
    if len(batch) > limits.max_batch_events:
        raise errors.Invalid(
            f"Batch too large: it has {len(batch)} events, the allowed maximum is {limits.max_batch_events}.",
            code="batch_too_large",
        )
    events = [_item(index, fields, limits, request.idempotency_key) for index, fields in enumerate(batch)]
    receipts = await _publish(hub, request.application, events)
    if not any(event.attributes for event in events):
        return EMPTY
    answer: answers.BatchTriggered = {
        "batch": [
            (await _describe(hub, request.application, event, [receipt]))[event.channels[0]]
            for event, receipt in zip(events, receipts, strict=True)
        ]
    }
    return orjson.dumps(answer)


async def trigger_on_channel(hub: hubs.Hub, request: requests.Request) -> bytes:
    """One event to the channel of the path: the body is its data, the query has its `name` and `socket_id`."""
    limits = request.application.limits
    fields: dict[str, Any] = {name: request.query.get(name) for name in ("name", "socket_id")}
    if request.body:
        try:
            fields["data"] = request.body.decode()
        except UnicodeDecodeError as error:
            raise errors.Invalid(
                f"The request's body, the event's data, is not UTF-8: {error}.", code="invalid_data"
            ) from None
    channel = validation.channel_name(request.names["channel"], limits)
    await _publish(hub, request.application, [_event(fields, [channel], limits, request.idempotency_key)])
    return EMPTY


def body_limit(limits: registry.Limits) -> int:
    """Bytes that the body of one event can have if every part of it is within its own limit."""
    return BODY_BYTES + _event_bytes(limits, limits.max_channels_per_event)


def batch_body_limit(limits: registry.Limits) -> int:
    """Bytes that the body of a batch can have if every part of it is within its own limit."""
    return BODY_BYTES + limits.max_batch_events * _event_bytes(limits, 1)


def _event_bytes(limits: registry.Limits, channels: int) -> int:
    text = limits.max_event_bytes + limits.max_event_name * 2 + channels * (limits.max_channel_name + 3)
    return ESCAPED_BYTES * text + ITEM_BYTES


def _item(index: int, fields: Any, limits: registry.Limits, idempotency_key: str | None) -> Event:
    """One event of a batch.

    A key for the whole batch becomes one for each event: two events for the same channel are not duplicates.
    """
    try:
        event = _item_event(fields, limits)
    except (errors.Invalid, errors.TooLarge) as error:
        raise type(error)(f"Event {index} of the batch: {error}", code=error.code) from None
    if event.idempotency_key is None and idempotency_key is not None:
        return event._replace(idempotency_key=f"{validation.idempotency_key(idempotency_key)}:{index}")
    return event


def _item_event(fields: Any, limits: registry.Limits) -> Event:
    if not isinstance(fields, dict):
        raise errors.Invalid("It must be a JSON object.", code="invalid_batch")
    return _event(fields, [validation.channel_name(fields.get("channel"), limits)], limits, None)


def _event(fields: dict[str, Any], channels: list[str], limits: registry.Limits, idempotency_key: str | None) -> Event:
    own_key = fields.get("idempotency_key")
    return Event(
        name=validation.event_name(fields.get("name"), limits),
        channels=channels,
        data=validation.event_data(fields, limits),
        exclude=validation.socket_id(fields.get("socket_id")),
        attributes=attributes.parse(fields.get("info"), attributes.OF_PUBLICATION),
        idempotency_key=validation.idempotency_key(idempotency_key if own_key is None else own_key),
    )


async def _publish(
    hub: hubs.Hub, application: registry.Application, events: Sequence[Event]
) -> list[interface.Receipt]:
    """All of them or none. A receipt for each channel of each event."""
    publications = _publications(application, events)
    if not publications:
        return []
    per_second = application.limits.max_events_per_second
    budget = None if per_second is None else interface.Budget(application.id, per_second)
    receipts = await hub.publish(publications, budget=budget)
    hub.count("api.published", len(publications))
    return receipts


def _publications(application: registry.Application, events: Sequence[Event]) -> list[interface.Publication]:
    publications = []
    for event in events:
        # The data is the large part: for several channels it is encoded once, and then only copied.
        data: Any = event.data if len(event.channels) == 1 else orjson.Fragment(orjson.dumps(event.data))
        for channel in event.channels:
            rule = application.rules.of(channel)
            publication = interface.Publication(
                app=application.id,
                channel=channel,
                body=event_frames.event(event.name, channel, data),
                exclude=event.exclude,
                retention=None if rule is None else rule.retention,
                idempotency_key=event.idempotency_key,
                cache_seconds=application.cache_seconds if names.is_cache(channel) else None,
            )
            publications.append(publication)
    return publications


async def _describe(
    hub: hubs.Hub, application: registry.Application, event: Event, receipts: Sequence[interface.Receipt]
) -> dict[str, answers.Published]:
    """What the event's `info` asked for, by channel. Where counts cannot be had they are missing, for the event itself
    is published: an error would make its publisher send it again.
    """
    described: dict[str, answers.Published] = {channel: {} for channel in event.channels}
    if attributes.OFFSET in event.attributes:
        for channel, receipt in zip(event.channels, receipts, strict=True):
            if receipt.position is not None:
                described[channel] = {"offset": receipt.position.offset, "epoch": receipt.position.epoch}
    if not set(attributes.COUNTS).isdisjoint(event.attributes):
        try:
            for channel in event.channels:
                counts = await hub.engine.channel(application.id, channel)
                described[channel] = {**described[channel], **attributes.describe(channel, counts, event.attributes)}
        except engine_errors.EngineUnavailable as error:
            hub.count("api.info_unavailable")
            logger.warning("published, but the counts that were asked for are not known: %s", error)
    return described
