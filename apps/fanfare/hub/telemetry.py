"""OpenTelemetry spans of events and webhooks, with the setting FANFARE_OTEL.

    publish              in the worker that publishes; its parent is the request's `traceparent`, or the current span
    ├── commit           from the call of the engine until the event is in the log
    └── deliver          one per worker with subscribers: from the read of the log until the last socket is written

    webhook              a request to an endpoint, which carries the span's context as `traceparent`

An entry of the log has no field for a trace context. The publishing worker sends the context of each *sampled* publish
span as a command after the event, and all workers make their `deliver` spans from the times that they recorded. So a
sampled event costs one more entry, and any other event none.

Only this module imports OpenTelemetry, when a `Telemetry` is created.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.hub import traces
from fanfare.runtime import log_lines
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

COMMAND: Final = "otel.published"
TRACEPARENT: Final = "traceparent"
DELAY_S: Final = 0.5  # after the command: the delivery of the event has ended by then
MOST_PENDING: Final = 10_000  # events whose delivery spans are not made yet; more are counted and dropped

# Of this process's worker; None without FANFARE_OTEL, and in a process without a worker.
here: Telemetry | None = None


class WebhookSpan(NamedTuple):
    """The span of a request to an endpoint. `headers`: its context, for the receiver."""

    span: Any
    headers: Mapping[str, str]


class Telemetry:
    """One per worker. `published` may be called in any thread, everything else on the hub's loop. A failure is counted
    and logged; it must not fail the event that is in the log already.

    `provider`: an `opentelemetry.trace.TracerProvider`. With None it is the provider of the process, which is created
    if there is none.
    """

    def __init__(self, hub: hubs.Hub, provider: Any = None) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation import tracecontext

        self._hub = hub
        self._trace = trace
        self._context = context
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._tracer = (provider or _provider()).get_tracer("fanfare")
        self._loop: asyncio.AbstractEventLoop | None = None  # while `run` runs
        self._log = LogThrottle(logger)
        self._pending: collections.deque[tuple[traces.Key, str]] = collections.deque()
        self._arrived = asyncio.Event()
        log_lines.trace_id = _current_trace
        hub.recorder.on_published = self.published
        hub.on_control(COMMAND, self._on_published)

    async def run(self) -> None:
        """Make the spans of deliveries until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(DELAY_S)
            self._arrived.clear()
            while self._pending:
                try:
                    self._deliver(*self._pending.popleft())
                except Exception as error:  # noqa: BLE001  (see `published`)
                    self._failed(error)

    # -- the publisher's side ------------------------------------------------------------------------------------------

    def published(self, keys: Sequence[traces.Key], record: traces.Record) -> None:
        """These events of one call are in the log. `record`: the record of the first one, from `Recorder`."""
        try:
            self._publish(keys, record)
        except Exception as error:  # noqa: BLE001  (of the project's provider or sampler)
            self._failed(error)

    def _publish(self, keys: Sequence[traces.Key], record: traces.Record) -> None:
        publisher = record["publisher"]
        header = publisher.get(TRACEPARENT)
        parent = self._propagator.extract({TRACEPARENT: header}) if header else self._context.get_current()
        began, committed = _ns(record["began"]), _ns(record["committed"])
        kind = self._trace.SpanKind.PRODUCER
        span = self._tracer.start_span("publish", parent, kind, self._attributes(keys, record), start_time=began)
        inside = self._trace.set_span_in_context(span)
        self._tracer.start_span("commit", inside, start_time=began).end(committed)
        span.end()
        if span.get_span_context().trace_flags.sampled and self._loop is not None:
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier, inside)
            body = orjson.dumps({"keys": keys, TRACEPARENT: carrier[TRACEPARENT]})
            self._loop.call_soon_threadsafe(self._announce, body)

    def _announce(self, body: bytes) -> None:
        """Send the context to all workers. If the engine does not store it, the deliveries have no span."""
        entry = interface.Publication("", COMMAND, body, interface.Kind.CONTROL)
        self._hub.engine.post(entry, lambda _reason: None)

    def _failed(self, error: Exception) -> None:
        self._hub.count("telemetry.failed")
        self._log.error("A span cannot be made", error=error)

    @staticmethod
    def _attributes(keys: Sequence[traces.Key], record: traces.Record) -> dict[str, Any]:
        publisher = record["publisher"]
        return {
            "messaging.system": "fanfare",
            "messaging.operation.type": "publish",
            "messaging.destination.name": record["channel"],
            "messaging.batch.message_count": len(keys),
            "fanfare.application": record["app"],
            "fanfare.entry": [traces.position(*key) for key in keys],
            **{f"fanfare.publisher.{name}": value for name, value in publisher.items() if name != TRACEPARENT},
        }

    # -- deliveries ----------------------------------------------------------------------------------------------------

    def _on_published(self, _app: str, body: bytes) -> None:
        announced = orjson.loads(body)
        if len(self._pending) >= MOST_PENDING:
            self._hub.count("telemetry.dropped", len(announced["keys"]))
            return
        self._pending += [(tuple(key), announced[TRACEPARENT]) for key in announced["keys"]]
        self._arrived.set()

    def _deliver(self, key: traces.Key, traceparent: str) -> None:
        record = self._hub.recorder.record(key).get("delivery")
        if record is None or "last_write" not in record:
            return
        attributes = {
            "messaging.system": "fanfare",
            "messaging.destination.name": record["channel"],
            "fanfare.application": record["app"],
            "fanfare.entry": traces.position(*key),
            "fanfare.sockets": record["written"],
            "fanfare.slow": len(record["slow"]),
            "process.pid": os.getpid(),
        }
        parent = self._propagator.extract({TRACEPARENT: traceparent})
        kind = self._trace.SpanKind.CONSUMER
        span = self._tracer.start_span("deliver", parent, kind, attributes, start_time=_ns(record["read"]))
        span.end(_ns(record["last_write"]))

    # -- webhooks ------------------------------------------------------------------------------------------------------

    def begin_webhook(self, attributes: dict[str, Any]) -> WebhookSpan | None:
        """A request to an endpoint begins. None if its span cannot be made."""
        try:
            span = self._tracer.start_span("webhook", self._context.Context(), self._trace.SpanKind.CLIENT, attributes)
            headers: dict[str, str] = {}
            self._propagator.inject(headers, self._trace.set_span_in_context(span))
        except Exception as failure:  # noqa: BLE001  (see `published`)
            self._failed(failure)
            return None
        return WebhookSpan(span, headers)

    def end_webhook(self, begun: WebhookSpan, status: int | None, error: str) -> None:
        """`status`: of the response, if there was one. `error`: empty if the events were accepted."""
        try:
            if status is not None:
                begun.span.set_attribute("http.response.status_code", status)
            if error:
                begun.span.set_status(self._trace.StatusCode.ERROR, error)
            begun.span.end()
        except Exception as failure:  # noqa: BLE001  (see `published`)
            self._failed(failure)


def _current_trace() -> str | None:
    """The id of the trace in which this code runs; None without one."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None


def _provider() -> Any:
    """The process's provider; without one, a new one that exports with OTLP, as the variables OTEL_… configure it."""
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(
            resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "fanfare")})
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return trace.get_tracer_provider()


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
