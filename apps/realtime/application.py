"""Which application a call is about, as plain values."""

from __future__ import annotations

import dataclasses
import time

from apps.applications import errors as application_errors
from apps.applications import loading, models, registry
from apps.realtime import errors

# A publisher asks for the same application again and again; this bounds how long a change goes unnoticed.
CACHE_SECONDS = 2.0

# By id, None for the default: when it was read, and what.
_cache: dict[str | None, tuple[float, registry.Application]] = {}


def resolve(app: models.Application | str | int | None = None) -> registry.Application:
    """An application, given as a row, by its id, or (None) the default one. Raises NoApplication.

    The values of a row are those it has; its channel rules, and the others' values, are at most CACHE_SECONDS old.
    """
    if isinstance(app, models.Application):
        return _enabled(dataclasses.replace(loading.snapshot(app), rules=_cached(app.app_id).rules))
    return _cached(None if app is None else str(app))


def _cached(app_id: str | None) -> registry.Application:
    cached = _cache.get(app_id)
    now = time.monotonic()
    if cached is None or now - cached[0] > CACHE_SECONDS:
        cached = _cache[app_id] = (now, fetch_default() if app_id is None else _fetch(app_id))
    return cached[1]


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
