"""publish() through the outbox, in the process that calls it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.db import OperationalError, connection, transaction
from pytest_django.fixtures import Settings

from fanfare import apublish, errors, publish
from fanfare.applications import models as application_models
from fanfare.integration import broadcasts, models, outbox, publishing
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True)  # commits and rollbacks are the subject here


@pytest.fixture(autouse=True)
def default(application: application_models.Application) -> application_models.Application:
    return application


def rows() -> list[tuple[str, str]]:
    return [(row.channel, row.event) for row in models.OutboxEvent.objects.all()]


class Counting:
    """How much the counters grow."""

    def __init__(self) -> None:
        self._before = publishing.statistics()

    def __getitem__(self, name: str) -> int:
        return publishing.statistics()[name] - self._before[name]


# -- one event ---------------------------------------------------------------------------------------------------------


def test_event_is_stored_then_sent_at_the_commit_and_deleted(log: recording.Recording) -> None:
    with transaction.atomic():
        publish("orders", "created", {"id": 1}, exclude="1.2", outbox=True)
        assert rows() == [("orders", "created")]
        assert log.events == []
    assert log.events == [recording.Event("7", "orders", "created", '{"id":1}', "1.2")]
    assert rows() == []


def test_rolled_back_transaction_leaves_no_row_and_sends_nothing(log: recording.Recording) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        publish("orders", "created", 1, outbox=True)
        _ = 1 / 0
    with transaction.atomic():
        publish("orders", "later", 1, outbox=True)
    assert log.names == ["later"]
    assert rows() == []


def test_rolled_back_savepoint_removes_its_rows_and_the_rest_is_sent_in_order(
    log: recording.Recording,
) -> None:
    with transaction.atomic():
        publish("orders", "first", 1, outbox=True)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            publish("orders", "undone", 1, outbox=True)
            _ = 1 / 0
        publish("orders", "second", 1, outbox=True)  # SQLite gives it the id of the one that was undone
        with transaction.atomic():
            publish("orders", "third", 1, outbox=True)
    assert log.names == ["first", "second", "third"]
    assert rows() == []


def test_manually_rolled_back_savepoint_sends_nothing(log: recording.Recording) -> None:
    """Django runs the callbacks of such a savepoint nevertheless: the rows decide."""
    with transaction.atomic():
        publish("orders", "kept", 1, outbox=True)
        # Django 6.1 has another name for it, and warns about the old one.
        savepoint = getattr(transaction, "savepoint_create", transaction.savepoint)()
        publish("orders", "undone", 1, outbox=True)
        transaction.savepoint_rollback(savepoint)
    assert log.names == ["kept"]


def test_events_of_a_transaction_are_one_write_to_the_log(
    log: recording.Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = log.writes
    with transaction.atomic():
        for number in range(20):
            publish("orders", f"event {number}", 1, outbox=True)
    assert log.writes - writes == 1
    monkeypatch.setattr(outbox, "CHUNK", 8)
    with transaction.atomic():
        for number in range(20, 40):
            publish("orders", f"event {number}", 1, outbox=True)
    assert log.writes - writes == 4
    assert log.names == [f"event {number}" for number in range(40)]
    assert rows() == []


def test_each_event_has_a_key_that_the_log_checks(log: recording.Recording) -> None:
    with transaction.atomic():
        publish("orders", "a", 1, outbox=True)
        publish("orders", "b", 1, outbox=True)
        publish("orders", "c", 1, outbox=True, idempotency_key="mine")
    first, second, third = (sent.idempotency_key for sent in log.publications[-3:])
    assert outbox.is_own_key(first)
    assert outbox.is_own_key(second)
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize("text", ["\0", '"\\', "\u2028 € 😀", "<b>"])
def test_any_text_can_be_stored(log: recording.Recording, text: str) -> None:
    with transaction.atomic():
        publish("orders", text, text, outbox=True)
        [row] = models.OutboxEvent.objects.all()
        assert (row.event, row.data) == (text, text)
        assert "\0" not in row.frame, "PostgreSQL refuses it"
    assert [(event.name, event.data) for event in log.events] == [(text, text)]


def test_apublish_uses_the_outbox_too(log: recording.Recording) -> None:
    with transaction.atomic():
        async_to_sync(apublish)("orders", "created", 1, outbox=True)
        assert rows() == [("orders", "created")]
    assert log.names == ["created"]
    assert rows() == []


# -- when it is used ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "argument", "used"), [(False, None, 0), (True, None, 1), (True, False, 0)])
def test_argument_overrides_the_setting(
    settings: Settings, log: recording.Recording, setting: bool, argument: bool | None, used: int
) -> None:
    settings.FANFARE = {"OUTBOX": setting}
    with transaction.atomic():
        publish("orders", "created", 1, outbox=argument)
        assert len(rows()) == used
    assert log.names == ["created"]


def test_without_a_transaction_the_event_is_sent_at_once_and_failures_raise(log: recording.Recording) -> None:
    publish("orders", "created", 1, outbox=True)
    assert log.names == ["created"]
    assert log.publications[-1].idempotency_key is None


def test_outbox_with_on_commit_false_is_refused(settings: Settings, log: recording.Recording) -> None:
    with transaction.atomic():
        for call in (publish, async_to_sync(apublish)):
            with pytest.raises(errors.InvalidTiming, match="on_commit=False"):
                call("orders", "created", 1, on_commit=False, outbox=True)
        settings.FANFARE = {"OUTBOX": True}
        publish("orders", "at once", 1, on_commit=False)
        assert log.names == ["at once"]


def test_broadcasts_of_models_follow_the_setting(
    settings: Settings, log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    settings.FANFARE = {"OUTBOX": True}
    with transaction.atomic():
        Group.objects.create(name="staff")
        assert rows() == [("groups", "group.created")]
    assert log.names == ["group.created"]


# -- when something is in the way --------------------------------------------------------------------------------------


def test_rows_stay_for_the_relay_while_the_log_is_away(
    log: recording.Recording, caplog: pytest.LogCaptureFixture
) -> None:
    grown = Counting()
    log.is_down = True
    with transaction.atomic():
        publish("orders", "a", 1, outbox=True)
        publish("orders", "b", 1, outbox=True)
    assert rows() == [("orders", "a"), ("orders", "b")]
    assert (grown["outbox_left"], grown["failed_after_commit"]) == (2, 0)
    [record] = [record for record in caplog.records if record.name == "fanfare.integration"]
    assert record.levelno == logging.WARNING
    assert "disk is full" in record.getMessage()


def test_row_that_cannot_be_deleted_stays_for_the_relay(
    log: recording.Recording, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("DELETE"):
            raise OperationalError("database is locked")
        return execute(sql, *rest)

    grown = Counting()
    with connection.execute_wrapper(refuse), transaction.atomic():
        publish("orders", "created", 1, outbox=True)
    assert log.names == ["created"]
    assert rows() == [("orders", "created")]
    assert grown["outbox_left"] == 0, "it is in the log"
    assert "database is locked" in caplog.text


def test_each_thread_sends_its_own_rows(log: recording.Recording) -> None:
    def other() -> None:
        try:
            with transaction.atomic():
                publish("orders", "other", 1, outbox=True)
        finally:
            connection.close()

    with transaction.atomic():
        publish("orders", "mine", 1, outbox=True)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        publish("orders", "undone", 1, outbox=True)
        _ = 1 / 0
    with transaction.atomic():
        publish("orders", "mine again", 1, outbox=True)
    assert log.names == ["mine", "other", "mine again"]
