"""A deployment of the PostgreSQL engine: each worker reaches the server through a line of its own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from urllib.parse import quote

import psycopg

from fanfare.engine import interface
from fanfare.engine.postgres import database, leases, moving, upkeep
from fanfare.engine.postgres import engine as postgres_engine
from tests.harness import postgresql, waiting
from tests.unit.engine import deployments

LEASE_S = 3
SOCKET = ".s.PGSQL.5432"


def shorten() -> None:
    """Shorter leases, and trims more often."""
    leases.LEASE_S = LEASE_S  # type: ignore[misc]
    leases.LEASE_POLL_S = 0.2  # type: ignore[misc]
    upkeep.TRIM_S = 0.2  # type: ignore[misc]


class PostgresDeployment(deployments.DeploymentOverLines):
    lease_s = 2 * LEASE_S + 1.0  # a worker that has just started waits for a lease before it removes others

    def __init__(self, cluster: postgresql.Cluster, url: str) -> None:
        super().__init__()
        self._cluster = cluster
        self._url = url
        self._address = database.parse(url)

    def engine(self, *, log_seconds: float) -> Callable[[], interface.Engine]:
        folder = self._folder / str(len(self._lines))
        folder.mkdir()
        self._lines.append(deployments.Line(folder / SOCKET, self._cluster.folder / SOCKET))
        here, there = (quote(str(path), safe="") for path in (self._cluster.folder, folder))
        url = self._url.replace(f"host={here}", f"host={there}")
        return functools.partial(
            postgres_engine.PostgresEngine,
            url,
            log_seconds=log_seconds,
            append_timeout=deployments.APPEND_TIMEOUT_S,
        )

    def prepare(self) -> Callable[[], None]:
        return shorten

    @contextlib.contextmanager
    def hold_store(self) -> Iterator[None]:
        with contextlib.closing(self._cluster.connect("realtime")) as connection:
            connection.execute("SELECT pg_advisory_lock(%s, %s)", (database.LOCK_CLASS, self._address.lock_key))
            yield

    def copy_store(self) -> None:
        """As `pg_dump --data-only`."""
        self._execute("CREATE TABLE {schema}.copy_of_{table} AS TABLE {schema}.{table}")
        self._execute_once(f"CREATE TABLE {self._address.schema}.copy_of_id AS TABLE {self._address.schema}.log_id")

    def restore_store(self) -> None:
        """As `pg_restore --data-only` after a TRUNCATE of everything."""
        waiting.until(self._restored, 30, "the restore is not the victim of a deadlock with a worker's query")

    def _restored(self) -> bool:
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            self._restore()
            return True
        return False

    def _restore(self) -> None:
        schema = self._address.schema
        with contextlib.closing(self._cluster.connect("realtime")) as connection, connection.transaction():
            for table in self._tables():
                connection.execute(f"TRUNCATE {schema}.{table}")  # type: ignore[call-overload]
                connection.execute(  # type: ignore[call-overload]
                    f"INSERT INTO {schema}.{table} OVERRIDING SYSTEM VALUE SELECT * FROM {schema}.copy_of_{table}"
                )
            connection.execute(  # type: ignore[call-overload]
                f"SELECT setval('{schema}.log_id', last_value, is_called) FROM {schema}.copy_of_id"
            )

    def stored(self) -> int:
        with contextlib.closing(self._cluster.connect("realtime")) as connection:
            query = f"SELECT count(*) FROM {self._address.schema}.log"
            [(count,)] = connection.execute(query).fetchall()  # type: ignore[call-overload]
        return int(count)

    def _tables(self) -> list[str]:
        with contextlib.closing(self._cluster.connect("realtime")) as connection:
            rows = connection.execute(
                "SELECT table_name FROM information_schema.tables "
                "WHERE table_schema = %s AND table_name NOT LIKE 'copy%%'",
                (self._address.schema,),
            ).fetchall()
        return [name for (name,) in rows]

    def _execute(self, statement: str) -> None:
        for table in self._tables():
            self._execute_once(statement.format(schema=self._address.schema, table=table))

    def _execute_once(self, statement: str) -> None:
        with contextlib.closing(self._cluster.connect("realtime")) as connection:
            connection.execute(statement)  # type: ignore[call-overload]


def hold_frozen(url: str, pipe: Connection) -> None:
    """Hold the log as a move does, in a process of its own, until the pipe answers."""
    moving.HELD_S = 2.0  # type: ignore[misc]
    with moving.PostgresStore(url).frozen():
        pipe.send(True)
        pipe.recv()
