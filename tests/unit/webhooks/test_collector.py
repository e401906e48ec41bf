"""From a real log to the outbox, through starts, crashes and logs that are not the same any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fanfare.applications import database, registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.engine import interface
from fanfare.engine.local.engine import LocalEngine
from fanfare.hub import hub as hubs
from fanfare.webhooks import collector, models
from tests.harness import waiting

pytestmark = pytest.mark.django_db(transaction=True)


class Deployment:
    """A worker with a log in `folder`, whose registry is what the test puts there."""

    def __init__(self, folder: Path, endpoint: WebhookEndpoint) -> None:
        self.engine = LocalEngine(folder)
        self.hub = hubs.Hub(self.engine)
        self.registry = registry.Registry()
        self.loaded = True
        self.woken: set[int] = set()
        self._webhook = registry.Webhook(id=endpoint.pk, url=endpoint.url)

    def know(self, *, endpoint: bool = True) -> None:
        self.registry.put(
            registry.Application("42", "shop-key", "shop-secret", webhooks=(self._webhook,) if endpoint else ())
        )

    def occupy(self, *channels: str) -> None:
        for channel in channels:
            self.engine.set_subscribers("42", channel, 1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.hub.start()
        try:
            yield
        finally:
            await self.hub.stop()

    @contextlib.asynccontextmanager
    async def collecting(self) -> AsyncIterator[None]:
        made = collector.Collector(
            self.hub, self.registry, lambda: self.loaded, self.woken.update, debounce_seconds=3.0
        )
        task = asyncio.create_task(made.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def collected(self, *channels: str) -> None:
        """Wait until exactly these are in the outbox, in this order."""

        async def reached() -> bool:
            return await _channels() == list(channels)

        await waiting.until_async(reached, 10, f"the outbox holds {channels}")


async def _channels() -> list[str]:
    return await database.run(lambda: list(models.Delivery.objects.order_by("id").values_list("channel", flat=True)))


@pytest.fixture
def deployment(tmp_path: Path, endpoint: WebhookEndpoint) -> Deployment:
    return Deployment(tmp_path / "engine", endpoint)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "LOOK_S", 0.05)
    monkeypatch.setattr(collector, "CURSOR_S", 0.0)


async def test_what_happens_is_collected_and_the_endpoint_woken(deployment: Deployment) -> None:
    deployment.know()
    async with deployment.running(), deployment.collecting():
        deployment.occupy("a", "b")
        await deployment.collected("a", "b")
        deployment.occupy("c")
        await deployment.collected("a", "b", "c")
        await waiting.until_async(_true(lambda: deployment.woken), 5, "the endpoint was woken")


async def test_the_first_endpoint_hears_of_what_came_before_it_was_noticed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log was silent, and the event came before the collector looked again."""
    async with deployment.running(), deployment.collecting():
        await asyncio.sleep(0.2)
        monkeypatch.setattr(collector, "LOOK_S", 0.3)
        await asyncio.sleep(0.1)
        deployment.know()
        deployment.occupy("a")
        await deployment.collected("a")


async def test_an_empty_registry_that_was_not_loaded_yet_lets_nothing_be_forgotten(deployment: Deployment) -> None:
    deployment.know()
    async with deployment.running():
        async with deployment.collecting():
            deployment.occupy("a")
            await deployment.collected("a")
        deployment.occupy("b")
        deployment.registry.remove("42")
        deployment.loaded = False
        async with deployment.collecting():
            await asyncio.sleep(0.2)
            deployment.know()
            await deployment.collected("a", "b")


async def test_a_death_between_the_rows_and_the_cursor_makes_nothing_twice(deployment: Deployment) -> None:
    deployment.know()
    async with deployment.running():
        async with deployment.collecting():
            deployment.occupy("a", "b")
            await deployment.collected("a", "b")
        await deployment.engine.move_cursor(collector.CURSOR, 0)
        async with deployment.collecting():
            deployment.occupy("c")
            await deployment.collected("a", "b", "c")


async def test_the_position_of_a_log_that_was_deleted_hides_nothing_of_the_new_one(
    deployment: Deployment, tmp_path: Path, endpoint: WebhookEndpoint
) -> None:
    deployment.know()
    async with deployment.running(), deployment.collecting():
        deployment.occupy(*(f"old-{number}" for number in range(50)))
        await waiting.until_async(_has_rows(50), 10, "the old log was collected")
    await database.run(models.Delivery.objects.all().delete)
    fresh = Deployment(tmp_path / "another", endpoint)
    fresh.know()
    async with fresh.running(), fresh.collecting():
        fresh.occupy("new")
        await fresh.collected("new")


async def test_an_entry_that_cannot_be_read_stops_nothing(deployment: Deployment) -> None:
    deployment.know()
    async with deployment.running(), deployment.collecting():
        await deployment.engine.append(
            [interface.Publication("42", "private-a", b"not JSON", kind=interface.Kind.CLIENT_EVENT)]
        )
        deployment.occupy("b")
        await deployment.collected("b")
    assert deployment.hub.counters["webhooks.unreadable"] == 1


async def test_events_of_applications_without_an_endpoint_cost_no_row(deployment: Deployment) -> None:
    deployment.know()
    async with deployment.running(), deployment.collecting():
        deployment.engine.set_subscribers("43", "theirs", 1)
        deployment.occupy("ours")
        await deployment.collected("ours")


def _true(condition):  # type: ignore[no-untyped-def]
    async def holds() -> bool:
        return bool(condition())

    return holds


def _has_rows(number: int):  # type: ignore[no-untyped-def]
    async def holds() -> bool:
        return len(await _channels()) == number

    return holds
