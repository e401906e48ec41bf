"""Publications that a transaction of the project writes with its own rows, in the engine's database.

The transaction inserts into the table `pending` through its own cursor, so a commit saves both or neither. Committed
rows are moved into the log by the process that wrote them, straight after its commit, and by any worker's heartbeat if
that process ended before. Nothing in the project's transaction takes the log's lock or sends a notification: a commit
with a notification takes a lock of the whole server.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

from psycopg import sql

from fanfare.engine import errors, interface
from fanfare.engine.postgres import database, operations

MOVE_ROWS: Final = 1_000  # in one step, which holds the log's lock

_COLUMNS: Final = "app, channel, body, kind, user_id, exclude, size, seconds, key, cache, publisher"
_INSERT: Final = f"INSERT INTO {{}}.pending ({_COLUMNS}) VALUES {{}}"
_ROW: Final = "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"

# Runs a statement in the transaction: (statement, parameters) -> the rows, if it has any.
Execute = Callable[[str, Sequence[Any]], Sequence[tuple[Any, ...]]]


class Pending:
    """The pending publications of one engine. `generation`: the log's, read through the engine's own connections."""

    def __init__(self, address: database.Address, generation: Callable[[], str]) -> None:
        self._address = address
        self._schema = sql.Identifier(address.schema)
        self._generation = generation

    def check(self, execute: Execute) -> None:
        """Raises EngineMisconfigured if a connection is not of the database that holds the log."""
        name = self._schema.as_string(None)
        [(there,)] = execute("SELECT to_regclass(%s)::text", [f"{name}.pending"])
        if there is not None:
            [(generation,)] = execute(f"SELECT generation FROM {name}.state", [])
            if generation == self._generation():
                return
        raise errors.EngineMisconfigured(
            f"FANFARE_TRANSACTIONAL_PUBLISH is on, and the transaction is not in the database of FANFARE_ENGINE "
            f"({self._address.public}): let both name one database, or use FANFARE_OUTBOX."
        )

    def write(
        self, execute: Execute, publications: Sequence[interface.Publication], publishers: Sequence[str] = ()
    ) -> None:
        """Insert in a transaction. `publishers`: for the first of them, the records of their traces, JSON. Raises what
        `execute` raises."""
        found = itertools.zip_longest(operations.append(publications, None), publishers)
        rows = [[*operation[1:], publisher] for operation, publisher in found]
        # The columns of an operation: app, channel, body, kind, user, exclude, size, seconds, key, cache.
        statement = sql.SQL(_INSERT).format(self._schema, sql.SQL(", ".join([_ROW] * len(rows))))
        execute(statement.as_string(None), [value for row in rows for value in row])


def move_query(address: database.Address) -> sql.Composed:
    """The number of publications that were moved; 0 without taking the lock where none waits."""
    return sql.SQL("SELECT CASE WHEN EXISTS (SELECT 1 FROM {}.pending) THEN {}(%s) ELSE 0 END").format(
        sql.Identifier(address.schema), address.function("move")
    )
