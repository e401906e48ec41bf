"""A project with two databases: each has an outbox for its own transactions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from fanfare import publish
from fanfare.applications import database
from fanfare.applications import models as application_models
from fanfare.engine.local import engine as local_engine
from fanfare.integration import models, outbox, relay
from tests.unit import second_database
from tests.unit.engine import workers
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "second"])


@pytest.fixture(scope="module", autouse=True)
def second(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Its settings."""
    with second_database.added(tmp_path_factory.mktemp("second"), django_db_blocker) as settings:
        yield settings


@pytest.fixture(autouse=True)
def default(application: application_models.Application) -> application_models.Application:
    return application


def left(using: str) -> list[str]:
    return [row.event for row in models.OutboxEvent.objects.using(using).order_by("pk")]


def test_event_waits_in_the_database_of_its_transaction(log: recording.Recording) -> None:
    with transaction.atomic(), transaction.atomic(using="second"):
        publish("orders", "here", 1, outbox=True)
        publish("orders", "there", 1, outbox=True, using="second")
        assert (left("default"), left("second")) == (["here"], ["there"])
    assert sorted(log.names) == ["here", "there"]
    assert (left("default"), left("second")) == ([], [])


def test_rollback_of_one_database_leaves_the_events_of_the_other(log: recording.Recording) -> None:
    with transaction.atomic():
        publish("orders", "here", 1, outbox=True)
        with pytest.raises(ZeroDivisionError), transaction.atomic(using="second"):
            publish("orders", "there", 1, outbox=True, using="second")
            _ = 1 / 0
    assert log.names == ["here"]


async def test_relay_sends_the_events_of_each_database(tmp_path: Path) -> None:
    def leave(using: str) -> None:
        with transaction.atomic(using=using):
            publish("orders", f"in {using}", 1, outbox=True, using=using)
            connections[using].run_on_commit.clear()

    worker = await workers.Worker(local_engine.LocalEngine(tmp_path / "engine")).open()
    try:
        assert outbox.databases() == ["default", "second"]
        for using in outbox.databases():
            await database.run(leave, using)
            relaying = relay.Outbox(worker.engine, using)
            await relaying.look()
            await relaying.look()
            assert await database.run(left, using) == []
        await worker.until(lambda: len(worker.entries) == 2, "both events")
    finally:
        await worker.engine.close()


def test_replica_has_no_outbox(second: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(second, "TEST", {**second["TEST"], "MIRROR": "default"})
    assert outbox.databases() == ["default"]
