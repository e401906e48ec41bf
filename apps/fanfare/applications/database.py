"""Django's database, asked from an event loop.

asgiref's thread-sensitive executor is one shared thread, where a worker's own queries would wait behind those of every
consumer. These threads belong to the server, and hold a connection only while a function runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import ParamSpec, TypeVar

from django import db
from django.db.migrations.executor import MigrationExecutor

from fanfare.applications import errors
from fanfare.runtime import text

THREADS = 2  # one may wait for a database that does not answer, and the health page still gets its answer

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """So many threads, which ask one database. No thread starts before the first use: a fork before that is safe."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = futures.ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that uses the ORM. Its connections are closed afterwards.

        A call that is cancelled before a thread is free never runs; one that runs already ends in its thread.
        """

        def call() -> T:
            try:
                return function(*args, **kwargs)
            finally:
                db.connections.close_all()

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Let the threads end when their calls do."""
        self._executor.shutdown(wait=False, cancel_futures=True)


_shared = Threads(THREADS, "fanfare-database")
run = _shared.run


def is_refusal_of_data(error: BaseException) -> bool:
    """Whether the database, or its driver, refuses these values: other rows may be written, and a retry cannot help.

    All other errors (no connection, a lock, a missing table, a full disk) concern any row and may pass.
    """
    return isinstance(error, db.DataError | db.IntegrityError) or not isinstance(error, db.Error | OSError)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what Django's database raises into a DatabaseUnusableError with a sentence for a person."""
    try:
        yield
    except db.Error as error:
        raise errors.DatabaseUnusableError(explain(error)) from error


def explain(error: db.Error) -> str:
    """One sentence for a person about why a query failed. It asks the database: call it where the query was."""
    try:
        if not is_migrated():
            return "The database is not migrated: run `python manage.py migrate`."
    except db.Error as another:
        error = another
    return f"The database cannot be used: {reason(error).rstrip('.')}."


def reason(error: BaseException) -> str:
    """The first line of a database's message."""
    return text.clean(str(error).strip().partition("\n")[0]) or type(error).__name__


def alias() -> str:
    """The database where applications are written. A replica may not have a change yet that the log announces."""
    from fanfare.applications import models  # not before Django's apps are ready

    return db.router.db_for_write(models.Application)


def is_migrated() -> bool:
    """Whether each migration of the project is applied to the database of the applications.

    Raises django.db.Error where the database cannot be asked.
    """
    executor = MigrationExecutor(db.connections[alias()])
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())
