"""The tools that a project tests itself with, used as its tests would."""

from __future__ import annotations

import datetime as dt
import urllib.request
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from fanfare import apublish, errors, history, presence, publish
from fanfare.engine import current
from fanfare.integration import broadcasts
from fanfare.testing import Event, captured_events


def place_order(*, outbox: bool | None = None) -> None:
    """Some code of a project."""
    with transaction.atomic():
        publish("orders", "created", {"id": 1, "on": dt.date(2026, 1, 2)}, outbox=outbox)


def undone() -> None:
    with transaction.atomic():
        publish("orders", "undone", 1)
        _ = 1 / 0


def sync_view(request: HttpRequest) -> HttpResponse:
    place_order()
    return HttpResponse()


async def async_view(request: HttpRequest) -> HttpResponse:
    await apublish("orders", "created", 1)
    return HttpResponse()


class Urls:
    urlpatterns = (path("sync/", csrf_exempt(sync_view)), path("async/", csrf_exempt(async_view)))


class InATestCase(TestCase):
    """Its transaction never commits."""

    def test_events_are_there_during_the_block_and_after_it(self) -> None:
        with captured_events() as events:
            assert list(events) == []
            place_order()
            assert events.names == ["created"]
            publish("orders", "shipped", "no JSON", exclude="1.2", on_commit=False)
        assert sorted(events) == [
            Event("orders", "created", {"id": 1, "on": "2026-01-02"}),
            Event("orders", "shipped", "no JSON", exclude="1.2"),
        ]

    def test_uncommitted_and_rolled_back_events_are_not_there(self) -> None:
        with captured_events() as events:
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                publish("orders", "undone", 1)
                assert len(events) == 0
                _ = 1 / 0
            assert len(events) == 0
        assert list(events) == []

    def test_outbox_makes_no_difference(self) -> None:
        with captured_events() as events, self.settings(FANFARE={"OUTBOX": True}):
            with transaction.atomic():
                publish("orders", "created", 1)
                publish("orders", "keyed", 1, idempotency_key="mine")
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                publish("orders", "undone", 1)
                _ = 1 / 0
            assert events.names == ["created", "keyed"]
        assert [event.idempotency_key for event in events] == [None, "mine"]

    def test_on_commit_callbacks_run_by_the_test_send_once(self) -> None:
        for outbox in (False, True):
            with captured_events() as events, self.captureOnCommitCallbacks(execute=True):
                place_order(outbox=outbox)
            assert events.names == ["created"]

    def test_events_before_the_block_are_not_there(self) -> None:
        with captured_events():
            pass
        with captured_events() as outer:
            publish("orders", "before", 1)
            with captured_events() as events:
                publish("orders", "inside", 1)
            assert events.names == ["inside"]
        assert outer.names == ["before"]

    def test_events_are_selected_by_channel_and_by_user(self) -> None:
        ann = User.objects.create_user("ann")
        with captured_events() as events:
            publish("orders", "created", 1)
            publish(None, "paid", 2, to_user=ann)
            presence.disconnect_user(ann)
        assert [event.name for event in events.on("orders")] == ["created"]
        assert [(event.data, event.to_user) for event in events.to(ann)] == [(2, str(ann.pk))]
        assert events.disconnected == [str(ann.pk)]
        assert events[0].name == "created"
        assert len(events[:1]) == 1

    async def test_async_method_captures_events_of_publish_and_apublish(self) -> None:
        """Its database calls run in the thread of the TestCase, and the method itself in another one."""
        with captured_events() as events:
            await sync_to_async(place_order)()
            await apublish("orders", "shipped", 1)
            self.assertEqual(events.names, ["created", "shipped"])
            with self.assertRaises(ZeroDivisionError):
                await sync_to_async(undone)()
        self.assertEqual(events.names, ["created", "shipped"])

    async def test_async_client_captures_events_of_views(self) -> None:
        with self.settings(ROOT_URLCONF=Urls), captured_events() as events:
            for path in ("/sync/", "/async/"):
                self.assertEqual((await self.async_client.post(path)).status_code, 200)
            self.assertEqual(events.names, ["created", "created"])

    async def test_async_signals_of_models_are_captured(self) -> None:
        broadcast = broadcasts.Broadcast()
        broadcast(Group, channels=["groups"], fields=["name"])
        with captured_events() as events:
            await Group.objects.acreate(name="cooks")
        self.assertEqual(events.names, ["group.created"])
        del broadcast


class InATransactionTestCase(TransactionTestCase):
    async def test_async_method_captures_events(self) -> None:
        with captured_events() as events:
            await sync_to_async(place_order)()
            await apublish("orders", "shipped", 1)
        self.assertEqual(events.names, ["created", "shipped"])

    def test_committed_events_are_there(self) -> None:
        with captured_events() as events:
            with transaction.atomic():
                publish("orders", "created", 1)
                assert len(events) == 0
            assert events.names == ["created"]
        assert events.names == ["created"]


@override_settings(ROOT_URLCONF=Urls)
class WithALiveServer(LiveServerTestCase):
    def test_events_of_the_servers_thread_are_captured(self) -> None:
        with captured_events() as events:
            for path in ("/sync/", "/async/"):
                with urllib.request.urlopen(f"{self.live_server_url}{path}", b"", timeout=10) as response:
                    self.assertEqual(response.status, 200)
            self.assertEqual(events.names, ["created", "created"])


class WithoutADatabase(SimpleTestCase):
    def test_no_database_is_needed(self) -> None:
        with captured_events() as events:
            publish("orders", "created", 1, on_commit=False, app=7)
            assert not presence.is_online(1)
            assert presence.members("presence-a") == []
            assert presence.subscriber_count("a") == 0
            assert history.events("a") == []
        assert [event.app for event in events] == ["7"]


def test_repeated_idempotency_key_is_captured_once() -> None:
    with captured_events() as events:
        for _ in range(2):
            publish("orders", "created", 1, idempotency_key="k", on_commit=False)
    assert [event.idempotency_key for event in events] == ["k"]


def test_wrong_arguments_are_raised() -> None:
    with captured_events(), pytest.raises(errors.InvalidName):
        publish("a b", "created", 1, on_commit=False)


@pytest.mark.django_db
async def test_events_of_coroutines_are_captured() -> None:
    with captured_events() as events:
        await apublish("orders", "created", 1, on_commit=False)
    assert events.names == ["created"]


def test_engine_is_restored_after_the_block(log: Any) -> None:
    engine = current.current()
    with pytest.raises(ZeroDivisionError), captured_events():
        _ = 1 / 0
    assert current.current() is engine
