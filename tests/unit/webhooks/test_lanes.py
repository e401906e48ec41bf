"""The way to one endpoint: order, failures, the circuit. The outbox is real; the other side is played."""

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
from fanfare.webhooks import breaker, courier, lanes, models, outbox, recorder
from tests.harness import waiting

pytestmark = pytest.mark.django_db(transaction=True)

APPLICATION = registry.Application(id="42", key="shop-key", secret="shop-secret")
ACCEPTED = courier.Outcome(200, "", "", 1)
REFUSED = courier.Outcome(500, "HTTP 500", "", 1)


class Deployment:
    """A lane, its outbox and its other side."""

    def __init__(self, endpoint: WebhookEndpoint) -> None:
        self.webhook: registry.Webhook | None = registry.Webhook(id=endpoint.pk, url=endpoint.url)
        self.endpoint = endpoint.pk
        self.counters: collections.Counter[str] = collections.Counter()
        self.requests: list[list[str]] = []  # "channel number" of each event
        self.refuses: Callable[[list[str]], bool] = lambda _: False
        self.together = self.most_together = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def put(self, *told: str) -> None:
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
            for text in told
        )

    async def post(
        self, _application: registry.Application, _webhook: registry.Webhook, payloads: Sequence[str]
    ) -> courier.Outcome:
        told = [orjson.loads(payload) for payload in payloads]
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.together -= 1
        self.requests.append(told)
        return REFUSED if self.refuses(told) else ACCEPTED

    @property
    def tried(self) -> list[str]:
        return [text for request in self.requests for text in request]

    @contextlib.asynccontextmanager
    async def running(self, retry_seconds: float = 3_600.0) -> AsyncIterator[lanes.Lane]:
        records = recorder.Recorder()
        lane = lanes.Lane(
            self.endpoint,
            lambda _: (APPLICATION, self.webhook) if self.webhook else None,
            self.post,
            records.record,
            lambda name, n=1: self.counters.update({name: n}),
            retry_seconds=retry_seconds,
        )
        tasks = [asyncio.create_task(records.run()), asyncio.create_task(lane.run())]
        try:
            yield lane
        finally:
            for task in reversed(tasks):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def states(self, **expected: int) -> None:
        """Wait until so many rows are in each state."""

        async def reached() -> bool:
            found = await database.run(lambda: list(models.Delivery.objects.values_list("state", flat=True)))
            return collections.Counter(found) == expected

        await waiting.until_async(reached, 10, f"the rows are {expected}; tried {self.tried}")


@pytest.fixture
def deployment(endpoint: WebhookEndpoint) -> Deployment:
    return Deployment(endpoint)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_S", 0.2)


async def put(deployment: Deployment, *told: str) -> None:
    await database.run(deployment.put, *told)


async def test_each_request_has_one_event_and_a_channel_has_one_request_at_a_time(deployment: Deployment) -> None:
    await put(deployment, *(f"{channel} {number}" for number in range(30) for channel in "abc"))
    async with deployment.running():
        await deployment.states(delivered=90)
    assert all(len(request) == 1 for request in deployment.requests)
    for channel in "abc":
        assert [text for text in deployment.tried if text[0] == channel] == [f"{channel} {n}" for n in range(30)]
    assert deployment.most_together == 3
    assert deployment.counters["webhooks.delivered"] == 90


async def test_a_refused_event_holds_its_channel_and_no_other(deployment: Deployment) -> None:
    await put(deployment, "a 1", "a 2", "b 1", "b 2")
    deployment.refuses = lambda told: told == ["a 1"]
    async with deployment.running():
        await deployment.states(delivered=2, pending=2)
        assert set(deployment.tried) == {"a 1", "b 1", "b 2"}
        deployment.refuses = lambda _: False
        await deployment.states(delivered=4)
    assert deployment.tried.index("a 2") > deployment.tried.index("a 1")


async def test_the_pause_of_an_event_outlives_its_worker(deployment: Deployment) -> None:
    await put(deployment, "a 1", "b 1")

    def postpone() -> None:
        outbox.postponed([models.Delivery.objects.get(channel="a").pk], REFUSED, time.time() + 60)

    await database.run(postpone)
    async with deployment.running():
        await deployment.states(delivered=1, pending=1)
    assert deployment.tried == ["b 1"]


async def test_batches_hold_many_events_of_many_channels_in_order(deployment: Deployment) -> None:
    deployment.webhook = dataclasses.replace(deployment.webhook, batching=True)
    await put(deployment, *(f"{channel} {number}" for number in range(30) for channel in "abcd"))
    async with deployment.running():
        await deployment.states(delivered=120)
    assert len(deployment.requests) <= 6
    assert max(map(len, deployment.requests)) == lanes.BATCH_EVENTS
    for channel in "abcd":
        assert [text for text in deployment.tried if text[0] == channel] == [f"{channel} {n}" for n in range(30)]


async def test_an_event_that_spoils_its_batch_holds_up_nothing_but_its_channel(deployment: Deployment) -> None:
    deployment.webhook = dataclasses.replace(deployment.webhook, batching=True)
    await put(deployment, "a 1", "b 1", "bad 1", "c 1", "bad 2")
    deployment.refuses = lambda told: "bad 1" in told
    async with deployment.running():
        await deployment.states(delivered=3, pending=2)
        assert "bad 2" not in [text for request in deployment.requests[1:] for text in request]


async def test_a_dead_endpoint_is_probed_with_one_event_and_everything_flows_when_it_is_back(
    deployment: Deployment,
) -> None:
    await put(deployment, *(f"{channel} 1" for channel in "abcdefghijkl"))
    deployment.refuses = lambda _: True
    async with deployment.running():
        await waiting.until_async(lambda: _health(is_open=True), 10, "the circuit is open")
        await waiting.until_async(_no_longer(lambda: deployment.together), 10, "what was under way has ended")
        deployment.most_together, tried = 0, len(deployment.requests)
        await waiting.until_async(_has(lambda: len(deployment.requests) > tried + 3), 10, "it is probed")
        assert deployment.most_together == 1
        deployment.refuses = lambda _: False
        await deployment.states(delivered=12)
        await waiting.until_async(lambda: _health(is_open=False, failures=0), 10, "the circuit is closed")
    assert deployment.counters["webhooks.circuit_opened"] == deployment.counters["webhooks.circuit_closed"] == 1


async def test_an_event_that_was_tried_long_enough_is_given_up_and_the_next_one_goes(deployment: Deployment) -> None:
    await put(deployment, "a 1", "a 2")
    deployment.refuses = lambda told: told == ["a 1"]
    async with deployment.running(retry_seconds=0.1):
        await deployment.states(failed=1, delivered=1)
    assert deployment.tried.count("a 1") > 1
    assert deployment.counters["webhooks.failed"] == 1


async def test_what_waited_too_long_behind_a_dead_endpoint_is_given_up_with_it(deployment: Deployment) -> None:
    await put(deployment, *(f"{channel} {number}" for channel in "abcdefgh" for number in range(5)))
    deployment.refuses = lambda _: True
    async with deployment.running(retry_seconds=0.3):
        await deployment.states(failed=40)
    assert deployment.counters["webhooks.failed"] == 40


async def test_what_is_old_when_a_worker_starts_is_still_tried(deployment: Deployment) -> None:
    await put(deployment, "a 1")
    await database.run(lambda: models.Delivery.objects.update(created_at="2026-01-01T00:00:00Z"))
    deployment.refuses = lambda _: len(deployment.requests) == 1
    async with deployment.running():
        await deployment.states(delivered=1)
    assert deployment.tried == ["a 1", "a 1"]


async def test_a_disabled_endpoint_gets_nothing_until_it_is_enabled(deployment: Deployment) -> None:
    webhook = deployment.webhook
    deployment.webhook = dataclasses.replace(webhook, enabled=False)
    await put(deployment, "a 1")
    async with deployment.running() as lane:
        lane.wake()
        await asyncio.sleep(0)
        await deployment.states(pending=1)
        assert deployment.requests == []
        deployment.webhook = webhook
        lane.wake()
        await deployment.states(delivered=1)


async def test_what_is_under_way_when_the_worker_stops_may_end(deployment: Deployment) -> None:
    await put(deployment, "a 1")
    deployment.gate.clear()
    async with deployment.running():
        await waiting.until_async(_has(lambda: deployment.together == 1), 10, "the request is under way")
        asyncio.get_running_loop().call_later(0.05, deployment.gate.set)
    await deployment.states(delivered=1)


async def _health(**expected: object) -> bool:
    return await database.run(models.Health.objects.filter(**expected).exists)


def _has(condition: Callable[[], object]) -> Callable[[], object]:
    async def holds() -> bool:
        return bool(condition())

    return holds


def _no_longer(condition: Callable[[], object]) -> Callable[[], object]:
    return _has(lambda: not condition())
