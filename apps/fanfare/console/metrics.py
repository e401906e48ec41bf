"""`GET /metrics`: the figures of all workers in the text format of Prometheus.

Whichever worker answers, the figures are the sums over the deployment. No label has unbounded values: a channel, a
user or a socket never becomes one.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from fanfare.console import reports
from fanfare.runtime import addresses


class Family(NamedTuple):
    """A counter's metric. `name` without the prefix `fanfare_` and the suffix `_total`. With `label`, the rest of the
    counter's name after `source` is the label's value."""

    source: str
    name: str
    help: str
    label: str = ""

    def has(self, counter: str) -> bool:
        return counter.startswith(self.source) if self.label else counter == self.source


class Level(NamedTuple):
    """A gauge's metric. `shared`: every worker reports the same thing, so the largest value counts and not the sum."""

    source: str
    name: str
    help: str
    shared: bool = False


COUNTERS: Final = (
    Family("connections", "connections_opened", "Connections that were accepted."),
    Family("published", "events_published", "Events that clients and requests of the workers published."),
    Family("deliveries", "deliveries", "Events times the connections that they were written to."),
    Family("delivered_bytes", "delivered_bytes", "Bytes of delivered events, without frames and TLS."),
    Family("recovered", "events_recovered", "Kept events that clients got when they subscribed or reconnected."),
    Family("pusher.client_events", "client_events", "Client events that were relayed."),
    Family("conflated", "events_conflated", "Events of cache channels that a newer event replaced for a slow reader."),
    Family("api.requests", "api_requests", "Requests of the HTTP API."),
    Family("api.published", "api_events_published", "Events that the HTTP API published, one for each channel."),
    Family("api.failed", "api_errors", "Requests of the HTTP API that ended with an internal error."),
    Family("api.refused.", "api_refusals", "Requests of the HTTP API that were refused, by status.", "status"),
    Family("api.", "api", "Other events of the HTTP API.", "event"),
    Family("closed.", "connections_closed", "Connections that the server closed, by reason or close code.", "reason"),
    Family("pusher.refused.", "connections_refused", "Connections that were refused, by close code.", "code"),
    Family(
        "pusher.subscription_refused.", "subscription_refusals", "Subscriptions that were refused, by reason.", "reason"
    ),
    Family("pusher.sign_in_refused.", "sign_in_refusals", "Sign-ins that were refused, by reason.", "reason"),
    Family(
        "pusher.client_event_rejected.",
        "client_event_refusals",
        "Client events that were refused, by reason.",
        "reason",
    ),
    Family("pusher.history_refused.", "history_refusals", "History requests that were refused, by reason.", "reason"),
    Family(
        "pusher.error.", "protocol_errors", "Frames that are no valid message of the protocol, by reason.", "reason"
    ),
    Family("resume.failed.", "recoveries_failed", "Channels that a client could not recover, by reason.", "reason"),
    Family("recovery.", "recovery_requests", "Recoveries that clients asked for, by outcome or reason.", "outcome"),
    Family("recoveries.lost.", "recoveries_lost", "Recoveries that failed, by reason.", "reason"),
    Family(
        "recoveries.interrupted",
        "recoveries_interrupted",
        "Recoveries ended with 4100, because the engine was unavailable.",
    ),
    Family("subscribes.repeated", "subscribes_repeated", "Requests to the engine that were repeated."),
    Family("resume.", "resume_tokens", "Pages with a resume token, by outcome.", "outcome"),
    Family("sse.opened", "sse_opened", "SSE connections that were opened."),
    Family("sse.refused.", "sse_refusals", "SSE connections that were refused, by reason.", "reason"),
    Family("sse.ended.", "sse_ended", "SSE connections that the server ended, by reason.", "reason"),
    Family("sse.lost.", "sse_recoveries_lost", "Channels of SSE connections that could not be recovered.", "reason"),
    Family("sse.", "sse", "What happened to SSE connections.", "event"),
    Family("streams.", "streams", "What happened to streams, messages that grow.", "event"),
    Family("http.refused.", "http_refusals", "HTTP requests that were refused before a page, by reason.", "reason"),
    Family("http.evicted.", "http_evictions", "HTTP connections that were closed for a limit, by reason.", "reason"),
    Family("http.paused", "http_pauses", "Pauses in which a client that sends many small chunks is not read."),
    Family("pusher.history_delayed", "history_delays", "History requests that waited, because others came before."),
    Family("pusher.", "protocol", "Other events of the protocol.", "event"),
    Family("console.", "console", "What happened to requests of the console.", "event"),
    Family("callbacks.", "callbacks", "Callbacks that raised an error.", "outcome"),
    Family("sockets.paused", "websocket_pauses", "Pauses in which a client that sends much at once is not read."),
    Family("sockets.", "websocket_violations", "WebSocket messages and handshakes that broke the protocol.", "kind"),
    Family("gaps.", "gaps", "Times that a worker may have missed entries of the log, by reason.", "reason"),
    Family("webhooks.requests", "webhook_attempts", "Requests to webhook endpoints."),
    Family("webhooks.", "webhooks", "What happened to events for webhooks.", "outcome"),
    Family("background.", "background_tasks", "What happened to background tasks.", "outcome"),
    Family("worker.tasks.", "worker_tasks", "What happened to the tasks of a worker's start and stop.", "outcome"),
    Family("tasks.", "tasks", "What happened to the tasks of the server itself.", "outcome"),
    Family("signals.", "signals", "What happened to Django signals.", "outcome"),
    Family("layer.", "channel_layer_dropped", "Messages of the channel layer that were dropped, by reason.", "reason"),
    Family("members.", "leased_members", "What happened to members with a time to live.", "event"),
    Family("capabilities.", "capability_tokens", "What happened to capability tokens.", "event"),
    Family("telemetry.", "telemetry", "OpenTelemetry spans that were not sent.", "reason"),
    Family("entries.", "log_entries", "Entries of the log that were skipped.", "reason"),
    Family("controls.", "commands_failed", "Commands in the log that a worker could not execute.", "reason"),
    Family("engine.", "engine", "What the engine did.", "operation"),
)


class Durations(NamedTuple):
    """A histogram's metric, in seconds. `source`: the name of its counters (`fanfare.runtime.histograms`)."""

    source: str
    name: str
    help: str


HISTOGRAMS: Final = (
    Durations("engine.commit_seconds", "commit_seconds", "From the submission of a write to its commit."),
    Durations(
        "read_lag_seconds",
        "read_lag_seconds",
        "From when the engine stored an event to when a worker with subscribers read it.",
    ),
    Durations(
        "delivery_seconds",
        "delivery_seconds",
        "From when the engine stored an event to when a worker had written it to its subscribers.",
    ),
)

JOBS: Final = "jobs."  # the gauges of background jobs: jobs.NAME.STATE

OTHER: Final = Family("", "other", "Counters without a metric of their own.", "name")

GAUGES: Final = (
    Level("connections.now", "connections", "Open connections."),
    Level("channels.now", "channels", "Channels with a subscription, each counted once per worker."),
    Level("subscriptions.now", "subscriptions", "Subscriptions of open connections."),
    Level("closing.now", "connections_closing", "Connections whose transport has not ended after their close."),
    Level("recoveries.now", "recoveries", "Recoveries that wait for their readers."),
    Level("conflated.now", "conflated", "States that wait for slow readers of cache channels."),
    Level("memory.bytes", "resident_memory_bytes", "Resident memory of all workers."),
    Level("engine.behind", "engine_lag_entries", "Entries of the log that were written and not read yet."),
    Level("engine.log_bytes", "engine_log_bytes", "Size of the log on disk.", shared=True),
    Level("engine.log_used_bytes", "engine_log_used_bytes", "Used pages of the log and its WAL.", shared=True),
    Level(
        "engine.log_limit_bytes",
        "engine_log_limit_bytes",
        "Limit of the used pages of the log and its WAL.",
        shared=True,
    ),
    Level("engine.history_shared_bytes", "engine_history_shared_bytes", "Histories that are held for other clients."),
    Level("engine.sessions_late", "engine_sessions_late", "Pages whose resume window has passed.", shared=True),
    Level("engine.streams", "engine_streams", "Channels with a position.", shared=True),
    Level("engine.kept", "engine_kept_entries", "Entries that are kept for histories.", shared=True),
    Level("engine.sessions", "engine_sessions", "Pages whose progress is kept under a resume token.", shared=True),
    Level("engine.sessions_bytes", "engine_sessions_bytes", "Size of these records.", shared=True),
    Level("engine.ok", "engine_up", "Whether every worker can publish and read what it publishes: 1 or 0."),
)


def may_read(scope: Mapping[str, Any], token: str) -> bool:
    """Whether a request may read the metrics: from this machine and not through a proxy, or with the token."""
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    if token:
        sent = next((value for name, value in headers if name == b"authorization"), b"")
        if secrets.compare_digest(sent, b"Bearer " + token.encode()):
            return True
    if any(addresses.is_proxy_header(name.decode("latin-1")) for name, _ in headers):
        return False
    client = scope.get("client")
    address = addresses.parse(client[0]) if client else None
    return address is not None and address.is_loopback


class Metrics:
    """The ASGI application of `/metrics`. A request that may not read it goes to `otherwise`."""

    def __init__(self, source: reports.Reports, token: str, otherwise: Any) -> None:
        self._source = source
        self._token = token
        self._otherwise = otherwise

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"} or not may_read(scope, self._token):
            await self._otherwise(scope, receive, send)
            return
        accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        collected = await self._source.collect()
        # Most workers are never scraped, and the import takes 0.9 MB. In a thread it does not block the event loop.
        exposition = await asyncio.to_thread(importlib.import_module, "fanfare.console.exposition")
        body, content_type = exposition.render(collected, accept)
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] == "GET" else b""})
