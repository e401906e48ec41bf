"""All endpoints together: whatever one receiver does, the others get their events."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fanfare.applications import database, registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.hub import activity, telemetry
from fanfare.runtime import log_lines
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.supervisor import State, Supervisor
from fanfare.webhooks import deliveries, endpoint_queue, http_client, models, options, sender
from tests.harness import receivers, waiting
from tests.unit.console import workers
from tests.unit.webhooks import hostile

pytestmark = pytest.mark.django_db(transaction=True)

EVENTS = 20


class FakeHub:
    def __init__(self) -> None:
        self.counters: collections.Counter[str] = collections.Counter()
        self.activity = activity.Activity()

    def count(self, name: str, n: int = 1) -> None:
        self.counters[name] += n


class Deployment:
    """A sender whose endpoints are those of `add`."""

    def __init__(self, endpoint: WebhookEndpoint) -> None:
        self.hub = FakeHub()
        self.registry = registry.Registry()
        self.application = endpoint.application
        self.webhooks: list[registry.Webhook] = []
        self.options = options.Options(timeout_seconds=1.0, allow_private=True)
        self.sender: sender.Sender

    async def add(self, url: str) -> registry.Webhook:
        row = await database.run(WebhookEndpoint.objects.create, application=self.application, url=url)
        webhook = registry.Webhook(id=row.pk, url=url)
        self.webhooks.append(webhook)
        self.know()
        return webhook

    def know(self) -> None:
        self.registry.put(registry.Application("42", "shop-key", "shop-secret", webhooks=tuple(self.webhooks)))

    async def put(self, webhook: registry.Webhook, events: int = EVENTS) -> None:
        await database.run(self._put, webhook.id, events)
        self.sender.wake([webhook.id])

    def _put(self, webhook: int, events: int) -> None:
        models.Delivery.objects.bulk_create(
            models.Delivery(
                webhook_id=webhook,
                event="client_event",
                channel=f"channel-{number % 5}",
                payload=f'{{"name":"client_event","channel":"channel-{number % 5}"}}',
                entry=number,
                created_at=timezone.now(),
            )
            for number in range(events)
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.sender = sender.Sender(self.hub, self.registry, self.options)  # type: ignore[arg-type]
        tasks = Supervisor()
        tasks.run("sender", self.sender.run, backoff=Backoff(0.01, 0.05))
        try:
            yield
        finally:
            await tasks.stop(5.0)

    async def delivered(self, webhook: registry.Webhook, events: int = EVENTS) -> None:
        found = models.Delivery.objects.filter(webhook=webhook.id, state=models.State.DELIVERED)

        async def reached() -> bool:
            return await database.run(found.count) == events

        await waiting.until_async(reached, 15, f"{events} deliveries")


@pytest.fixture
def deployment(endpoint: WebhookEndpoint) -> Deployment:
    return Deployment(endpoint)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "LOOK_S", 0.05)
    monkeypatch.setattr(sender, "IDLE_LOOK_S", 0.05)
    monkeypatch.setattr(sender, "UPKEEP_S", 0.05)
    monkeypatch.setattr(endpoint_queue, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(endpoint_queue, "STOP_S", 0.2)


@pytest.mark.parametrize("kind", [*hostile.REFUSING, *hostile.ACCEPTING])
async def test_hostile_receiver_does_not_delay_another_endpoint(
    deployment: Deployment, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = {**hostile.REFUSING, **hostile.ACCEPTING}[kind]
    with receivers.receiver(answer) as bad, receivers.receiver() as good:
        async with deployment.running():
            hostile_webhook, healthy = await deployment.add(bad.url), await deployment.add(good.url)
            await deployment.put(hostile_webhook)
            await deployment.put(healthy)
            await deployment.delivered(healthy)
            if kind in hostile.REFUSING:
                await waiting.until_async(lambda: _failures(hostile_webhook.id), 10, "a recorded failure")
            await deployment.put(healthy)
            await deployment.delivered(healthy, 2 * EVENTS)
    assert deployment.hub.counters["webhooks.crashed"] == 0
    assert deployment.hub.counters["webhooks.failed"] == 0
    assert "Traceback" not in caplog.text


async def test_receiver_gets_the_context_of_the_span(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers.Worker(tmp_path / "engine")
    monkeypatch.setattr(log_lines, "trace_id", log_lines.trace_id)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "here", telemetry.Telemetry(worker.hub, provider))
    with receivers.receiver() as good:
        async with deployment.running():
            webhook = await deployment.add(good.url)
            await deployment.put(webhook, 1)
            await deployment.delivered(webhook, 1)
        [request] = good.requests
    [span] = exporter.get_finished_spans()
    assert span.context is not None
    assert request.headers["traceparent"][:52] == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"
    assert span.attributes == {
        "fanfare.application": "42",
        "fanfare.events": 1,
        "url.full": good.url,
        "http.response.status_code": 200,
    }


async def _failures(webhook: int) -> int:
    return await database.run(models.EndpointHealth.objects.filter(webhook=webhook, failures__gt=0).count)


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_response_that_the_database_refuses_is_stored_without_its_texts(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if text from outside had not been cleaned."""
    post = http_client.HttpClient.post

    async def unclean(self: http_client.HttpClient, *arguments: Any) -> http_client.Outcome:
        outcome = await post(self, *arguments)
        return outcome if outcome.accepted else outcome._replace(error="\udcff", answer="\x00")

    monkeypatch.setattr(http_client.HttpClient, "post", unclean)
    with receivers.receiver(receivers.refuse) as bad, receivers.receiver() as good:
        async with deployment.running():
            refused, healthy = await deployment.add(bad.url), await deployment.add(good.url)
            await deployment.put(refused, 1)
            await deployment.put(healthy)
            await deployment.delivered(healthy)
            await waiting.until_async(lambda: _failures(refused.id), 10, "a recorded failure")
            row = await database.run(models.Delivery.objects.filter(webhook=refused.id).first)
            assert row is not None
            assert (row.status, row.error) == (500, "The response cannot be stored")
    assert deployment.hub.counters["webhooks.unstorable"] >= 1


@pytest.mark.parametrize("broken", ["_fill", "_accepted", "_find"])
async def test_fault_in_one_queue_is_logged_and_the_others_deliver(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    with receivers.receiver() as one, receivers.receiver() as two:
        async with deployment.running():
            faulty, healthy = await deployment.add(one.url), await deployment.add(two.url)
            whole = endpoint_queue.EndpointQueue.__init__

            def init(self: endpoint_queue.EndpointQueue, endpoint: int, *rest: Any, **more: Any) -> None:
                whole(self, endpoint, *rest, **more)
                if endpoint == faulty.id:
                    setattr(self, broken, _raise)

            with monkeypatch.context() as patched:
                patched.setattr(endpoint_queue.EndpointQueue, "__init__", init)
                await deployment.put(faulty)
                await deployment.put(healthy)
                await deployment.delivered(healthy)
                await waiting.until_async(_true(lambda: "ZeroDivisionError" in caplog.text), 5, "the fault in the log")
            await deployment.put(healthy)
            await deployment.delivered(healthy, 2 * EVENTS)


def _raise(*_: object) -> None:
    raise ZeroDivisionError


async def test_sender_that_fails_starts_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with receivers.receiver() as good:
        async with deployment.running():
            healthy = await deployment.add(good.url)
            await deployment.put(healthy)
            await deployment.delivered(healthy)
            with monkeypatch.context() as patched:
                patched.setattr(deliveries, "waiting_endpoints", _raise)
                await waiting.until_async(_true(lambda: "ZeroDivisionError" in caplog.text), 5, "the failure")
            await deployment.put(healthy)
            await deployment.delivered(healthy, 2 * EVENTS)


async def test_queue_of_a_deleted_endpoint_ends(deployment: Deployment) -> None:
    with receivers.receiver() as good:
        async with deployment.running():
            webhook = await deployment.add(good.url)
            await deployment.put(webhook)
            await deployment.delivered(webhook)
            names = [status.name for status in deployment.sender.statuses]
            assert names == ["webhook results", f"webhook {webhook.id}"]
            assert all(status.state is State.RUNNING for status in deployment.sender.statuses)
            deployment.webhooks.clear()
            deployment.know()
            deployment.sender.wake([webhook.id])
            await waiting.until_async(_true(lambda: len(deployment.sender.statuses) == 1), 5, "the queue's end")
            assert deployment.sender._queues == {}


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_endpoint_with_too_many_pending_deliveries_is_full_until_it_accepts(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.options = options.Options(timeout_seconds=1.0, allow_private=True, max_pending=10)
    with receivers.receiver(receivers.refuse) as receiver:
        async with deployment.running():
            webhook = await deployment.add(receiver.url)
            await deployment.put(webhook)
            await waiting.until_async(_true(lambda: deployment.sender.full == {webhook.id}), 5, "full")
            receiver.answer = receivers.accept
            await waiting.until_async(_true(lambda: not deployment.sender.full), 15, "room again")
    assert "has 20 pending deliveries; FANFARE_WEBHOOKS_MAX_PENDING allows 10" in caplog.text


async def test_finished_deliveries_are_trimmed_counted_and_logged(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fanfare.webhooks")
    monkeypatch.setattr(sender, "TRIM_S", 0.05)
    deployment.options = options.Options(timeout_seconds=1.0, allow_private=True, keep_rows=5)
    with receivers.receiver() as good:
        async with deployment.running():
            webhook = await deployment.add(good.url)
            await deployment.put(webhook)

            async def trimmed() -> bool:
                return await database.run(models.Delivery.objects.count) <= 5

            await waiting.until_async(trimmed, 10, "five rows")
            await waiting.until_async(_true(lambda: deployment.hub.counters["webhooks.trimmed"] >= 15), 5, "the count")
    assert "finished deliveries" in caplog.text


def _true(condition: Callable[[], object]) -> Callable[[], Any]:
    async def holds() -> bool:
        return bool(condition())

    return holds
