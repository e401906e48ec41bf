"""The trace of an event whose publisher is a process without a worker, and the webhooks of an event."""

from __future__ import annotations

import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from fanfare.applications import database, models
from fanfare.console import permissions, requests
from fanfare.console.endpoints import tracing
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.engine.local import engine as local_engine
from fanfare.hub import connections, traces
from fanfare.integration import appending, publishing
from fanfare.webhooks.models import Delivery
from tests.harness import waiting
from tests.unit.console.workers import Worker, until_known

ANN = permissions.Access("1", "ann", {"view_console": None})
EVENT = interface.Publication("1", "orders", b'{"event":"e","data":"{}"}')


@pytest.fixture
async def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Worker, Worker]]:
    one, two = await Worker(tmp_path / "engine", "one").start(), await Worker(tmp_path / "engine", "other").start()
    for worker in (one, two):
        tracing.register(worker.survey, worker.hub)
    await until_known(one, two)

    async def no_webhooks(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(database, "run", no_webhooks)
    monkeypatch.setattr(appending, "_sampler", traces.Sampler())
    yield one, two
    for worker in (one, two):
        await worker.hub.stop()


async def publisher(worker: Worker, entry: str) -> dict[str, Any]:
    """The publication on the page of the trace, when it is there."""
    found: dict[str, Any] = {}

    async def is_known() -> bool:
        request = requests.Request(SimpleNamespace(survey=worker.survey), ANN, {"entry": entry}, {})  # type: ignore[arg-type]
        found.update(await tracing.trace(request))
        return found["publication"] is not None

    await waiting.until_async(is_known, 30, "the workers have the publisher's record")
    published: dict[str, Any] = found["publication"]
    return published


def import_orders(handle: publishing.Published, engine: local_engine.LocalEngine) -> None:
    """A command's function: it publishes in a process that is no worker."""
    with current.replaced(engine):
        appending.append([EVENT], [handle])


async def test_command_is_the_publisher_on_the_trace_of_every_worker(
    both: tuple[Worker, Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/srv/manage.py", "import_orders", "--secret=1"])
    handle = publishing.Published()
    engine = local_engine.LocalEngine(tmp_path / "engine")
    await sync_to_async(import_orders)(handle, engine)
    await engine.close()
    for worker in both:
        found = await publisher(worker, handle.entry or "")
        assert found["publisher"]["program"] == "manage.py import_orders"
        assert found["publisher"]["caller"].startswith(f"{__name__}.import_orders, line ")
        assert found["pid"]
        assert found["committed"] >= found["began"] > 0


async def test_sender_of_a_client_event_is_its_publisher(both: tuple[Worker, Worker]) -> None:
    sender, reader = both[0].connect(), both[1].connect()
    both[0].hub.subscribe(sender, "private-orders")
    both[1].hub.subscribe(reader, "private-orders")
    await waiting.until_async(lambda: _is_live(sender, reader), 30, "the subscriptions are live")
    event = interface.Publication(
        "1",
        "private-orders",
        b'{"event":"client-e"}',
        interface.Kind.CLIENT_EVENT,
        user_id="ann",
        exclude=sender.socket_id,
    )
    both[1].hub.recorder.trace("1", "private-orders", 60)
    [receipt] = await both[0].hub.publish([event])
    found = await publisher(both[0], traces.position(0, receipt.id))
    assert found == {"publisher": {"by": "a client", "socket": sender.socket_id, "user": "ann"}}


async def _is_live(*readers: connections.Connection) -> bool:
    return all(one.subscriptions["private-orders"].state is connections.State.LIVE for one in readers)


async def test_calls_of_a_burst_are_a_sample(
    both: tuple[Worker, Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended: list[interface.Publication] = []

    class Outlet(local_engine.LocalEngine):
        def append_blocking(self, publications: Any, timeout: float | None = None) -> Any:
            appended.extend(publications)
            return super().append_blocking(publications, timeout)

    engine = Outlet(tmp_path / "engine")

    def burst() -> None:
        with current.replaced(engine):
            for _ in range(3):
                appending.append([EVENT])

    monkeypatch.setattr(traces, "SAMPLE_MS", 1_000_000)
    await sync_to_async(burst)()
    await engine.close()
    assert [one.channel for one in appended] == ["orders", interface.PUBLISHERS, "orders", "orders"]


async def test_record_that_is_not_stored_costs_the_publisher_nothing(
    both: tuple[Worker, Worker], tmp_path: Path
) -> None:
    class Outlet(local_engine.LocalEngine):
        def append_blocking(self, publications: Any, timeout: float | None = None) -> Any:
            if publications[0].channel == interface.PUBLISHERS:
                raise engine_errors.EngineUnavailable("The log is full.")
            return super().append_blocking(publications, timeout)

    engine = Outlet(tmp_path / "engine")

    def publish() -> publishing.Published:
        handle = publishing.Published()
        with current.replaced(engine):
            appending.append([EVENT], [handle])
        return handle

    published = await sync_to_async(publish)()
    await engine.close()
    assert published.entry is not None


def in_a_module(name: str, source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": name}
    exec(source, namespace)
    return namespace


def test_publisher_names_the_task_of_django() -> None:
    source = "class Task:\n    module_path = 'shop.tasks.pay'\n    def call(self, function):\n        return function()"
    task = in_a_module("django.tasks.base", source)["Task"]()
    assert task.call(appending._publisher)["task"] == "shop.tasks.pay"
    assert "task" not in appending._publisher()


def test_publisher_names_the_task_of_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    celery = types.ModuleType("celery")
    celery.current_task = SimpleNamespace(name="shop.tasks.pay")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "celery", celery)
    assert appending._publisher()["task"] == "shop.tasks.pay"
    celery.current_task = None  # type: ignore[attr-defined]
    assert "task" not in appending._publisher()


@pytest.mark.django_db
def test_webhooks_of_an_event_are_not_those_of_another_partition() -> None:
    """The same id is in another partition, in which another channel is."""
    application = models.Application.objects.create(name="shop", app_id="7", key="key-7", secret="secret-7")
    endpoint = models.WebhookEndpoint.objects.create(
        application=application, url="https://example.com/hook?token=secret"
    )
    for channel in ("orders", "news"):
        Delivery.objects.create(
            webhook=endpoint, event="client_event", channel=channel, payload="{}", entry=5, created_at=timezone.now()
        )
    [found] = tracing._deliveries("7", "orders", 5)
    assert Delivery.objects.get(pk=found["id"]).channel == "orders"
    assert found["url"] == endpoint.masked_url
    assert "secret" not in found["url"]
    assert tracing._deliveries("8", "orders", 5) == []
