"""Streams of an application: their limits, the writes that open and extend them, and their end without a producer.

`fanfare.stream()`, the HTTP API and the cancelling readers all make their writes here. See `fanfare.hub.streams` for
the events.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

from fanfare import conf
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import event_frames, streams
from fanfare.hub import hub as hubs
from fanfare.protocol import names, refusals
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger(__name__)
_log = LogThrottle(logger)

State = interface.StreamState

LAPSED_S: Final = 2.0  # between two searches for streams whose producer is silent

_ID: Final = re.compile(r"[-A-Za-z0-9_=@,.;:]{1,100}")


class InvalidStream(refusals.PusherError):
    """The request to open a stream is invalid."""

    reason = "invalid_stream"


class Limits(NamedTuple):
    """From the settings. `keep_s`: see `interface.StreamWrite.seconds`."""

    lease_s: int
    keep_s: int
    length: int
    appends_per_second: int
    in_channel: int
    in_app: int


def limits() -> Limits:
    settings = conf.settings
    return Limits(
        settings.STREAM_LEASE,
        settings.STREAM_KEEP,
        settings.STREAM_MAX_LENGTH,
        settings.STREAM_MAX_APPENDS,
        settings.STREAM_MAX_IN_CHANNEL,
        settings.STREAM_MAX_IN_APP,
    )


def window_s(application: registry.Application, channel: str) -> float:
    """The seconds in which appends are joined."""
    rule = application.rules.of(channel)
    own = 0 if rule is None else rule.stream_window_ms
    return (own or conf.settings.STREAM_WINDOW_MS) / 1000


def retention(application: registry.Application, channel: str) -> interface.Retention | None:
    rule = application.rules.of(channel)
    return None if rule is None else rule.retention


def check_id(stream_id: Any) -> None:
    """Raises InvalidStream."""
    if not isinstance(stream_id, str) or not _ID.fullmatch(stream_id):
        raise InvalidStream(
            f'Invalid stream id "{refusals.quoted(str(stream_id))}": it has 1 to 100 letters, digits or _ - = @ , . ; :'
        )


def check_channel(channel: str) -> None:
    """Raises InvalidStream for a cache channel, whose one event is its state."""
    if names.is_cache(channel):
        raise InvalidStream(
            f"The cache channel {channel} has one event, its state; a stream needs a channel of another name"
        )


def opening(
    where: interface.StreamName,
    head: streams.Head,
    *,
    data: str | None = None,
    text: str = "",
    part: bytes | None = None,
    after: int = 0,
    seq: int = 0,
) -> interface.StreamWrite:
    """Open a stream, or open it again with the text that it had. `data` and `part`: of an encrypted stream."""
    bounds = limits()
    if data is None:
        data = streams.data(where.id, seq, 0, text, State.OPEN, meta=head.meta)
    return interface.StreamWrite(
        *where,
        after=after,
        seq=seq,
        size=streams.units(text),
        part=text.encode() if part is None else part,
        body=event_frames.event(head.event, where.channel, data),
        head=head.encode(),
        replaces=True,
        seconds=bounds.lease_s,
        max_in_channel=bounds.in_channel,
        max_in_app=bounds.in_app,
    )


def piece(
    where: interface.StreamName,
    head: streams.Head,
    text: str,
    *,
    after: int,
    seq: int,
    at: int,
    lease_s: int,
    data: str | None = None,
    replaces: bool = False,
) -> interface.StreamWrite:
    """Add text to an open stream. `data`: of an encrypted one."""
    plain = data is None
    if data is None:
        data = streams.data(where.id, seq, at, text, State.OPEN, meta=head.meta)
    return interface.StreamWrite(
        *where,
        after=after,
        seq=seq,
        size=at + streams.units(text),
        part=(text if plain else data).encode(),
        body=event_frames.event(head.event, where.channel, data),
        replaces=replaces,
        seconds=lease_s,
    )


def ended(
    where: interface.StreamName,
    head: streams.Head,
    data: str,
    *,
    after: int,
    size: int,
    state: State,
    retention: interface.Retention | None,
    keep_s: int,
) -> interface.StreamWrite:
    """The end of a stream. `data`: of the event with the whole text."""
    return interface.StreamWrite(
        *where,
        after=after,
        seq=after,
        size=size,
        body=event_frames.event(head.event, where.channel, data),
        state=state,
        retention=retention,
        seconds=keep_s,
    )


# -- the end without a producer ----------------------------------------------------------------------------------------


class Outlet(streams.Writer, Protocol):
    """The part of an engine that reads and changes streams."""

    def queries(self) -> AbstractContextManager[interface.Queries]: ...


def end_blocking(
    engine: Outlet, application: registry.Application | None, where: interface.StreamName, state: State
) -> interface.Streamed | None:
    """See `hub.streams.end`. In any thread."""
    kept = None if application is None else retention(application, where.channel)
    with engine.queries() as asked:
        return streams.end(engine, asked, where, state, retention=kept, keep_s=conf.settings.STREAM_KEEP)


async def end(
    hub: hubs.Hub, application: registry.Application | None, where: interface.StreamName, state: State
) -> interface.Streamed | None:
    """`end_blocking` on a worker's loop. Raises EngineError."""
    before = await asyncio.to_thread(end_blocking, hub.engine, application, where, state)
    if before is not None and before.state is State.OPEN:
        hub.count(f"streams.{state.name.lower()}")
    return before


async def end_lapsed(hub: hubs.Hub, applications: registry.Registry) -> None:
    """End the streams whose producer is silent, as interrupted. Raises EngineError.

    Every worker searches for them. The write is done once, whichever worker makes it.
    """
    for where in await hub.engine.ask(lambda queries: queries.lapsed_streams(streams.LAPSED)):
        await end(hub, applications.by_id(where.app), where, State.INTERRUPTED)


async def keep_ending_lapsed(hub: hubs.Hub, applications: registry.Registry) -> None:
    while True:
        await asyncio.sleep(LAPSED_S)
        try:
            await end_lapsed(hub, applications)
        except engine_errors.EngineError as error:
            _log.warning("Streams without a producer could not be ended: %s", error)
