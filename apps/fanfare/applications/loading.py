"""From the database into memory: the values that the hot path reads, and the loader that keeps them right.

A change reaches a worker in two ways. The log's `application.changed` entry names the application, and the loader reads
that row. And every few seconds it compares the generation with the one that it knows, and reads everything if they
differ: so an entry that was lost or never written costs seconds, not correctness.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet

from fanfare import conf
from fanfare.applications import (
    announcements,
    database,
    declarations,
    declared,
    errors,
    limits,
    models,
    origins,
    registry,
    rules,
)

COMPARE_SECONDS = 10.0  # how long a worker may be wrong when the log could not be written; one small query per worker
START_SECONDS = 10.0  # a database that answers later than this must not keep the worker from serving its health page
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 10.0

NOT_FOUND = 4001  # the protocol's close codes: clients do not come back by themselves
DISABLED = 4003

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


def snapshot(
    application: models.Application,
    webhooks: Iterable[models.WebhookEndpoint] = (),
    channel_rules: Iterable[models.ChannelRule] = (),
) -> registry.Application:
    """The row as the hot path knows it. Asks no database: the webhooks and rules are those given, in their order."""
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
    """Unix time until which the old secret is good."""
    if not application.previous_secret:
        return 0.0
    until = application.previous_secret_until
    return math.inf if until is None else until.timestamp()


def _chosen(application: models.Application, names: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(application, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def fetch(app_id: str) -> registry.Application | None:
    """One application from the database, for a process that has no registry. Enabled or not; without its webhooks."""
    return _publishing(models.Application.objects.filter(app_id=app_id))


def fetch_default() -> registry.Application | None:
    """The application that is meant where none is named.

    It is the one of FANFARE_DEFAULT_APP, enabled or not, or else the oldest enabled one; None if there is none. Raises
    DefaultApplicationError where the setting names one that does not exist.
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
    """The first of the rows, with what a publisher must know."""
    row = rows.prefetch_related("rules").first()
    return None if row is None else snapshot(row, channel_rules=row.rules.all())


class Hub(Protocol):
    """What the loader needs of `fanfare.hub.hub.Hub`."""

    def on_control(self, command: str, handler: Callable[[str, bytes], None], /) -> None: ...

    def close_application(self, app: str, code: int, message: str, /) -> object: ...


class Loader:
    """Keeps one worker's registry right from `start` to `stop`.

    The hub must follow the log before `start`, so that no change falls between what was read and what is heard.
    `problem` says in one sentence why the registry may be wrong, or is None. `loaded` is whether it was ever right.
    """

    def __init__(
        self,
        applications: registry.Registry,
        hub: Hub,
        *,
        start_seconds: float = START_SECONDS,
        compare_seconds: float = COMPARE_SECONDS,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
    ) -> None:
        self.problem: str | None = "The applications are not loaded yet."
        self.loaded = False
        self._registry = applications
        self._hub = hub
        self._start_seconds = start_seconds
        self._compare_seconds = compare_seconds
        self._first_retry_seconds = first_retry_seconds
        self._declarations: Sequence[declarations.Declaration] = ()
        self._declarations_synced = False
        self._generation: int | None = None  # None: everything must be read
        self._changed: set[str] = set()  # ids that the log named since the last reading
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load everything and follow the changes. A database that cannot be used is a `problem`, tried until it can.

        Raises ImproperlyConfigured (a DeclarationError above all) where a person must act first.
        """
        self._declarations = declarations.parse(conf.settings.APPS)
        self._hub.on_control(announcements.COMMAND, self._on_changed)
        first_try: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._follow(first_try), name="applications loader")
        try:
            async with asyncio.timeout(self._start_seconds):
                await first_try
        except TimeoutError:
            self.problem = f"The database has not answered for {self._start_seconds:g} seconds."
            logger.warning("%s The server runs without applications until it does.", self.problem)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _on_changed(self, app: str, body: bytes) -> None:
        self._changed.add(app)
        self._wake.set()

    async def _follow(self, first_try: asyncio.Future[None]) -> None:
        """One task reads everything, so an older reading never overwrites a newer one.

        `first_try` gets the outcome of the first attempt; it is done already when nobody waits for it any more.
        """
        failures = 0
        while True:
            try:
                await self._catch_up()
            except Exception as error:  # noqa: BLE001  (whatever it is: reported, and tried again)
                if isinstance(error, ImproperlyConfigured) and not first_try.done():
                    first_try.set_exception(error)
                    return
                self._failed(error, again=failures > 0)
                failures += 1
            else:
                if failures:
                    logger.info("The applications are loaded (failed attempts before: %d).", failures)
                self.problem, self.loaded, failures = None, True, 0
            if not first_try.done():
                first_try.set_result(None)
            await (self._pause(failures) if failures else self._wait_for_change())

    async def _catch_up(self) -> None:
        self._wake.clear()
        changed, self._changed = self._changed, set()
        if self._generation is None:
            await self._load_everything()
        elif changed:
            found = await _ask(_read_some, changed)
            for app_id in changed:
                self._apply(app_id, found.get(app_id))
        elif await _ask(models.Generation.current) != self._generation:
            await self._load_everything()

    async def _load_everything(self) -> None:
        if not self._declarations_synced:
            await _ask(declared.sync, self._declarations)
            self._declarations_synced = True
        generation, found = await _ask(_read_everything)
        for app_id in found.keys() | {application.id for application in self._registry.all()}:
            self._apply(app_id, found.get(app_id))
        self._generation = generation

    def _apply(self, app_id: str, new: registry.Application | None) -> None:
        """Put one application into the registry, and close the connections that must not go on."""
        old = self._registry.by_id(app_id)
        if new == old:
            return
        if new is None:
            self._registry.remove(app_id)
            self._hub.close_application(app_id, NOT_FOUND, f"Application {app_id} does not exist any more")
            return
        self._registry.put(new)
        if old is None:
            return
        if not new.enabled:
            self._hub.close_application(app_id, DISABLED, f"Application {app_id} is disabled")
        elif new.key != old.key:
            self._hub.close_application(app_id, NOT_FOUND, f"The key of application {app_id} was replaced")

    def _failed(self, error: Exception, *, again: bool) -> None:
        self._generation = None
        known = isinstance(error, (errors.ApplicationsError, ImproperlyConfigured))
        self.problem = str(error) if known else f"The applications cannot be loaded: {type(error).__name__}: {error}"
        if not again:
            logger.warning("%s Trying again until it works.", self.problem, exc_info=None if known else error)

    async def _wait_for_change(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._compare_seconds):
                await self._wake.wait()

    async def _pause(self, failures: int) -> None:
        pause = min(self._first_retry_seconds * 2 ** min(failures - 1, 10), LAST_RETRY_SECONDS)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (so that the workers do not ask all at once)


async def _ask(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Raises DatabaseUnusableError."""
    return await database.run(database.explained()(function), *args, **kwargs)


def _read_everything() -> tuple[int | None, dict[str, registry.Application]]:
    """The generation is read first: a change that comes between the two is seen twice rather than never."""
    generation = models.Generation.current()
    return generation, _snapshots(models.Application.objects.all())


def _read_some(app_ids: Collection[str]) -> dict[str, registry.Application]:
    return _snapshots(models.Application.objects.filter(app_id__in=app_ids))


def _snapshots(rows: QuerySet[models.Application]) -> dict[str, registry.Application]:
    return {
        row.app_id: snapshot(row, row.webhooks.all(), row.rules.all())
        for row in rows.prefetch_related("webhooks", "rules")
    }
