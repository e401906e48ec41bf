"""Publishing by the HTTP API: events that are read from a request, checked and published.

`hub.publish` is called once per request, for any number of channels or events: the log gets all of them or none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from fanfare.api import parameters, queries, refusals, requests
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.hub import telemetry
from fanfare.protocol import publications

logger = logging.getLogger(__name__)

ESCAPED_BYTES = 6  # the longest JSON form of a byte, \u0000; a character has at most two of these
CHARACTER_BYTES = 4  # the longest UTF-8 form of a character
ITEM_BYTES = 1_024  # of JSON around an event's name, data and channels: socket_id, info, idempotency key, punctuation
BODY_BYTES = 4_096  # around the events, including white space

EMPTY = b"{}"


class Event(NamedTuple):
    name: str
    channels: list[str]
    data: str
    exclude: str | None
    attributes: tuple[str, ...]
    idempotency_key: str | None


async def trigger(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Publish one event to one or several channels."""
    [event] = event_of(request)
    receipts = await _publish(hub, request, [event])
    if not event.attributes:
        return EMPTY
    return orjson.dumps({"channels": await _describe(hub, request.application, event, receipts)})


async def trigger_batch(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Publish several events, each to one channel, in order."""
    events = events_of_batch(request)
    receipts = await _publish(hub, request, events)
    if not any(event.attributes for event in events):
        return EMPTY
    described = [
        (await _describe(hub, request.application, event, [receipt]))[event.channels[0]]
        for event, receipt in zip(events, receipts, strict=True)
    ]
    return orjson.dumps({"batch": described})


def event_of(request: requests.Request) -> list[Event]:
    """The one event of a request to `events`."""
    fields = request.fields()
    limits = request.application.limits
    return [_event(fields, parameters.channel_names(fields, limits), limits, request.idempotency_key)]


def events_of_batch(request: requests.Request) -> list[Event]:
    """The events of a request to `batch_events`."""
    batch = request.fields().get("batch")
    limits = request.application.limits
    if not isinstance(batch, list):
        raise refusals.Invalid("The parameter batch is missing: a list of events.", code="missing_batch")
    if len(batch) > limits.max_batch_events:
        raise refusals.Invalid(
            f"Batch too large: it has {len(batch)} events, the allowed maximum is {limits.max_batch_events}.",
            code="batch_too_large",
        )
    return [_item(index, fields, limits, request.idempotency_key) for index, fields in enumerate(batch)]


def plain_publications(
    application: registry.Application, body: bytes, *, is_batch: bool
) -> list[interface.Publication] | None:
    """The publications of a body in which each event is valid and has a name, one channel, a string as data, and
    nothing else. None for any other body, valid or not: `event_of` and `events_of_batch` decide.

    Most events have this form, which takes a third of the calls of those functions.
    """
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if is_batch:
        value = value.get("batch") if type(value) is dict else None
        if type(value) is not list or len(value) > application.limits.max_batch_events:
            return None
    batch = []
    for fields in value if is_batch else (value,):
        publication = _plain(application, fields, is_batch=is_batch)
        if publication is None:
            return None
        batch.append(publication)
    return batch


def _plain(application: registry.Application, fields: Any, *, is_batch: bool) -> interface.Publication | None:
    if type(fields) is not dict or len(fields) != len(("name", "channel", "data")):
        return None
    limits = application.limits
    name, channel, data = fields.get("name"), fields.get("channel"), fields.get("data")
    if channel is None and not is_batch:
        channels = fields.get("channels")
        channel = channels[0] if type(channels) is list and len(channels) == 1 else None
    if type(name) is not str or type(channel) is not str or type(data) is not str:
        return None
    size = len(data) if data.isascii() else len(data) * CHARACTER_BYTES  # at most
    if size > limits.max_event_bytes:
        return None
    if len(channel) > limits.max_channel_name or len(name) > limits.max_event_name:
        return None  # before the cache of the names, which would keep them
    if not publications.are_valid_names(channel, name, limits.max_channel_name, limits.max_event_name):
        return None
    return publications.build(application, channel, name, data)


async def trigger_on_channel(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Publish to the channel of the path: the body is the event's data, the query has its `name` and `socket_id`."""
    limits = request.application.limits
    fields: dict[str, Any] = {name: request.query.get(name) for name in ("name", "socket_id")}
    if request.body:
        try:
            fields["data"] = request.body.decode()
        except UnicodeDecodeError as error:
            raise refusals.Invalid(
                f"The request's body, the event's data, is not UTF-8: {error}.", code="invalid_data"
            ) from None
    channel = parameters.channel_name(request.names["channel"], limits)
    await _publish(hub, request, [_event(fields, [channel], limits, request.idempotency_key)])
    return EMPTY


def _item(index: int, fields: Any, limits: registry.Limits, idempotency_key: str | None) -> Event:
    """One event of a batch. A key for the whole batch becomes one for each event: two events for the same channel are
    not duplicates.
    """
    if not isinstance(fields, dict):
        raise refusals.Invalid(f"Event {index} of the batch: It must be a JSON object.", code="invalid_batch")
    try:
        event = _event(fields, [parameters.channel_name(fields.get("channel"), limits)], limits, None)
    except (refusals.Invalid, refusals.TooLarge) as error:
        raise type(error)(f"Event {index} of the batch: {error}", code=error.code) from None
    if event.idempotency_key is None and idempotency_key is not None:
        return event._replace(idempotency_key=f"{parameters.idempotency_key(idempotency_key)}:{index}")
    return event


def _event(fields: dict[str, Any], channels: list[str], limits: registry.Limits, idempotency_key: str | None) -> Event:
    own_key = fields.get("idempotency_key")
    return Event(
        parameters.event_name(fields.get("name"), limits),
        channels,
        parameters.event_data(fields, limits),
        parameters.socket_id(fields.get("socket_id")),
        parameters.info(fields.get("info"), parameters.PUBLICATION_ATTRIBUTES),
        parameters.idempotency_key(idempotency_key if own_key is None else own_key),
    )


async def _publish(hub: hubs.Hub, request: requests.Request, events: Sequence[Event]) -> list[interface.Receipt]:
    """Publish all of them or none. Returns a receipt for each channel of each event."""
    application = request.application
    pending = Pending.of(hub, application, publications_of(application, events), request.traceparent)
    if not pending.batch:
        return []
    receipts = await hub.publish(pending.batch, budget=pending.budget)
    pending.published(hub, receipts, lambda: request.address)
    return receipts


class Pending(NamedTuple):
    """The publications of one request, before they are committed."""

    application: registry.Application
    batch: list[interface.Publication]
    budget: interface.Budget | None
    began: float | None  # Unix time; None: the publisher is not recorded
    traceparent: str | None  # the request's header

    @classmethod
    def of(
        cls,
        hub: hubs.Hub,
        application: registry.Application,
        batch: list[interface.Publication],
        traceparent: str | None,
    ) -> Pending:
        is_recorded = bool(batch) and hub.recorder.wants(application.id, batch[0].channel)
        per_second = application.limits.max_events_per_second
        budget = None if per_second is None else interface.Budget(application.id, per_second)
        return cls(application, batch, budget, time.time() if is_recorded else None, traceparent)

    def published(self, hub: hubs.Hub, receipts: Sequence[interface.Receipt], address: Callable[[], str]) -> None:
        """They are committed. `address`: gives the client's."""
        hub.count("api.published", len(self.batch))
        if self.began is not None:
            publisher = {"by": "HTTP API", "key": self.application.key, "address": address()}
            if self.traceparent is not None:
                publisher[telemetry.TRACEPARENT] = self.traceparent
            hub.recorder.published(self.batch, receipts, publisher, self.began)


def publications_of(application: registry.Application, events: Sequence[Event]) -> list[interface.Publication]:
    batch = []
    for event in events:
        # For several channels the data, which may be large, is encoded once and then copied.
        data: Any = event.data if len(event.channels) == 1 else publications.encoded(event.data)
        batch += [
            publications.build(
                application, channel, event.name, data, exclude=event.exclude, idempotency_key=event.idempotency_key
            )
            for channel in event.channels
        ]
    return batch


async def _describe(
    hub: hubs.Hub, application: registry.Application, event: Event, receipts: Sequence[interface.Receipt]
) -> dict[str, dict[str, Any]]:
    """The attributes that the event's `info` asks for, by channel.

    Counts that cannot be read are omitted: the event is published, and an error would make the publisher repeat it.
    """
    described: dict[str, dict[str, Any]] = {channel: {} for channel in event.channels}
    if parameters.OFFSET in event.attributes:
        for channel, receipt in zip(event.channels, receipts, strict=True):
            if receipt.position is not None:
                described[channel] = {"offset": receipt.position.offset, "epoch": receipt.position.epoch}
    if not set(parameters.COUNTS).isdisjoint(event.attributes):
        try:
            for channel in event.channels:
                counts = await queries.counts_of(hub, application.id, channel)
                described[channel] |= queries.describe(channel, counts, event.attributes)
        except engine_errors.EngineUnavailable as error:
            hub.count("api.info_unavailable")
            logger.warning("An event was published, but its info could not be read: %s", error)
    return described


def body_limit(limits: registry.Limits) -> int:
    """The largest body of an event, in bytes, whose parts are within their limits."""
    return BODY_BYTES + _event_bytes(limits, limits.max_channels_per_event)


def batch_body_limit(limits: registry.Limits) -> int:
    """The largest body of a batch, in bytes, whose parts are within their limits."""
    return BODY_BYTES + limits.max_batch_events * _event_bytes(limits, 1)


def _event_bytes(limits: registry.Limits, channels: int) -> int:
    text = limits.max_event_bytes + limits.max_event_name * 2 + channels * (limits.max_channel_name + 3)
    return ESCAPED_BYTES * text + ITEM_BYTES
