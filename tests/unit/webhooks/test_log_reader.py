"""From a real log to stored deliveries, through starts, crashes and changes of the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import DataError, OperationalError

from fanfare.applications import database, registry
from fanfare.applications.models import WebhookEndpoint
from fanfare.engine import interface
from fanfare.engine.local.engine import LocalEngine
from fanfare.engine.postgres.engine import PostgresEngine
from fanfare.engine.redis.engine import RedisEngine
from fanfare.hub import hub as hubs
from fanfare.jobs import log_consumer
from fanfare.runtime.backoff import Backoff
from fanfare.runtime.supervisor import Supervisor
from fanfare.webhooks import deliveries, events, log_reader, models
from tests.harness import postgresql, redisserver, waiting

pytestmark = pytest.mark.django_db(transaction=True)


class Deployment:
    """A worker whose registry is what the test puts there."""

    def __init__(self, engine: interface.Engine, endpoint: WebhookEndpoint) -> None:
        self.engine = engine
        self.hub = hubs.Hub(self.engine)
        self.registry = registry.Registry()
        self.loaded = True
        self.endpoint = endpoint.pk
        self.woken: set[int] = set()
        self.full: set[int] = set()
        self._webhook = registry.Webhook(id=endpoint.pk, url=endpoint.url)

    def register(self, *, endpoint: bool = True) -> None:
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
    async def reading(self) -> AsyncIterator[None]:
        reader = log_reader.LogReader(
            self.hub,
            self.registry,
            lambda: self.loaded,
            self.woken.update,
            lambda: self.full,
            debounce_seconds=3.0,
        )
        tasks = Supervisor()
        tasks.run("reader", reader.run, backoff=Backoff(0.01, 0.01))
        try:
            yield
        finally:
            await tasks.stop()

    async def stored(self, *channels: str) -> None:
        """Wait until exactly these have deliveries, in this order."""

        async def reached() -> bool:
            return await _channels() == list(channels)

        await waiting.until_async(reached, 10, f"deliveries of {channels}")


async def _channels() -> list[str]:
    return await database.run(lambda: list(models.Delivery.objects.order_by("id").values_list("channel", flat=True)))


@pytest.fixture
def deployment(tmp_path: Path, endpoint: WebhookEndpoint) -> Deployment:
    return Deployment(LocalEngine(tmp_path / "engine"), endpoint)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[redisserver.Server]:
    with redisserver.running() as server:
        yield server


@pytest.fixture(params=["local", "postgres", "redis"])
def on_each_engine(request: pytest.FixtureRequest, tmp_path: Path, endpoint: WebhookEndpoint) -> Iterator[Deployment]:
    if request.param == "local":
        yield Deployment(LocalEngine(tmp_path / "engine"), endpoint)
    elif request.param == "redis":
        yield Deployment(RedisEngine(request.getfixturevalue("redis_server").url(), partitions=1), endpoint)
    else:
        with postgresql.running() as cluster:
            cluster.create("realtime")
            yield Deployment(PostgresEngine(cluster.url("realtime")), endpoint)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "LOOK_S", 0.05)
    monkeypatch.setattr(log_consumer, "KEEP_S", 0.0)


async def test_events_are_stored_and_their_endpoint_is_woken(deployment: Deployment) -> None:
    deployment.register()
    async with deployment.running(), deployment.reading():
        deployment.occupy("a", "b")
        await deployment.stored("a", "b")
        deployment.occupy("c")
        await deployment.stored("a", "b", "c")
        await waiting.until_async(_true(lambda: deployment.woken), 5, "the endpoint was woken")


async def test_first_endpoint_gets_the_events_from_before_it_was_noticed(
    on_each_engine: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log was silent, and the event came before the reader looked again."""
    deployment = on_each_engine
    async with deployment.running(), deployment.reading():
        await asyncio.sleep(0.2)
        monkeypatch.setattr(log_reader, "LOOK_S", 0.3)
        await asyncio.sleep(0.1)
        deployment.register()
        deployment.occupy("a")
        await deployment.stored("a")


async def test_new_generation_sends_nothing_again_that_was_sent_a_second_before(
    redis_server: redisserver.Server, endpoint: WebhookEndpoint
) -> None:
    """A restarted Redis has the whole log and the position of the consumer."""
    deployment = Deployment(RedisEngine(redis_server.url(prefix="generations"), partitions=1), endpoint)
    deployment.register()
    async with deployment.running(), deployment.reading():
        deployment.occupy("a", "b")
        await deployment.stored("a", "b")
        before = await database.run(deliveries.position, 0)
        with redis_server.client() as client:
            await waiting.until_async(
                _true(lambda: _kept(client, "generations") >= before.entry), 5, "the position is kept"
            )
            client.save()
        await asyncio.to_thread(redis_server.kill)
        await asyncio.to_thread(redis_server.start)
        await waiting.until_async(_true(lambda: deployment.engine.health().ok), 20, "the restarted store answers")
        deployment.occupy("c")
        await deployment.stored("a", "b", "c")
    assert (await database.run(deliveries.position, 0)).log_id != before.log_id


def _kept(client: redis.Redis, prefix: str) -> int:
    [key] = client.scan_iter(match=f"{prefix}:*:consumers")
    value: Any = client.hget(key, log_reader.NAME)
    return int(value.split()[0])


async def test_registry_that_is_not_loaded_yet_does_not_drop_the_cursor(deployment: Deployment) -> None:
    deployment.register()
    async with deployment.running():
        async with deployment.reading():
            deployment.occupy("a")
            await deployment.stored("a")
        deployment.occupy("b")
        deployment.registry.remove("42")
        deployment.loaded = False
        async with deployment.reading():
            await asyncio.sleep(0.2)
            deployment.register()
            await deployment.stored("a", "b")


async def test_crash_between_deliveries_and_cursor_stores_nothing_twice(deployment: Deployment) -> None:
    deployment.register()
    async with deployment.running():
        async with deployment.reading():
            deployment.occupy("a", "b")
            await deployment.stored("a", "b")
        async with log_consumer.LogConsumer(deployment.engine, log_reader.NAME, events.KINDS) as consumer:
            consumer.position = 0
            await consumer.keep(at_once=True)
        async with deployment.reading():
            deployment.occupy("c")
            await deployment.stored("a", "b", "c")


async def test_position_of_a_deleted_log_hides_nothing_of_the_new_one(
    deployment: Deployment, tmp_path: Path, endpoint: WebhookEndpoint
) -> None:
    deployment.register()
    async with deployment.running(), deployment.reading():
        deployment.occupy(*(f"old-{number}" for number in range(50)))
        await waiting.until_async(_has_rows(50), 10, "the old log was read")
    await database.run(models.Delivery.objects.all().delete)
    fresh = Deployment(LocalEngine(tmp_path / "another"), endpoint)
    fresh.register()
    async with fresh.running(), fresh.reading():
        fresh.occupy("new")
        await fresh.stored("new")


async def test_unreadable_entry_does_not_stop_those_after_it(deployment: Deployment) -> None:
    deployment.register()
    async with deployment.running(), deployment.reading():
        await deployment.engine.append(
            [interface.Publication("42", "private-a", b"not JSON", kind=interface.Kind.CLIENT_EVENT)]
        )
        deployment.occupy("b")
        await deployment.stored("b")
    assert deployment.hub.counters["webhooks.unreadable"] == 1


async def test_events_of_applications_without_an_endpoint_are_not_stored(deployment: Deployment) -> None:
    deployment.register()
    async with deployment.running(), deployment.reading():
        deployment.engine.set_subscribers("43", "theirs", 1)
        deployment.occupy("ours")
        await deployment.stored("ours")


# -- faults ------------------------------------------------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception, channel: str) -> list[str]:
    """The database raises the error for each group of events with a channel of the answered list."""
    store, channels = deliveries.store, [channel]

    def choosy(found: Sequence[events.Event], **more: Any) -> Any:
        if any(event.channel in channels for event in found):
            raise error
        return store(found, **more)

    monkeypatch.setattr(deliveries, "store", choosy)
    return channels


@pytest.mark.parametrize(
    "error", [DataError("too long"), ValueError("NUL"), UnicodeEncodeError("utf-8", "x", 0, 1, "surrogate")]
)
async def test_event_that_the_database_refuses_is_dropped_and_the_others_are_stored(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    refuse(monkeypatch, error, "poison")
    deployment.register()
    async with deployment.running(), deployment.reading():
        deployment.occupy("a")
        await deployment.stored("a")
        deployment.occupy("b", "poison", "c")
        await deployment.stored("a", "b", "c")
        await waiting.until_async(_true(lambda: deployment.hub.counters["webhooks.unstorable"] == 1), 5, "the drop")
    assert "cannot be stored for webhooks: dropped" in caplog.text


async def test_database_that_is_away_is_waited_for(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_reader, "Backoff", lambda: Backoff(0.01, 0.01))
    deployment.register()
    async with deployment.running(), deployment.reading():
        deployment.occupy("a")
        await deployment.stored("a")
        refused = refuse(monkeypatch, OperationalError("server closed the connection"), "b")
        deployment.occupy("b", "c")
        await waiting.until_async(
            _true(lambda: deployment.hub.counters["webhooks.database_failed"] > 3), 5, "several attempts"
        )
        assert await _channels() == ["a"]
        refused.clear()
        await deployment.stored("a", "b", "c")
    assert caplog.text.count("server closed the connection") == 1


async def test_removals_that_cannot_be_delivered_do_not_stop_new_events(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def release(route: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(deliveries, "release", release)
    deployment.register()
    async with deployment.running(), deployment.reading():
        for number in range(1, 4):
            deployment.occupy("abc"[number - 1])
            await deployment.stored(*"abc"[:number])
    assert deployment.hub.counters["webhooks.unstorable"] >= 1


async def test_endpoint_with_too_many_pending_deliveries_gets_no_more(deployment: Deployment) -> None:
    deployment.register()
    async with deployment.running(), deployment.reading():
        deployment.occupy("a")
        await deployment.stored("a")
        deployment.full = {deployment.endpoint}
        deployment.occupy("b")
        await waiting.until_async(_true(lambda: deployment.hub.counters["webhooks.dropped"] == 1), 5, "the drop")
        deployment.full = set()
        deployment.occupy("c")
        await deployment.stored("a", "c")


def _true(condition: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return bool(condition())

    return holds


def _has_rows(number: int) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return len(await _channels()) == number

    return holds
