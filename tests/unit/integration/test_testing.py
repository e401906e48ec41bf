"""The tools that a project tests itself with, used as its tests would."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase

from fanfare import apublish, publish
from fanfare.engine import current
from fanfare.integration import errors, history, presence
from fanfare.integration.testing import Event, captured_events


def place_order(*, outbox: bool | None = None) -> None:
    """Some code of a project."""
    with transaction.atomic():
        publish("orders", "created", {"id": 1, "on": dt.date(2026, 1, 2)}, outbox=outbox)


class InATestCase(TestCase):
    """Its transaction never commits."""

    def test_what_would_be_sent_is_there_during_the_block_and_after_it(self) -> None:
        with captured_events() as events:
            assert list(events) == []
            place_order()
            assert events.names == ["created"]
            publish("orders", "shipped", "no JSON", exclude="1.2", on_commit=False)
        assert sorted(events) == [
            Event("orders", "created", {"id": 1, "on": "2026-01-02"}),
            Event("orders", "shipped", "no JSON", exclude="1.2"),
        ]

    def test_before_its_commit_nothing_is_there_and_after_a_rollback_neither(self) -> None:
        with captured_events() as events:
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                publish("orders", "undone", 1)
                assert len(events) == 0
                _ = 1 / 0
            assert len(events) == 0
        assert list(events) == []

    def test_an_outbox_changes_nothing(self) -> None:
        with captured_events() as events, self.settings(FANFARE_OUTBOX=True):
            with transaction.atomic():
                publish("orders", "created", 1)
                publish("orders", "keyed", 1, idempotency_key="mine")
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                publish("orders", "undone", 1)
                _ = 1 / 0
            assert events.names == ["created", "keyed"]
        assert [event.idempotency_key for event in events] == [None, "mine"]

    def test_callbacks_that_the_test_runs_itself_send_once(self) -> None:
        for outbox in (False, True):
            with captured_events() as events, self.captureOnCommitCallbacks(execute=True):
                place_order(outbox=outbox)
            assert events.names == ["created"]

    def test_what_was_published_before_the_block_is_not_its_business(self) -> None:
        with captured_events():
            pass
        with captured_events() as outer:
            publish("orders", "before", 1)
            with captured_events() as events:
                publish("orders", "inside", 1)
            assert events.names == ["inside"]
        assert outer.names == ["before"]

    def test_events_are_found_by_channel_and_by_user(self) -> None:
        ann = User.objects.create_user("ann")
        with captured_events() as events:
            publish("orders", "created", 1)
            publish(None, "paid", 2, to_user=ann)
            presence.disconnect(ann)
        assert [event.name for event in events.on("orders")] == ["created"]
        assert [(event.data, event.to_user) for event in events.to(ann)] == [(2, str(ann.pk))]
        assert events.disconnected == [str(ann.pk)]
        assert events[0].name == "created"
        assert len(events[:1]) == 1


class InATransactionTestCase(TransactionTestCase):
    def test_what_is_committed_is_sent(self) -> None:
        with captured_events() as events:
            with transaction.atomic():
                publish("orders", "created", 1)
                assert len(events) == 0
            assert events.names == ["created"]
        assert events.names == ["created"]


class WithoutADatabase(SimpleTestCase):
    def test_no_application_is_asked_for(self) -> None:
        with captured_events() as events:
            publish("orders", "created", 1, on_commit=False, app=7)
            assert not presence.is_online(1)
            assert presence.members("presence-a") == []
            assert presence.subscribers("a") == 0
            assert history.events("a") == []
        assert [event.app for event in events] == ["7"]


def test_the_same_key_is_sent_once() -> None:
    with captured_events() as events:
        for _ in range(2):
            publish("orders", "created", 1, idempotency_key="k", on_commit=False)
    assert [event.idempotency_key for event in events] == ["k"]


def test_mistakes_are_raised_as_ever() -> None:
    with captured_events(), pytest.raises(errors.InvalidName):
        publish("a b", "created", 1, on_commit=False)


@pytest.mark.django_db
async def test_coroutines_are_captured_too() -> None:
    with captured_events() as events:
        await apublish("orders", "created", 1, on_commit=False)
    assert events.names == ["created"]


def test_after_the_block_everything_is_as_before(log: Any) -> None:
    engine = current.current()
    with pytest.raises(ZeroDivisionError), captured_events():
        _ = 1 / 0
    assert current.current() is engine
