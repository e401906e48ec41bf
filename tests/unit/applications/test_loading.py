"""How a worker's registry comes to agree with the database, and stays so."""

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
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)

NEVER_S = 3600.0  # a comparison that no test reaches, so that only the log can have told
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
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
    return database.run(function, *args, **kwargs)


create = Application.objects.create


def change(app_id: str, **values: object) -> Awaitable[Any]:
    return run(Application.objects.filter(app_id=app_id).update, **values)


class TestSnapshot:
    def test_an_empty_limit_is_the_default_and_a_chosen_one_is_kept(self) -> None:
        row = create(name="Shop", max_connections=5, allowed_origins="A.example\n*.b.example")
        application = loading.snapshot(row)
        assert application.limits == registry.Limits(max_connections=5)
        assert application.allowed_origins == ("a.example", "*.b.example")
        assert (application.id, application.key, application.secret) == (row.app_id, row.key, row.secret)

    def test_the_switches_and_durations_are_kept(self) -> None:
        row = create(name="Shop", subscription_counts=True, authorization_timeout=30, cache_seconds=60)
        application = loading.snapshot(row)
        assert application.subscription_counts
        assert (application.authorization_timeout, application.cache_seconds) == (30, 60)
        default = loading.snapshot(create(name="Other"))
        assert default == registry.Application(default.id, default.key, default.secret, "Other")

    def test_an_old_secret_is_good_until_its_time(self) -> None:
        until = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
        row = create(name="Shop", secret="new", previous_secret="old", previous_secret_until=until)
        application = loading.snapshot(row)
        assert application.secrets(until.timestamp() - 1) == ("new", "old")
        assert application.secrets(until.timestamp()) == ("new",)

    def test_an_old_secret_without_a_time_is_good_for_ever(self) -> None:
        application = loading.snapshot(create(name="Shop", secret="new", previous_secret="old"))
        assert application.secrets(1e12) == ("new", "old")

    def test_webhooks_are_the_oldest_first_and_know_their_events(self) -> None:
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

    def test_rules_are_those_given_in_their_order(self) -> None:
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

    def test_a_publisher_without_a_registry_knows_the_rules(self) -> None:
        create(name="Shop", app_id="42").rules.create(pattern="orders-*", history_size=10, history_seconds=60)
        for application in (loading.fetch("42"), loading.fetch_default()):
            assert application is not None
            rule = application.rules.of("orders-7")
            assert rule is not None
            assert rule.retention == (10, 60)

    def test_it_asks_no_database_so_that_an_event_loop_may_take_one(self) -> None:
        row = create(name="Shop")
        with CaptureQueriesContext(db.connection) as asked:
            loading.snapshot(row)
        assert not asked.captured_queries

    def test_one_application_is_fetched_by_its_id(self) -> None:
        create(name="Shop", app_id="42")
        application = loading.fetch("42")
        assert application is not None
        assert application.name == "Shop"
        assert loading.fetch("43") is None

    def test_the_default_application_is_the_oldest_enabled_one(self) -> None:
        assert loading.fetch_default() is None
        create(name="Off", enabled=False)
        create(name="Zebra")
        create(name="Ant")
        application = loading.fetch_default()
        assert application is not None
        assert application.name == "Zebra"

    def test_the_setting_names_another_default(self, settings: Settings) -> None:
        create(name="First")
        create(name="Second", app_id="42")
        settings.FANFARE = {"DEFAULT_APP": "42"}
        application = loading.fetch_default()
        assert application is not None
        assert application.name == "Second"

    def test_a_default_that_does_not_exist_is_a_wrong_configuration(self, settings: Settings) -> None:
        settings.FANFARE = {"DEFAULT_APP": "42"}
        with pytest.raises(errors.DefaultApplicationError, match="'42'"):
            loading.fetch_default()


class TestFollowing:
    async def test_everything_is_there_when_the_start_returns(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1", key="k")
        worker = Worker(log)
        async with worker.running() as loader:
            application = worker.registry.by_key("k")
            assert application is not None
            assert application.id == "1"
            assert loader.loaded
            assert loader.problem is None

    async def test_a_new_application_is_taken_up(self, log: fakes.Log) -> None:
        worker = Worker(log)
        async with worker.running():
            await run(create, name="Shop", app_id="1")
            await until(lambda: worker.registry.by_id("1"))

    async def test_a_rule_reaches_a_running_worker(self, log: fakes.Log) -> None:
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

    async def test_disabling_closes_the_connections_with_4003(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running():
            await change("1", enabled=False)
            await until(lambda: worker.hub.closed)
            application = worker.registry.by_id("1")
            assert application is not None
            assert not application.enabled
            assert [(app, code) for app, code, _ in worker.hub.closed] == [("1", 4003)]

    async def test_deleting_closes_the_connections_with_4001(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running():
            await run(Application.objects.all().delete)
            await until(lambda: worker.hub.closed)
            assert worker.registry.all() == []
            assert [(app, code) for app, code, _ in worker.hub.closed] == [("1", 4001)]

    async def test_a_new_key_closes_the_connections_of_the_old_one(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1", key="old")
        worker = Worker(log)
        async with worker.running():
            await change("1", key="new")
            await until(lambda: worker.registry.by_key("new"))
            assert worker.registry.by_key("old") is None
            assert [(app, code) for app, code, _ in worker.hub.closed] == [("1", 4001)]

    @pytest.mark.parametrize("values", [{"secret": "new"}, {"name": "New"}, {"max_connections": 5}])
    async def test_other_changes_leave_the_connections_alone(self, log: fakes.Log, values: dict[str, Any]) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running():
            before = worker.registry.by_id("1")
            await change("1", **values)
            await until(lambda: worker.registry.by_id("1") != before)
            assert worker.hub.closed == []

    async def test_enabling_again_closes_nothing(self, log: fakes.Log) -> None:
        await run(create, name="Shop", app_id="1", enabled=False)
        worker = Worker(log)
        async with worker.running():
            await change("1", enabled=True)
            await until(lambda: (found := worker.registry.by_id("1")) and found.enabled)
            assert worker.hub.closed == []

    async def test_a_change_that_the_log_did_not_carry_is_found_by_its_generation(self, log: fakes.Log) -> None:
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

    async def test_a_webhook_is_taken_up_and_given_up(self, log: fakes.Log) -> None:
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

    async def test_every_worker_follows(self, log: fakes.Log) -> None:
        first, second = Worker(log), Worker(log)
        async with first.running(), second.running():
            await run(create, name="Shop", app_id="1")
            await until(lambda: first.registry.by_id("1") and second.registry.by_id("1"))

    async def test_stopping_twice_is_harmless_and_nothing_follows_afterwards(self, log: fakes.Log) -> None:
        worker = Worker(log)
        async with worker.running() as loader:
            pass
        await loader.stop()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    async def test_a_change_goes_through_the_real_log(
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


class TestTrouble:
    async def test_a_database_that_is_not_migrated_is_a_problem_and_not_a_crash(
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

    async def test_a_database_that_goes_away_later_is_a_problem_and_the_applications_stay(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        await run(create, name="Shop", app_id="1")
        worker = Worker(log)
        async with worker.running(compare_seconds=OFTEN_S, first_retry_seconds=OFTEN_S) as loader:
            with monkeypatch.context() as away:
                # Each question opens a connection of its own, so the next one finds no folder.
                away.setitem(db.connections.settings["default"], "NAME", tmp_path / "absent" / "db.sqlite3")
                await until(lambda: loader.problem)
                assert loader.problem == "The database cannot be used: unable to open database file."
                assert loader.loaded
                assert worker.registry.by_id("1") is not None
            await until(lambda: loader.problem is None)

    async def test_a_database_that_does_not_answer_does_not_hold_up_the_start(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await run(create, name="Shop", app_id="1")
        answers = threading.Event()
        read = loading._read_everything

        def slow() -> Any:
            answers.wait(10)
            return read()

        monkeypatch.setattr(loading, "_read_everything", slow)
        worker = Worker(log)
        async with worker.running(start_seconds=OFTEN_S) as loader:
            assert loader.problem == "The database has not answered for 0.02 seconds."
            answers.set()
            await until(lambda: loader.loaded)
            assert loader.problem is None
            assert worker.registry.by_id("1") is not None

    async def test_a_failure_that_nobody_foresaw_is_logged_with_its_traceback_and_tried_again(
        self, log: fakes.Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        read = loading._read_everything
        attempts = 0

        def fails_twice() -> Any:
            nonlocal attempts
            attempts += 1
            if attempts < 3:
                raise ZeroDivisionError("a bug")
            return read()

        monkeypatch.setattr(loading, "_read_everything", fails_twice)
        worker = Worker(log)
        async with worker.running(first_retry_seconds=OFTEN_S) as loader:
            assert loader.problem == "The applications cannot be loaded: ZeroDivisionError: a bug"
            await until(lambda: loader.loaded)
        assert "Traceback" in caplog.text


class TestDeclarations:
    async def test_a_worker_starts_with_the_declared_applications(self, log: fakes.Log, settings: Settings) -> None:
        settings.FANFARE = {"APPS": "1:key1:secret1"}
        worker = Worker(log)
        async with worker.running():
            assert worker.registry.by_key("key1") is not None

    async def test_a_mistake_stops_the_start(self, log: fakes.Log, settings: Settings) -> None:
        settings.FANFARE = {"APPS": "1:key1"}
        with pytest.raises(ImproperlyConfigured, match="entry 1"):
            await loading.Loader(registry.Registry(), fakes.Hub(log)).start()

    async def test_a_conflict_with_the_database_stops_the_start(self, log: fakes.Log, settings: Settings) -> None:
        await run(create, name="By hand", key="key1")
        settings.FANFARE = {"APPS": "1:key1:secret1"}
        with pytest.raises(ImproperlyConfigured, match="has the same key"):
            await loading.Loader(registry.Registry(), fakes.Hub(log)).start()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
