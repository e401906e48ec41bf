"""Sends publications when the transaction that made them commits, and drops them after a rollback.

They wait in the callbacks of Django's `on_commit`. Those of one transaction are joined, so that they are one commit of
the log. With the outbox, or FANFARE_TRANSACTIONAL_PUBLISH, the transaction also writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from fanfare import conf, errors
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.integration import appending, transactional

if TYPE_CHECKING:  # the outbox is a model, and this module is imported before models can be
    from fanfare.integration import outbox as outboxes

logger = logging.getLogger("fanfare.integration")

# Events of a transaction per commit: about 100 kB of rows, for which other writers wait a millisecond.
JOINED = 200

# Called with each new Deferred, in any thread; `captured_events` uses it.
observers: list[Callable[[Deferred], None]] = []


class Deferred:
    """Publications that wait for a commit, which calls this object. `connection`: of the transaction."""

    def __init__(
        self,
        publications: Sequence[interface.Publication],
        connection: BaseDatabaseWrapper,
        handles: appending.Handles = (),
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
        appending.append_or_report(self.publications, self.handles)


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
                appending.append([row.publication for row in chunk])
                left -= len(chunk)
                outboxes.discard(self.batch.using, [row.id for row in chunk])
        except (engine_errors.EngineError, errors.PublishError, Error) as error:
            appending.count("outbox_left", left)
            logger.warning(
                "%d events stay in the outbox of %r until the relay sends them: %s", left, self.batch.using, error
            )
        except Exception:
            appending.count("outbox_left", left)
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
        appending.count("published", len(self.publications))


def defer(
    publications: Sequence[interface.Publication],
    on_commit: bool,
    using: str,
    outbox: bool | None = False,
    handles: appending.Handles = (),
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
        engine = transactional.write(publications, connection, appending.publishers(publications))
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


def send(commands: Sequence[interface.Publication], on_commit: bool, using: str) -> None:
    """Send commands for the workers when the transaction commits, or at once. Raises EngineError."""
    if not defer(commands, on_commit, using):
        appending.append(commands)


async def asend(prepare: Callable[[], Sequence[interface.Publication]], on_commit: bool, using: str) -> None:
    """`send` for coroutines. `prepare` makes the commands, in the thread of this context's database calls."""

    def prepared() -> Sequence[interface.Publication]:
        commands = prepare()
        return () if defer(commands, on_commit, using) else commands

    commands = await sync_to_async(prepared)()
    if commands:
        await sync_to_async(appending.append, thread_sensitive=False)(commands)


def _joined(
    publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper, handles: appending.Handles
) -> bool:
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
