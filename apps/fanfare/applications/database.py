"""Django's database, asked from an event loop.

Not through asgiref: on its one shared thread a worker's own questions would wait behind every query of every consumer.
These few threads belong to the server, and hold a connection only while a function runs.
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

THREADS = 2  # one may wait for a database that does not answer, and the health page still gets its answer

P = ParamSpec("P")
T = TypeVar("T")

# Starts no thread before its first use, so importing this module before a fork is safe.
_threads = futures.ThreadPoolExecutor(THREADS, thread_name_prefix="fanfare-database")


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that uses the ORM, in a thread of its own, with connections that are closed afterwards."""

    def call() -> T:
        try:
            return function(*args, **kwargs)
        finally:
            db.connections.close_all()

    return await asyncio.get_running_loop().run_in_executor(_threads, call)


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
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return f"The database cannot be used: {reason.rstrip('.')}."


def is_migrated() -> bool:
    """Whether every migration of the project is applied. Raises django.db.Error where the database cannot be asked."""
    executor = MigrationExecutor(db.connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())
