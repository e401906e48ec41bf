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
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import orjson
from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from fanfare import conf, errors
from fanfare.applications import registry
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.hub import traces
from fanfare.integration import payloads, target, transactional, users
from fanfare.protocol import names, publications, refusals
from fanfare.runtime import text as texts
from fanfare.runtime.log_throttle import exception_line

if TYPE_CHECKING:  # the outbox is a model, and this module is imported before models can be
    from fanfare.integration import outbox as outboxes

logger = logging.getLogger("fanfare.integration")

COUNTERS = (
    "published",
    "duplicates",
    "failed_after_commit",
    "outbox_left",
    "outbox_relayed",
    "outbox_late",
    "outbox_failed",
)

# Events of a transaction per commit: about 100 kB of rows, for which other writers wait a millisecond.
JOINED = 200

# Packages whose functions are between a project's code and the log.
_NOT_CALLERS = frozenset(["fanfare", "django", "asgiref", "contextlib", "threading", "concurrent", "functools"])

# The modules whose class Task calls the function of a task; the second one is the package for Django 5.2.
_DJANGO_TASKS = ("django.tasks.base", "django_tasks.base")

ANNOUNCE_S = 0.5  # for the publisher's record, at most five times a second

_sampler = traces.Sampler()
_counts: Counter[str] = Counter()
_counts_lock = threading.Lock()  # += on a Counter is not atomic, and every view has its own thread


class Published:
    """What `publish` returns.

    `entry`: the event's position in the log, `PARTITION:ID`, with which `manage.py fanfare trace` and the console show
    its path. `position`: the position in the channel's history, `EPOCH:OFFSET`, if the channel keeps one. Both are None
    until the commit that sends the event, after a duplicate, and where another process sends it (the outbox, a separate
    deployment). `duplicate`: an event with the same idempotency key was published before.
    """

    # Set by `append`: the engine's receipt, and the partition of the log.
    receipt = interface.Receipt(None, duplicate=False)
    partition = 0

    @property
    def entry(self) -> str | None:
        return traces.position(self.partition, self.receipt.id) if self.receipt.id else None

    @property
    def position(self) -> str | None:
        return None if self.receipt.position is None else str(self.receipt.position)

    @property
    def duplicate(self) -> bool:
        return self.receipt.duplicate

    def __repr__(self) -> str:
        return f"<Published {self.entry or 'without a position (yet)'}>"


Handles = Sequence[Published | None]  # one for each publication; empty: none


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
    if not defer([publication], on_commit, using, outbox, [handle]):
        append([publication], [handle])
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
        return None if defer([publication], on_commit, using, outbox, [handle]) else publication

    # A transaction belongs to the thread that runs this context's database calls. Waiting for the log in this thread
    # would block all other database calls of the context, so the append runs in another thread.
    publication = await sync_to_async(prepared, thread_sensitive=True)()
    if publication is not None:
        await sync_to_async(append, thread_sensitive=False)([publication], [handle])
    return handle


def statistics() -> dict[str, int]:
    """Counters since the start of this process; docs/reference/statistics.md explains each."""
    with _counts_lock:
        return {name: _counts[name] for name in COUNTERS}


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


# -- after the commit --------------------------------------------------------------------------------------------------

# Called with each new Deferred, in any thread; `captured_events` uses it.
observers: list[Callable[[Deferred], None]] = []


class Deferred:
    """Publications that wait for a commit, which calls this object. `connection`: of the transaction."""

    def __init__(
        self, publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper, handles: Handles = ()
    ) -> None:
        self.publications = list(publications)
        self.handles = list(handles) or [None] * len(self.publications)
        self.connection = connection
        self.engine = current.made()  # the engine of a test's block sends no earlier publications
        self.called = False
        for observe in observers:
            observe(self)

    def __call__(self) -> None:
        self.called = True
        append_or_report(self.publications, self.handles)


class Outboxed(Deferred):
    """Publications that are also in the outbox. The first callback of a transaction sends all of them."""

    def __init__(
        self, publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper, batch: outboxes.Batch
    ) -> None:
        super().__init__(publications, connection)
        self.batch = batch

    def __call__(self) -> None:
        from fanfare.integration import outbox as outboxes

        self.called = True
        left = len(self.batch)
        try:
            rows = self.batch.committed()
            left = len(rows)
            for chunk in outboxes.chunks(rows):
                append([row.publication for row in chunk])
                left -= len(chunk)
                outboxes.discard(self.batch.using, [row.id for row in chunk])
        except (engine_errors.EngineError, errors.PublishError, Error) as error:
            count("outbox_left", left)
            logger.warning(
                "%d events stay in the outbox of %r until the relay sends them: %s", left, self.batch.using, error
            )
        except Exception:
            count("outbox_left", left)
            logger.exception("%d events stay in the outbox of %r until the relay sends them", left, self.batch.using)


class Moved(Deferred):
    """Publications that a transaction has written itself; see `transactional`."""

    def __init__(
        self,
        publications: Sequence[interface.Publication],
        connection: BaseDatabaseWrapper,
        move: transactional.Move,
    ) -> None:
        super().__init__(publications, connection)
        self.move = move

    def __call__(self) -> None:
        self.called = True
        self.move()
        count("published", len(self.publications))


def defer(
    publications: Sequence[interface.Publication],
    on_commit: bool,
    using: str,
    outbox: bool | None = False,
    handles: Handles = (),
) -> bool:
    """Send the publications when the transaction commits; False if there is none to wait for.

    `outbox`: None for the setting FANFARE_OUTBOX. Raises InvalidTiming.
    """
    if not on_commit:
        if outbox:
            raise errors.InvalidTiming(
                "`on_commit=False` sends at once and `outbox=True` sends after the commit: leave one of them out."
            )
        return False
    connection = transaction.get_connection(using)
    # A connection that this thread never used is in no transaction. Asking it would open it, and outside of Django's
    # requests (a mounted application, a thread of the project's pool) nothing would close it.
    if connection.connection is None and not connection.in_atomic_block:
        return False
    if not connection.in_atomic_block and connection.get_autocommit():
        return False
    through_outbox = conf.settings.OUTBOX if outbox is None else outbox
    if not through_outbox and conf.settings.TRANSACTIONAL_PUBLISH:
        engine = transactional.write(publications, connection, _publishers(publications))
        if engine is not None:
            if connection.in_atomic_block:  # otherwise (autocommit is off) a worker moves them
                moved = Moved(publications, connection, _move(connection) or transactional.Move(engine))
                transaction.on_commit(moved, using=using, robust=True)
            return True
    if not through_outbox and _joined(publications, connection, handles):
        return True
    # With autocommit off and no atomic block there is no commit callback: Django raises in `on_commit`.
    if connection.in_atomic_block and through_outbox:
        batch = _batch(connection)
        batch.write(publications)
        callback: Deferred = Outboxed(publications, connection, batch)
    else:
        callback = Deferred(publications, connection, handles)
    transaction.on_commit(callback, using=using, robust=True)
    return True


def _joined(publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper, handles: Handles) -> bool:
    """Add the publications to those just before them, if one rollback would drop both and no callback lies between.

    Twenty events of one transaction are then one commit of the log: 105,000 instead of 10,500 events/s.
    """
    if not connection.run_on_commit:
        return False
    savepoints, last, *_ = connection.run_on_commit[-1]
    if type(last) is not Deferred or last.called or last.engine is not current.made():
        return False
    if savepoints != set(connection.savepoint_ids) or len(last.publications) + len(publications) > JOINED:
        return False
    if _is_of_a_test(connection):
        return False
    last.publications.extend(publications)
    last.handles.extend(handles or [None] * len(publications))
    return True


def _is_of_a_test(connection: BaseDatabaseWrapper) -> bool:
    """Whether the innermost transaction belongs to a TestCase, whose assertions count callbacks one by one."""
    blocks = connection.atomic_blocks
    return bool(blocks) and getattr(blocks[-1], "_from_testcase", False)


def append(publications: Sequence[interface.Publication], handles: Handles = ()) -> None:
    """Write all of them or none into the log. Raises EngineError."""
    outlet, recorder = target.engine(), traces.here
    is_recorded = _is_recorded(publications)
    began = time.time() if is_recorded else 0.0
    receipts = outlet.append_blocking(publications)
    if any(handles):
        for handle, publication, receipt in zip(handles, publications, receipts, strict=True):
            if handle is not None:
                handle.receipt = receipt
                if receipt.id:
                    handle.partition = outlet.partition(publication.app, publication.channel)
    if is_recorded and recorder is not None:
        recorder.published(publications, receipts, _publisher(), began)
    elif is_recorded and any(receipt.id for receipt in receipts):  # a remote deployment's API answers no ids
        _announce(outlet, traces.published(outlet.partition, publications, receipts, _publisher(), began))
    events = duplicates = 0
    for publication, receipt in zip(publications, receipts, strict=True):
        events += publication.kind is interface.Kind.EVENT
        duplicates += receipt.duplicate
    with _counts_lock:
        _counts["published"] += events - duplicates
        _counts["duplicates"] += duplicates


def _is_recorded(publications: Sequence[interface.Publication]) -> bool:
    """Whether the traces of these events name their publisher."""
    if not publications:
        return False
    first, recorder = publications[0], traces.here
    if recorder is not None:
        return recorder.wants(first.app, first.channel)
    return first.kind is interface.Kind.EVENT and _sampler.wants()


def _publishers(publications: Sequence[interface.Publication]) -> list[str]:
    """The records of publications that a transaction writes itself, JSON. The process that moves them into the log does
    not know their publisher."""
    if not _is_recorded(publications):
        return []
    began, publisher = time.time(), _publisher()
    recorded = publications[: interface.ANNOUNCED_EVENTS]
    return [orjson.dumps(traces.publishing(one, publisher, began)).decode() for one in recorded]


def _announce(outlet: target.Outlet, found: Sequence[tuple[traces.Key, traces.Record]]) -> None:
    """Give the workers the records of this process, which has no worker. The events are in the log: an error costs only
    the publisher's line on the page of the trace.
    """
    try:
        outlet.append_blocking([traces.announcement(found)], timeout=ANNOUNCE_S)
    except engine_errors.EngineError as error:
        logger.debug("The publisher of event %s is not recorded: %s", traces.position(*found[0][0]), error)


def _publisher() -> dict[str, str]:
    """The project's function that publishes, the task that it runs in, and the program."""
    frame: FrameType | None = sys._getframe(1)
    found = {"by": "publish()", "program": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:2]])}  # noqa: PTH119
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if "caller" not in found and module.partition(".")[0] not in _NOT_CALLERS:
            found["caller"] = f"{module}.{frame.f_code.co_qualname}, line {frame.f_lineno}"
        if module in _DJANGO_TASKS and frame.f_code.co_name in ("call", "acall"):
            found["task"] = str(getattr(frame.f_locals.get("self"), "module_path", "unknown"))
            break
        frame = frame.f_back
    task = getattr(sys.modules.get("celery"), "current_task", None)  # a proxy, false outside of a task
    if task:
        found["task"] = str(task.name)
    return found


def append_or_report(publications: Sequence[interface.Publication], handles: Handles = ()) -> None:
    """`append` for data that is already saved: every error is logged and counted instead of raised."""
    try:
        append(publications, handles)
    except Exception as error:  # noqa: BLE001
        _report_unpublished(publications, error)


def _report_unpublished(publications: Sequence[interface.Publication], error: Exception) -> None:
    count("failed_after_commit", len(publications))
    if isinstance(
        error, engine_errors.EngineError | errors.PublishError
    ):  # a remote deployment refuses the event only here
        reason, trace = f"{error} ({error.code})", None  # a traceback through the commit is of no use
    else:
        reason, trace = texts.clean(exception_line(error)), error
    for publication in publications:
        logger.error(
            "Not published after the commit: %s of application %s: %s",
            _described(publication),
            publication.app,
            reason,
            exc_info=trace,
        )
        trace = None


def _move(connection: BaseDatabaseWrapper) -> transactional.Move | None:
    """The move of the connection's transaction."""
    for _, callback, *_ in reversed(connection.run_on_commit):
        if isinstance(callback, Moved):
            return callback.move
    return None


def _batch(connection: BaseDatabaseWrapper) -> outboxes.Batch:
    """The batch of the connection's transaction. Django drops the callbacks of a transaction that is rolled back."""
    from fanfare.integration import outbox as outboxes

    for _, callback, *_ in reversed(connection.run_on_commit):
        if isinstance(callback, Outboxed):
            return callback.batch
    return outboxes.Batch(connection.alias)


def _described(publication: interface.Publication) -> str:
    if publication.kind is not interface.Kind.EVENT:
        return f"command {publication.channel!r}"
    return f"event {orjson.loads(publication.body)['event']!r} on channel {publication.channel!r}"


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


def count(name: str, n: int = 1) -> None:
    with _counts_lock:
        _counts[name] += n
