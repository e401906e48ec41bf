"""Publications: an event, checked against its application's limits and encoded for the log.

The HTTP API, `publish()`, the outbox and client events all build their publications here, so an event has the same
bounds and the same bytes for every publisher.

An event's data arrives as text. `build` takes it encoded once (see `encoded`) where one event goes to several channels.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

import orjson

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.protocol import names, refusals

MAX_SOCKET_ID: Final = 64  # characters; a connection's own has at most 33

CACHED_NAMES: Final = 2_048  # of a channel with an event, some 300 bytes each

_IDEMPOTENCY_KEY: Final = re.compile(r"[\x20-\x7e]+")
_RESERVED_EVENTS: Final = (names.PROTOCOL_PREFIX, names.INTERNAL_PREFIX)


class NotPublishable(refusals.PusherError):
    """The event cannot be published as it is. `reason` names what is wrong, for machines."""

    reason = "not_publishable"


class ReservedEventName(refusals.InvalidName):
    """The name belongs to the protocol: clients would take the event for one of the server's own."""

    reason = "reserved_name"


class DataTooLarge(NotPublishable):
    """`actual` and `limit` are bytes of UTF-8."""

    reason = "data_too_large"

    def __init__(self, actual: int, limit: int) -> None:
        super().__init__(f"The event's data has {actual} bytes; {limit} are allowed")
        self.actual = actual
        self.limit = limit


def check_event_name(name: str, limits: registry.Limits) -> None:
    """Raises InvalidName, NameTooLong, ReservedEventName."""
    _check_event_name(name, limits.max_event_name)


def _check_event_name(name: str, limit: int) -> None:
    names.check_event(name, limit)
    if name.startswith(_RESERVED_EVENTS):
        raise ReservedEventName(
            f'The event name "{refusals.quoted(name)}" is reserved: names that start with "{names.PROTOCOL_PREFIX}" or '
            f'"{names.INTERNAL_PREFIX}" are the protocol\'s own. Choose another name'
        )


@functools.lru_cache(CACHED_NAMES)
def are_valid_names(channel: str, event: str, channel_limit: int, event_limit: int) -> bool:
    """Whether an event with this name can be published to this channel. The limits are in characters."""
    try:
        names.check_publishable_channel(channel, channel_limit)
        _check_event_name(event, event_limit)
    except refusals.PusherError:
        return False
    return True


def check_data(text: str, limits: registry.Limits) -> None:
    """Raises DataTooLarge, and UnicodeEncodeError for half a surrogate pair."""
    size = len(text) if text.isascii() else len(text.encode())
    if size > limits.max_event_bytes:
        raise DataTooLarge(size, limits.max_event_bytes)


def check_socket_id(text: str) -> None:
    """Raises NotPublishable unless `text` can be the id of a connection to exclude."""
    if len(text) > MAX_SOCKET_ID or not names.is_valid_socket_id(text):
        raise NotPublishable(
            f'Invalid socket_id "{refusals.quoted(text)}": it has the form 1234.1234', reason="invalid_socket_id"
        )


def check_idempotency_key(key: str) -> None:
    """Raises NotPublishable."""
    most = interface.MAX_IDEMPOTENCY_KEY
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise NotPublishable(
            f"The idempotency key must be 1 to {most} printable ASCII characters", reason="invalid_idempotency_key"
        )
    if len(key) > most:
        raise NotPublishable(
            f"The idempotency key has {len(key)} characters and exceeds the allowed maximum ({most})",
            reason="invalid_idempotency_key",
        )


def encoded(data: Any) -> orjson.Fragment:
    """Data as JSON text that several calls of `build` copy instead of encoding it again."""
    return orjson.Fragment(orjson.dumps(data))


def build(
    application: registry.Application,
    channel: str,
    event: str,
    data: Any,
    *,
    exclude: str | None = None,
    idempotency_key: str | None = None,
) -> interface.Publication:
    """An event from a server. `data`: a str, or `encoded`; everything is checked already."""
    rule = application.rules.of(channel)
    return interface.Publication(
        app=application.id,
        channel=channel,
        body=event_frames.event(event, channel, data),
        exclude=exclude,
        retention=None if rule is None else rule.retention,
        idempotency_key=idempotency_key,
        cache_seconds=application.cache_seconds if names.is_cache(channel) else None,
    )


def build_client_event(
    application: registry.Application, channel: str, event: str, data: Any, *, sender: str, user_id: str | None
) -> interface.Publication:
    """An event from a client. `sender`: its socket id, which does not get the event back. `user_id`: the member of the
    sender's presence subscription. Only channels whose rule says so keep it, and no cache channel does.
    """
    rule = application.rules.of(channel)
    return interface.Publication(
        app=application.id,
        channel=channel,
        body=event_frames.event(event, channel, data, user_id),
        kind=interface.Kind.CLIENT_EVENT,
        user_id=user_id,
        exclude=sender,
        retention=rule.retention if rule is not None and rule.client_events else None,
    )
