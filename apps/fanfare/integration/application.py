"""Which application a call is about, as plain values."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from django import db

from fanfare.applications import errors as application_errors
from fanfare.applications import loading, models, registry
from fanfare.integration import errors

# A publisher asks for the same application again and again; this bounds how long a change goes unnoticed.
CACHE_SECONDS = 2.0

# By id, None for the default: when it was read, and what.
_cache: dict[str | None, tuple[float, registry.Application]] = {}

# In tests of a project, whose database has no application; the last one counts.
_stand_ins: list[registry.Application] = []


def resolve(app: models.Application | str | int | None = None) -> registry.Application:
    """An application, given as a row, by its id, or (None) the default one. Raises NoApplication.

    The values of a row are those it has; its channel rules, and the others' values, are at most CACHE_SECONDS old.
    """
    if _stand_ins and not isinstance(app, models.Application):
        return _stand_ins[-1] if app is None else dataclasses.replace(_stand_ins[-1], id=str(app))
    if isinstance(app, models.Application):
        return _enabled(dataclasses.replace(loading.snapshot(app), rules=_cached(app.app_id).rules))
    return _cached(None if app is None else str(app))


def _cached(app_id: str | None) -> registry.Application:
    cached = _cache.get(app_id)
    now = time.monotonic()
    if cached is None or now - cached[0] > CACHE_SECONDS:
        with _connection_left_as_found():
            cached = _cache[app_id] = (now, fetch_default() if app_id is None else _fetch(app_id))
    return cached[1]


@contextlib.contextmanager
def _connection_left_as_found() -> Iterator[None]:
    """Close the thread's connection if it was opened in here.

    Django closes connections at the end of its own requests. Elsewhere (a route of a mounted FastAPI, a thread of
    somebody's pool) this one would stay open for ever: dead after the database's next restart, and lost to its pool.
    """
    connection = db.connections[db.router.db_for_read(models.Application)]
    was_open = connection.connection is not None
    try:
        yield
    finally:
        if not was_open and not connection.in_atomic_block:
            connection.close()


def fetch_default() -> registry.Application:
    """The default application as the database has it now. Raises NoApplication."""
    try:
        target = loading.fetch_default()
    except application_errors.DefaultApplicationError as error:
        raise errors.NoApplication(str(error)) from error
    if target is None:
        raise errors.NoApplication(
            "There is no enabled application. Make one in the admin or with `python manage.py createapplication NAME`."
        )
    return _enabled(target)


@contextlib.contextmanager
def standing_in(target: registry.Application) -> Iterator[None]:
    """Resolve to these values inside the block, with any id that is asked for, and leave the database alone."""
    _stand_ins.append(target)
    try:
        yield
    finally:
        _stand_ins.pop()


def forget() -> None:
    """Read everything anew at the next call (for tests, whose applications come and go)."""
    _cache.clear()


def _fetch(app_id: str) -> registry.Application:
    target = loading.fetch(app_id)
    if target is None:
        raise errors.NoApplication(f"There is no application with the id {app_id!r}.")
    return _enabled(target)


def _enabled(target: registry.Application) -> registry.Application:
    if not target.enabled:
        raise errors.NoApplication(f"The application {target.id} ({target.name}) is disabled.")
    return target
