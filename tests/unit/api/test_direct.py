"""Publications below ASGI: the same answers, events and counters as through it, on one connection in order."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fanfare.api import asgi, direct, events
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.protocol import publications
from fanfare.sockets import direct_http, http_limits
from tests.harness import servers, waiting
from tests.unit.api import fakes
from tests.unit.sockets.hosting import PATIENCE, Hosted

EVENT = {"name": "created", "channel": "news", "data": "x"}
BUDGET = dataclasses.replace(
    fakes.APPLICATION, id="4", key="key-4", limits=registry.Limits(max_events_per_second=2, max_event_bytes=20_000)
)
DISABLED = dataclasses.replace(fakes.APPLICATION, id="5", key="key-5", enabled=False)


class SlowHub(fakes.Hub):
    """Commits when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.may_commit = threading.Event()
        self.may_commit.set()
        self.waiting = 0

    async def publish(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> list[interface.Receipt]:
        self.waiting += 1
        while not self.may_commit.is_set():
            await asyncio.sleep(0.001)
        self.waiting -= 1
        return await super().publish(publications, budget=budget)


class Service:
    """The API on a port. `below`: whether publications are taken below ASGI."""

    def __init__(self, stack: ExitStack, *, below: bool, keep_alive_s: int = 60) -> None:
        self.hub = SlowHub()
        self.taken = 0
        self.is_running = True
        applications = registry.Registry()
        for application in (fakes.APPLICATION, BUDGET, DISABLED):
            applications.put(application)
        hub = cast("hubs.Hub", self.hub)
        api = asgi.Api(hub, applications, now=lambda: fakes.NOW)
        self._direct = direct.Direct(
            api,
            hub,
            applications,
            is_running=lambda: self.is_running,
            resolve=lambda _scope: None,
            now=lambda: fakes.NOW,
        )
        config = SimpleNamespace(http_protocol_class=HttpToolsProtocol)
        handler = self._handle if below else None
        assert http_limits.install(config, http_limits.HttpLimits(), self.hub.count, handler)
        self.hosted = stack.enter_context(Hosted(api, http=config.http_protocol_class, timeout_keep_alive=keep_alive_s))

    def _handle(self, connection: direct_http.Answering, request: direct_http.Request) -> bool:
        taken = self._direct(connection, request)
        self.taken += taken
        return taken

    def open(self) -> Client:
        return Client(self.hosted.port)


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((servers.HOST, port), timeout=PATIENCE)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        response = http.client.HTTPResponse(_Buffered(self._file))  # type: ignore[arg-type]
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders() if name.lower() != "date"}
        return response.status, headers, response.read()

    def is_closed(self) -> bool:
        return self._file.read(1) == b""


class _Buffered:
    """The file of a connection for one response: HTTPResponse closes its own."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def makefile(self, _mode: str) -> Any:
        return SimpleNamespace(
            readline=self._file.readline, read=self._file.read, close=lambda: None, flush=lambda: None
        )


def post(
    body: Any = EVENT,
    *,
    route: str = "events",
    application: registry.Application = fakes.APPLICATION,
    headers: bytes = b"",
    changed: Callable[[str], str] = lambda target: target,
    **parameters: str | None,
) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = f"/apps/{application.id}/{route}"
    target = changed(fakes.signed("POST", path, raw, auth_key=application.key, **parameters))
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n".encode()
    return head + headers + b"\r\n" + raw


@pytest.fixture
def service() -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:
        yield lambda **options: Service(stack, **{"below": True, **options})


def reversed_query(target: str) -> str:
    path, _, query = target.partition("?")
    return f"{path}?{'&'.join(reversed(query.split('&')))}"


TAKEN = {
    "event": post(),
    "event for several channels": post({**EVENT, "channel": None, "channels": ["a", "b"], "socket_id": "1.2"}),
    "data that is not a string": post({**EVENT, "data": {"a": "Ä"}}),
    "batch": post({"batch": [EVENT, {**EVENT, "channel": "b"}]}, route="batch_events"),
    "idempotency key in a header": post(headers=b"Idempotency-Key: k\r\n"),
    "channel in a list": post({"name": "a", "channels": ["b"], "data": "x"}),
    "data that is not ASCII": post({**EVENT, "data": "Ä" * 20_000}),
    "largest data that is not ASCII": post({**EVENT, "data": "Ä" * 10_000}, application=BUDGET),
    "batch with an unusual event": post({"batch": [EVENT, {**EVENT, "socket_id": "1.2"}]}, route="batch_events"),
    "parameters in another order": post(changed=reversed_query),
    "over budget": post({"batch": [EVENT] * 3}, route="batch_events", application=BUDGET),
}
NOT_TAKEN = {
    "info": post({**EVENT, "info": "subscription_count"}),
    "no channel": post({"name": "a", "data": "x"}),
    "no channel in a list": post({"name": "a", "channels": [], "data": "x"}),
    "list of channels in a batch": post(
        {"batch": [{"name": "a", "channels": ["b"], "data": "x"}]}, route="batch_events"
    ),
    "invalid channel": post({**EVENT, "channel": "a b"}),
    "long channel": post({**EVENT, "channel": "a" * 1_000}),
    "channel that is a number": post({**EVENT, "channel": 1}),
    "no name": post({**EVENT, "name": ""}),
    "reserved name": post({**EVENT, "name": "pusher:ping"}),
    "long name": post({**EVENT, "name": "a" * 1_000}),
    "half a surrogate pair": post(b'{"name":"a","channel":"b","data":"\\ud800"}'),
    "invalid event in a batch": post({"batch": [EVENT, {**EVENT, "channel": "a b"}]}, route="batch_events"),
    "too many events": post({"batch": [EVENT] * 100}, route="batch_events"),
    "too large data that is not ASCII": post({**EVENT, "data": "Ä" * 10_001}, application=BUDGET),
    "invalid JSON": post(b"{"),
    "not an object": post(b"[]"),
    "empty batch": post({"batch": []}, route="batch_events"),
    "too large data": post({**EVENT, "data": "x" * 30_000}, application=BUDGET),
    "wrong signature": post(changed=lambda target: target[:-1] + ("0" if target[-1] != "0" else "1")),
    "wrong key": post(changed=lambda target: target.replace("auth_key=", "auth_key=x")),
    "old timestamp": post(auth_timestamp="1"),
    "version": post(auth_version="2.0"),
    "no MD5": post(body_md5=None),
    "other MD5": post(body_md5="0" * 32),
    "parameter twice": post(changed=lambda target: target + "&auth_version=1.0"),
    "other parameter": post(a="b"),
    "escape": post(changed=lambda target: target.replace("events", "event%73")),
    "unknown application": post(application=dataclasses.replace(fakes.APPLICATION, id="99")),
    "disabled application": post(application=DISABLED),
    "other route": post(b"{}", route="channels/news/streams"),
    "no route": post(route="event"),
}


@pytest.mark.parametrize("name", [*TAKEN, *NOT_TAKEN])
def test_answer_is_the_one_of_asgi(service: Callable[..., Service], name: str) -> None:
    """The answer, what is published, and the counters are the same on both ways."""
    request = {**TAKEN, **NOT_TAKEN}[name]
    below, through = service(), service(below=False)
    seen = []
    for each in (below, through):
        with each.open() as client:
            client.send(request)
            answer = client.answer()
            client.send(post())  # the connection serves further requests
            seen.append((answer, client.answer(), each.hub.published, each.hub.counters, each.hub.spent))
    assert seen[0] == seen[1]
    assert below.taken == (2 if name in TAKEN else 1)
    assert through.taken == 0


@pytest.mark.parametrize("field", ["name", "channel"])
def test_name_above_its_limit_is_not_cached(field: str) -> None:
    before = publications.are_valid_names.cache_info().currsize
    body = json.dumps({**EVENT, field: "n" * 60_000}).encode()
    assert events.plain_publications(fakes.APPLICATION, body, is_batch=False) is None
    assert publications.are_valid_names.cache_info().currsize == before


@pytest.mark.parametrize("below", [True, False])
def test_unavailable_engine_is_answered_with_503(service: Callable[..., Service], below: bool) -> None:
    served = service(below=below)
    served.hub.engine.down = "No disk"
    with served.open() as client:
        client.send(post())
        status, headers, body = client.answer()
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(body)["code"] == "engine_unavailable"
    assert served.hub.counters == {"api.requests": 1, "api.refused.503": 1}
    assert served.taken == below


@pytest.mark.parametrize("below", [True, False])
def test_unexpected_exception_is_answered_with_500(
    service: Callable[..., Service], below: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served = service(below=below)
    served.hub.engine.broken = True
    with served.open() as client:
        client.send(post())
        assert client.answer()[0] == 500
    assert served.hub.counters["api.failed"] == 1
    assert "ZeroDivisionError" in caplog.text


def test_worker_that_does_not_run_takes_nothing(service: Callable[..., Service]) -> None:
    served = service()
    served.is_running = False
    with served.open() as client:
        client.send(post())
        assert client.answer()[0] == 200
    assert served.taken == 0


def test_publisher_is_recorded_with_its_address(service: Callable[..., Service]) -> None:
    served = service()
    recorded: list[Any] = []
    served.hub.recorder.published = (  # type: ignore[method-assign]
        lambda batch, receipts, publisher, began: recorded.append(publisher)
    )
    with served.open() as client:
        client.send(post())
        client.answer()
    assert recorded == [{"by": "HTTP API", "key": fakes.APPLICATION.key, "address": servers.HOST}]


@pytest.mark.parametrize("is_taken", [True, False])
def test_trace_context_of_the_request_reaches_the_recorder(service: Callable[..., Service], is_taken: bool) -> None:
    served = service()
    served.is_running = is_taken
    recorded: list[Any] = []
    served.hub.recorder.published = (  # type: ignore[method-assign]
        lambda batch, receipts, publisher, began: recorded.append(publisher)
    )
    with served.open() as client:
        client.send(post(headers=b"traceparent: 00-1-2-01\r\n"))
        assert client.answer()[0] == 200
    assert served.taken == is_taken
    assert [publisher["traceparent"] for publisher in recorded] == ["00-1-2-01"]


def test_requests_that_arrive_before_the_commit_are_answered_in_order(service: Callable[..., Service]) -> None:
    served = service()
    served.hub.may_commit.clear()
    with served.open() as client:
        client.send(post())
        waiting.until(lambda: served.hub.waiting == 1, PATIENCE, "the first event waits for its commit")
        client.send(post({**EVENT, "name": ""}))
        client.send(post({**EVENT, "data": "second"}) + post({**EVENT, "data": "third"}))
        served.hub.may_commit.set()
        assert [client.answer()[0] for _ in range(4)] == [200, 400, 200, 200]
    assert [frame["data"] for frame in served.hub.frames] == ["x", "second", "third"]


def test_request_in_two_parts_is_left_to_the_parser(service: Callable[..., Service]) -> None:
    served = service()
    request = post()
    with served.open() as client:
        client.send(request[:100])
        waiting.until(lambda: served.hosted.connections() == 1, PATIENCE, "the server has the connection")
        client.send(request[100:] + request)
        assert [client.answer()[0], client.answer()[0]] == [200, 200]
        client.send(request)
        assert client.answer()[0] == 200
    assert len(served.hub.published) == 3


def test_client_that_disconnects_before_the_commit_leaves_nothing_behind(service: Callable[..., Service]) -> None:
    served = service()
    served.hub.may_commit.clear()
    with served.open() as client:
        client.send(post())
        waiting.until(lambda: served.hub.waiting == 1, PATIENCE, "the event waits for its commit")
    waiting.until(lambda: served.hosted.connections() == 0, PATIENCE, "the server noticed the disconnect")
    served.hub.may_commit.set()
    waiting.until(lambda: len(served.hub.published) == 1, PATIENCE, "the event is committed")
    with served.open() as client:
        client.send(post())
        assert client.answer()[0] == 200


def test_stopping_server_answers_the_waiting_request_and_closes(service: Callable[..., Service]) -> None:
    served = service()
    served.hub.may_commit.clear()
    with served.open() as client:
        client.send(post())
        waiting.until(lambda: served.hub.waiting == 1, PATIENCE, "the event waits for its commit")
        served.hosted.server.should_exit = True
        waiting.until(lambda: not served.hosted.server.servers[0].is_serving(), PATIENCE, "the server accepts no more")
        served.hub.may_commit.set()
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert client.is_closed()


def test_idle_connection_is_closed_after_the_keep_alive_time(service: Callable[..., Service]) -> None:
    served = service(keep_alive_s=1)
    with served.open() as client:
        for _ in range(3):
            client.send(post())
            assert client.answer()[0] == 200
        assert client.is_closed()
    assert served.taken == 3
