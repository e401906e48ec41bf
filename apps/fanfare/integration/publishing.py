"""publish(): one call, in a transaction, from any process of the project.

The call checks and encodes its arguments at once, so an error is raised where it was made. The event is sent when the
surrounding transaction commits; after a rollback nothing is sent. Without a transaction it is sent at once.

An event that is sent at once is in the log of all workers when the call returns, or EngineUnavailable was raised. An
event that is sent after a commit cannot raise any more: the data is saved, and an exception would turn a saved order
into an error page. If the log cannot be written then, the logger `fanfare.integration` reports the channel, the event
and the reason at level ERROR, and `failed_after_commit` is counted in `statistics()`. Code that must know the result
publishes after the `atomic` block. A process that dies between the commit and the append sends nothing.

With `outbox=True`, or the setting FANFARE_OUTBOX, the transaction also writes the event into a table of the database,
and the relay sends the events of a process that ended before it sent them.

With the setting FANFARE_TRANSACTIONAL_PUBLISH the transaction writes the event itself, if the log is in its database.

With an idempotency key a caller may try again: a second event with the same key on the same channel is dropped for
`interface.IDEMPOTENCY_SECONDS`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.integration import after_commit, appending, payloads, target, users
from fanfare.protocol import names, publications, refusals

Published = appending.Published
statistics = appending.statistics


def publish(
    channel: str | None,
    event: str,
    data: Any,
    *,
    to_user: users.User | None = None,
    app: target.App = None,
    exclude: str | None = None,
    idempotency_key: str | None = None,
    on_commit: bool = True,
    outbox: bool | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> Published:
    """Publish an event to the subscribers of a channel, or to all connections of a user.

        publish("orders", "created", {"id": order.pk})
        publish(None, "paid", {"id": order.pk}, to_user=order.customer)

    `channel`: 1 to 200 letters, digits and `_ - = @ , . ;` (the application's `max_channel_name`), or None together
    with `to_user`. `event`: 1 to 200 characters, not `pusher:…` or `pusher_internal:…`. `data`: a str is sent as it is,
    anything else as JSON: dicts, lists, numbers, dates, `Decimal`, `UUID`, dataclasses, Pydantic models, and objects
    whose class has a method `__realtime__`. At most 102,400 bytes of text (`max_event_bytes`).

    `to_user`: a saved user, its primary key, or a `UserData` with another id; it reaches the connections that are
    signed in as that user. `app`: an application or its id, by default the project's default application. `exclude`:
    the socket id of a client that does not get the event, such as `"1234.5678"`. `idempotency_key`: 1 to 128 printable
    ASCII characters; a second event with the same key on the same channel is dropped for 10 minutes. `on_commit`: send
    when the transaction commits (True), or at once, independent of it (False). `outbox`: whether the transaction
    also stores the event in the database, so that it survives the process; the default is FANFARE_OUTBOX. `using`: the
    database of the transaction.

    Returns a `Published`, whose `entry` is the position of the event in the log, for the console's page Trace.

    Raises a PublishError for a wrong argument, and EngineUnavailable if the event is sent at once and the log cannot
    be written within FANFARE_APPEND_TIMEOUT (default 3 s): nothing was sent, try again. Usually blocks for a
    millisecond. Raises CalledOnEventLoop in a coroutine: use `await apublish(…)`.
    Source: Pusher Channels, "Publishing events".
    """
    refuse_event_loop("publish", "apublish")
    publication = prepare(
        channel, event, data, to_user=to_user, app=app, exclude=exclude, idempotency_key=idempotency_key
    )
    handle = Published()
    if not after_commit.defer([publication], on_commit, using, outbox, [handle]):
        appending.append([publication], [handle])
    return handle


async def apublish(
    channel: str | None,
    event: str,
    data: Any,
    *,
    to_user: users.User | None = None,
    app: target.App = None,
    exclude: str | None = None,
    idempotency_key: str | None = None,
    on_commit: bool = True,
    outbox: bool | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> Published:
    """`publish` for coroutines, with the same arguments and errors. A cancelled call may have sent the event."""
    handle = Published()

    def prepared() -> interface.Publication | None:
        publication = prepare(
            channel, event, data, to_user=to_user, app=app, exclude=exclude, idempotency_key=idempotency_key
        )
        return None if after_commit.defer([publication], on_commit, using, outbox, [handle]) else publication

    # A transaction belongs to the thread that runs this context's database calls. Waiting for the log in this thread
    # would block all other database calls of the context, so the append runs in another thread.
    publication = await sync_to_async(prepared, thread_sensitive=True)()
    if publication is not None:
        await sync_to_async(appending.append, thread_sensitive=False)([publication], [handle])
    return handle


# -- its parts, for other modules of this package ----------------------------------------------------------------------


def refuse_event_loop(name: str, instead: str) -> None:
    """Raise CalledOnEventLoop if a blocking call of `name` would stop an event loop."""
    if asyncio._get_running_loop() is None:  # `get_running_loop` raises, which costs five times as much
        return
    raise errors.CalledOnEventLoop(
        f"{name}() was called in a coroutine and would stop its event loop until the log answers. "
        f"Write `await {instead}(…)` with the same arguments."
    )


def prepare(
    channel: str | None,
    event: str,
    data: Any,
    *,
    to_user: users.User | None = None,
    app: target.App = None,
    exclude: str | None = None,
    idempotency_key: str | None = None,
) -> interface.Publication:
    """The publication of a call. All errors of its arguments are raised here."""
    application = target.application(app)
    if channel is None or to_user is not None:
        channel = _user_channel(channel, to_user)
    _check_names(channel, event, exclude, idempotency_key, application.limits)
    try:
        text = data if isinstance(data, str) else payloads.json_text(data)
        if names.is_encrypted(channel):
            text = payloads.encrypt(channel, text)
    except (TypeError, UnicodeEncodeError) as error:
        raise _unencodable(event, error) from error
    return _publication(application, channel, event, text, exclude=exclude, idempotency_key=idempotency_key)


def restore(
    channel: str, event: str, text: str, *, app: str, exclude: str | None, idempotency_key: str
) -> interface.Publication:
    """A publication of the text that subscribers get, which `prepare` made earlier: the ciphertext, if the channel is
    encrypted. It is checked against the application as it is now; raises a PublishError."""
    application = target.application(app)
    _check_names(channel, event, exclude, idempotency_key, application.limits)
    return _publication(application, channel, event, text, exclude=exclude, idempotency_key=idempotency_key)


def _publication(
    application: registry.Application,
    channel: str,
    event: str,
    text: str,
    *,
    exclude: str | None,
    idempotency_key: str | None,
) -> interface.Publication:
    try:
        publications.check_data(text, application.limits)
    except UnicodeEncodeError as error:
        raise _unencodable(event, error) from error
    except publications.DataTooLarge as error:
        raise errors.DataTooLarge(event, error.actual, error.limit) from None
    return publications.build(application, channel, event, text, exclude=exclude, idempotency_key=idempotency_key)


def _unencodable(event: str, error: Exception) -> errors.UnencodableData:
    return errors.UnencodableData(f"The data of the event {event!r} has no JSON form: {error}.")


# -- checks of the arguments -------------------------------------------------------------------------------------------


def _user_channel(channel: str | None, to_user: users.User | None) -> str:
    if to_user is None:
        raise errors.InvalidTarget(
            'The channel is None and there is no `to_user`: write publish("orders", …) or '
            "publish(None, …, to_user=user)."
        )
    if channel is not None:
        raise errors.InvalidTarget(
            f"The event goes to the channel {channel!r} or to a user, not to both: write "
            "publish(None, …, to_user=user) and, for the channel, a second publish()."
        )
    return names.user_channel(users.user_id(to_user))


def _check_names(channel: Any, event: Any, exclude: Any, idempotency_key: Any, limits: registry.Limits) -> None:
    if not (isinstance(channel, str) and isinstance(event, str)):
        raise _wrong_type(channel, event)
    try:
        if not publications.are_valid_names(channel, event, limits.max_channel_name, limits.max_event_name):
            names.check_publishable_channel(channel, limits.max_channel_name)
            publications.check_event_name(event, limits)
        event.encode()
        if idempotency_key is not None:
            publications.check_idempotency_key(_text("idempotency_key", idempotency_key))
    except (refusals.PusherError, UnicodeEncodeError) as error:
        raise errors.InvalidName(f"{error}.".replace("..", ".")) from error
    if exclude is not None and not names.is_valid_socket_id(_text("exclude", exclude)):
        raise errors.InvalidName(
            f"`exclude` is {exclude!r}, which is not a socket id such as '1234.5678'; pass None to exclude no client."
        )


def _wrong_type(channel: Any, event: Any) -> errors.InvalidName:
    if isinstance(channel, list | tuple | set):
        return errors.InvalidName(f"The channel is a {type(channel).__name__}: call publish() once for each channel.")
    what, name = ("event", event) if isinstance(channel, str) else ("channel", channel)
    return errors.InvalidName(
        f"The {what} is of type {type(name).__name__}; it must be a str: publish(channel, event, data), as in "
        'publish("orders", "created", {"id": 1}).'
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise errors.InvalidName(f"`{name}` is {value!r}; it must be a str, or None.")
    return value
