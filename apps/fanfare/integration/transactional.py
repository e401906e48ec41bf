"""publish() in a transaction of the database that holds the log (FANFARE_TRANSACTIONAL_PUBLISH).

The transaction writes the publications itself, and after its commit this process moves them into the log. If the
process ends before that, a worker moves them within a second.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from django.db.backends.base.base import BaseDatabaseWrapper

from fanfare import conf
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.integration import target
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


def write(
    publications: Sequence[interface.Publication], connection: BaseDatabaseWrapper, publishers: Sequence[str]
) -> PostgresEngine | None:
    """Write publications with the transaction of a connection. `publishers`: the records of the first ones, for traces.

    Returns the engine that moves them into the log; None if FANFARE_TRANSACTIONAL_PUBLISH is off, in a test, or if the
    project publishes to another deployment.

    Raises EngineMisconfigured if the connection is not of the log's database, and django.db.Error.
    """
    outlet = target.engine()
    if not conf.settings.TRANSACTIONAL_PUBLISH or not isinstance(outlet, interface.Engine) or current.is_replaced():
        return None
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
    pending.write(execute, publications, publishers)
    return cast("PostgresEngine", engine)
