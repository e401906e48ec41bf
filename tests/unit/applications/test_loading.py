"""The registry of a worker follows the database."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from django import db
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from fanfare.applications import database, errors, loading, registry, rules
from fanfare.applications.models import Application
from fanfare.engine import current, interface
from fanfare.engine.local.engine import LocalEngine
from fanfare.runtime.supervisor import State
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)

NEVER_S = 3600.0  # no test reaches this comparison: changes come through the log
OFTEN_S = 0.02


class Worker:
    def __init__(self, log: fakes.Log) -> None:
        self.registry = registry.Registry()
        self.hub = fakes.Hub(log)
        self.loader: loading.Loader

    @asynccontextmanager
    async def running(self, **options: float) -> AsyncIterator[loading.Loader]:
        self.loader = loading.Loader(self.registry, self.hub, **{"compare_seconds": NEVER_S, **options})
        await self.loader.start()
        try:
            yield self.loader
        finally:
            await self.loader.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
    return database.run(function, *args, **kwargs)


create = Application.objects.create


def change(app_id: str, **values: object) -> Awaitable[Any]:
    return run(Application.objects.filter(app_id=app_id).update, **values)


class TestSnapshot:
    def test_empty_limit_is_the_default(self) -> None:
        row = create(name="Shop", max_connections=5, allowed_origins="A.example\n*.b.example")
        application = loading.snapshot(row)
        assert application.limits == registry.Limits(max_connections=5)
        assert application.allowed_origins == ("a.example", "*.b.example")
        assert (application.id, application.key, application.secret) == (row.app_id, row.key, row.secret)

    def test_switches_and_durations_are_read(self) -> None:
        row = create(name="Shop", subscription_counts=True, authorization_timeout=30, cache_seconds=60)
        application = loading.snapshot(row)
        assert application.subscription_counts
        assert (application.authorization_timeout, application.cache_seconds) == (30, 60)
        default = loading.snapshot(create(name="Other"))
        assert default == registry.Application(default.id, default.key, default.secret, "Other")

    def test_previous_secret_is_valid_until_its_end(self) -> None:
        until = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
        row = create(name="Shop", secret="new", previous_secret="old", previous_secret_until=until)
        application = loading.snapshot(row)
        assert application.secrets(until.timestamp() - 1) == ("new", "old")
        assert application.secrets(until.timestamp()) == ("new",)

    def test_previous_secret_without_an_end_stays_valid(self) -> None:
        application = loading.snapshot(create(name="Shop", secret="new", previous_secret="old"))
        assert application.secrets(1e12) == ("new", "old")

    def test_webhooks_are_read_oldest_first(self) -> None:
        row = create(name="Shop")
        first = row.webhooks.create(url="https://b.example/", enabled=False)
        second = row.webhooks.create(
            url="https://a.example/",
            event_types=["cache_miss"],
            channel_prefix="private-",
            headers={"A": "b"},
            batching=True,
        )
        assert loading.snapshot(row, row.webhooks.all()).webhooks == (
            registry.Webhook(first.pk, "https://b.example/", enabled=False),
            registry.Webhook(
                second.pk, "https://a.example/", frozenset({"cache_miss"}), "private-", (("A", "b"),), batching=True
            ),
        )

    def test_rules_keep_their_order(self) -> None:
        row = create(name="Shop")
        row.rules.create(pattern="*", position=2, history_size=10, history_seconds=60)
        row.rules.create(
            pattern="orders-*",
            position=1,
            history_size=200_000,
            history_seconds=86_400,
            rewind_count=20,
            rewind_seconds=30,
            client_events=True,
            max_replay_entries=50_000,
            max_replay_bytes=33_554_432,
        )
        assert tuple(loading.snapshot(row, channel_rules=row.rules.all()).rules) == (
            rules.Rule("orders-*", 200_000, 86_400, 20, 30, True, 50_000, 33_554_432),
            rules.Rule("*", 10, 60),
        )
        assert not tuple(loading.snapshot(row).rules)

    def test_fetched_application_has_its_rules(self) -> None:
        create(name="Shop", app_id="42").rules.create(pattern="orders-*", history_size=10, history_seconds=60)
        for application in (loading.fetch("42"), loading.fetch_default()):
            assert application is not None
            rule = application.rules.of("orders-7")
            assert rule is not None
            assert rule.retention == (10, 60)

    def test_snapshot_asks_no_database(self) -> None:
        row = create(name="Shop")
        with CaptureQueriesContext(db.connection) as asked:
            loading.snapshot(row)
        assert not asked.captured_queries

    def test_application_is_fetched_by_its_id(self) -> None:
        create(name="Shop", app_id="42")
        application = loading.fetch("42")
        assert application is not None
        assert application.name == "Shop"
        assert loading.fetch("43") is None

    def test_default_application_is_the_oldest_enabled_one(self) -> None:
        assert loading.fetch_default() is None
        create(name="Off", enabled=False)
        create(name="Zebra")
        create(name="Ant")
        application = loading.fetch_default()
        assert application is not None
        assert application.name == "Zebra"

    def test_setting_names_another_default(self, settings: Settings) -> None:
        create(name="First")
        create(name="Second", app_id="42")
        settings.FANFARE = {"DEFAULT_APP": "42"}
        application = loading.fetch_default()
        assert application is not None
        assert application.name == "Second"

    def test_default_that_does_not_exist_is_a_configuration_error(self, settings: Settings) -> None:
        settings.FANFARE = {"DEFAULT_APP": "42"}
        with pytest.raises(errors.DefaultApplicationError, match="'42'"):
            loading.fetch_default()


class TestFollowing:
    async def test_all_applications_are_loaded_when_start_returns(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1", key="k")
        worker = Worker(log)
        async with worker.running() as loader:
            application = worker.registry.by_key("k")
            assert application is not None
            assert application.id == "1"
            assert loader.loaded
            assert loader.problem is None

    async def test_new_application_is_added(self, log: fakes.Log) -> None:
        worker = Worker(log)
        async with worker.running():
            await run(create, name="Shop", app_id="1")
            await until(lambda: worker.registry.by_id("1"))

    async def test_changed_rules_reach_a_running_worker(self, log: fakes.Log) -> None:
        row = await run(create, name="Shop", app_id="1")
        worker = Worker(log)

        def rule() -> rules.Rule | None:
            application = worker.registry.by_id("1")
            return application.rules.of("orders-7") if application else None

        async with worker.running():
            assert rule() is None
            await run(row.rules.create, pattern="orders-*")
            await until(rule)
            await run(row.rules.all().delete)
            await until(lambda: rule() is None)
            assert worker.hub.closed == []

    @pytest.mark.parametrize(("grace_s", "code"), [(60.0, 4100), (0.0, 4003)])
    async def test_disabling_closes_connections_with_4100_within_the_grace_and_else_with_4003(
        self, log: fakes.Log, grace_s: float, code: int
    ) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        worker.registry._grace_s = grace_s
        async with worker.running():
            await change("1", enabled=False)
            await until(lambda: worker.hub.closed)
            application = worker.registry.by_id("1")
            assert application is not None
            assert not application.enabled
            assert [(app, closed) for app, closed, _ in worker.hub.closed] == [("1", code)]

    async def test_deleting_closes_connections_with_4001(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running():
            await run(Application.objects.all().delete)
            await until(lambda: worker.hub.closed)
            assert worker.registry.all() == []
            assert [(app, code) for app, code, _ in worker.hub.closed] == [("1", 4001)]

    async def test_new_key_closes_the_connections_of_the_old_one(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1", key="old")
        worker = Worker(log)
        async with worker.running():
            await change("1", key="new")
            await until(lambda: worker.registry.by_key("new"))
            assert worker.registry.by_key("old") is None
            assert [(app, code) for app, code, _ in worker.hub.closed] == [("1", 4001)]

    @pytest.mark.parametrize("values", [{"secret": "new"}, {"name": "New"}, {"max_connections": 5}])
    async def test_other_changes_close_no_connections(self, log: fakes.Log, values: dict[str, Any]) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running():
            before = worker.registry.by_id("1")
            await change("1", **values)
            await until(lambda: worker.registry.by_id("1") != before)
            assert worker.hub.closed == []

    async def test_enabling_closes_no_connections(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1", enabled=False)
        worker = Worker(log)
        async with worker.running():
            await change("1", enabled=True)
            await until(lambda: (found := worker.registry.by_id("1")) and found.enabled)
            assert worker.hub.closed == []

    async def test_change_without_a_log_entry_is_found_by_its_generation(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running(compare_seconds=OFTEN_S):
            log.is_down = True
            await run(create, name="Another", app_id="2")
            await change("1", enabled=False)
            await until(lambda: worker.registry.by_id("2"))
            await until(lambda: worker.hub.closed)
            await run(Application.objects.filter(app_id="2").delete)
            await until(lambda: worker.registry.by_id("2") is None)

    async def test_changed_webhooks_reach_a_running_worker(self, log: fakes.Log) -> None:
        row = await run(create, name="Shop", app_id="1")
        worker = Worker(log)

        def urls() -> list[str]:
            application = worker.registry.by_id("1")
            return [webhook.url for webhook in application.webhooks] if application else []

        async with worker.running():
            endpoint = await run(row.webhooks.create, url="https://example.com/")
            await until(lambda: urls() == ["https://example.com/"])
            endpoint.url = "https://example.org/"
            await run(endpoint.save)
            await until(lambda: urls() == ["https://example.org/"])
            await run(endpoint.delete)
            await until(lambda: urls() == [])
            assert worker.hub.closed == []

    async def test_all_workers_follow(self, log: fakes.Log) -> None:
        first, second = Worker(log), Worker(log)
        async with first.running(), second.running():
            await run(create, name="Shop", app_id="1")
            await until(lambda: first.registry.by_id("1") and second.registry.by_id("1"))

    async def test_stop_is_idempotent_and_leaves_no_task(self, log: fakes.Log) -> None:
        worker = Worker(log)
        async with worker.running() as loader:
            pass
        await loader.stop()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    async def test_change_reaches_a_worker_through_the_real_log(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        engine = LocalEngine(tmp_path_factory.mktemp("engine"))
        monkeypatch.setattr(current, "current", lambda: engine)
        worker = Worker(log)

        def deliver(entries: Any) -> None:
            for entry in entries:
                assert entry.kind == interface.Kind.CONTROL
                worker.hub.deliver(entry.channel, entry.app, entry.body)

        await engine.open(deliver, lambda reason: None)
        try:
            async with worker.running():
                await run(create, name="Shop", app_id="1")
                await until(lambda: worker.registry.by_id("1"))
        finally:
            await engine.close()


class TestFailures:
    async def test_database_without_migrations_is_a_problem_until_it_is_migrated(
        self, log: fakes.Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        await run(call_command, "migrate", "fanfare", "zero", verbosity=0)
        worker = Worker(log)
        try:
            with caplog.at_level(logging.INFO, "fanfare.applications"):
                async with worker.running(first_retry_seconds=OFTEN_S) as loader:
                    assert loader.problem == "The database is not migrated: run `python manage.py migrate`."
                    assert not loader.loaded
                    assert worker.registry.all() == []
                    await run(call_command, "migrate", verbosity=0)
                    await until(lambda: loader.loaded)
                    assert loader.problem is None
        finally:
            await run(call_command, "migrate", verbosity=0)
        assert caplog.text.count("not migrated") == 1
        assert "The applications are loaded" in caplog.text

    async def test_applications_stay_while_the_database_is_away(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running(compare_seconds=OFTEN_S, first_retry_seconds=OFTEN_S) as loader:
            with monkeypatch.context() as away:
                # Each reading opens a connection of its own, so the next one finds no folder.
                away.setitem(db.connections.settings["default"], "NAME", str(tmp_path / "absent" / "db.sqlite3"))
                await until(lambda: loader.problem)
                assert loader.problem.startswith("The database cannot be used: ")
                assert loader.loaded
                assert worker.registry.by_id("1") is not None
            await until(lambda: loader.problem is None)

    async def test_start_does_not_wait_for_a_slow_database(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await run(create, name="Shop", app_id="1")
        answers = threading.Event()
        read = loading._read

        def slow() -> Any:
            answers.wait(10)
            return read()

        monkeypatch.setattr(loading, "_read", slow)
        worker = Worker(log)
        async with worker.running(start_seconds=OFTEN_S) as loader:
            assert loader.problem == "The database has not answered for 0.02 seconds."
            answers.set()
            await until(lambda: loader.loaded)
            assert loader.problem is None
            assert worker.registry.by_id("1") is not None

    async def test_unexpected_failure_is_logged_with_its_traceback_and_tried_again(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        read = loading._read
        attempts = 0

        def fails_twice() -> Any:
            nonlocal attempts
            attempts += 1
            if attempts < 3:
                raise ZeroDivisionError("a bug")
            return read()

        monkeypatch.setattr(loading, "_read", fails_twice)
        worker = Worker(log)
        async with worker.running(first_retry_seconds=OFTEN_S) as loader:
            assert loader.problem == "The applications cannot be loaded: ZeroDivisionError: a bug"
            await until(lambda: loader.loaded)
        assert "Traceback" in caplog.text

    async def test_database_that_stops_answering_is_a_problem_until_it_answers(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        await run(create, name="Shop", app_id="1")
        answers = threading.Event()
        read = loading._generation
        worker = Worker(log)

        def hangs() -> Any:
            answers.wait(10)
            return read()

        async with worker.running(compare_seconds=OFTEN_S, first_retry_seconds=OFTEN_S, answer_seconds=0.5) as loader:
            await until(lambda: loader.loaded)
            [status] = loader.statuses
            assert status.state is State.RUNNING
            with monkeypatch.context() as hanging:
                hanging.setattr(loading, "_generation", hangs)
                await until(lambda: loader.problem)
                assert loader.problem == "The database has not answered for 0.5 seconds."
                assert (status.state, status.error.partition(":")[0]) == (State.PAUSING, "DatabaseUnusableError")
                assert worker.registry.by_id("1") is not None
                await run(Application.objects.count)  # other readings have threads of their own
            answers.set()
            loader._answer_seconds = 5.0
            await until(lambda: loader.problem is None)
            assert status.state is State.RUNNING
        assert caplog.text.count("has not answered") == 1

    async def test_row_that_cannot_be_read_does_not_hide_the_others(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        await run(create, name="Good", app_id="1")
        await run(create, name="Bad", app_id="2")
        snapshot = loading.snapshot
        worker = Worker(log)

        def choosy(row: Application, *rest: Any) -> registry.Application:
            if row.app_id == "2":
                raise ValueError("a value that no validation has seen: \udcff")
            return snapshot(row, *rest)

        async with worker.running() as loader:
            with monkeypatch.context() as broken:
                broken.setattr(loading, "snapshot", choosy)
                await run(lambda: Application.objects.all().update(client_events=True))
                await until(lambda: (found := worker.registry.by_id("1")) and found.client_events)
                await until(lambda: loader.problem)
                assert loader.problem == "These applications cannot be read from the database: 2."
                assert worker.registry.by_id("2") is not None
                assert worker.hub.closed == []
            assert "Application 2 cannot be read from the database: ValueError" in caplog.text
            assert "\udcff" not in caplog.text
            await change("2", name="Mended")
            await until(lambda: loader.problem is None)

    async def test_failing_close_of_one_application_does_not_keep_others_out_of_date(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for app_id in ("1", "2", "3"):
            await run(create, name=f"Shop {app_id}", app_id=app_id)
        worker = Worker(log)
        close = worker.hub.close_application

        def fails_for_one(app: str, code: int, message: str) -> None:
            if app == "2":
                raise RuntimeError("a connection that cannot be closed")
            close(app, code, message)

        monkeypatch.setattr(worker.hub, "close_application", fails_for_one)
        async with worker.running() as loader:
            await run(lambda: Application.objects.all().update(enabled=False))
            await until(lambda: {closed.app for closed in worker.hub.closed} == {"1", "3"})
            await until(lambda: not any(application.enabled for application in worker.registry.all()))
            assert loader.problem is None
        assert "A change of application 2 cannot be applied" in caplog.text

    async def test_applications_are_read_where_they_are_written_and_not_from_a_replica(
        self, log: fakes.Log, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        replica = {**db.connections.settings["default"], "NAME": tmp_path / "absent" / "replica.sqlite3"}
        monkeypatch.setitem(db.connections.settings, "replica", replica)
        settings.DATABASE_ROUTERS = [ReadsFromReplica()]
        await run(lambda: Application.objects.using("default").create(name="Shop", app_id="1"))
        worker = Worker(log)
        async with worker.running(compare_seconds=OFTEN_S) as loader:
            assert loader.problem is None
            assert worker.registry.by_id("1") is not None

    async def test_failed_announcement_raises_nothing_after_the_commit(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(log, "append_blocking", broken)
        await run(create, name="Shop", app_id="1")
        assert "The announcement of changed applications failed" in caplog.text


class ReadsFromReplica:
    """A router of a project: reads go to a database that cannot be opened here."""

    def db_for_read(self, model: object, **hints: object) -> str:
        return "replica"

    def db_for_write(self, model: object, **hints: object) -> str:
        return "default"


class TestDeclarations:
    async def test_worker_starts_with_the_declared_applications(self, log: fakes.Log, settings: Settings) -> None:
        settings.FANFARE = {"APPS": "1:key1:secret1"}
        worker = Worker(log)
        async with worker.running():
            assert worker.registry.by_key("key1") is not None

    async def test_wrong_declaration_stops_the_start(self, log: fakes.Log, settings: Settings) -> None:
        settings.FANFARE = {"APPS": "1:key1"}
        with pytest.raises(ImproperlyConfigured, match="entry 1"):
            await loading.Loader(registry.Registry(), fakes.Hub(log)).start()

    async def test_conflict_with_the_database_stops_the_start(self, log: fakes.Log, settings: Settings) -> None:
        await run(create, name="By hand", key="key1")
        settings.FANFARE = {"APPS": "1:key1:secret1"}
        with pytest.raises(ImproperlyConfigured, match="has the same key"):
            await loading.Loader(registry.Registry(), fakes.Hub(log)).start()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
