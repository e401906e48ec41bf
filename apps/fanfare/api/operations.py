"""The operations of the HTTP API: one function for each route, and the table of routes.

An operation takes the hub and a signed request, and returns the JSON text of the response. `fanfare.api.openapi`
describes the parameters and responses; tests compare the two.

Publishing calls `hub.publish` once per request, for any number of channels or events: the log gets all of them or none.
Queries cover the whole deployment.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from fanfare.api import members, parameters, refusals, requests, revisions, streams
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import history_pages, telemetry
from fanfare.hub import hub as hubs
from fanfare.protocol import capabilities, names, publications, revocations, termination

logger = logging.getLogger(__name__)

ESCAPED_BYTES = 6  # the longest JSON form of a byte, \u0000; a character has at most two of these
CHARACTER_BYTES = 4  # the longest UTF-8 form of a character
ITEM_BYTES = 1_024  # of JSON around an event's name, data and channels: socket_id, info, idempotency key, punctuation
BODY_BYTES = 4_096  # around the events, including white space

ENCODED_AT_ONCE = 500  # users of a presence channel: less than 1 ms

EMPTY = b"{}"

BACKWARDS = "backwards"
FORWARDS = "forwards"
DIRECTIONS = (BACKWARDS, FORWARDS)


# -- publishing --------------------------------------------------------------------------------------------------------


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
                counts = await _counts_of(hub, application.id, channel)
                described[channel] |= _counts(channel, counts, event.attributes)
        except engine_errors.EngineUnavailable as error:
            hub.count("api.info_unavailable")
            logger.warning("An event was published, but its info could not be read: %s", error)
    return described


# -- channels ----------------------------------------------------------------------------------------------------------


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
    return orjson.dumps({"channels": {name: _counts(name, counts, attributes) for name, counts in occupied.items()}})


async def channel(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Describe one channel. Parameter: `info`."""
    app, name = request.application.id, _channel(request)
    attributes = parameters.info(request.fields().get("info"), parameters.CHANNEL_ATTRIBUTES)
    parameters.require_available(name, attributes)
    counts = await _counts_of(hub, app, name)
    answer = {"occupied": counts.subscriptions > 0, **_counts(name, counts, attributes)}
    if parameters.CACHE in attributes:
        cached = await hub.engine.ask(lambda queries: queries.cached(app, name))
        answer["cache"] = None if cached is None else {"data": orjson.loads(cached.body)["data"], "ttl": cached.ttl}
    return orjson.dumps(answer)


async def users(hub: hubs.Hub, request: requests.Request) -> bytes:
    """List the distinct users of a presence channel. Parameter: `with_user_info`."""
    name = _channel(request)
    if not names.is_presence(name):
        raise refusals.Invalid(f"{name} is not a presence channel, so it has no users.", code="not_presence")
    with_info = parameters.flag("with_user_info", request.fields().get("with_user_info"))
    app = request.application.id
    # Encoded in the thread of the query and in pieces: for 100,000 users the event loop would stand still otherwise.
    return await hub.engine.ask(lambda queries: _users(queries.members(app, name), with_info=with_info))


async def update_user(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Give a member of a presence channel a new info; an extension. Parameter: `user_info`."""
    name, application = _channel(request), request.application
    if not names.is_presence(name):
        raise refusals.Invalid(f"{name} is not a presence channel, so it has no users.", code="not_presence")
    user_id = parameters.user_id(request.names["user_id"], application.limits)
    info = members.user_info(request.fields().get("user_info"), application.limits)
    updated = await asyncio.to_thread(hub.engine.update_member, application.id, name, user_id, info)
    return orjson.dumps({"updated": updated})


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
    counts = await _counts_of(hub, request.application.id, name)
    answer: dict[str, Any] = {"occupied": counts.subscriptions > 0, "connection_count": counts.subscriptions}
    if names.is_presence(name):
        answer["user_count"] = counts.users
    return orjson.dumps(answer)


async def _counts_of(hub: hubs.Hub, app: str, channel: str) -> interface.ChannelCounts:
    return await hub.engine.ask(lambda queries: queries.channel(app, channel))


def _channel(request: requests.Request) -> str:
    return parameters.channel_name(request.names["channel"], request.application.limits)


def _counts(channel: str, counts: interface.ChannelCounts, attributes: tuple[str, ...]) -> dict[str, Any]:
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


# -- users -------------------------------------------------------------------------------------------------------------


async def user(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Whether a user is signed in on a connection, in any worker; an extension."""
    app, user_id = request.application.id, parameters.user_id(request.names["user_id"], request.application.limits)
    online = await hub.engine.ask(lambda queries: queries.present(app, interface.USERS, [user_id]))
    return orjson.dumps({"online": bool(online)})


async def terminate(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Close all connections that are signed in as a user, in every worker. Parameter: `reconnect`, an extension.

    Returns when the command is in the log, also for a user without connections.
    """
    user_id = parameters.user_id(request.names["user_id"], request.application.limits)
    reconnects = parameters.flag("reconnect", request.fields().get("reconnect"))
    await hub.publish(termination.publications(request.application.id, user_id, reconnect=reconnects, now=time.time()))
    return EMPTY


async def revoke(hub: hubs.Hub, request: requests.Request) -> bytes:
    """Revoke a capability token by its id, in every worker; an extension. Parameter: `exp`, until when the revocation
    is remembered.

    Returns when the command is in the log, also for an id that no token has.
    """
    token_id = parameters.token_id(request.names["token_id"])
    expires = parameters.number("exp", request.fields().get("exp"), 0, capabilities.LATEST) or None
    await hub.publish(revocations.publications(request.application.id, token_id, expires=expires, now=time.time()))
    return EMPTY


# -- routes ------------------------------------------------------------------------------------------------------------


def body_limit(limits: registry.Limits) -> int:
    """The largest body of an event, in bytes, whose parts are within their limits."""
    return BODY_BYTES + _event_bytes(limits, limits.max_channels_per_event)


def batch_body_limit(limits: registry.Limits) -> int:
    """The largest body of a batch, in bytes, whose parts are within their limits."""
    return BODY_BYTES + limits.max_batch_events * _event_bytes(limits, 1)


def _event_bytes(limits: registry.Limits, channels: int) -> int:
    text = limits.max_event_bytes + limits.max_event_name * 2 + channels * (limits.max_channel_name + 3)
    return ESCAPED_BYTES * text + ITEM_BYTES


_PARAMETER = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Route:
    """`path` as OpenAPI writes it. A path without `app_id` belongs to the application of the request's key.

    `pattern` matches the path as it was sent, so an escaped slash is part of a name.
    """

    methods: tuple[str, ...]
    path: str
    operation: Callable[[hubs.Hub, requests.Request], Awaitable[bytes]]
    body_limit: Callable[[registry.Limits], int] = requests.small_body_limit  # bytes
    status: int = 200  # of a successful answer
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", self.path)))

    @property
    def allowed(self) -> str:
        """The Allow header."""
        return ", ".join((*self.methods, "OPTIONS"))


READ = ("GET", "HEAD")
WRITE = ("POST",)

# fmt: off
ROUTES = (
    Route(WRITE, "/apps/{app_id}/events", trigger, body_limit),
    Route(WRITE, "/apps/{app_id}/batch_events", trigger_batch, batch_body_limit),
    Route(READ, "/apps/{app_id}/channels", channels),
    Route(READ, "/apps/{app_id}/channels/{channel}", channel),
    Route(READ, "/apps/{app_id}/channels/{channel}/users", users),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/users/{user_id}/update", update_user, body_limit),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/members/{user_id}", members.lease, body_limit),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/members/{user_id}/leave", members.release),
    Route(READ, "/apps/{app_id}/channels/{channel}/history", history),
    Route(READ, "/apps/{app_id}/users/{user_id}", user),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/history/{position}/revise", revisions.revise, body_limit),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/streams", streams.open_stream, streams.body_limit),
    Route(READ, "/apps/{app_id}/channels/{channel}/streams/{stream}", streams.stream),
    Route(
        WRITE, "/apps/{app_id}/channels/{channel}/streams/{stream}/append", streams.append_to_stream, streams.body_limit
    ),
    Route(WRITE, "/apps/{app_id}/channels/{channel}/streams/{stream}/cancel", streams.cancel_stream),
    Route(WRITE, "/apps/{app_id}/streams/append", streams.append_to_streams, streams.batch_body_limit),
    Route(WRITE, "/apps/{app_id}/users/{user_id}/terminate_connections", terminate),
    Route(WRITE, "/users/{user_id}/terminate_connections", terminate),  # the vendor's Python library calls this one
    Route(WRITE, "/apps/{app_id}/capabilities/{token_id}/revoke", revoke),
    # Replaced in 2012; some clients still call them.
    Route(WRITE, "/apps/{app_id}/channels/{channel}/events", trigger_on_channel, body_limit, status=202),
    Route(READ, "/apps/{app_id}/channels/{channel}/stats", stats),
)
# fmt: on


def find(path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of a path, and the variable parts of the path, not decoded."""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match is not None:
            return route, match.groupdict()
    return None
