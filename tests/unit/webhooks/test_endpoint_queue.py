"""The queue of one endpoint: order, failures, the circuit breaker. The tables are real, the receiver is a fake."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence

import orjson
import pytest
from django.utils import timezone

from fanfare.applications import database, registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.runtime.supervisor import Supervisor
from fanfare.webhooks import deliveries, endpoint_queue, http_client, models, result_writer
from tests.harness import waiting

pytestmark = pytest.mark.django_db(transaction=True)

APPLICATION = registry.Application(id="42", key="shop-key", secret="shop-secret")
ACCEPTED = http_client.Outcome(200, "", "", 1)
REFUSED = http_client.Outcome(500, "HTTP 500", "", 1)


class Deployment:
    """A queue, its tables and its receiver."""

    def __init__(self, endpoint: WebhookEndpoint) -> None:
        self.webhook: registry.Webhook | None = registry.Webhook(id=endpoint.pk, url=endpoint.url)
        self.endpoint = endpoint.pk
        self.counters: collections.Counter[str] = collections.Counter()
        self.requests: list[list[str]] = []  # "channel number" of each event
        self.refuses: Callable[[list[str]], bool] = lambda _: False
        self.together = self.most_together = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def put(self, *texts: str) -> None:
        """Events as "channel number"."""
        models.Delivery.objects.bulk_create(
            models.Delivery(
                webhook_id=self.endpoint,
                event="client_event",
                channel=text.split()[0],
                payload=orjson.dumps(text).decode(),
                entry=1,
                created_at=timezone.now(),
            )
            for text in texts
        )

    async def post(
        self, _application: registry.Application, _webhook: registry.Webhook, payloads: Sequence[str]
    ) -> http_client.Outcome:
        events = [orjson.loads(payload) for payload in payloads]
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.together -= 1
        self.requests.append(events)
        return REFUSED if self.refuses(events) else ACCEPTED

    @property
    def tried(self) -> list[str]:
        return [text for request in self.requests for text in request]

    @contextlib.asynccontextmanager
    async def running(self, retry_seconds: float = 3_600.0) -> AsyncIterator[endpoint_queue.EndpointQueue]:
        writer = result_writer.ResultWriter()
        queue = endpoint_queue.EndpointQueue(
            self.endpoint,
            lambda _: (APPLICATION, self.webhook) if self.webhook else None,
            self.post,
            writer.write,
            lambda name, n=1: self.counters.update({name: n}),
            retry_seconds=retry_seconds,
        )
        queues, writers = Supervisor(), Supervisor()
        writers.run("writer", writer.run)
        queues.run("queue", queue.run)
        try:
            yield queue
        finally:
            await queues.stop()
            await writers.stop()

    async def states(self, **expected: int) -> None:
        """Wait until so many rows are in each state."""

        async def reached() -> bool:
            found = await database.run(lambda: list(models.Delivery.objects.values_list("state", flat=True)))
            return collections.Counter(found) == expected

        await waiting.until_async(reached, 30, f"the rows are {expected}; tried {self.tried}")


@pytest.fixture
def deployment(endpoint: WebhookEndpoint) -> Deployment:
    return Deployment(endpoint)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_queue, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(endpoint_queue, "LONGEST_PAUSE_S", 0.2)


async def put(deployment: Deployment, *texts: str) -> None:
    await database.run(deployment.put, *texts)


async def test_each_request_has_one_event_and_each_channel_one_request_at_a_time(deployment: Deployment) -> None:
    await put(deployment, *(f"{channel} {number}" for number in range(30) for channel in "abc"))
    async with deployment.running() as queue:
        queue._has_succeeded = True
        await deployment.states(delivered=90)
    assert all(len(request) == 1 for request in deployment.requests)
    for channel in "abc":
        assert [text for text in deployment.tried if text[0] == channel] == [f"{channel} {n}" for n in range(30)]
    assert deployment.most_together == 3
    assert deployment.counters["webhooks.delivered"] == 90


async def test_endpoint_gets_one_request_at_a_time_until_its_first_success(deployment: Deployment) -> None:
    await put(deployment, *(f"{channel} {number}" for channel in "abc" for number in range(3)))
    deployment.gate.clear()

    def close_gate(_: list[str]) -> bool:
        deployment.gate.clear()
        return False

    deployment.refuses = close_gate
    async with deployment.running() as queue:
        await waiting.until_async(_has(lambda: deployment.together == 1), 10, "the first request")
        assert await queue._fill() == endpoint_queue.IDLE_S
        assert deployment.together == 1
        deployment.gate.set()
        await waiting.until_async(_has(lambda: deployment.together == 3), 10, "a request for each channel")
        deployment.refuses = lambda _: False
        deployment.gate.set()
        await deployment.states(delivered=9)


async def test_events_that_wait_are_sent_after_a_success_even_if_a_look_comes_before_its_commit(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(deployment, *(f"{channel} 1" for channel in "abcdef"))
    deployment.refuses = lambda _: True
    async with deployment.running() as queue:
        await waiting.until_async(_has(lambda: deployment.counters["webhooks.circuit_opened"] == 1), 10, "the circuit")
        monkeypatch.setattr(endpoint_queue, "FIRST_PAUSE_S", 600.0)
        monkeypatch.setattr(endpoint_queue, "LONGEST_PAUSE_S", 600.0)
        far = time.time() + 600
        channels = await database.run(lambda: list(models.Delivery.objects.values_list("pk", flat=True)))
        await database.run(deliveries.postponed, channels, far, REFUSED)
        write, stored = queue._write, asyncio.Event()

        async def write_late(*writes: Callable[[], object]) -> None:
            if not queue._breaker.is_open:
                await queue._fill()  # a look between the success and its commit
                stored.set()
            await write(*writes)

        queue._write = write_late
        queue._breaker.retry_at, queue._has_succeeded = 0.0, True
        deployment.refuses = lambda _: False
        queue.wake()
        await deployment.states(delivered=6)
    assert stored.is_set()


async def test_refused_event_delays_its_channel_and_no_other(deployment: Deployment) -> None:
    await put(deployment, "a 1", "a 2", "b 1", "b 2")
    deployment.refuses = lambda events: events == ["a 1"]
    async with deployment.running():
        await deployment.states(delivered=2, pending=2)
        assert set(deployment.tried) == {"a 1", "b 1", "b 2"}
        deployment.refuses = lambda _: False
        await deployment.states(delivered=4)
    assert deployment.tried.index("a 2") > deployment.tried.index("a 1")


async def test_next_worker_keeps_the_pause_of_an_event(deployment: Deployment) -> None:
    await put(deployment, "a 1", "b 1")

    def postpone() -> None:
        deliveries.postponed([models.Delivery.objects.get(channel="a").pk], time.time() + 60, REFUSED)

    await database.run(postpone)
    async with deployment.running():
        await deployment.states(delivered=1, pending=1)
    assert deployment.tried == ["b 1"]


async def test_batches_hold_events_of_many_channels_in_order(deployment: Deployment) -> None:
    deployment.webhook = dataclasses.replace(deployment.webhook, batching=True)
    await put(deployment, *(f"{channel} {number}" for number in range(30) for channel in "abcd"))
    async with deployment.running():
        await deployment.states(delivered=120)
    assert len(deployment.requests) <= 6
    assert max(map(len, deployment.requests)) == endpoint_queue.BATCH_EVENTS
    for channel in "abcd":
        assert [text for text in deployment.tried if text[0] == channel] == [f"{channel} {n}" for n in range(30)]


async def test_refused_event_of_a_batch_delays_only_its_channel(deployment: Deployment) -> None:
    deployment.webhook = dataclasses.replace(deployment.webhook, batching=True)
    await put(deployment, "a 1", "b 1", "bad 1", "c 1", "bad 2")
    deployment.refuses = lambda events: "bad 1" in events
    async with deployment.running():
        await deployment.states(delivered=3, pending=2)
        assert "bad 2" not in [text for request in deployment.requests[1:] for text in request]


async def test_failing_endpoint_is_probed_with_one_event_and_gets_all_after_a_success(
    deployment: Deployment,
) -> None:
    await put(deployment, *(f"{channel} 1" for channel in "abcdefghijkl"))
    deployment.refuses = lambda _: True
    async with deployment.running():
        await waiting.until_async(lambda: _health(is_open=True), 10, "the circuit is open")
        await waiting.until_async(_no_longer(lambda: deployment.together), 10, "the end of the requests in progress")
        deployment.most_together, tried = 0, len(deployment.requests)
        await waiting.until_async(_has(lambda: len(deployment.requests) > tried + 3), 10, "it is probed")
        assert deployment.most_together == 1
        deployment.refuses = lambda _: False
        await deployment.states(delivered=12)
        await waiting.until_async(lambda: _health(is_open=False, failures=0), 10, "the circuit is closed")
    assert deployment.counters["webhooks.circuit_opened"] == deployment.counters["webhooks.circuit_closed"] == 1


async def test_event_is_given_up_after_the_retry_time_and_the_next_one_is_sent(deployment: Deployment) -> None:
    await put(deployment, "a 1", "a 2")
    deployment.refuses = lambda events: events == ["a 1"]
    async with deployment.running() as queue:
        await waiting.until_async(_has(lambda: deployment.tried.count("a 1") > 1), 30, "a second attempt")
        queue._retry_seconds = 0.0
        await deployment.states(failed=1, delivered=1)
    assert deployment.counters["webhooks.failed"] == 1


async def test_pending_events_of_a_failing_endpoint_are_given_up_together(deployment: Deployment) -> None:
    await put(deployment, *(f"{channel} {number}" for channel in "abcdefgh" for number in range(5)))
    deployment.refuses = lambda _: True
    async with deployment.running(retry_seconds=0.3):
        await deployment.states(failed=40)
    assert deployment.counters["webhooks.failed"] == 40


async def test_event_in_progress_is_not_given_up_with_the_pending_ones(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(deployment, *(f"{channel} {number}" for channel in "abcdefgh" for number in range(5)))
    deployment.refuses = lambda events: events != ["h 0"]
    post, release = deployment.post, asyncio.Event()

    async def post_h_late(
        application: registry.Application, webhook: registry.Webhook, payloads: Sequence[str]
    ) -> http_client.Outcome:
        if orjson.loads(payloads[0]) == "h 0":
            await release.wait()
        return await post(application, webhook, payloads)

    monkeypatch.setattr(deployment, "post", post_h_late)
    async with deployment.running(retry_seconds=0.0) as queue:
        queue._has_succeeded = True  # all channels are tried at the same time
        await deployment.states(failed=39, pending=1)
        release.set()
        await deployment.states(failed=39, delivered=1)
    assert (deployment.counters["webhooks.failed"], deployment.counters["webhooks.delivered"]) == (39, 1)


async def test_old_event_is_still_tried_when_a_worker_starts(deployment: Deployment) -> None:
    await put(deployment, "a 1")
    await database.run(lambda: models.Delivery.objects.update(created_at="2026-01-01T00:00:00Z"))
    deployment.refuses = lambda _: len(deployment.requests) == 1
    async with deployment.running():
        await deployment.states(delivered=1)
    assert deployment.tried == ["a 1", "a 1"]


async def test_paused_endpoint_gets_its_events_when_it_is_enabled_again(deployment: Deployment) -> None:
    webhook = deployment.webhook
    deployment.webhook = dataclasses.replace(webhook, enabled=False)
    await put(deployment, "a 1")
    await database.run(lambda: models.Delivery.objects.update(created_at="2026-01-01T00:00:00Z"))
    deployment.refuses = lambda _: len(deployment.requests) == 1  # the time of the pause does not count
    async with deployment.running() as queue:
        queue.wake()
        await asyncio.sleep(0)
        await deployment.states(pending=1)
        assert deployment.requests == []
        deployment.webhook = webhook
        queue.wake()
        await deployment.states(delivered=1)


async def test_failing_endpoint_is_tried_at_once_after_a_pause(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(deployment, *(f"{channel} 1" for channel in "abcde"))
    deployment.refuses = lambda _: True
    async with deployment.running() as queue:
        opened = _has(lambda: deployment.counters["webhooks.circuit_opened"] == 1)
        monkeypatch.setattr(endpoint_queue, "FIRST_PAUSE_S", 600.0)
        monkeypatch.setattr(endpoint_queue, "LONGEST_PAUSE_S", 600.0)
        await waiting.until_async(opened, 10, "the open circuit")
        webhook = deployment.webhook
        deployment.webhook = dataclasses.replace(webhook, enabled=False)
        queue.wake()
        await asyncio.sleep(0.05)
        deployment.refuses = lambda _: False
        deployment.webhook = webhook
        queue.wake()
        await deployment.states(delivered=5)


async def test_request_in_progress_may_end_when_the_worker_stops(deployment: Deployment) -> None:
    await put(deployment, "a 1")
    deployment.gate.clear()
    async with deployment.running():
        await waiting.until_async(_has(lambda: deployment.together == 1), 10, "the request in progress")
        asyncio.get_running_loop().call_later(0.05, deployment.gate.set)
    await deployment.states(delivered=1)


async def _health(**expected: object) -> bool:
    return await database.run(models.EndpointHealth.objects.filter(**expected).exists)


def _has(condition: Callable[[], object]) -> Callable[[], object]:
    async def holds() -> bool:
        return bool(condition())

    return holds


def _no_longer(condition: Callable[[], object]) -> Callable[[], object]:
    return _has(lambda: not condition())


# -- the circuit breaker -----------------------------------------------------------------------------------------------


def test_circuit_opens_after_failures_in_a_row_and_closes_with_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    breaker = endpoint_queue.CircuitBreaker()
    for _ in range(endpoint_queue.BREAKER_OPENS_AT - 1):
        breaker.failed(100.0)
    breaker.succeeded()
    for _ in range(endpoint_queue.BREAKER_OPENS_AT):
        assert not breaker.is_open
        breaker.failed(100.0)
    assert breaker.is_open
    assert 100.0 < breaker.retry_at <= 101.0
    breaker.failed(200.0)
    assert 201.0 < breaker.retry_at <= 202.0
    breaker.succeeded()
    assert not breaker.is_open
