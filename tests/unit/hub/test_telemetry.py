"""OpenTelemetry spans of events, with two workers on one real log and the in-memory exporter."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from fanfare.engine import interface
from fanfare.hub import connections, telemetry
from fanfare.runtime import log_lines
from tests.harness import waiting
from tests.unit.console import workers

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
EVENT = interface.Publication("1", "orders", b'{"event":"created","channel":"orders","data":"{}"}')


@pytest.fixture(autouse=True)
def log_lines_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "trace_id", log_lines.trace_id)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    yield found
    found.clear()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


class Worker(workers.Worker):
    """A worker with a subscriber, which makes spans."""

    async def begin(self, provider: TracerProvider) -> None:
        self.telemetry = telemetry.Telemetry(self.hub, provider)
        await self.start()
        self.spans = asyncio.create_task(self.telemetry.run())
        connection = self.connect()
        self.hub.subscribe(connection, "orders")

        async def is_live() -> bool:
            return connection.subscriptions["orders"].state is connections.State.LIVE

        await waiting.until_async(is_live, 10, "the subscription is live")

    async def end(self) -> None:
        self.spans.cancel()
        await self.hub.stop()

    async def publish(self, publisher: dict[str, Any]) -> None:
        receipts = await self.hub.engine.append([EVENT])
        assert self.hub.recorder.wants("1", "orders")
        self.hub.recorder.published([EVENT], receipts, publisher, 1_000.0)


@pytest.fixture
async def both(tmp_path: Path, provider: TracerProvider) -> AsyncIterator[tuple[Worker, Worker]]:
    one, two = Worker(tmp_path / "engine", "one"), Worker(tmp_path / "engine", "two")
    for worker in (one, two):
        await worker.begin(provider)
    await workers.until_known(one, two)
    yield one, two
    for worker in (one, two):
        await worker.end()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def test_event_has_one_trace_from_its_request_to_each_worker(
    both: tuple[Worker, Worker], exporter: InMemorySpanExporter
) -> None:
    await both[0].publish({"by": "HTTP API", "key": "k", "address": "192.0.2.1", "traceparent": PARENT})

    async def has_deliveries() -> bool:
        return len(named(exporter, "deliver")) == 2

    await waiting.until_async(has_deliveries, 30, "a span of each worker")
    [publish], [commit] = named(exporter, "publish"), named(exporter, "commit")
    assert publish.context is not None
    assert format(publish.context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    assert parent(publish) == 0xB7AD6B7169203331
    assert {parent(span) for span in [commit, *named(exporter, "deliver")]} == {publish.context.span_id}
    assert publish.attributes is not None
    assert publish.attributes["fanfare.publisher.address"] == "192.0.2.1"
    assert "fanfare.publisher.traceparent" not in publish.attributes
    for span in named(exporter, "deliver"):
        assert span.attributes is not None
        assert span.attributes["fanfare.sockets"] == 1
        assert span.attributes["fanfare.entry"] == publish.attributes["fanfare.entry"][0]  # type: ignore[index]
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time >= span.start_time


async def test_publish_in_a_view_is_a_child_of_the_current_span(
    both: tuple[Worker, Worker], provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    with provider.get_tracer("view").start_as_current_span("view") as view:
        await both[0].publish({"by": "publish()"})
    [publish] = named(exporter, "publish")
    assert parent(publish) == view.get_span_context().span_id


async def test_event_whose_span_is_not_sampled_costs_no_entry(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "engine")
    await worker.begin(TracerProvider(sampler=ALWAYS_OFF))
    before = worker.hub.engine.statistics()["operations"]
    receipts = await worker.hub.engine.append([EVENT])
    worker.hub.recorder.published([EVENT], receipts, {"by": "publish()"}, 1_000.0)
    await worker.hub.engine.append([EVENT])
    assert worker.hub.engine.statistics()["operations"] == before + 2
    await worker.end()


async def test_header_that_is_no_trace_context_begins_a_trace(
    both: tuple[Worker, Worker], exporter: InMemorySpanExporter
) -> None:
    await both[0].publish({"by": "HTTP API", "traceparent": "00-\x00-…"})
    [publish] = named(exporter, "publish")
    assert publish.parent is None


async def test_request_to_a_webhook_has_a_span(both: tuple[Worker, Worker], exporter: InMemorySpanExporter) -> None:
    begun = both[0].telemetry.begin_webhook({"fanfare.events": 1})
    assert begun is not None
    both[0].telemetry.end_webhook(begun, 500, "HTTP 500")
    [span] = named(exporter, "webhook")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes == {"fanfare.events": 1, "http.response.status_code": 500}
    assert span.context is not None
    assert begun.headers["traceparent"][:52] == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


async def test_failure_of_a_provider_does_not_fail_the_event(
    both: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(both[0].telemetry, "_tracer", SimpleNamespace(start_span=fail))
    await both[0].publish({"by": "publish()"})
    assert both[0].telemetry.begin_webhook({}) is None
    assert both[0].hub.counters["telemetry.failed"] == 2


async def test_json_line_has_the_id_of_its_trace(both: tuple[Worker, Worker], provider: TracerProvider) -> None:
    record = logging.LogRecord("shop", logging.INFO, "shop.py", 1, "Hello", (), None)
    with provider.get_tracer("view").start_as_current_span("view") as view:
        line = json.loads(log_lines.JsonLines().format(record))
    assert line["trace"] == format(view.get_span_context().trace_id, "032x")
    assert "trace" not in json.loads(log_lines.JsonLines().format(record))
