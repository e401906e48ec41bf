"""Loads the applications from the database into the registry of a worker, and keeps them up to date.

A change reaches a worker in two ways. An `application.changed` entry of the log names the application, and the loader
reads its row. In addition, every `COMPARE_SECONDS` the loader compares the generation in the database with that of the
registry and reloads all applications if they differ. A lost entry therefore delays a change by seconds only.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet

from fanfare import conf
from fanfare.applications import (
    database,
    declarations,
    errors,
    limits,
    models,
    origins,
    registry,
    rules,
)
from fanfare.applications.models import announced
from fanfare.runtime import close_codes, supervisor, text
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.log_throttle import LogThrottle, exception_line

COMPARE_SECONDS = 10.0  # the longest delay of a change whose entry could not be written; one small query each
START_SECONDS = 10.0  # for the first load; after it the worker starts without applications and reports a problem
ANSWER_SECONDS = 10.0  # for each query; a slower database is a problem, and the query is repeated
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 10.0

NAME = "applications loader"

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


def snapshot(
    application: models.Application,
    webhooks: Iterable[models.WebhookEndpoint] = (),
    channel_rules: Iterable[models.ChannelRule] = (),
) -> registry.Application:
    """The registry's value of a row, with the given webhooks and rules. Makes no query."""
    return registry.Application(
        id=application.app_id,
        key=application.key,
        secret=application.secret,
        name=application.name,
        enabled=application.enabled,
        client_events=application.client_events,
        subscription_counts=application.subscription_counts,
        previous_secret=application.previous_secret,
        previous_secret_until=_until(application),
        allowed_origins=origins.parse(application.allowed_origins),
        limits=registry.Limits(**_chosen(application, limits.NAMES)),
        rules=rules.Rules(tuple(_rule(channel_rule) for channel_rule in channel_rules)),
        webhooks=tuple(_webhook(endpoint) for endpoint in webhooks),
        **_chosen(application, limits.DURATIONS),
    )


def _webhook(endpoint: models.WebhookEndpoint) -> registry.Webhook:
    return registry.Webhook(
        id=endpoint.pk,
        url=endpoint.url,
        event_types=frozenset(endpoint.event_types or registry.WEBHOOK_EVENTS),
        channel_prefix=endpoint.channel_prefix,
        headers=tuple(endpoint.headers.items()),
        batching=endpoint.batching,
        enabled=endpoint.enabled,
    )


def _rule(row: models.ChannelRule) -> rules.Rule:
    return rules.Rule(**{field.name: getattr(row, field.name) for field in dataclasses.fields(rules.Rule)})


def _until(application: models.Application) -> float:
    """Unix time until which the previous secret is valid."""
    if not application.previous_secret:
        return 0.0
    until = application.previous_secret_until
    return math.inf if until is None else until.timestamp()


def _chosen(application: models.Application, names: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(application, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def fetch(app_id: str) -> registry.Application | None:
    """One application from the database, enabled or not, without webhooks: for processes without a registry."""
    return _publishing(models.Application.objects.filter(app_id=app_id))


def fetch_default() -> registry.Application | None:
    """The application of FANFARE_DEFAULT_APP, enabled or not. Without this setting: the oldest enabled application.

    None if there is none. Raises DefaultApplicationError if the setting names an application that does not exist.
    """
    app_id = conf.settings.DEFAULT_APP
    if app_id:
        application = fetch(app_id)
        if application is None:
            raise errors.DefaultApplicationError(
                f"FANFARE_DEFAULT_APP is {app_id!r}, but there is no application with this id."
            )
        return application
    return _publishing(models.Application.objects.filter(enabled=True).order_by("pk"))


def _publishing(rows: QuerySet[models.Application]) -> registry.Application | None:
    """The first row, with its channel rules."""
    row = rows.prefetch_related("rules").first()
    return None if row is None else snapshot(row, channel_rules=row.rules.all())


class Hub(Protocol):
    """The part of `fanfare.hub.hub.Hub` that the loader uses."""

    def on_control(self, command: str, handler: Callable[[str, bytes], None], /) -> None: ...

    def close_application(self, app: str, code: int, message: str, /) -> object: ...


class Loader:
    """Keeps the registry of one worker up to date from `start` to `stop`.

    The hub must follow the log before `start`, so that no change is missed between the first load and the first entry.
    `problem`: why the registry may be out of date, in one sentence, or None. `loaded`: whether all applications were
    loaded at least once. `statuses`: the status of the loader's task.
    """

    def __init__(
        self,
        applications: registry.Registry,
        hub: Hub,
        *,
        start_seconds: float = START_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        compare_seconds: float = COMPARE_SECONDS,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
    ) -> None:
        self.problem: str | None = "The applications are not loaded yet."
        self.loaded = False
        self._registry = applications
        self._hub = hub
        self._start_seconds = start_seconds
        self._answer_seconds = answer_seconds
        self._compare_seconds = compare_seconds
        self._backoff = Backoff(first_retry_seconds, LAST_RETRY_SECONDS)
        self._declarations: Sequence[declarations.Declaration] = ()
        self._declarations_synced = False
        self._generation: int | None = None  # None: all applications must be loaded
        self._changed: set[str] = set()  # ids in entries of the log since the last load
        self._unreadable: dict[str, str] = {}  # by id: why the row of an application could not be read
        self._wake = asyncio.Event()
        self._status = supervisor.Status(NAME)
        self._tasks = supervisor.Supervisor(logger)
        self._threads: database.Threads
        self._log = LogThrottle(logger)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        return self._tasks.statuses

    async def start(self) -> None:
        """Load all applications and follow their changes. If the database is unavailable, set `problem` and try again.

        Raises ImproperlyConfigured (for example DeclarationError) if the configuration must be changed first.
        """
        self._declarations = declarations.parse(conf.settings.APPS)
        self._hub.on_control(announced.COMMAND, self._on_changed)
        first_try: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._threads = database.Threads(1, "fanfare-applications")  # a hanging query must not block other threads
        self._status = supervisor.Status(NAME)
        self._tasks.run(NAME, lambda: self._follow(first_try), status=self._status)
        try:
            async with asyncio.timeout(self._start_seconds):
                await first_try
        except TimeoutError:
            self.problem = f"The database has not answered for {self._start_seconds:g} seconds."
            logger.warning("%s The server runs without applications until the database answers.", self.problem)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Idempotent."""
        await self._tasks.stop()
        if self._tasks.statuses:
            self._threads.close()

    def _on_changed(self, app: str, body: bytes) -> None:
        self._changed.add(app)
        self._wake.set()

    async def _follow(self, first_try: asyncio.Future[None]) -> None:
        """One task makes all loads, so an older load never overwrites a newer one.

        `first_try` gets the result of the first attempt. It is cancelled earlier if `start` stops waiting.
        """
        self._status.enter(supervisor.State.RUNNING)
        while True:
            self._status.runs += 1
            try:
                await self._catch_up()
            except Exception as error:  # noqa: BLE001  (any error is reported, and the load is repeated)
                if isinstance(error, ImproperlyConfigured) and not first_try.done():
                    first_try.set_exception(error)
                    return
                pause_s: float | None = self._failed(error)
            else:
                pause_s = None
                self._succeeded()
            if not first_try.done():
                first_try.set_result(None)
            if pause_s is None:
                await self._wait_for_change()
            else:
                await asyncio.sleep(pause_s)

    async def _catch_up(self) -> None:
        self._wake.clear()
        changed, self._changed = self._changed, set()
        if self._generation is None:
            await self._load_everything()
        elif changed:
            found = await self._ask(_read, changed)
            self._apply_all(found, changed)
        elif await self._ask(_generation) != self._generation:
            await self._load_everything()

    async def _load_everything(self) -> None:
        if not self._declarations_synced:
            await self._ask(declarations.sync, self._declarations)
            self._declarations_synced = True
        # The generation first: a change between the two queries is then read twice instead of missed.
        generation = await self._ask(_generation)
        found = await self._ask(_read)
        self._unreadable.clear()
        known = {application.id for application in self._registry.all()}
        self._apply_all(found, known | found.applications.keys() | found.unreadable.keys())
        self._generation = generation

    async def _ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises DatabaseUnusableError."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await self._threads.run(database.explained()(function), *args, **kwargs)
        except TimeoutError as error:
            raise errors.DatabaseUnusableError(
                f"The database has not answered for {self._answer_seconds:g} seconds."
            ) from error

    # -- the registry --------------------------------------------------------------------------------------------------

    def _apply_all(self, found: Found, app_ids: Iterable[str]) -> None:
        for app_id in app_ids:
            if app_id in found.unreadable:  # its value in the registry stays
                self._unreadable[app_id] = found.unreadable[app_id]
                self._log.error(
                    "Application %s cannot be read from the database: %s", app_id, found.unreadable[app_id], key=app_id
                )
                continue
            self._unreadable.pop(app_id, None)
            try:
                self._apply(app_id, found.applications.get(app_id))
            except Exception as error:  # noqa: BLE001  (an error in one application must not stop the others)
                self._log.error("A change of application %s cannot be applied", app_id, key=app_id, error=error)

    def _apply(self, app_id: str, new: registry.Application | None) -> None:
        """Put one application into the registry, and close the connections that its change invalidates."""
        old = self._registry.by_id(app_id)
        if new == old:
            return
        if new is None:
            self._registry.remove(app_id)
            self._hub.close_application(
                app_id, close_codes.UNKNOWN_APPLICATION, f"Application {app_id} no longer exists"
            )
            return
        self._registry.put(new)
        if old is None:
            return
        if not new.enabled:
            # With OVER_CAPACITY clients reconnect; the handshake waits while the application is suspended.
            code = close_codes.OVER_CAPACITY if self._registry.suspended_s(app_id) else close_codes.APPLICATION_DISABLED
            self._hub.close_application(app_id, code, f"Application {app_id} is disabled")
        elif new.key != old.key:
            self._hub.close_application(
                app_id, close_codes.UNKNOWN_APPLICATION, f"The key of application {app_id} was replaced"
            )

    # -- reports -------------------------------------------------------------------------------------------------------

    def _succeeded(self) -> None:
        if self._backoff.failures:
            logger.info("The applications are loaded (failed attempts before: %d).", self._backoff.failures)
        if self._backoff.failures or not self.loaded:
            self._status.enter(supervisor.State.RUNNING)
        self._backoff.succeeded()
        self.loaded = True
        names = ", ".join(sorted(self._unreadable))
        self.problem = f"These applications cannot be read from the database: {names}." if names else None

    def _failed(self, error: Exception) -> float:
        """Returns the seconds until the next attempt."""
        self._generation = None
        known = isinstance(error, (errors.ApplicationsError, ImproperlyConfigured))
        self.problem = (
            str(error) if known else f"The applications cannot be loaded: {text.clean(exception_line(error))}"
        )
        if not self._backoff.failures:
            logger.warning("%s Trying again until it works.", self.problem, exc_info=None if known else error)
        pause_s = self._backoff.failed()
        self._status.failed(error)
        self._status.enter(supervisor.State.PAUSING)
        self._status.retry_at = self._status.since + pause_s
        return pause_s

    async def _wait_for_change(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._compare_seconds):
                await self._wake.wait()


# -- queries, in a thread ----------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Applications by id, and the error of each row that cannot be read, by id."""

    applications: dict[str, registry.Application]
    unreadable: dict[str, str]


def _generation() -> int | None:
    return models.Generation.current(database.alias())


def _read(app_ids: Iterable[str] | None = None) -> Found:
    """The applications with these ids; by default all."""
    rows = models.Application.objects.using(database.alias()).with_parts()
    if app_ids is not None:
        rows = rows.filter(app_id__in=app_ids)
    found = Found({}, {})
    for row in rows:
        try:
            found.applications[row.app_id] = snapshot(row, row.webhooks.all(), row.rules.all())
        except Exception as error:  # noqa: BLE001  (a row that was written without validation must not hide the others)
            found.unreadable[row.app_id] = text.clean(exception_line(error))
    return found
