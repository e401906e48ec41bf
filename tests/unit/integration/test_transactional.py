"""publish() in a transaction of the database that holds the log."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from django.db import connections, transaction
from pytest_django.fixtures import Settings

from fanfare import publish
from fanfare.applications import models as application_models
from fanfare.applications import test_environment
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.engine.local import engine as local_engine
from fanfare.engine.postgres import engine as postgres_engine
from fanfare.hub import traces
from fanfare.integration import appending, publishing, target, transactional
from tests.harness import postgresql
from tests.unit.engine.workers import Worker

pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])

SHOP = "shop"  # the alias of the database that holds the log


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        cluster.create("shop")
        cluster.create("other")
        yield cluster


@pytest.fixture(autouse=True)
def _shop(
    cluster: postgresql.Cluster, django_db_blocker: pytest.FixtureRequest, application: application_models.Application
) -> Iterator[None]:
    defaults = {"ATOMIC_REQUESTS": False, "AUTOCOMMIT": True, "CONN_HEALTH_CHECKS": False, "TIME_ZONE": None}
    connections.settings[SHOP] = {
        **connections.settings["default"],
        **defaults,
        "ENGINE": "django.db.backends.postgresql",
        "HOST": str(cluster.folder),
        "NAME": "shop",
        "USER": postgresql.SUPERUSER,
        "OPTIONS": {},
    }
    with django_db_blocker.unblock():  # type: ignore[attr-defined]
        yield
        connections[SHOP].close()
    del connections[SHOP]
    del connections.settings[SHOP]


@pytest.fixture
def url(cluster: postgresql.Cluster) -> str:
    """A log of this test alone."""
    return cluster.url("shop", schema=f"log_{uuid.uuid4().hex[:12]}")


@pytest.fixture
def engine(url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[postgres_engine.PostgresEngine]:
    settings.FANFARE = {"TRANSACTIONAL_PUBLISH": True}
    engine = postgres_engine.PostgresEngine(url)
    with engine.queries():
        pass  # creates the tables
    monkeypatch.setattr(target, "engine", lambda: engine)
    monkeypatch.setattr(test_environment, "is_active", lambda: False)
    monkeypatch.setattr(current, "is_replaced", lambda: False)
    yield engine
    asyncio.run(engine.close())


def rows(cluster: postgresql.Cluster, engine: postgres_engine.PostgresEngine, table: str) -> list[str]:
    """The channels of the entries in a table, in the order of their ids."""
    with contextlib.closing(cluster.connect("shop")) as connection:
        query = f"SELECT channel FROM {engine.address.schema}.{table} ORDER BY id"
        found = [channel for (channel,) in connection.execute(query).fetchall()]  # type: ignore[call-overload]
        return [channel for channel in found if channel != interface.PUBLISHERS]


def test_events_of_a_transaction_are_in_the_log_after_its_commit_in_their_order(
    cluster: postgresql.Cluster, engine: postgres_engine.PostgresEngine
) -> None:
    before = publishing.statistics()["published"]
    with transaction.atomic(using=SHOP):
        for number in range(3):
            publish(f"orders-{number}", "created", {"n": number}, using=SHOP)
        assert rows(cluster, engine, "log") == []
    assert rows(cluster, engine, "log") == ["orders-0", "orders-1", "orders-2"]
    assert rows(cluster, engine, "pending") == []
    assert publishing.statistics()["published"] == before + 3


@pytest.mark.parametrize("kind", ["worker", "program"])
def test_trace_of_an_event_names_the_function_that_published_it(
    kind: str, url: str, engine: postgres_engine.PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = traces.Recorder(engine)
    monkeypatch.setattr(traces, "here", recorder if kind == "worker" else None)
    monkeypatch.setattr(appending, "_sampler", traces.Sampler())

    async def work() -> None:
        worker = Worker(postgres_engine.PostgresEngine(url))
        await worker.open()
        await asyncio.to_thread(commit)
        await worker.until(lambda: commands(worker), "the record of the publisher", within=30)
        [command] = commands(worker)
        recorder.announced("", command.body)
        await worker.engine.close()

    def commit() -> None:
        with transaction.atomic(using=SHOP):
            publish("orders", "created", 1, using=SHOP)
            publish("orders", "created", 2, using=SHOP, idempotency_key="once")
        connections[SHOP].close()

    def commands(worker: Worker) -> list[interface.Entry]:
        return [entry for entry in worker.entries if entry.channel == interface.PUBLISHERS]

    asyncio.run(work())
    record = recorder.record((0, 1))["publication"]
    assert record["began"] <= record["committed"]
    assert (record["channel"], record["publisher"]["by"]) == ("orders", "publish()")
    assert "commit" in record["publisher"]["caller"]


def test_rollback_leaves_nothing(cluster: postgresql.Cluster, engine: postgres_engine.PostgresEngine) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=SHOP):
        publish("orders", "created", 1, using=SHOP)
        _ = 1 / 0
    with transaction.atomic(using=SHOP):
        publish("kept", "created", 1, using=SHOP)
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=SHOP):
            publish("rolled-back", "created", 1, using=SHOP)
            _ = 1 / 0
    assert rows(cluster, engine, "log") == ["kept"]
    assert rows(cluster, engine, "pending") == []


def test_events_of_a_process_that_ends_after_its_commit_are_moved_by_a_worker_once(
    cluster: postgresql.Cluster, url: str, engine: postgres_engine.PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactional.Move, "__call__", lambda self: None)
    with transaction.atomic(using=SHOP):
        publish("news", "created", {"id": 1}, using=SHOP, idempotency_key="once")
    assert rows(cluster, engine, "log") == []
    assert rows(cluster, engine, "pending") == ["news"]

    async def work() -> None:
        worker = Worker(postgres_engine.PostgresEngine(url))
        worker.engine.listen("7", "news", True)
        await worker.open(listening=False)
        await worker.until(lambda: worker.bodies("news"), "the event", within=10)
        await worker.engine.close()

    asyncio.run(work())
    assert rows(cluster, engine, "log") == ["news"]
    assert rows(cluster, engine, "pending") == []


def test_event_stays_when_the_log_cannot_be_written_after_the_commit(
    cluster: postgresql.Cluster,
    engine: postgres_engine.PostgresEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> int:
        raise engine_errors.EngineUnavailable("the pool is exhausted")

    with monkeypatch.context() as away:
        away.setattr(engine, "move_pending", fail)
        with transaction.atomic(using=SHOP):
            publish("orders", "created", 1, using=SHOP)
    assert "A worker will move the events" in caplog.text
    assert engine.move_pending() == 1
    assert rows(cluster, engine, "log") == ["orders"]


def test_transaction_of_another_database_is_refused(
    cluster: postgresql.Cluster, engine: postgres_engine.PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = postgres_engine.PostgresEngine(cluster.url("other", schema=engine.address.schema))
    monkeypatch.setattr(target, "engine", lambda: elsewhere)
    with pytest.raises(engine_errors.EngineMisconfigured, match="not in the database"), transaction.atomic(using=SHOP):
        publish("orders", "created", 1, using=SHOP)
    asyncio.run(elsewhere.close())


def test_engine_without_transactions_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    engine: postgres_engine.PostgresEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target, "engine", lambda: local_engine.LocalEngine(tmp_path_factory.mktemp("log")))
    with pytest.raises(engine_errors.EngineMisconfigured, match="FANFARE_OUTBOX"), transaction.atomic(using=SHOP):
        publish("orders", "created", 1, using=SHOP)


def test_long_transaction_delays_no_other_publisher(
    cluster: postgresql.Cluster, engine: postgres_engine.PostgresEngine
) -> None:
    """It holds neither the log's lock nor a place in the order."""
    with contextlib.closing(cluster.connect("shop")) as other, other.transaction():

        def execute(statement: str, values: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
            other.execute(statement, values)  # type: ignore[call-overload]
            return []

        engine.pending.write(execute, [publishing.prepare("slow", "created", 1)])
        with transaction.atomic(using=SHOP):
            publish("quick", "created", 1, using=SHOP)
        assert rows(cluster, engine, "log") == ["quick"]
    assert engine.move_pending() == 1
    assert rows(cluster, engine, "log") == ["quick", "slow"]
