"""publish() in a transaction of the database that holds the log (FANFARE_TRANSACTIONAL_PUBLISH).

The transaction writes the publications itself, and after its commit this process has them moved into the log. If it
ends before, a worker moves them within a second.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from fanfare import conf
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.integration import publishing, target
from fanfare.runtime.log_throttle import LogThrottle

if TYPE_CHECKING:
    from fanfare.engine.postgres.engine import PostgresEngine

_log = LogThrottle(logging.getLogger("fanfare.integration"))

_checked: set[tuple[str, str]] = set()  # aliases whose database holds the log, by the engine's address


class Move:
    """The end of one transaction: its first callback moves the publications of all of them."""

    def __init__(self, engine: PostgresEngine) -> None:
        self._engine = engine
        self._is_done = False

    def __call__(self) -> None:
        if self._is_done:
            return
        self._is_done = True
        try:
            self._engine.move_pending()
        except engine_errors.EngineError as error:
            _log.warning("A worker will move the events of a transaction into the log: %s", error)


class Moved(publishing.Deferred):
    """Publications that a transaction has written."""

    def __init__(
        self, publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper, move: Move
    ) -> None:
        super().__init__(publications, connection)
        self.move = move

    def __call__(self) -> None:
        self.called = True
        self.move()
        publishing.count("published", len(self.publications))


def write(publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper) -> bool:
    """Write publications with the transaction of a connection. False: FANFARE_TRANSACTIONAL_PUBLISH is off, this is a
    test, or the project publishes to another deployment.

    Raises EngineMisconfigured if the connection is not of the log's database, and django.db.Error.
    """
    outlet = target.engine()
    if not conf.settings.TRANSACTIONAL_PUBLISH or not isinstance(outlet, interface.Engine) or current.is_replaced():
        return False
    engine: Any = outlet
    pending = getattr(engine, "pending", None)
    if pending is None or connection.vendor != "postgresql":
        raise engine_errors.EngineMisconfigured(
            "FANFARE_TRANSACTIONAL_PUBLISH is on: it needs FANFARE_ENGINE=postgres://… and a transaction of the same "
            "database. FANFARE_OUTBOX works with every engine and database."
        )

    def execute(statement: str, parameters: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    checked = (connection.alias, engine.address.conninfo)
    if checked not in _checked:
        pending.check(execute)
        _checked.add(checked)
    pending.write(execute, publications)
    if connection.in_atomic_block:  # otherwise (autocommit is off) a worker finds them
        callback = Moved(publications, connection, _move(connection) or Move(engine))
        transaction.on_commit(callback, using=connection.alias, robust=True)
    return True


def _move(connection: BaseDatabaseWrapper) -> Move | None:
    """That of the connection's transaction. Django drops the callbacks of a transaction that is rolled back."""
    for _, callback, *_ in reversed(connection.run_on_commit):
        if isinstance(callback, Moved):
            return callback.move
    return None
