"""What processes that died have left in the outbox, and what becomes of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from django.db import OperationalError, connections, transaction
from django.utils import timezone

from fanfare import decrypt, publish
from fanfare.applications import database
from fanfare.applications import models as application_models
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.engine.local import engine as local_engine
from fanfare.integration import models, outbox, publishing, relay, target
from tests.harness import waiting
from tests.unit.engine import workers
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True)

DEFAULT = "default"


@pytest.fixture(autouse=True)
def default(application: application_models.Application) -> application_models.Application:
    return application


class Counting:
    """What the counters grow by."""

    def __init__(self) -> None:
        self._before = publishing.statistics()

    def __getitem__(self, name: str) -> int:
        return publishing.statistics()[name] - self._before[name]


@pytest.fixture
def grown() -> Counting:
    return Counting()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[workers.Worker]:
    worker = await workers.Worker(local_engine.LocalEngine(tmp_path / "engine")).open()
    yield worker
    await worker.engine.close()


@pytest.fixture
def relaying(worker: workers.Worker) -> relay.Outbox:
    return relay.Outbox(worker.engine, DEFAULT)


async def look_twice(relaying: relay.Outbox) -> None:
    """The first look leaves what it finds to the process that wrote it."""
    await relaying.look()
    await relaying.look()


async def leave(*events: str, channel: str | None = "orders", data: str = "data", **more: Any) -> None:
    """As a process that dies right after its commit."""

    def write() -> None:
        with transaction.atomic():
            for event in events:
                publish(channel, event, data, outbox=True, **more)
            connections[DEFAULT].run_on_commit.clear()

    await database.run(write)


async def rows() -> list[models.OutboxEvent]:
    return await database.run(lambda: list(models.OutboxEvent.objects.order_by("pk")))


async def left() -> list[tuple[str, str]]:
    return [(row.event, row.reason) for row in await rows()]


async def age(seconds: float) -> None:
    born = timezone.now() - dt.timedelta(seconds=seconds)
    await database.run(lambda: models.OutboxEvent.objects.update(created_at=born))


def names(worker: workers.Worker) -> list[str]:
    return [orjson.loads(entry.body)["event"] for entry in worker.entries]


async def told(worker: workers.Worker, *expected: str) -> None:
    """Exactly these came, in this order."""
    await worker.publish("end", orjson.dumps({"event": "end"}))
    await worker.until(lambda: "end" in names(worker), "what was sent before")
    assert names(worker) == [*expected, "end"]


# -- what is sent ------------------------------------------------------------------------------------------------------


async def test_what_was_left_is_sent_once_in_its_order_and_deleted(
    worker: workers.Worker, relaying: relay.Outbox, grown: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fanfare.integration")
    await leave("a", "b", "c", exclude="1.2")
    await look_twice(relaying)
    await look_twice(relaying)
    await told(worker, "a", "b", "c")
    entry = worker.entries[0]
    assert entry.body == b'{"event":"a","channel":"orders","data":"data"}'
    assert (entry.app, entry.exclude) == ("7", "1.2")
    assert await left() == []
    assert (grown["outbox_relayed"], grown["outbox_late"]) == (3, 0)
    assert "Sent 3 events" in caplog.text


async def test_the_process_that_wrote_it_gets_until_the_next_look(
    worker: workers.Worker, relaying: relay.Outbox
) -> None:
    await leave("a")
    await relaying.look()
    await leave("b")
    assert len(await rows()) == 2
    await relaying.look()
    assert await left() == [("b", "")]
    await relaying.look()
    await told(worker, "a", "b")


async def test_what_was_sent_and_not_deleted_is_not_sent_again(
    worker: workers.Worker, relaying: relay.Outbox, grown: Counting
) -> None:
    def dies_before_it_deletes() -> None:
        undeletable = connections[DEFAULT].execute_wrapper(refusing("DELETE"))
        with current.replaced(worker.engine), undeletable, transaction.atomic():
            publish("orders", "a", 1, outbox=True)
            publish("orders", "b", 1, outbox=True, idempotency_key="mine")

    await database.run(dies_before_it_deletes)
    assert len(await rows()) == 2
    await look_twice(relaying)
    await told(worker, "a", "b")
    assert await left() == []
    assert grown["outbox_relayed"] == 0


async def test_a_process_that_is_late_sends_nothing_twice(worker: workers.Worker, relaying: relay.Outbox) -> None:
    """The relay comes between its commit and its own sending."""
    found: list[outbox.Row] = []

    def commits() -> None:
        with transaction.atomic():
            publish("orders", "a", 1, outbox=True)
            publish("orders", "b", 1, outbox=True)
            batch = connections[DEFAULT].run_on_commit[0][1].batch  # type: ignore[attr-defined]
            connections[DEFAULT].run_on_commit.clear()
        found.extend(batch.committed())

    await database.run(commits)
    await look_twice(relaying)
    await worker.engine.append([row.publication for row in found])
    await told(worker, "a", "b")


async def test_more_than_one_chunk(
    worker: workers.Worker, relaying: relay.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "CHUNK", 3)
    events = [f"event-{number}" for number in range(10)]
    await leave(*events)
    await look_twice(relaying)
    await told(worker, *events)
    assert await left() == []


async def test_to_a_user_and_by_the_channels_rule_of_now(
    worker: workers.Worker, relaying: relay.Outbox, application: application_models.Application
) -> None:
    await leave("paid", channel=None, to_user=42)
    await leave("kept", channel="kept-orders")
    await database.run(
        lambda: application.rules.create(pattern="kept-*", history_size=10, history_seconds=60)  # after the event
    )
    target.forget()
    await look_twice(relaying)
    await told(worker, "paid", "kept")
    assert [(entry.channel, entry.offset) for entry in worker.entries[:2]] == [
        ("#server-to-user-42", None),
        ("kept-orders", 1),
    ]


async def test_what_was_encrypted_when_it_was_written_is_not_encrypted_again(
    worker: workers.Worker, relaying: relay.Outbox, settings: Any
) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": bytes(32)}
    await leave("created", channel="private-encrypted-orders", data="secret")
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": b""}  # whoever relays needs no key
    await look_twice(relaying)
    await told(worker, "created")
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": bytes(32)}
    assert decrypt("private-encrypted-orders", orjson.loads(worker.entries[0].body)["data"]) == "secret"


async def test_what_is_older_than_the_logs_memory_is_sent_and_said_to_be_so(
    worker: workers.Worker, relaying: relay.Outbox, grown: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    await leave("old")
    await age(interface.IDEMPOTENCY_SECONDS + 1)
    await leave("young")
    await look_twice(relaying)
    await told(worker, "old", "young")
    assert (grown["outbox_relayed"], grown["outbox_late"]) == (2, 1)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 events" in warning.getMessage()
    assert "sent twice" in warning.getMessage()


# -- what cannot be sent -----------------------------------------------------------------------------------------------


async def test_a_row_that_cannot_be_sent_holds_up_nobody(
    worker: workers.Worker,
    relaying: relay.Outbox,
    grown: Counting,
    caplog: pytest.LogCaptureFixture,
    application: application_models.Application,
) -> None:
    other = await database.run(application_models.Application.objects.create, name="other", app_id="8")
    await leave("before")
    await leave("of nobody", app=8)
    await leave("big", data="x" * 2_000)
    await leave("behind")

    def change() -> None:
        other.delete()
        application.max_event_bytes = 1024
        application.save()

    await database.run(change)
    target.forget()
    await look_twice(relaying)
    await look_twice(relaying)
    await told(worker, "before", "behind")
    [(first, gone), (second, big)] = await left()
    assert (first, second) == ("of nobody", "big")
    assert "no application with the id '8'" in gone
    assert "2000 bytes" in big
    assert grown["outbox_failed"] == 2
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2


async def test_a_failed_row_is_sent_when_somebody_says_so(
    worker: workers.Worker, relaying: relay.Outbox, application: application_models.Application
) -> None:
    await leave("a")

    def switch(enabled: bool) -> None:
        application.enabled = enabled
        application.save()
        target.forget()

    await database.run(switch, False)
    await look_twice(relaying)
    [row] = await rows()
    assert "disabled" in row.reason
    await database.run(switch, True)
    await look_twice(relaying)
    assert len(await rows()) == 1, "not by itself"
    assert await database.run(outbox.retry, DEFAULT, [row.pk]) == 1
    await look_twice(relaying)
    await told(worker, "a")
    assert await left() == []


class Choosy:
    """An engine that refuses whatever an event of this name is in."""

    def __init__(self, engine: interface.Engine, refused: str) -> None:
        self._engine = engine
        self._refused = refused.encode()

    async def append(self, publications: Sequence[interface.Publication]) -> list[interface.Receipt]:
        if any(self._refused in publication.body for publication in publications):
            raise engine_errors.EngineUnavailable("The engine failed")
        return await self._engine.append(publications)

    def health(self) -> interface.Health:
        return self._engine.health()


async def test_a_row_that_the_log_itself_refuses_is_given_up_after_a_few_looks(worker: workers.Worker) -> None:
    relaying = relay.Outbox(Choosy(worker.engine, "poison"), DEFAULT)  # type: ignore[arg-type]
    await leave("before", "poison", "behind")
    await look_twice(relaying)
    assert await left() == [("poison", "")]
    for _ in range(relay.REFUSALS):
        await relaying.look()
    [(event, reason)] = await left()
    assert event == "poison"
    assert "The engine failed" in reason
    await told(worker, "before", "behind")


async def test_failed_rows_are_forgotten_after_their_time(relaying: relay.Outbox) -> None:
    await leave("a", "b", "waiting")

    def fail() -> None:
        for row in models.OutboxEvent.objects.all()[:2]:
            outbox.fail(DEFAULT, row.pk, "broken")
        old = timezone.now() - dt.timedelta(seconds=100)
        models.OutboxEvent.objects.filter(pk=models.OutboxEvent.objects.order_by("pk")[0].pk).update(failed_at=old)

    await database.run(fail)
    assert await database.run(outbox.trim, DEFAULT, 60) == 1
    assert [event for event, _ in await left()] == ["b", "waiting"]


# -- what is away ------------------------------------------------------------------------------------------------------


def refusing(start: str) -> Callable[..., Any]:
    def refuse(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith(start):
            raise OperationalError("attempt to write a readonly database")
        return execute(sql, *rest)

    return refuse


async def test_a_database_that_can_be_read_only_gets_no_event_twice_however_long_it_lasts(
    worker: workers.Worker, relaying: relay.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave("a")
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "discard", lambda using, ids: raised(OperationalError("read-only")))
        patched.setattr(outbox, "key_of", lambda uid: f"forgotten {next(numbers)}")  # as after ten minutes
        numbers = iter(range(100))
        for _ in range(5):
            try:
                await relaying.look()
            except OperationalError:
                continue
    assert len(await rows()) == 1
    await relaying.look()
    await told(worker, "a")
    assert await left() == []


def raised(error: Exception) -> None:
    raise error


async def test_it_says_once_what_is_in_the_way_and_goes_on_when_it_is_gone(
    worker: workers.Worker,
    relaying: relay.Outbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await leave("a", "b")
    with monkeypatch.context() as patched:
        log = recording.Recording()
        patched.setattr(relaying, "_engine", Away(log))
        for _ in range(4):
            await relaying._look_patiently()
        assert [record.getMessage() for record in caplog.records] == [
            "The outbox in the database 'default' waits: the disk is full"
        ]
    await relaying._look_patiently()
    await told(worker, "a", "b")


class Away:
    """An engine whose disk is full."""

    def __init__(self, log: recording.Recording) -> None:
        log.is_down = True
        self._log = log

    async def append(self, publications: Sequence[interface.Publication]) -> list[interface.Receipt]:
        return self._log.append_blocking(publications)

    def health(self) -> interface.Health:
        return interface.Health(False, "the disk is full")


# -- as a job ----------------------------------------------------------------------------------------------------------


async def test_it_looks_again_and_again(
    worker: workers.Worker, relaying: relay.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LOOK_S", 0.02)
    monkeypatch.setattr(relay, "IDLE_LOOK_S", 0.02)
    running = asyncio.create_task(relaying.run())
    try:
        for event in ("a", "b"):
            await leave(event)
            await waiting.until_async(gone, 10, "the row is gone")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await told(worker, "a", "b")


async def gone() -> bool:
    return await rows() == []


def test_the_workers_do_it_once_in_the_deployment() -> None:
    assert relay.job().once_per == "deployment"
