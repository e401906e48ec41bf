"""Queries of Django's database from an event loop.

asgiref's thread-sensitive executor is one shared thread, in which a worker's own queries would wait behind those of all
consumers. The threads here belong to the server and hold a connection only while a function runs.
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

THREADS = 2  # one may wait for a hanging database; the health page uses the other

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A pool of threads for queries. The first call starts the first thread, so a fork before it is safe."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = futures.ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that uses the ORM, and close its connections afterwards.

        A call that is cancelled before a thread is free does not run; a running call finishes in its thread.
        """

        def call() -> T:
            try:
                return function(*args, **kwargs)
            finally:
                db.connections.close_all()

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Stop the threads after their running calls."""
        self._executor.shutdown(wait=False, cancel_futures=True)


_shared = Threads(THREADS, "fanfare-database")
run = _shared.run


def is_refusal_of_data(error: BaseException) -> bool:
    """Whether the database or its driver rejects the values: a retry fails again, and other rows can be written.

    All other errors (no connection, a lock, a missing table, a full disk) affect every row and may be temporary.
    """
    return isinstance(error, db.DataError | db.IntegrityError) or not isinstance(error, db.Error | OSError)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Convert Django's database errors into DatabaseUnusableError with a message for operators."""
    try:
        yield
    except db.Error as error:
        raise errors.DatabaseUnusableError(explain(error)) from error


def explain(error: db.Error) -> str:
    """The reason of a failed query in one sentence. Queries the database: call it in the thread of the failed query."""
    try:
        if not is_migrated():
            return "The database is not migrated: run `python manage.py migrate`."
    except db.Error as second:
        error = second
    return f"The database cannot be used: {reason(error).rstrip('.')}."


def reason(error: BaseException) -> str:
    """The first line of the message of a database error."""
    return text.clean(str(error).strip().partition("\n")[0]) or type(error).__name__


def alias() -> str:
    """The alias of the database to which applications are written. A replica may lag behind an announced change."""
    from fanfare.applications import models  # not before Django's apps are ready

    return db.router.db_for_write(models.Application)


def is_migrated() -> bool:
    """Whether all migrations of the project are applied to the database of the applications.

    Raises django.db.Error if the database is unavailable.
    """
    executor = MigrationExecutor(db.connections[alias()])
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())
