"""Consecutive events of one transaction are one append to the log."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from django.db import transaction
from django.test import TestCase

from fanfare import publish
from fanfare.applications import models
from fanfare.engine import interface
from fanfare.integration import after_commit, publishing
from tests.unit.integration import recording


@pytest.fixture(autouse=True)
def default(application: models.Application) -> models.Application:
    return application


@pytest.fixture
def appended(log: recording.Recording, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of publications of each append."""
    sizes: list[int] = []
    append = log.append_blocking

    def counted(publications: Sequence[interface.Publication], timeout: float | None = None) -> object:
        sizes.append(len(publications))
        return append(publications, timeout)

    monkeypatch.setattr(log, "append_blocking", counted)
    return sizes


@pytest.mark.django_db(transaction=True)
def test_events_of_one_transaction_are_appended_together_and_in_order(
    log: recording.Recording, appended: list[int]
) -> None:
    before = publishing.statistics()["published"]
    with transaction.atomic():
        for number in range(20):
            publish("orders", f"event-{number}", number)
    assert log.names == [f"event-{number}" for number in range(20)]
    assert appended == [20]
    assert publishing.statistics()["published"] == before + 20


@pytest.mark.django_db(transaction=True)
def test_callback_between_two_events_runs_between_them(log: recording.Recording, appended: list[int]) -> None:
    seen: list[list[str]] = []
    with transaction.atomic():
        publish("orders", "one", 1)
        transaction.on_commit(lambda: seen.append(log.names))
        publish("orders", "two", 2)
        publish("orders", "three", 3)
    assert seen == [["one"]]
    assert log.names == ["one", "two", "three"]
    assert appended == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_rolled_back_savepoint_removes_only_its_own_events(log: recording.Recording, appended: list[int]) -> None:
    with transaction.atomic():
        publish("orders", "before", 1)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            publish("orders", "inside", 1)
            publish("orders", "inside too", 1)
            _ = 1 / 0
        publish("orders", "after", 1)
        with transaction.atomic():
            publish("orders", "kept", 1)
        publish("orders", "last", 1)
    assert log.names == ["before", "after", "kept", "last"]
    assert appended == [2, 1, 1]


@pytest.mark.django_db(transaction=True)
def test_size_of_one_append_is_bounded(log: recording.Recording, appended: list[int]) -> None:
    with transaction.atomic():
        for number in range(after_commit.JOINED + 1):
            publish("orders", "created", number)
    assert appended == [after_commit.JOINED, 1]
    assert [event.data for event in log.events] == [str(number) for number in range(after_commit.JOINED + 1)]


@pytest.mark.usefixtures("log", "default")
class TestCaseTransactions(TestCase):
    """Django's own TestCase, whose transaction never commits."""

    def test_events_inside_captured_callbacks_are_not_joined_to_earlier_ones(self) -> None:
        publish("orders", "before", 1)
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            publish("orders", "inside", 1)
        assert len(callbacks) == 1
