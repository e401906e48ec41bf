"""publish(): one call, inside your transaction, from any process of the project.

The call checks and encodes at once, so a mistake is raised where it was made. The event leaves when the surrounding
transaction has committed; if it rolls back, nothing is sent. Without a transaction it leaves at once.

What a return means. Sent at once, the event is in the log of all workers when the call returns, or EngineUnavailable
was raised. Sent after a commit, the data is saved already, and raising would turn a saved order into an error page: a
log that cannot be written is then reported at level ERROR by the logger `fanfare.integration`, with the channel, the
event and the reason, and counted in `statistics()`. Who must know publishes after the `atomic` block, where the error
is raised. A process that dies between the commit and the log sends nothing.

With `outbox=True`, or the setting FANFARE_OUTBOX, an event that waits for a commit is also written into the database by
its transaction. Then neither of the two loses it: `fanfare.integration.relay` sends what was left behind.

With an idempotency key a caller may try again: for `interface.IDEMPOTENCY_SECONDS` a second event with the same key on
the same channel is not sent.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from fanfare.applications import models, registry
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.hub import event_frames
from fanfare.integration import application, encoding, encryption, errors, users
from fanfare.integration import outbox as outboxes
from fanfare.protocol import names, refusals

logger = logging.getLogger("fanfare.integration")

# The bounds of the HTTP API, so that a key may come from there.
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]+")

COUNTERS = (
    "published",
    "duplicates",
    "failed_after_commit",
    "outbox_left",
    "outbox_relayed",
    "outbox_late",
    "outbox_failed",
)

# Events of one transaction that are written together: some 100 kB of rows, and other writers wait for a millisecond.
JOINED = 200

_counts: Counter[str] = Counter()
_counts_lock = threading.Lock()  # += on a Counter is not atomic, and every view has its own thread


def publish(
    channel: str | None,
    event: str,
    data: Any,
    *,
    to_user: users.User | None = None,
    app: models.Application | str | int | None = None,
    exclude: str | None = None,
    idempotency_key: str | None = None,
    on_commit: bool = True,
    outbox: bool | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Send an event to the subscribers of a channel, or to every connection that is signed in as a user.

        publish("orders", "created", {"id": order.pk})
        publish(None, "paid", order, to_user=order.customer)

    `data`: a str is sent as it is, anything else as JSON (see `fanfare.integration.encoding`). `to_user`: a user or its
    id; the channel is None then. `app`: an application or its id; by default the project's default application.
    `exclude`: the socket id of a client that must not get it. `idempotency_key`: 1 to 128 printable ASCII characters.
    With `on_commit=False` it leaves at once, whatever becomes of the transaction. `outbox`: whether it waits for the
    commit in the database, too; by default as FANFARE_OUTBOX says. `using`: the database whose transaction is meant.

    Raises a PublishError if the event cannot be published as it is, and EngineUnavailable if it should leave at once
    and the log cannot be written (try again). Blocks, as a rule for less than FANFARE_APPEND_TIMEOUT seconds; on an
    event loop it refuses: `await apublish()` there.
    """
    refuse_event_loop("publish", "apublish")
    _check_timing(on_commit, outbox)
    publication = prepare(
        channel, event, data, to_user=to_user, app=app, exclude=exclude, idempotency_key=idempotency_key
    )
    if not defer([publication], on_commit, using, outbox):
        append([publication])


async def apublish(
    channel: str | None,
    event: str,
    data: Any,
    *,
    to_user: users.User | None = None,
    app: models.Application | str | int | None = None,
    exclude: str | None = None,
    idempotency_key: str | None = None,
    on_commit: bool = True,
    outbox: bool | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """`publish` for coroutines. If it is cancelled, the event may or may not be sent."""
    _check_timing(on_commit, outbox)

    def prepared() -> interface.Publication | None:
        publication = prepare(
            channel, event, data, to_user=to_user, app=app, exclude=exclude, idempotency_key=idempotency_key
        )
        return None if defer([publication], on_commit, using, outbox) else publication

    # The transaction, if any, belongs to the thread that runs this context's database calls. Waiting for the log does
    # not: there it would hold up every other database call that shares the thread.
    publication = await sync_to_async(prepared, thread_sensitive=True)()
    if publication is not None:
        await sync_to_async(append, thread_sensitive=False)([publication])


def statistics() -> dict[str, int]:
    """Counters since the start of this process; docs/reference/statistics.md says what each is."""
    with _counts_lock:
        return {name: _counts[name] for name in COUNTERS}


# -- the parts of it, for others in this package -----------------------------------------------------------------------


def refuse_event_loop(name: str, instead: str) -> None:
    """Raise CalledOnEventLoop where the call of `name` would block a loop."""
    if asyncio._get_running_loop() is None:  # `get_running_loop` raises, which costs five times as much
        return
    raise errors.CalledOnEventLoop(
        f"{name}() would stop this event loop until the log answers. "
        f"Write `await {instead}(…)` with the same arguments."
    )


def prepare(
    channel: str | None,
    event: str,
    data: Any,
    *,
    to_user: users.User | None = None,
    app: models.Application | str | int | None = None,
    exclude: str | None = None,
    idempotency_key: str | None = None,
) -> interface.Publication:
    """What is sent. Everything that can be wrong with a call is found here."""
    target = application.resolve(app)
    channel = _channel(channel, to_user)
    _check_names(channel, event, exclude, target.limits)
    try:
        text = data if isinstance(data, str) else encoding.json_text(data)
        if names.is_encrypted(channel):
            text = encryption.encrypt(channel, text)
    except (TypeError, UnicodeEncodeError) as error:
        raise _unencodable(event, error) from error
    return _publication(target, channel, event, text, exclude=exclude, idempotency_key=idempotency_key)


def restore(
    channel: str, event: str, text: str, *, app: str, exclude: str | None, idempotency_key: str
) -> interface.Publication:
    """What `prepare` made before, of the text that subscribers get: that of an encrypted channel is a ciphertext. By
    the application as it is now; raises a PublishError."""
    target = application.resolve(app)
    _check_names(channel, event, exclude, target.limits)
    return _publication(target, channel, event, text, exclude=exclude, idempotency_key=idempotency_key)


def _publication(
    target: registry.Application,
    channel: str,
    event: str,
    text: str,
    *,
    exclude: str | None,
    idempotency_key: str | None,
) -> interface.Publication:
    _check_key(idempotency_key)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _unencodable(event, error) from error
    if size > target.limits.max_event_bytes:
        raise errors.DataTooLarge(event, size, target.limits.max_event_bytes)
    rule = target.rules.of(channel)
    return interface.Publication(
        app=target.id,
        channel=channel,
        body=event_frames.event(event, channel, text),
        exclude=exclude,
        retention=None if rule is None else rule.retention,
        idempotency_key=idempotency_key,
        cache_seconds=target.cache_seconds if names.is_cache(channel) else None,
    )


def _unencodable(event: str, error: Exception) -> errors.UnencodableData:
    return errors.UnencodableData(f"The data of {event!r} has no JSON form: {error}")


class Deferred:
    """What waits for a commit, which calls it."""

    def __init__(self, publications: Sequence[interface.Publication]) -> None:
        self.publications = list(publications)
        self.engine = current.made()  # that of a test's block sends nothing of before it
        self.called = False

    def __call__(self) -> None:
        self.called = True
        append_or_report(self.publications)


class Outboxed(Deferred):
    """What waits in the outbox, too. The first one of a transaction that is called sends them all."""

    def __init__(self, publications: Sequence[interface.Publication], batch: outboxes.Batch) -> None:
        super().__init__(publications)
        self.batch = batch

    def __call__(self) -> None:
        self.called = True
        left = len(self.batch)
        try:
            rows = self.batch.committed()
            left = len(rows)
            for chunk in outboxes.chunks(rows):
                append([row.publication for row in chunk])
                left -= len(chunk)
                outboxes.discard(self.batch.using, [row.id for row in chunk])
        except (engine_errors.EngineError, Error) as error:
            count("outbox_left", left)
            logger.warning("%d events are left to the relay of the outbox in %r: %s", left, self.batch.using, error)


def defer(
    publications: Sequence[interface.Publication], on_commit: bool, using: str, outbox: bool | None = False
) -> bool:
    """Leave them to the end of the transaction, if there is one to wait for. `outbox`: None for what the setting
    says."""
    if not on_commit:
        return False
    connection = transaction.get_connection(using)
    # A thread that never used it is in no transaction. Asking it would open it, and outside of Django's requests (a
    # mounted application, a thread of somebody's pool) nobody would close it.
    if connection.connection is None and not connection.in_atomic_block:
        return False
    if not connection.in_atomic_block and connection.get_autocommit():
        return False
    through_outbox = outboxes.is_wanted(outbox)
    if not through_outbox and _joined(publications, connection):
        return True
    # Where autocommit is off without an atomic block, nobody can tell when the commit comes: Django raises.
    callback = Deferred(publications)
    if connection.in_atomic_block and through_outbox:
        batch = _batch(connection)
        batch.write(publications)
        callback = Outboxed(publications, batch)
    transaction.on_commit(callback, using=using, robust=True)
    return True


def _joined(publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper) -> bool:
    """Let them go with those just before them, if a rollback would take both and nothing else was to happen in between.

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
    return True


def _is_of_a_test(connection: BaseDatabaseWrapper) -> bool:
    """Whether the innermost transaction is a TestCase's, which watches callbacks come and go one by one."""
    blocks = connection.atomic_blocks
    return bool(blocks) and getattr(blocks[-1], "_from_testcase", False)


def append(publications: Sequence[interface.Publication]) -> None:
    """All of them or none. Raises EngineError."""
    receipts = current.current().append_blocking(publications)
    duplicates = sum([receipt.duplicate for receipt in receipts])
    events = sum([publication.kind is interface.Kind.EVENT for publication in publications])
    with _counts_lock:
        _counts["published"] += events - duplicates
        _counts["duplicates"] += duplicates


def append_or_report(publications: Sequence[interface.Publication]) -> None:
    """For data that is saved already: nothing is raised."""
    try:
        append(publications)
    except engine_errors.EngineError as error:
        count("failed_after_commit", len(publications))
        for publication in publications:
            logger.error(  # noqa: TRY400  the error says why; a trace through the commit says nothing
                "Not published after the commit: %s of application %s: %s (%s)",
                _described(publication),
                publication.app,
                error,
                error.code,
            )


def _batch(connection: BaseDatabaseWrapper) -> outboxes.Batch:
    """That of the connection's transaction: Django forgets the callbacks of one that is rolled back."""
    for _, callback, *_ in reversed(connection.run_on_commit):
        if isinstance(callback, Outboxed):
            return callback.batch
    return outboxes.Batch(connection.alias)


def _described(publication: interface.Publication) -> str:
    if publication.kind is not interface.Kind.EVENT:
        return f"command {publication.channel!r}"
    return f"event {orjson.loads(publication.body)['event']!r} on channel {publication.channel!r}"


def _channel(channel: str | None, to_user: users.User | None) -> str:
    if to_user is None:
        if channel is None:
            raise errors.InvalidTarget("An event needs a channel, or a user in `to_user`.")
        return channel
    if channel is not None:
        raise errors.InvalidTarget(f"An event goes to the channel {channel!r} or to a user, not to both.")
    return names.user_channel(users.user_id(to_user))


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
    except (refusals.InvalidName, UnicodeEncodeError) as error:
        raise errors.InvalidName(str(error)) from error
    if exclude is not None and not names.is_valid_socket_id(exclude):
        raise errors.InvalidName(f"{exclude!r} is not a socket id; one looks like '1234.5678'.")


def _check_timing(on_commit: bool, outbox: bool | None) -> None:
    if outbox and not on_commit:
        raise errors.InvalidTiming("An event that leaves at once (`on_commit=False`) does not go through the outbox.")


def _check_key(idempotency_key: str | None) -> None:
    if idempotency_key is None:
        return
    if not _IDEMPOTENCY_KEY.fullmatch(idempotency_key) or len(idempotency_key) > interface.MAX_IDEMPOTENCY_KEY:
        raise errors.InvalidName(
            f"{idempotency_key!r} is not an idempotency key: "
            f"it has 1 to {interface.MAX_IDEMPOTENCY_KEY} printable ASCII characters."
        )


def count(name: str, n: int = 1) -> None:
    with _counts_lock:
        _counts[name] += n
