"""The outbox relay: it sends the events that a process left in the outbox."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import orjson
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections, transaction
from django.utils import timezone

from fanfare import decrypt, errors, publish
from fanfare.applications import database
from fanfare.applications import models as application_models
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.integration import models, outbox, publishing, relay, target
from fanfare.runtime.supervisor import State, Supervisor
from tests.harness import waiting
from tests.unit.engine import workers
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True)

DEFAULT = "default"


@pytest.fixture(autouse=True)
def default(application: application_models.Application) -> application_models.Application:
    return application


class Counting:
    """How much the counters grow."""

    def __init__(self) -> None:
        self._before = publishing.statistics()

    def __getitem__(self, name: str) -> int:
        return publishing.statistics()[name] - self._before[name]


@pytest.fixture
def grown() -> Counting:
    return Counting()


@pytest.fixture
async def worker(make_engine: Callable[[], interface.Engine]) -> AsyncIterator[workers.Worker]:
    worker = await workers.Worker(make_engine()).open()
    yield worker
    await worker.engine.close()


@pytest.fixture
def relaying(worker: workers.Worker) -> relay.Outbox:
    return relay.Outbox(worker.engine, DEFAULT)


async def look_twice(relaying: relay.Outbox) -> None:
    """The first look leaves the rows that it finds to their process."""
    await relaying.look()
    await relaying.look()


async def leave(*events: str, channel: str | None = "orders", data: str = "data", **more: Any) -> None:
    """As a process that is killed right after its commit."""

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


async def received(worker: workers.Worker, *expected: str) -> None:
    """Exactly these were received, in this order."""
    await worker.publish("orders", orjson.dumps({"event": "end"}))
    await worker.until(lambda: "end" in names(worker), "the event after all others")
    assert names(worker) == [*expected, "end"]


# -- sending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_engine", ["local", "postgres", "redis"], indirect=True)
async def test_rows_are_sent_once_in_order_and_deleted(
    worker: workers.Worker, relaying: relay.Outbox, grown: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fanfare.integration")
    await leave("a", "b", "c", exclude="1.2")
    await look_twice(relaying)
    await look_twice(relaying)
    await received(worker, "a", "b", "c")
    entry = worker.entries[0]
    assert entry.body == b'{"event":"a","channel":"orders","data":"data"}'
    assert (entry.app, entry.exclude) == ("7", "1.2")
    assert await left() == []
    assert (grown["outbox_relayed"], grown["outbox_late"]) == (3, 0)
    assert "Sent 3 events" in caplog.text


async def test_new_rows_are_left_to_their_process_until_the_next_look(
    worker: workers.Worker, relaying: relay.Outbox
) -> None:
    await leave("a")
    await relaying.look()
    await leave("b")
    assert len(await rows()) == 2
    await relaying.look()
    assert await left() == [("b", "")]
    await relaying.look()
    await received(worker, "a", "b")


async def test_row_that_was_sent_and_not_deleted_is_not_sent_again(
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
    await received(worker, "a", "b")
    assert await left() == []
    assert grown["outbox_relayed"] == 0


async def test_late_process_sends_nothing_twice(worker: workers.Worker, relaying: relay.Outbox) -> None:
    """The relay sends between the commit and the sending of the process."""
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
    await received(worker, "a", "b")


async def test_many_rows_are_sent_in_chunks(
    worker: workers.Worker, relaying: relay.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "CHUNK", 3)
    events = [f"event-{number}" for number in range(10)]
    await leave(*events)
    await look_twice(relaying)
    await received(worker, *events)
    assert await left() == []


async def test_current_rule_of_the_channel_applies(
    worker: workers.Worker, relaying: relay.Outbox, application: application_models.Application
) -> None:
    await leave("paid", channel=None, to_user=42)
    await leave("kept", channel="kept-orders")
    await database.run(
        lambda: application.rules.create(pattern="kept-*", history_size=10, history_seconds=60)  # after the event
    )
    target.forget()
    await look_twice(relaying)
    await received(worker, "paid", "kept")
    assert [(entry.channel, entry.offset) for entry in worker.entries[:2]] == [
        ("#server-to-user-42", None),
        ("kept-orders", 1),
    ]


async def test_encrypted_event_is_not_encrypted_again(
    worker: workers.Worker, relaying: relay.Outbox, settings: Any
) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": bytes(32)}
    await leave("created", channel="private-encrypted-orders", data="secret")
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": b""}  # the relay needs no key
    await look_twice(relaying)
    await received(worker, "created")
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": bytes(32)}
    assert decrypt("private-encrypted-orders", orjson.loads(worker.entries[0].body)["data"]) == "secret"


async def test_row_older_than_the_keys_of_the_log_is_sent_with_a_warning(
    worker: workers.Worker, relaying: relay.Outbox, grown: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    await leave("old")
    await age(interface.IDEMPOTENCY_SECONDS + 1)
    await leave("young")
    await look_twice(relaying)
    await received(worker, "old", "young")
    assert (grown["outbox_relayed"], grown["outbox_late"]) == (2, 1)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 events" in warning.getMessage()
    assert "sent twice" in warning.getMessage()


# -- rows that cannot be sent ------------------------------------------------------------------------------------------


async def test_rows_that_cannot_be_sent_do_not_delay_others(
    worker: workers.Worker,
    relaying: relay.Outbox,
    grown: Counting,
    caplog: pytest.LogCaptureFixture,
    application: application_models.Application,
) -> None:
    other = await database.run(application_models.Application.objects.create, name="other", app_id="8")
    await leave("before")
    await leave("orphan", app=8)
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
    await received(worker, "before", "behind")
    [(first, gone), (second, big)] = await left()
    assert (first, second) == ("orphan", "big")
    assert "no application with the id '8'" in gone
    assert "2000 bytes" in big
    assert grown["outbox_failed"] == 2
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2


async def test_failed_row_is_sent_after_a_retry_is_requested(
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
    await received(worker, "a")
    assert await left() == []


class Choosy:
    """An engine that refuses each append with an event of this name."""

    is_open = True

    def __init__(self, engine: interface.Engine, refused: str) -> None:
        self._engine = engine
        self._refused = refused.encode()

    async def append(self, publications: Sequence[interface.Publication]) -> list[interface.Receipt]:
        if any(self._refused in publication.body for publication in publications):
            raise engine_errors.EngineUnavailable("The engine failed")
        return await self._engine.append(publications)

    def health(self) -> interface.Health:
        return self._engine.health()


async def test_row_that_the_log_refuses_is_marked_as_failed_after_a_few_looks(worker: workers.Worker) -> None:
    relaying = relay.Outbox(Choosy(worker.engine, "poison"), DEFAULT)  # type: ignore[arg-type]
    await leave("before", "poison", "behind")
    await look_twice(relaying)
    assert await left() == [("poison", "")]
    for _ in range(relay.REFUSALS):
        await relaying.look()
    [(event, reason)] = await left()
    assert event == "poison"
    assert "The engine failed" in reason
    await received(worker, "before", "behind")


async def test_failed_rows_are_deleted_after_their_time(relaying: relay.Outbox) -> None:
    await leave("a", "b", "waiting")

    def fail() -> None:
        for row in models.OutboxEvent.objects.all()[:2]:
            outbox.fail(DEFAULT, row.pk, "broken")
        old = timezone.now() - dt.timedelta(seconds=100)
        models.OutboxEvent.objects.filter(pk=models.OutboxEvent.objects.order_by("pk")[0].pk).update(failed_at=old)

    await database.run(fail)
    assert await database.run(outbox.trim, DEFAULT, 60) == 1
    assert [event for event, _ in await left()] == ["b", "waiting"]


# -- databases and engines that are away -------------------------------------------------------------------------------


def refusing(start: str) -> Callable[..., Any]:
    def refuse(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith(start):
            raise OperationalError("attempt to write a readonly database")
        return execute(sql, *rest)

    return refuse


async def test_read_only_database_causes_no_repeated_event(
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
    await received(worker, "a")
    assert await left() == []


def raised(error: Exception) -> None:
    raise error


async def test_obstacle_is_logged_once_and_sending_continues_after_it(
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
            "The relay cannot send the outbox of 'default' now, and tries again: the disk is full"
        ]
    await relaying._look_patiently()
    await received(worker, "a", "b")


class Away:
    """An engine whose disk is full."""

    is_open = True

    def __init__(self, log: recording.Recording) -> None:
        log.is_down = True
        self._log = log

    async def append(self, publications: Sequence[interface.Publication]) -> list[interface.Receipt]:
        return self._log.append_blocking(publications)

    def health(self) -> interface.Health:
        return interface.Health(False, "the disk is full")


async def test_rows_wait_while_the_remote_deployment_refuses_the_key(relaying: relay.Outbox) -> None:
    """In remote mode NoApplication of an append concerns all rows, and none is marked as failed."""

    class Remote:
        is_open = False

        def append_blocking(self, publications: Sequence[interface.Publication]) -> list[interface.Receipt]:
            raise errors.NoApplication("The deployment does not accept FANFARE_REMOTE_KEY")

    relaying._engine = Remote()  # type: ignore[assignment]
    await leave("a", "b")
    for _ in range(2 * relay.REFUSALS):
        await relaying._look_patiently()
    assert await left() == [("a", ""), ("b", "")]


# -- injected faults ---------------------------------------------------------------------------------------------------


async def test_damaged_row_is_marked_as_failed_and_those_after_it_are_sent(
    worker: workers.Worker, relaying: relay.Outbox
) -> None:
    await leave("before", "damaged", "behind")
    await database.run(lambda: models.OutboxEvent.objects.filter(frame__contains="damaged").update(frame="{\x00"))
    await look_twice(relaying)
    await received(worker, "before", "behind")
    [row] = await rows()
    assert row.failed_at is not None
    assert row.reason.startswith("JSONDecodeError: ")


async def test_exception_about_one_row_marks_it_as_failed(
    worker: workers.Worker, relaying: relay.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = publishing.restore

    def choosy(channel: str, event: str, *rest: Any, **more: Any) -> interface.Publication:
        if event == "poison":
            raise ZeroDivisionError("\udcff")
        return restore(channel, event, *rest, **more)

    monkeypatch.setattr(publishing, "restore", choosy)
    await leave("before", "poison", "behind")
    await look_twice(relaying)
    await received(worker, "before", "behind")
    assert await left() == [("poison", "ZeroDivisionError: \\xff")]


async def test_unexpected_error_of_the_engine_marks_only_its_row_as_failed(worker: workers.Worker) -> None:
    class Broken(Choosy):
        async def append(self, publications: Sequence[interface.Publication]) -> list[interface.Receipt]:
            if any(b"poison" in publication.body for publication in publications):
                raise ZeroDivisionError
            return await self._engine.append(publications)

    relaying = relay.Outbox(Broken(worker.engine, "poison"), DEFAULT)  # type: ignore[arg-type]
    await leave("before", "poison", "behind")
    for _ in range(relay.REFUSALS + 2):
        await relaying.look()
    await received(worker, "before", "behind")
    assert [event for event, _ in await left()] == ["poison"]


async def test_refusals_before_a_success_are_not_remembered(
    worker: workers.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Choosy(worker.engine, "poison")
    relaying = relay.Outbox(engine, DEFAULT)  # type: ignore[arg-type]
    await leave("poison")
    await look_twice(relaying)
    assert sum(relaying._refusals.values()) == 1
    engine._refused = b"another"
    await relaying.look()
    await received(worker, "poison")
    assert not relaying._refusals
    assert not relaying._sent


async def test_memory_of_rows_that_others_deleted_is_dropped(
    worker: workers.Worker, relaying: relay.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave("a", "b")
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "discard", lambda using, ids: raised(OperationalError("read-only")))
        await relaying.look()
        with pytest.raises(OperationalError):
            await relaying.look()
    assert len(relaying._sent) == 2
    await database.run(models.OutboxEvent.objects.all().delete)
    await look_twice(relaying)
    assert relaying._sent == set()


async def test_database_that_hangs_does_not_delay_the_others(
    worker: workers.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two aliases of one database; the queries of the first one do not return."""
    hanging = threading.Event()
    top = outbox.top

    def slow(using: str) -> int:
        if using == "hanging":
            hanging.wait(10)
        return top(DEFAULT)

    monkeypatch.setattr(relay, "LOOK_S", 0.02)
    monkeypatch.setattr(relay, "IDLE_LOOK_S", 0.02)
    monkeypatch.setattr(outbox, "databases", lambda: ["hanging", DEFAULT])
    monkeypatch.setattr(outbox, "top", slow)
    relaying = relay.Relay(worker.engine)
    tasks = Supervisor()
    tasks.run("relay", relaying.run)
    try:
        await leave("a", "b")
        await waiting.until_async(gone, 10, "an empty outbox")
        assert [(status.name, status.state) for status in relaying.statuses] == [
            ("outbox of 'hanging'", State.RUNNING),
            ("outbox of 'default'", State.RUNNING),
        ]
    finally:
        hanging.set()
        await tasks.stop()
    await received(worker, "a", "b")


# -- as a job ----------------------------------------------------------------------------------------------------------


async def test_relay_looks_repeatedly_and_its_status_shows_failures(
    worker: workers.Worker, relaying: relay.Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LOOK_S", 0.02)
    monkeypatch.setattr(relay, "IDLE_LOOK_S", 0.02)
    tasks = Supervisor()
    tasks.run("relay", relaying.run, status=relaying.status)

    async def failing() -> bool:
        return relaying.status.state is State.PAUSING

    async def running() -> bool:
        return relaying.status.state is State.RUNNING

    try:
        for event in ("a", "b"):
            await leave(event)
            await waiting.until_async(gone, 10, "an empty outbox")
        with monkeypatch.context() as patched:
            patched.setattr(outbox, "top", lambda using: raised(OperationalError("server closed the connection")))
            await waiting.until_async(failing, 10, "the failure")
            assert relaying.status.error == "OperationalError: server closed the connection"
        await waiting.until_async(running, 10, "the success after it")
    finally:
        await tasks.stop()
    await received(worker, "a", "b")


async def gone() -> bool:
    return await rows() == []


def test_relay_runs_once_per_deployment() -> None:
    assert relay.job().once_per == "deployment"


# -- the command -------------------------------------------------------------------------------------------------------


class Remote:
    """An engine of a process that is no worker."""

    is_open = False

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.is_away = False

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        if self.is_away:
            raise engine_errors.EngineUnavailable("The other deployment does not answer")
        self.bodies += [publication.body for publication in publications]
        return [interface.Receipt(None, duplicate=False) for _ in publications]


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setattr(relay, "LOOK_S", 0.02)
    engine = Remote()
    with current.replaced(engine):  # type: ignore[arg-type]
        yield engine


def leave_behind(*events: str) -> None:
    with transaction.atomic():
        for event in events:
            publish("orders", event, 1, outbox=True)
        connections[DEFAULT].run_on_commit.clear()


def test_command_sends_the_waiting_events_and_ends(remote: Remote, capsys: pytest.CaptureFixture[str]) -> None:
    leave_behind("a", "b")
    call_command("relay_outbox", "--once")
    assert [orjson.loads(body)["event"] for body in remote.bodies] == ["a", "b"]
    assert capsys.readouterr().out == "Sent: 2. Failed: 0. Still waiting: 0.\n"
    assert not models.OutboxEvent.objects.exists()


def test_command_fails_while_the_deployment_is_away(remote: Remote) -> None:
    leave_behind("a")
    remote.is_away = True
    with pytest.raises(CommandError, match="The events stay in the outbox: The other deployment does not answer"):
        call_command("relay_outbox", "--once")
    assert models.OutboxEvent.objects.count() == 1
