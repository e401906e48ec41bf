"""The target of a call: the application, as plain values, and the engine.

Applications are cached for CACHE_SECONDS, because publishers use the same one repeatedly.

In Django's test environment (a test runner has called `setup_test_environment`, as it does for mails) nothing leaves
the process: `publish` checks its arguments and drops the event, queries find an empty deployment, and the database
needs no application. `captured_events` and `running_server` replace that, as does a worker in the test's process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from django import db
from django.core import mail

from fanfare import conf, errors
from fanfare.applications import errors as application_errors
from fanfare.applications import registry, test_environment
from fanfare.engine import current, interface
from fanfare.integration.remote import engine as remote_engine

if TYPE_CHECKING:
    from fanfare.applications import models

App: TypeAlias = "models.Application | str | int | None"
"""An application, its id, or None for the default one."""

CACHE_SECONDS = 2.0  # the longest delay of a change

# By id, None for the default application: the time of the query, and the values.
_cache: dict[str | None, tuple[float, registry.Application]] = {}

# The applications of `standing_in`; the last one replaces the database.
_stand_ins: list[registry.Application] = []

# The application of tests whose database has none.
IN_TESTS = registry.Application(id="1", key="test", secret="test", name="Test")  # noqa: S106  not a secret


def application(app: App = None) -> registry.Application:
    """The values of an application. Raises NoApplication.

    For a given row, the values are those of the row. Its channel rules, and all values of an application that is given
    by its id, are at most CACHE_SECONDS old.
    """
    if app is None or isinstance(app, str | int):
        # Django's test runner sets `mail.outbox`, so other processes spare the call. `hasattr` takes 1.2 µs to find
        # that a module lacks an attribute.
        stand_in = _stand_ins[-1] if _stand_ins else None
        if stand_in is None and "outbox" in vars(mail) and test_environment.is_active():
            stand_in = IN_TESTS
        if stand_in is not None:
            return stand_in if app is None else dataclasses.replace(stand_in, id=str(app))
        if conf.settings.REMOTE_URL:
            return _remote(app)
        return _cached(None if app is None else str(app))
    from fanfare.applications import loading, models

    if not isinstance(app, models.Application):
        raise errors.NoApplication(f"`app` is an Application or its id, not {type(app).__name__}.")
    if conf.settings.REMOTE_URL:
        return _remote(app.app_id)
    if test_environment.is_active():
        return loading.snapshot(app)
    return _enabled(dataclasses.replace(loading.snapshot(app), rules=_cached(app.app_id).rules))


def _cached(app_id: str | None) -> registry.Application:
    cached = _cache.get(app_id)
    now = time.monotonic()
    if cached is None or now - cached[0] > CACHE_SECONDS:
        with _connection_left_as_found():
            cached = _cache[app_id] = (now, fetch_default() if app_id is None else _fetch(app_id))
    return cached[1]


@contextlib.contextmanager
def _connection_left_as_found() -> Iterator[None]:
    """Close the thread's database connection if it was opened in the block.

    Django closes connections at the end of its own requests. In other threads (a route of a mounted FastAPI, a pool of
    the project's) this one would stay open: broken after the database's next restart, and missing from its pool.
    """
    from fanfare.applications import models

    connection = db.connections[db.router.db_for_read(models.Application)]
    was_open = connection.connection is not None
    try:
        yield
    finally:
        if not was_open and not connection.in_atomic_block:
            connection.close()


def fetch_default() -> registry.Application:
    """The default application as the database has it now. Raises NoApplication."""
    from fanfare.applications import loading

    if _stand_ins:
        return _stand_ins[-1]
    if conf.settings.REMOTE_URL:
        return remote_engine.application()
    try:
        found = loading.fetch_default()
    except application_errors.DefaultApplicationError as error:
        raise errors.NoApplication(str(error)) from error
    if found is None and test_environment.is_active():
        return IN_TESTS
    if found is None:
        raise errors.NoApplication(
            "There is no enabled application. Create one in the admin, or with "
            "`python manage.py createapplication NAME`."
        )
    return _enabled(found)


def page_application() -> registry.Application:
    """The default application for a page; in a test, that of the database if there is one. Raises NoApplication."""
    return fetch_default() if test_environment.is_active() else application()


@contextlib.contextmanager
def standing_in(application: registry.Application) -> Iterator[None]:
    """For tests: in the block every id means this application, and the database is not read."""
    _stand_ins.append(application)
    try:
        yield
    finally:
        _stand_ins.pop()


def forget() -> None:
    """Empty the cache. For tests."""
    _cache.clear()


def _remote(app: str | int | None) -> registry.Application:
    found = remote_engine.application()
    if app is not None and str(app) != found.id:
        raise errors.NoApplication(
            f"`app` is {app!r}; in remote mode the only application is {found.id!r} (FANFARE_REMOTE_APP_ID)."
        )
    return found


def _fetch(app_id: str) -> registry.Application:
    from fanfare.applications import loading

    found = loading.fetch(app_id)
    if found is None:
        raise errors.NoApplication(f"There is no application with the id {app_id!r}.")
    return _enabled(found)


def _enabled(application: registry.Application) -> registry.Application:
    if not application.enabled:
        raise errors.NoApplication(f"The application {application.id} ({application.name}) is disabled.")
    return application


# -- the engine --------------------------------------------------------------------------------------------------------


class Outlet(Protocol):
    """The part of an engine for processes that are no worker."""

    def partition(self, app: str, channel: str) -> int: ...

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]: ...

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]: ...

    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> interface.Position: ...

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None: ...

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool: ...

    def lease_member(
        self,
        app: str,
        channel: str,
        user_id: str,
        info: str | None,
        seconds: float,
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> bool | interface.Refused: ...

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool: ...

    def queries(self) -> contextlib.AbstractContextManager[interface.Queries]: ...


def engine() -> Outlet:
    """The engine for publications and queries of this process."""
    return _sink if "outbox" in vars(mail) and test_environment.is_active() else current.current()


class Sink:
    """A deployment without workers and log, which accepts events and drops them."""

    def partition(self, app: str, channel: str) -> int:
        return 0

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        return [interface.Receipt(None, duplicate=False) for _ in publications]

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]:
        return [interface.StreamReceipt(True, write.state, write.seq, write.size) for write in writes]

    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> interface.Position:
        return interface.Position("0", 0)

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None:
        return None

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        return False

    def lease_member(
        self,
        app: str,
        channel: str,
        user_id: str,
        info: str | None,
        seconds: float,
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> bool | interface.Refused:
        return True

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        return True

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        yield _Empty()


class _Empty(interface.Queries):
    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        return {}

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        return interface.ChannelCounts(0, 0)

    def members(self, app: str, channel: str, limit: int | None = None) -> list[interface.Member]:
        return []

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        return set()

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        return None

    def read(
        self,
        app: str,
        channel: str,
        after: int,
        limit: int,
        *,
        before: int | None = None,
        newest_first: bool = False,
        max_bytes: int | None = None,
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        return [], None


_sink = Sink()
