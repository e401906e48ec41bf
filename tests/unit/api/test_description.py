"""The OpenAPI description agrees with the API: each route, each parameter, each status, each answer."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanfare.api import members, openapi, operations, parameters, rates, refusals, requests
from fanfare.applications import registry, rules
from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.protocol import names, publications
from fanfare.protocol import refusals as protocol_refusals
from tests.unit.api import fakes

SCHEMA: dict[str, Any] = json.loads(orjson.dumps(openapi.document()))
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    (method.upper(), path): operation
    for path, methods in SCHEMA["paths"].items()
    for method, operation in methods.items()
}
REPOSITORY = Path(__file__).resolve().parents[3]


def ids(key: tuple[str, str]) -> str:
    return " ".join(key)


def test_description_has_exactly_the_served_routes() -> None:
    """HEAD follows from GET; the introduction names it."""
    served = {(method, route.path) for route in operations.ROUTES for method in route.methods if method != "HEAD"}
    assert set(OPERATIONS) == served


@pytest.mark.parametrize("route", operations.ROUTES, ids=lambda route: route.path)
def test_described_success_status_is_the_routes(route: operations.Route) -> None:
    good = [status for status in OPERATIONS[route.methods[0], route.path]["responses"] if status.startswith("2")]
    assert good == [str(route.status)]


def test_every_refusal_is_described() -> None:
    """MethodNotAllowed belongs to no operation: there is none for that method."""
    raised = {each.status for each in vars(refusals).values() if isinstance(each, type) and hasattr(each, "status")}
    assert raised - {405} | {500} == set(openapi.REFUSALS)


# What makes a request fail with each status. Each gets the API, a client, and a request that would be good.
Target = tuple[str, str, bytes, dict[str, str]]  # method, path, body, query


async def bad_query(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    return await client.request(good[0], good[1] + "?" + "&".join(["a=b"] * 300))


async def unsigned(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    return await client.request(good[0], good[1])


async def disabled(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    put(client, enabled=False)
    return await signed(client, good)


async def unknown_application(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    return await client.request(good[0], good[1].replace("/apps/3/", "/apps/4/"))


async def slow_body(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    return await client.request(
        good[0], fakes.signed(good[0], good[1], good[2], query=good[3]), chunks=[b"{"], stalls=True
    )


async def other_epoch(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    hub.engine.epoch = "another"
    return await signed(client, good)


async def large_body(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    declared = [(b"content-length", b"100000000")]
    return await client.request(good[0], fakes.signed(*good[:3], query=good[3]), headers=declared)


@pytest.fixture(autouse=True)
def unspent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has the rate of the member's writes for itself; the tests are faster than the rate."""
    monkeypatch.setattr(members, "_rate", rates.Rate("writes of this member", "too_many_writes"))


async def over_budget(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    put(client, limits=registry.Limits(max_events_per_second=1))
    await signed(client, good)
    return await signed(client, good)


async def fault(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    hub.engine.broken = True
    return await signed(client, good)


async def engine_away(client: fakes.Client, hub: fakes.Hub, good: Target) -> fakes.Answer | None:
    hub.engine.down = "the disk is full"
    return await signed(client, good)


def put(client: fakes.Client, **changed: Any) -> None:
    client.api._registry.put(dataclasses.replace(fakes.APPLICATION, rules=KEPT, **changed))


async def signed(client: fakes.Client, good: Target) -> fakes.Answer | None:
    method, path, body, query = good
    return await client.request(method, fakes.signed(method, path, body, query=query), body)


Cause = Callable[[fakes.Client, fakes.Hub, Target], Awaitable[fakes.Answer | None]]
CAUSES: dict[int, Cause] = {
    400: bad_query,
    401: unsigned,
    403: disabled,
    404: unknown_application,
    408: slow_body,
    410: other_epoch,
    413: large_body,
    429: over_budget,
    500: fault,
    503: engine_away,
}
KEPT = rules.Rules((rules.Rule("news", history_size=2, history_seconds=60),))
EVENT = b'{"name":"created","channel":"news","data":"x","info":"subscription_count,offset"}'
GOOD: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "trigger": ("/apps/3/events", EVENT, {}),
    "trigger_batch": ("/apps/3/batch_events", b'{"batch":[%s]}' % EVENT, {}),
    "channels": ("/apps/3/channels", b"", {"info": "subscription_count"}),
    "channel": (
        "/apps/3/channels/presence-cache-a",
        b"",
        {"info": "user_count,subscription_count,cache"},
    ),
    "users": ("/apps/3/channels/presence-cache-a/users", b"", {"with_user_info": "1"}),
    "history": (
        "/apps/3/channels/news/history",
        b"",
        {"limit": "1", "after": "e:0", "direction": "forwards", "open": "1"},
    ),
    "user": ("/apps/3/users/42", b"", {}),
    "update_user": ("/apps/3/channels/presence-cache-a/users/ann/update", b'{"user_info":{"name":"Ann"}}', {}),
    "lease": ("/apps/3/channels/presence-cache-a/members/bot", b'{"ttl":60,"user_info":{"name":"Bot"}}', {}),
    "release": ("/apps/3/channels/presence-cache-a/members/bot/leave", b"{}", {}),
    "revise": ("/apps/3/channels/news/history/e:1/revise", b'{"data":"new","by":"42"}', {}),
    "open_stream": ("/apps/3/channels/news/streams", b'{"name":"answer","id":"new"}', {}),
    "stream": ("/apps/3/channels/news/streams/a", b"", {}),
    "append_to_stream": ("/apps/3/channels/news/streams/a/append", b'{"seq":1,"text":"x"}', {}),
    "append_to_streams": (
        "/apps/3/streams/append",
        b'{"batch":[{"channel":"news","stream":"a","seq":1,"text":"x"},{"channel":"news","stream":"a"}]}',
        {},
    ),
    "cancel_stream": ("/apps/3/channels/news/streams/a/cancel", b"{}", {}),
    "terminate": ("/apps/3/users/42/terminate_connections", b"{}", {}),
    "terminate_by_key": ("/users/42/terminate_connections", b"", {"reconnect": "1"}),
    "revoke": ("/apps/3/capabilities/5d41/revoke", b"{}", {"exp": "1900000000"}),
    "trigger_on_channel": ("/apps/3/channels/news/events", b'"x"', {"name": "created"}),
    "stats": ("/apps/3/channels/presence-cache-a/stats", b"", {}),
}


@pytest.fixture
def hub() -> fakes.Hub:
    channel = "presence-cache-a"
    engine = fakes.Engine(
        counts={channel: interface.ChannelCounts(3, 2), "news": interface.ChannelCounts(1, 0)},
        joined={channel: [interface.Member("ann", '{"name":"Ann"}')]},
        holding={channel: interface.Cached(b'{"event":"e","channel":"presence-cache-a","data":"x"}', 60)},
    )
    engine.streams["a"] = interface.Streamed("a", interface.StreamState.OPEN, 0, 0, b'{"event":"answer"}')
    engine.keep(
        "news", event_frames.event("e", "news", "x", "ann"), event_frames.event("e", "news", "y"), user_id="ann"
    )
    return fakes.Hub(engine)


@pytest.fixture
def applications() -> registry.Registry:
    applications = registry.Registry()
    applications.put(dataclasses.replace(fakes.APPLICATION, rules=KEPT))
    return applications


@pytest.mark.parametrize("status", CAUSES)
@pytest.mark.parametrize("key", OPERATIONS, ids=ids)
async def test_each_refusal_status_is_described_exactly_where_it_occurs(
    key: tuple[str, str], status: int, client: fakes.Client, hub: fakes.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.01)
    operation = OPERATIONS[key]
    path, body, query = GOOD[operation["operationId"]]
    answer = await CAUSES[status](client, hub, (key[0], path, body, query))
    assert answer is not None
    assert (answer.status == status) == (str(status) in operation["responses"])
    assert str(answer.status) in operation["responses"]
    if answer.status >= 400:
        shape("Refusal", answer.json)
        described = operation["responses"][str(answer.status)].get("headers", {})
        assert ("retry-after" in answer.headers) == ("Retry-After" in described)


@pytest.mark.parametrize("key", OPERATIONS, ids=ids)
async def test_successful_answer_matches_its_schema(key: tuple[str, str], client: fakes.Client) -> None:
    operation = OPERATIONS[key]
    path, body, query = GOOD[operation["operationId"]]
    answer = await signed(client, (key[0], path, body, query))
    assert answer is not None
    (status,) = [status for status in operation["responses"] if status.startswith("2")]
    assert answer.status == int(status)
    reference = operation["responses"][status]["content"]["application/json"]["schema"]["$ref"]
    shape(reference.rpartition("/")[2], answer.json)
    if operation["operationId"] in ("stream", "trigger", "trigger_batch", "channel", "users", "history"):
        assert answer.json, "the request asks for everything that can be answered"


def shape(name: str, value: Any) -> None:
    """Raise if `value` does not match the schema; unknown fields are errors, too."""
    jsonschema_rs.validate({"$ref": f"#/components/schemas/{name}", "components": SCHEMA["components"]}, value)


def test_every_schema_is_explained_and_every_answer_is_closed() -> None:
    bodies = {
        "Event",
        "BatchEvent",
        "Batch",
        "StreamOpening",
        "StreamAppend",
        "StreamBatchItem",
        "StreamBatch",
        "Revision",
        "MemberUpdate",
        "MemberLeasing",
    }
    for name, schema in SCHEMA["components"]["schemas"].items():
        assert schema.get("description"), name
        assert (schema.get("additionalProperties") is False) == (name not in bodies), name


@given(name=st.text(max_size=8) | st.from_regex(openapi.CHANNEL_PATTERN, fullmatch=True))
def test_channel_pattern_agrees_with_the_protocol(name: str) -> None:
    try:
        names.check_publishable_channel(name, len(name))
    except protocol_refusals.InvalidName:
        taken = False
    else:
        taken = True
    assert matches(openapi.CHANNEL_NAME, name) == taken


@given(text=st.text(max_size=8) | st.from_regex(openapi.SOCKET_ID_PATTERN, fullmatch=True))
def test_socket_id_pattern_agrees_with_the_api(text: str) -> None:
    assert matches(openapi.SOCKET_ID, text) == accepts(parameters.socket_id, text)


@given(text=st.text(min_size=1, max_size=8) | st.from_regex(openapi.POSITION_PATTERN, fullmatch=True))
def test_position_pattern_agrees_with_the_api(text: str) -> None:
    assert matches(openapi.POSITION, text) == accepts(lambda value: parameters.position("after", value), text)


@given(text=st.text(max_size=8))
def test_idempotency_key_pattern_agrees_with_the_api(text: str) -> None:
    assert matches(openapi.IDEMPOTENCY_KEY, text) == accepts(parameters.idempotency_key, text)


@given(prefix=st.sampled_from(["", "pusher:", "pusher_internal:", "pusher"]), rest=st.text(min_size=1, max_size=8))
def test_event_name_schema_agrees_with_the_protocol(prefix: str, rest: str) -> None:
    name = prefix + rest
    try:
        publications.check_event_name(name, registry.Limits())
    except protocol_refusals.InvalidName:
        taken = False
    else:
        taken = True
    assert matches(openapi.EVENT_NAME, name) == taken


def matches(schema: dict[str, Any], value: str) -> bool:
    return jsonschema_rs.Draft202012Validator(schema).is_valid(value)


def accepts(judge: Callable[[Any], Any], value: str) -> bool:
    try:
        judge(value)
    except refusals.Invalid:
        return False
    return True


def test_every_operation_requires_a_signature() -> None:
    schemes = SCHEMA["components"]["securitySchemes"]
    for key, operation in OPERATIONS.items():
        (required,) = operation["security"]
        assert set(openapi.SIGNATURE) <= set(required) <= set(schemes), key
        assert ("body_md5" in required) == ("requestBody" in operation), key


async def test_description_is_readable_from_any_origin() -> None:
    status, headers, body = await get()
    assert status == 200
    assert headers["access-control-allow-origin"] == "*"
    assert json.loads(body) == SCHEMA


async def get(method: str = "GET", path: str = openapi.PATH) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"origin", b"https://tools.example")],
    }
    await openapi.Description()(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


async def test_description_answers_head_and_preflight_and_refuses_other_methods_and_paths() -> None:
    whole = await get()
    assert await get("HEAD") == (200, whole[1], b"")
    status, headers, body = await get("OPTIONS")
    assert (status, body, headers["access-control-allow-methods"]) == (204, b"", "GET, HEAD, OPTIONS")
    status, headers, _ = await get("POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (await get(path="/api/openapi.jsonx"))[0] == 404


def test_description_needs_no_framework() -> None:
    code = (
        "import sys; from fanfare.api import asgi, openapi; openapi.document()\n"
        "print([name for name in ('fastapi', 'pydantic', 'starlette') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "apps", capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
