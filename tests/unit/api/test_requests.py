"""The steps before an operation: routes, methods, bodies, and the log of refusals."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fanfare.api import asgi, events, requests
from fanfare.applications import registry
from tests.unit.api import fakes

EVENT = b'{"name":"created","channel":"news","data":"{}"}'
EVENTS = "/apps/3/events"
LIMIT = events.body_limit(fakes.APPLICATION.limits)


async def ask(client: fakes.Client, method: str, target: str, body: bytes = b"", **options: object) -> fakes.Answer:
    answer = await client.request(method, target, body, **options)  # type: ignore[arg-type]
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    "path", ["/", "/apps", "/apps/3", "/apps/3/", "/apps//events", "/apps/3/events/", "/apps/3/channels//users", "/x"]
)
async def test_unknown_route_is_a_404(client: fakes.Client, path: str) -> None:
    answer = await ask(client, "GET", path)
    assert (answer.status, answer.json["code"]) == (404, "unknown_route")


@pytest.mark.parametrize("app_id", ["4", "0", "%33%34", "03", "x" * 1_000])
async def test_unknown_application_is_a_404(client: fakes.Client, app_id: str) -> None:
    answer = await ask(client, "POST", f"/apps/{app_id}/events", EVENT)
    assert (answer.status, answer.json["code"]) == (404, "unknown_application")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", EVENTS, "POST, OPTIONS"),
        ("HEAD", EVENTS, "POST, OPTIONS"),
        ("PUT", "/apps/3/batch_events", "POST, OPTIONS"),
        ("POST", "/apps/3/channels", "GET, HEAD, OPTIONS"),
        ("DELETE", "/apps/3/channels/news", "GET, HEAD, OPTIONS"),
        ("BREW" * 100, "/apps/3/channels/presence-x/users", "GET, HEAD, OPTIONS"),
    ],
)
async def test_wrong_method_gets_405_with_the_allowed_methods(
    client: fakes.Client, method: str, path: str, allowed: str
) -> None:
    answer = await ask(client, method, path)
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


async def test_options_needs_no_signature(client: fakes.Client) -> None:
    answer = await ask(client, "OPTIONS", EVENTS)
    assert (answer.status, answer.body, answer.headers["allow"]) == (204, b"", "POST, OPTIONS")
    assert "content-type" not in answer.headers


async def test_page_of_any_origin_may_send_a_signed_request(client: fakes.Client) -> None:
    preflight = await ask(client, "OPTIONS", EVENTS)
    assert preflight.headers["access-control-allow-methods"] == "POST, OPTIONS"
    assert preflight.headers["access-control-allow-headers"] == "content-type, idempotency-key"
    good = await ask(client, "POST", fakes.signed("POST", EVENTS, EVENT), EVENT)
    refused = await ask(client, "GET", "/apps/3/channels")
    for answer in (preflight, good, refused):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


async def test_root_path_is_not_a_part_of_the_routes(api: asgi.Api) -> None:
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        raise AssertionError("a GET without a body needs no reading")

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    target = fakes.signed("GET", "/apps/3/channels")
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/behind/apps/3/channels",
        "root_path": "/behind",
        "query_string": target.partition("?")[2].encode(),
        "headers": [],
    }
    await api(scope, receive, send)
    assert sent[0]["status"] == 200


async def test_body_in_several_pieces_is_joined(client: fakes.Client, hub: fakes.Hub) -> None:
    chunks = [EVENT[:10], b"", EVENT[10:20], EVENT[20:]]
    assert (await ask(client, "POST", fakes.signed("POST", EVENTS, EVENT), chunks=chunks)).status == 200
    assert len(hub.frames) == 1


async def test_client_that_disconnects_during_its_body_gets_no_answer(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await client.request("POST", fakes.signed("POST", EVENTS, EVENT), chunks=[EVENT[:10]], disconnects=True)
    assert answer is None
    assert hub.published == []
    assert hub.counters["api.disconnected"] == 1


async def test_body_of_an_unsigned_request_is_not_read(client: fakes.Client) -> None:
    assert (await ask(client, "POST", EVENTS + "?auth_key=x", b"x" * 1_000_000)).status == 401
    assert client.received == 0


async def test_body_slightly_over_the_limit_is_drained_and_refused_with_both_numbers(
    client: fakes.Client,
) -> None:
    body = b" " * (LIMIT + 1)
    chunks = [body[:LIMIT], body[LIMIT:]]
    answer = await ask(client, "POST", fakes.signed("POST", EVENTS, body), chunks=chunks)
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")
    assert str(LIMIT) in answer.json["error"]
    assert str(LIMIT + 1) in answer.json["error"]
    assert "content of this event" in answer.json["error"]
    assert "connection" not in answer.headers


async def test_body_far_over_the_limit_is_refused_unread_by_its_declared_length(client: fakes.Client) -> None:
    size = LIMIT + requests.DRAIN_BYTES + 1
    declared = [(b"content-length", b"%d" % size)]
    target = fakes.signed("POST", EVENTS, EVENT)
    answer = await ask(client, "POST", target, chunks=[b""], headers=declared)
    assert answer.status == 413
    assert str(size) in answer.json["error"]
    assert answer.headers["connection"] == "close"
    assert client.received == 0


async def test_endless_body_is_refused_while_it_arrives(client: fakes.Client) -> None:
    piece = b"x" * 1_048_576
    target = fakes.signed("POST", EVENTS, EVENT)
    answer = await ask(client, "POST", target, chunks=[piece] * 100)
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    assert client.received < 10


async def test_stalled_body_times_out_with_408(api: asgi.Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.01)
    never = asyncio.Event()
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        await never.wait()
        raise AssertionError

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    target = fakes.signed("POST", EVENTS, EVENT)
    scope = {
        "type": "http",
        "method": "POST",
        "path": EVENTS,
        "query_string": target.partition("?")[2].encode(),
        "headers": [(b"content-length", b"47")],
    }
    await api(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]  # type: ignore[operator]


class Slow:
    """A client whose body comes when the test says so. `asked`: how often the API waited for more of it."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.more = asyncio.Event()
        self.asked = asyncio.Semaphore(0)
        self.sent: list[dict[str, object]] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": EVENTS,
            "query_string": fakes.signed("POST", EVENTS, b"".join(pieces)).partition("?")[2].encode(),
            "headers": [(b"content-length", b"%d" % sum(map(len, pieces)))],
        }

    async def receive(self) -> dict[str, object]:
        self.asked.release()
        await self.more.wait()
        self.more.clear()
        return {"type": "http.request", "body": self.pieces.pop(0), "more_body": bool(self.pieces)}

    async def send(self, message: object) -> None:
        assert isinstance(message, dict)
        self.sent.append(message)


async def test_late_body_in_several_pieces_is_awaited(api: asgi.Api, hub: fakes.Hub) -> None:
    slow = Slow(EVENT[:10], EVENT[10:20], EVENT[20:])
    request = asyncio.create_task(api(slow.scope, slow.receive, slow.send))
    for _ in range(3):
        await slow.asked.acquire()
        slow.more.set()
    await request
    assert slow.sent[0]["status"] == 200
    assert len(hub.frames) == 1


async def test_request_that_awaits_its_body_can_be_cancelled(api: asgi.Api, hub: fakes.Hub) -> None:
    slow = Slow(EVENT)
    request = asyncio.create_task(api(slow.scope, slow.receive, slow.send))
    await slow.asked.acquire()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert slow.sent == []
    assert hub.published == []


async def test_query_with_too_many_parameters_is_refused_with_both_numbers(client: fakes.Client) -> None:
    answer = await ask(client, "GET", "/apps/3/channels?" + "&".join(["a=b"] * 300))
    assert (answer.status, answer.json["code"]) == (400, "too_many_parameters")
    assert "300" in answer.json["error"]
    assert "256" in answer.json["error"]


def test_body_limit_admits_parts_at_their_own_limits() -> None:
    """However a client escapes: the worst is six bytes for one."""
    limits = registry.Limits()

    def escaped(size: int) -> str:
        return "\\u0041" * size

    channels = ",".join([f'"{escaped(limits.max_channel_name)}"'] * limits.max_channels_per_event)
    name, data = escaped(limits.max_event_name), escaped(limits.max_event_bytes)
    body = f'{{"name":"{name}","channels":[{channels}],"data":"{data}","socket_id":"1.1","info":"user_count"}}'
    assert len(body) <= events.body_limit(limits)
    item = f'{{"name":"{name}","channel":"{escaped(limits.max_channel_name)}","data":"{data}","socket_id":"1.1"}}'
    batch = ",".join([item] * limits.max_batch_events)
    assert len(f'{{"batch":[{batch}]}}') <= events.batch_body_limit(limits)


async def test_refusals_are_logged_without_the_query_and_once_a_second_for_each_code(
    client: fakes.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await ask(client, "POST", "/apps/3/events?auth_key=abc")
        await ask(client, "GET", "/apps/3/" + "x" * 1_000)
    unsigned, unknown = [record.getMessage() for record in caplog.records]
    assert unsigned == "API request refused: missing_parameter (401) POST '/apps/3/events' from 192.0.2.1"
    assert "unknown_route (404) GET '/apps/3/xxx" in unknown
    assert len(unknown) < 400
