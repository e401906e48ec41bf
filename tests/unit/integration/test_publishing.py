from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.db import connections, transaction
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from fanfare import apublish, errors, publish
from fanfare.applications import models, registry, rules
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.engine.local import engine as local_engine
from fanfare.hub import traces
from fanfare.integration import appending, publishing, target
from tests.unit.engine import workers
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True)  # commits and rollbacks are the subject here


@pytest.fixture(autouse=True)
def default(application: models.Application) -> models.Application:
    return application


# -- When it leaves ---------------------------------------------------------------------------------------------------


def test_event_outside_a_transaction_is_sent_at_once(log: recording.Recording) -> None:
    publish("orders", "created", {"id": 1})
    assert log.events == [recording.Event("7", "orders", "created", '{"id":1}', None)]


def test_event_in_a_transaction_is_sent_once_at_commit(log: recording.Recording) -> None:
    with transaction.atomic():
        with transaction.atomic():
            publish("orders", "created", 1)
        assert log.events == []
    assert log.names == ["created"]


def test_rolled_back_transaction_sends_nothing(log: recording.Recording) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        publish("orders", "created", 1)
        _ = 1 / 0
    with transaction.atomic():
        publish("orders", "later", 1)
    assert log.names == ["later"]


def test_rolled_back_savepoint_drops_only_its_own_events(log: recording.Recording) -> None:
    with transaction.atomic():
        publish("orders", "first", 1)
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            publish("orders", "undone", 1)
            _ = 1 / 0
        publish("orders", "second", 1)
    assert log.names == ["first", "second"]


def test_on_commit_false_sends_at_once(log: recording.Recording) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        publish("orders", "attempted", 1, on_commit=False)
        _ = 1 / 0
    assert log.names == ["attempted"]


def test_autocommit_off_without_an_atomic_block_is_refused(log: recording.Recording) -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(transaction.TransactionManagementError):
            publish("orders", "created", 1, app=7)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert log.events == []


# -- What it says -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("as it is", "as it is"),
        ('{"already": "JSON"}', '{"already": "JSON"}'),
        (mark_safe("<b>"), "<b>"),
        (gettext_lazy("Monday"), '"Monday"'),
        (None, "null"),
        ([1, 2.5, True], "[1,2.5,true]"),
        ({"ä": "€"}, '{"ä":"€"}'),
        ({1: "one"}, '{"1":"one"}'),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC), '"2026-01-02T03:04:05.678Z"'),
        (dt.date(2026, 1, 2), '"2026-01-02"'),
        (dt.timedelta(hours=1), '"P0DT01H00M00S"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Point(3), '{"x":3}'),
    ],
)
def test_str_is_sent_as_it_is_and_other_values_as_json(log: recording.Recording, data: Any, text: str) -> None:
    publish("orders", "created", data)
    assert [event.data for event in log.events] == [text]


def test_excluded_client_travels_with_the_event(log: recording.Recording) -> None:
    publish("orders", "created", 1, exclude="12.34")
    assert [event.exclude for event in log.events] == ["12.34"]


# -- What is wrong with it --------------------------------------------------------------------------------------------

LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a b", "created", 1), errors.InvalidName, "a b"),
        (("", "created", 1), errors.InvalidName, "Invalid channel name"),
        (("c" * 201, "created", 1), errors.InvalidName, "201 characters; 200"),
        (("#secret", "created", 1), errors.InvalidName, "reserved"),
        ((7, "created", 1), errors.InvalidName, "int"),
        (("orders", "", 1), errors.InvalidName, "empty"),
        (("orders", "e" * 201, 1), errors.InvalidName, "201 characters; 200"),
        (("orders", "\ud800", 1), errors.InvalidName, "surrogates"),
        (("orders", None, 1), errors.InvalidName, "NoneType"),
        (("orders", "pusher:error", 1), errors.InvalidName, "protocol's"),
        (("orders", "pusher_internal:member_added", 1), errors.InvalidName, "protocol's"),
        (("orders", "created", object()), errors.UnencodableData, "object"),
        (("orders", "created", b"bytes"), errors.UnencodableData, "bytes"),
        (("orders", "created", 2**64), errors.UnencodableData, "64 bits"),
        (("orders", "created", LOOP), errors.UnencodableData, "created"),
        (("orders", "created", "\ud800"), errors.UnencodableData, "surrogates"),
        (("orders", "created", ["\ud800"]), errors.UnencodableData, r"data\[0\] has a lone surrogate"),
    ],
)
def test_wrong_argument_is_refused_at_the_call(
    log: recording.Recording, arguments: tuple[Any, Any, Any], error: type[Exception], message: str
) -> None:
    with transaction.atomic(), pytest.raises(error, match=message):
        publish(*arguments)
    assert log.events == []


def test_malformed_socket_id_is_refused(log: recording.Recording) -> None:
    with pytest.raises(errors.InvalidName, match="'me', which is not a socket id"):
        publish("orders", "created", 1, exclude="me")


def test_data_over_the_limit_is_refused_with_both_numbers(application: models.Application) -> None:
    application.max_event_bytes = 1024
    application.save()
    publish("orders", "created", "€" * 341)
    with pytest.raises(errors.DataTooLarge, match=r"1026 bytes.* 1024") as caught:
        publish("orders", "created", "€" * 342)
    assert (caught.value.size, caught.value.limit) == (1026, 1024)


# -- Model instances --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Account:
    name: str
    iban: str = "secret"

    def __realtime__(self) -> dict[str, Any]:
        return {"name": self.name, "opened": dt.date(2026, 1, 2)}


def test_hook_of_a_class_returns_what_is_sent(
    log: recording.Recording, monkeypatch: pytest.MonkeyPatch, application: models.Application
) -> None:
    monkeypatch.setattr(models.Application, "__realtime__", lambda self: {"name": self.name}, raising=False)
    publish("orders", "created", [application, Account("Ann")])
    assert [event.data for event in log.events] == ['[{"name":"default"},{"name":"Ann","opened":"2026-01-02"}]']


def test_model_without_the_hook_is_refused(log: recording.Recording, application: models.Application) -> None:
    with pytest.raises(
        errors.UnencodableData, match=r"data\['application'\] is an instance of the model Application.*__realtime__"
    ):
        publish("orders", "created", {"application": application})
    assert log.events == []


# -- To a user --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", [User(pk=42), 42, "42"])
def test_event_for_a_user_goes_to_the_channel_of_the_user(log: recording.Recording, user: Any) -> None:
    publish(None, "paid", 1, to_user=user)
    assert [event.channel for event in log.events] == ["#server-to-user-42"]


async def test_apublish_to_a_user(log: recording.Recording) -> None:
    await apublish(None, "paid", 1, to_user=7)
    assert [event.channel for event in log.events] == ["#server-to-user-7"]


@pytest.mark.parametrize("user", [AnonymousUser(), User(), True, 1.5, ""])
def test_user_without_an_id_is_refused(user: Any) -> None:
    with pytest.raises(errors.InvalidUser):
        publish(None, "paid", 1, to_user=user)


def test_event_needs_exactly_one_target() -> None:
    with pytest.raises(errors.InvalidTarget, match="no `to_user`"):
        publish(None, "paid", 1)
    with pytest.raises(errors.InvalidTarget, match="not to both"):
        publish("orders", "paid", 1, to_user=7)


# -- Once -------------------------------------------------------------------------------------------------------------


def test_idempotency_key_travels_with_the_event(log: recording.Recording) -> None:
    publish("orders", "created", 1, idempotency_key="order 7")
    assert [publication.idempotency_key for publication in log.publications][-1] == "order 7"


@pytest.mark.parametrize("key", ["", "ä", "a\n", "k" * 129])
def test_idempotency_key_that_the_http_api_refuses_is_refused(key: str) -> None:
    with pytest.raises(errors.InvalidName, match="idempotency key"):
        publish("orders", "created", 1, idempotency_key=key)


def test_repeated_idempotency_key_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, application: models.Application
) -> None:
    engine = local_engine.LocalEngine(tmp_path / "engine")
    monkeypatch.setattr(current, "current", lambda: engine)
    before = publishing.statistics()
    for _ in range(3):
        publish("orders", "created", 1, idempotency_key="k", app=application)
    asyncio.run(engine.close())
    after = publishing.statistics()
    assert (after["published"] - before["published"], after["duplicates"] - before["duplicates"]) == (1, 2)


# -- Channels that keep a history -------------------------------------------------------------------------------------


def test_retention_is_that_of_the_channel_rule(monkeypatch: pytest.MonkeyPatch, log: recording.Recording) -> None:
    keeping = registry.Application("7", "key", "secret", rules=rules.Rules((rules.Rule("kept-*", 10, 60),)))
    monkeypatch.setattr(target, "application", lambda app: keeping)
    publish("kept-a", "created", 1)
    publish("other", "created", 1)
    assert [publication.retention for publication in log.publications][-2:] == [interface.Retention(10, 60), None]


@pytest.mark.parametrize("form", [lambda row: None, lambda row: row, lambda row: row.app_id])
def test_channel_rules_hold_for_every_form_of_the_application_argument(
    log: recording.Recording,
    application: models.Application,
    form: Callable[[models.Application], models.Application | str | None],
) -> None:
    application.rules.create(pattern="kept-*", history_size=10, history_seconds=60)
    target.forget()
    publish("kept-a", "created", 1, app=form(application))
    assert log.publications[-1].retention == interface.Retention(10, 60)


# -- To whom ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda row: row, lambda row: row.app_id, lambda row: int(row.app_id)])
def test_app_argument_selects_the_application(
    log: recording.Recording, form: Callable[[models.Application], models.Application | str | int]
) -> None:
    other = models.Application.objects.create(name="other", app_id="8")
    publish("orders", "created", 1, app=form(other))
    assert [event.app for event in log.events] == ["8"]


def test_missing_or_disabled_application_is_refused(application: models.Application) -> None:
    with pytest.raises(errors.NoApplication, match="'9'"):
        publish("orders", "created", 1, app=9)
    application.enabled = False
    application.save()
    with pytest.raises(errors.NoApplication, match="disabled"):
        publish("orders", "created", 1, app=7)
    with pytest.raises(errors.NoApplication, match="createapplication"):
        publish("orders", "created", 1)


def test_application_is_cached(django_assert_num_queries: Any) -> None:
    publish("orders", "created", 1)
    with django_assert_num_queries(0):
        publish("orders", "created", 1)


# -- When the log is away ---------------------------------------------------------------------------------------------


def test_unavailable_log_raises_if_the_event_is_sent_at_once(log: recording.Recording) -> None:
    log.is_down = True
    with pytest.raises(engine_errors.EngineUnavailable):
        publish("orders", "created", 1)


def test_unavailable_log_is_logged_after_a_commit(log: recording.Recording, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    failed_before = publishing.statistics()["failed_after_commit"]
    log.is_down = True
    with transaction.atomic():
        models.Application.objects.create(name="saved")
        publish("orders", "created", 1)
        transaction.on_commit(lambda: done.append("the next callback"))
    assert models.Application.objects.filter(name="saved").exists()
    assert done == ["the next callback"]
    assert publishing.statistics()["failed_after_commit"] == failed_before + 1
    [record] = [record for record in caplog.records if record.name == "fanfare.integration"]
    assert record.levelno == logging.ERROR
    for part in ("created", "orders", "disk is full", "engine_unavailable"):
        assert part in record.getMessage()


def test_exception_of_any_kind_after_the_commit_is_logged(
    log: recording.Recording, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("an engine\nthat fails")

    failed_before = publishing.statistics()["failed_after_commit"]
    monkeypatch.setattr(appending, "append", fail)
    with transaction.atomic():
        publish("orders", "created", 1)
        publish("orders", "changed", 2)
    assert publishing.statistics()["failed_after_commit"] == failed_before + 2
    first, second = caplog.records
    assert first.getMessage().endswith(r": ValueError: an engine\x0athat fails")
    assert (first.exc_info is None, second.exc_info) == (False, None)


# -- From coroutines --------------------------------------------------------------------------------------------------


async def test_publish_on_an_event_loop_names_apublish(log: recording.Recording) -> None:
    with pytest.raises(errors.CalledOnEventLoop, match="await apublish"):
        publish("orders", "created", 1)
    assert log.events == []


async def test_apublish_sends(log: recording.Recording) -> None:
    await apublish("orders", "created", {"id": 1}, exclude="1.2")
    assert log.events == [recording.Event("7", "orders", "created", '{"id":1}', "1.2")]


async def test_apublish_raises_the_errors_of_publish(log: recording.Recording) -> None:
    with pytest.raises(errors.InvalidName):
        await apublish("a b", "created", 1)
    log.is_down = True
    with pytest.raises(engine_errors.EngineUnavailable):
        await apublish("orders", "created", 1)


def test_apublish_waits_for_the_surrounding_transaction(log: recording.Recording) -> None:
    with transaction.atomic():
        async_to_sync(apublish)("orders", "kept", 1)
        assert log.events == []
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        async_to_sync(apublish)("orders", "undone", 1)
        _ = 1 / 0
    assert log.names == ["kept"]


async def test_database_thread_is_free_while_apublish_waits_for_the_log(
    monkeypatch: pytest.MonkeyPatch, log: recording.Recording
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(recording.Recording):
        def append_blocking(self, *arguments: Any, **options: Any) -> list[interface.Receipt]:
            begun.set()
            assert go_on.wait(10)
            return super().append_blocking(*arguments, **options)

    slow = Slow()
    monkeypatch.setattr(current, "current", lambda: slow)
    sending = asyncio.create_task(apublish("orders", "created", 1))
    await asyncio.to_thread(begun.wait, 10)
    assert await asyncio.wait_for(sync_to_async(models.Application.objects.count)(), 20) == 1
    assert not sending.done()
    go_on.set()
    await sending
    assert slow.names == ["created"]


# -- With the real log ------------------------------------------------------------------------------------------------


async def test_view_and_coroutine_publish_in_a_worker_process(
    monkeypatch: pytest.MonkeyPatch, application: models.Application, tmp_path: Any
) -> None:
    engine = local_engine.LocalEngine(tmp_path / "engine")
    monkeypatch.setattr(current, "current", lambda: engine)

    def view() -> None:
        try:
            with transaction.atomic():
                publish("orders", "created", 1, app=application)
        finally:
            connections.close_all()

    worker = await workers.Worker(engine).open()
    try:
        await asyncio.to_thread(view)
        await apublish("orders", "again", 2, app=application)
        await worker.until(lambda: len(worker.entries) == 2, "both events")
    finally:
        await engine.close()
    assert [entry.body for entry in worker.entries] == [
        b'{"event":"created","channel":"orders","data":"1"}',
        b'{"event":"again","channel":"orders","data":"2"}',
    ]


def test_cache_channel_uses_cache_seconds_of_the_application(
    application: models.Application, log: recording.Recording
) -> None:
    application.cache_seconds = 60
    for channel in ("cache-price", "private-cache-price", "price"):
        publish(channel, "changed", 7, app=application)
    events = [entry for entry in log.publications if entry.kind is interface.Kind.EVENT]
    assert [event.cache_seconds for event in events] == [60, 60, None]


# -- The handle -------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[local_engine.LocalEngine]:
    engine = local_engine.LocalEngine(tmp_path / "engine")
    with current.replaced(engine):
        yield engine
    asyncio.run(engine.close())


def test_handle_has_the_position_of_the_event_in_the_log(engine: local_engine.LocalEngine) -> None:
    first, second = publish("orders", "created", {}), publish("orders", "created", {})
    assert (first.entry, second.entry) == ("0:1", "0:2")
    assert first.position is None  # the channel keeps no history
    again = [publish("orders", "created", {}, idempotency_key="k") for _ in range(2)]
    assert [one.duplicate for one in again] == [False, True]
    assert again[1].entry is None


def test_handle_is_filled_by_the_commit(engine: local_engine.LocalEngine) -> None:
    with transaction.atomic():
        handles = [publish("orders", "created", number) for number in range(3)]
        assert [one.entry for one in handles] == [None, None, None]
    assert [one.entry for one in handles] == ["0:1", "0:2", "0:3"]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        lost = publish("orders", "created", 1)
        _ = 1 / 0
    assert lost.entry is None


async def test_coroutine_gets_the_handle(engine: local_engine.LocalEngine) -> None:
    assert (await apublish("orders", "created", {}, app="7")).entry == "0:1"


def test_publisher_in_a_worker_is_recorded_with_its_function(
    engine: local_engine.LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = traces.Recorder(engine)
    monkeypatch.setattr(traces, "here", recorder)
    with transaction.atomic():
        handle = publish("orders", "created", {})
    assert handle.entry is not None
    publisher = recorder.record(traces.parse(handle.entry))["publication"]["publisher"]
    assert publisher["by"] == "publish()"
    assert "test_publisher_in_a_worker_is_recorded_with_its_function" in publisher["caller"]
