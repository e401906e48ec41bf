"""A project with two databases: each has an outbox for its own transactions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections, transaction

from fanfare import publish
from fanfare.applications import database
from fanfare.applications import models as application_models
from fanfare.engine.local import engine as local_engine
from fanfare.integration import models, outbox, relay
from tests.unit.engine import workers
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "second"])


@pytest.fixture(scope="module", autouse=True)
def second(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Its settings."""
    name = str(tmp_path_factory.mktemp("second") / "second.sqlite3")
    settings = connections.settings["second"] = {**connections.settings["default"], "NAME": name}
    with django_db_blocker.unblock():
        call_command("migrate", database="second", verbosity=0)
        yield settings
        connections["second"].close()
    del connections["second"]
    del connections.settings["second"]


@pytest.fixture(autouse=True)
def default(application: application_models.Application) -> application_models.Application:
    return application


def left(using: str) -> list[str]:
    return [row.event for row in models.OutboxEvent.objects.using(using).order_by("pk")]


def test_an_event_waits_in_the_database_whose_transaction_it_belongs_to(log: recording.Recording) -> None:
    with transaction.atomic(), transaction.atomic(using="second"):
        publish("orders", "here", 1, outbox=True)
        publish("orders", "there", 1, outbox=True, using="second")
        assert (left("default"), left("second")) == (["here"], ["there"])
    assert sorted(log.names) == ["here", "there"]
    assert (left("default"), left("second")) == ([], [])


def test_the_rollback_of_one_is_not_that_of_the_other(log: recording.Recording) -> None:
    with transaction.atomic():
        publish("orders", "here", 1, outbox=True)
        with pytest.raises(ZeroDivisionError), transaction.atomic(using="second"):
            publish("orders", "there", 1, outbox=True, using="second")
            _ = 1 / 0
    assert log.names == ["here"]


async def test_the_relay_looks_at_each(tmp_path: Path) -> None:
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


def test_a_replica_has_none(second: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(second, "TEST", {**second["TEST"], "MIRROR": "default"})
    assert outbox.databases() == ["default"]
