"""OpenTelemetry with FANFARE_OTEL: four workers export to a real OTLP receiver."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.harness import calls, servers, signing, waiting, wire

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENTS = 12  # so that more than one worker has some


class Receiver(http.server.ThreadingHTTPServer):
    """Takes spans over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        super().__init__((servers.HOST, 0), _Handler)

    def of(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name and span.trace_id.hex() == TRACE]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_event_of_the_api_has_a_trace_through_all_workers(
    start: Callable[..., servers.Server], fleet: servers.Fleet, receiver: Receiver
) -> None:
    endpoint = f"http://{servers.HOST}:{receiver.server_port}"
    settings = {"FANFARE_OTEL": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    server = start("gunicorn", fleet.deployment(**settings))
    with ExitStack() as open_sockets:
        ports = [subscriber(server, open_sockets) for _ in range(CLIENTS)]
        serving = set(server.workers_of(ports).values())
        with calls.Caller(server, server.application) as caller:
            body = json.dumps({"name": "created", "channels": ["orders"], "data": "{}"}).encode()
            header = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            target = signing.path(server.application, "POST", f"/apps/{server.application.id}/events", body)
            assert caller.call("POST", target, body, header).status == 200
        waiting.until(lambda: len(receiver.of("deliver")) == len(serving), 30, "a span of each worker with a client")
    [publish], [commit] = receiver.of("publish"), receiver.of("commit")
    assert publish.parent_span_id.hex() == "b7ad6b7169203331"
    assert {span.parent_span_id for span in [commit, *receiver.of("deliver")]} == {publish.span_id}
    pids = {
        one.value.int_value for span in receiver.of("deliver") for one in span.attributes if one.key == "process.pid"
    }
    assert pids == serving


def subscriber(server: servers.Server, open_sockets: ExitStack) -> int:
    """A client in `orders`; its local port."""
    socket = open_sockets.enter_context(wire.Wire(server.port, f"/app/{server.application.key}?protocol=7"))
    assert socket.receive() is not None
    frame = json.dumps({"event": "pusher:subscribe", "data": {"channel": "orders"}})
    socket.send(wire.WireFrame(wire.TEXT, frame.encode()))
    subscribed = socket.receive()
    assert subscribed is not None
    assert b"subscription_succeeded" in subscribed.payload
    return socket.local_port
