"""The ASGI application of the console's live data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from fanfare.console import endpoints, live, permissions, requests, tokens
from fanfare.runtime.supervisor import Supervisor

EVERYTHING = permissions.Access("1", "ann", {"view_console": None})


class Client:
    """One request to a `Live`; `body` has what it has sent so far."""

    def __init__(
        self, path: str, *, method: str = "GET", token: str = "", body: bytes = b"", query: bytes = b""
    ) -> None:
        headers = [(b"authorization", b"Bearer " + token.encode())] if token else []
        self.scope = {
            "type": "http",
            "method": method,
            "path": f"/realtime{live.PATH}{path}",
            "query_string": query,
            "headers": headers,
        }
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.leave = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self._sent = [{"type": "http.request", "body": body}]

    async def receive(self) -> Any:
        if self._sent:
            return self._sent.pop()
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Endpoints that a test declares are forgotten after it."""
    endpoints.load()
    monkeypatch.setattr(requests, "declared", dict(requests.declared))
    return


@pytest.fixture
def application(declared: None) -> live.Live:
    counters: list[str] = []
    worker = SimpleNamespace(
        tasks=Supervisor(), hub=SimpleNamespace(count=counters.append), registry=None, counters=counters
    )
    return live.Live(worker)  # type: ignore[arg-type]


async def ask(application: live.Live, client: Client) -> Client:
    async with asyncio.timeout(20):
        await application(client.scope, client.receive, client.send)
    return client


@pytest.fixture
def token() -> str:
    return tokens.issue(EVERYTHING)


async def test_answer_is_json_with_cors_and_without_cache(application: live.Live, token: str) -> None:
    @requests.endpoint("echo")
    async def echo(request: requests.Request) -> Any:
        return {"query": request.query, "user": request.access.user}

    client = await ask(application, Client("echo", token=token, query=b"app=1&text=%C3%BC"))
    assert (client.status, client.json) == (200, {"query": {"app": "1", "text": "ü"}, "user": "ann"})
    assert client.headers[b"access-control-allow-origin"] == b"*"
    assert client.headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize("token", ["", "forged"])
async def test_request_without_a_valid_token_is_refused(application: live.Live, token: str) -> None:
    assert (await ask(application, Client("overview", token=token))).status == 401


async def test_permission_is_required(application: live.Live) -> None:
    @requests.endpoint("send", method="POST", permission="publish_event")
    async def send(_request: requests.Request) -> Any:
        raise AssertionError

    client = await ask(application, Client("send", method="POST", token=tokens.issue(EVERYTHING), body=b"{}"))
    assert (client.status, client.json) == (403, {"error": "You need the permission fanfare.publish_event."})


async def test_preflight_of_another_origin_is_answered(application: live.Live) -> None:
    client = await ask(application, Client("overview", method="OPTIONS"))
    assert client.status == 204
    assert client.headers[b"access-control-allow-headers"] == b"authorization, content-type"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{}", 200), (b"[]", 400), (b"{", 400), (b"", 400), (b'{"a":"' + b"x" * 70_000 + b'"}', 413)],
)
async def test_body_is_a_bounded_json_object(application: live.Live, token: str, body: bytes, status: int) -> None:
    @requests.endpoint("take", method="POST")
    async def take(request: requests.Request) -> Any:
        return dict(request.body)

    assert (await ask(application, Client("take", method="POST", token=token, body=body))).status == status


async def test_query_with_too_many_arguments_is_refused(application: live.Live, token: str) -> None:
    query = b"&".join([b"a=1"] * (live.MAX_ARGUMENTS + 1))
    client = await ask(application, Client("overview", token=token, query=query))
    assert (client.status, client.json) == (400, {"error": "The request has more than 50 arguments."})


async def test_unknown_path_and_wrong_method_are_refused(application: live.Live, token: str) -> None:
    assert (await ask(application, Client("nothing", token=token))).status == 404
    assert (await ask(application, Client("overview", method="POST", token=token, body=b"{}"))).status == 405


async def test_failure_is_counted_and_answered_with_500(application: live.Live, token: str) -> None:
    @requests.endpoint("broken")
    async def broken(_request: requests.Request) -> Any:
        raise KeyError("secret detail")

    client = await ask(application, Client("broken", token=token))
    assert client.status == 500
    assert "secret detail" not in client.body.decode()
    assert application._worker.counters == ["console.failed"]  # type: ignore[attr-defined]


async def test_stream_sends_one_json_value_a_line(application: live.Live, token: str) -> None:
    @requests.stream("three")
    async def three(_request: requests.Request) -> AsyncIterator[Any]:
        for number in range(3):
            yield {"n": number}

    client = await ask(application, Client("three", token=token))
    assert client.status == 200
    assert [orjson.loads(line) for line in client.body.splitlines()] == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_problem_before_the_first_value_has_its_status(application: live.Live, token: str) -> None:
    @requests.stream("refused")
    async def refused(_request: requests.Request) -> AsyncIterator[Any]:
        raise requests.Problem(400, "The filter is no pattern.")
        yield

    client = await ask(application, Client("refused", token=token))
    assert (client.status, client.json) == (400, {"error": "The filter is no pattern."})


async def test_failure_after_the_first_value_is_the_last_line_and_counted(application: live.Live, token: str) -> None:
    @requests.stream("broken")
    async def broken(_request: requests.Request) -> AsyncIterator[Any]:
        yield 1
        raise KeyError("secret detail")

    client = await ask(application, Client("broken", token=token))
    first, last = [orjson.loads(line) for line in client.body.splitlines()]
    assert (client.status, first, last) == (200, 1, {"error": "The worker failed to answer; its log says why."})
    assert application._worker.counters == ["console.failed"]  # type: ignore[attr-defined]


async def test_stream_ends_when_the_page_leaves(application: live.Live, token: str) -> None:
    closed = asyncio.Event()

    @requests.stream("endless")
    async def endless(_request: requests.Request) -> AsyncIterator[Any]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    client = Client("endless", token=token)
    async with asyncio.TaskGroup() as group:
        group.create_task(application(client.scope, client.receive, client.send))
        while client.body != b"1\n":
            await asyncio.sleep(0.001)
        client.leave.set()
    assert closed.is_set()
    assert not application._streams


async def test_generator_runs_only_as_fast_as_the_page_reads(application: live.Live, token: str) -> None:
    made: list[int] = []

    @requests.stream("numbers")
    async def numbers(_request: requests.Request) -> AsyncIterator[Any]:
        for number in range(1000):
            made.append(number)
            yield number

    client = Client("numbers", token=token)
    client.writable.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(application(client.scope, client.receive, client.send))
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(made) <= 1, "the page has read nothing"
        client.writable.set()
    assert len(made) == 1000


async def test_stream_ends_with_its_token(application: live.Live, monkeypatch: pytest.MonkeyPatch) -> None:
    @requests.stream("endless")
    async def endless(_request: requests.Request) -> AsyncIterator[Any]:
        while True:
            yield 1
            await asyncio.sleep(0.01)

    monkeypatch.setattr(tokens, "SECONDS", 0.2)
    client = await ask(application, Client("endless", token=tokens.issue(EVERYTHING)))
    assert client.status == 200


async def test_stream_is_refused_above_the_limit_of_a_user(
    application: live.Live, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "STREAMS_PER_USER", 0)
    client = await ask(application, Client("overview", token=token))
    assert (client.status, client.json["error"][:22]) == (503, "Too many console pages")


async def test_streams_end_when_the_worker_stops(application: live.Live, token: str) -> None:
    @requests.stream("endless")
    async def endless(_request: requests.Request) -> AsyncIterator[Any]:
        yield 1
        await asyncio.Event().wait()

    client = Client("endless", token=token)
    async with asyncio.TaskGroup() as group:
        group.create_task(application(client.scope, client.receive, client.send))
        while client.body != b"1\n":
            await asyncio.sleep(0.001)
        application.stop()
