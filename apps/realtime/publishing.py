"""publish(): one call, inside your transaction, from any process of the project.

The call checks and encodes at once, so a mistake is raised where it was made. The event leaves when the surrounding
transaction has committed; if it rolls back, nothing is sent. Without a transaction it leaves at once.

What a return means. Sent at once, the event is in the log of all workers when the call returns, or EngineUnavailable
was raised. Sent after a commit, the data is saved already, and raising would turn a saved order into an error page: a
log that cannot be written is then reported at level ERROR by the logger `apps.realtime`, with the channel, the event
and the reason, and counted in `statistics()`. Who must know publishes after the `atomic` block, where the error is
raised. A process that dies between the commit and the log sends nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, transaction

from apps.applications import models, registry
from apps.engine import current, interface
from apps.engine import errors as engine_errors
from apps.hub import frames
from apps.pusher import errors as pusher_errors
from apps.pusher import names
from apps.realtime import application, encoding, errors

logger = logging.getLogger("apps.realtime")

_counts: Counter[str] = Counter()
_counts_lock = threading.Lock()  # += on a Counter is not atomic, and every view has its own thread


def publish(
    channel: str,
    event: str,
    data: Any,
    *,
    app: models.Application | str | int | None = None,
    exclude: str | None = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Send an event to the subscribers of a channel.

    `data`: a str is sent as it is, anything else as JSON: what Django's encoder knows, and dataclasses. `app`: an
    application or its id; by default the project's default application. `exclude`: the socket id of a client that must
    not get it. With `on_commit=False` it leaves at once, whatever becomes of the transaction. `using`: the database
    whose transaction is meant.

    Raises a PublishError if the event cannot be published as it is, and EngineUnavailable if it should leave at once
    and the log cannot be written (try again). Blocks, as a rule for less than FANFARE_APPEND_TIMEOUT seconds; on an
    event loop it refuses: `await apublish()` there.
    """
    _refuse_event_loop()
    publication = _prepare(channel, event, data, app, exclude)
    if not _defer(publication, event, on_commit, using):
        _append(publication)


async def apublish(
    channel: str,
    event: str,
    data: Any,
    *,
    app: models.Application | str | int | None = None,
    exclude: str | None = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """`publish` for coroutines. If it is cancelled, the event may or may not be sent."""

    def prepare() -> interface.Publication | None:
        publication = _prepare(channel, event, data, app, exclude)
        return None if _defer(publication, event, on_commit, using) else publication

    # The transaction, if any, belongs to the thread that runs this context's database calls. Waiting for the log does
    # not: there it would hold up every other database call that shares the thread.
    publication = await sync_to_async(prepare, thread_sensitive=True)()
    if publication is not None:
        await sync_to_async(_append, thread_sensitive=False)(publication)


def statistics() -> dict[str, int]:
    """Counters since the start of this process: events `published`, and `failed_after_commit`."""
    with _counts_lock:
        return {name: _counts[name] for name in ("published", "failed_after_commit")}


def _refuse_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise errors.CalledOnEventLoop(
        "publish() would stop this event loop until the log answers. Write `await apublish(…)` with the same arguments."
    )


def _prepare(
    channel: str, event: str, data: Any, app: models.Application | str | int | None, exclude: str | None
) -> interface.Publication:
    """Everything that can be wrong with the call is found here."""
    target = application.resolve(app)
    _check_names(channel, event, exclude, target.limits)
    try:
        text = data if isinstance(data, str) else encoding.json_text(data)
        size = len(text.encode())
    except (TypeError, UnicodeEncodeError) as error:
        raise errors.UnencodableData(f"The data of {event!r} has no JSON form: {error}") from error
    if size > target.limits.max_event_bytes:
        raise errors.DataTooLarge(event, size, target.limits.max_event_bytes)
    return interface.Publication(
        app=target.id, channel=channel, body=frames.event(event, channel, text), exclude=exclude
    )


def _check_names(channel: str, event: str, exclude: str | None, limits: registry.Limits) -> None:
    for name in (channel, event):
        if not isinstance(name, str):
            raise errors.InvalidName(f"A channel and an event are strings; this is {type(name).__name__}: {name!r}")
    if event.startswith((names.PROTOCOL_PREFIX, names.INTERNAL_PREFIX)):
        raise errors.InvalidName(
            f"{event!r}: names that start with 'pusher:' or 'pusher_internal:' are the protocol's."
        )
    try:
        names.check_publishable_channel(channel, limits.max_channel_name)
        names.check_event(event, limits.max_event_name)
        event.encode()
    except (pusher_errors.InvalidName, UnicodeEncodeError) as error:
        raise errors.InvalidName(str(error)) from error
    if exclude is not None and not names.is_valid_socket_id(exclude):
        raise errors.InvalidName(f"{exclude!r} is not a socket id; one looks like '1234.5678'.")


def _defer(publication: interface.Publication, event: str, on_commit: bool, using: str) -> bool:
    """Leave it to the end of the transaction, if there is one to wait for."""
    if not on_commit:
        return False
    if not transaction.get_connection(using).in_atomic_block and transaction.get_autocommit(using):
        return False
    # Where autocommit is off without an atomic block, nobody can tell when the commit comes: Django raises.
    transaction.on_commit(lambda: _append_after_commit(publication, event), using=using, robust=True)
    return True


def _append(publication: interface.Publication) -> None:
    current.current().append_blocking([publication])
    _count("published")


def _append_after_commit(publication: interface.Publication, event: str) -> None:
    try:
        _append(publication)
    except engine_errors.EngineError as error:
        _count("failed_after_commit")
        logger.error(  # noqa: TRY400  the error says why; a trace through the commit says nothing
            "Not published after the commit: event %r on channel %r of application %s: %s (%s)",
            event,
            publication.channel,
            publication.app,
            error,
            error.code,
        )


def _count(name: str) -> None:
    with _counts_lock:
        _counts[name] += 1
