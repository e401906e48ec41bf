"""The OpenAPI description says what the API does: each route, each parameter, each status, each answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import is_typeddict

from fanfare.api import answers, bodies, routing, validation
from fanfare.api import errors as api_errors
from fanfare.api.openapi import description, payloads, serving, texts
from fanfare.applications import registry, rules
from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.protocol import names, refusals
from tests.unit.api import fakes

SCHEMA: dict[str, Any] = description.Description().openapi()
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    (method.upper(), path): operation
    for path, methods in SCHEMA["paths"].items()
    for method, operation in methods.items()
}
REPOSITORY = Path(__file__).resolve().parents[3]


def ids(key: tuple[str, str]) -> str:
    return " ".join(key)


def test_every_route_is_described_and_nothing_else() -> None:
    """HEAD is what HTTP makes of GET, and the introduction names it."""
    served = {(method, route.path) for route in routing.ROUTES for method in route.methods if method != "HEAD"}
    assert set(OPERATIONS) == served


@pytest.mark.parametrize("route", routing.ROUTES, ids=lambda route: route.path)
def test_the_good_answer_is_the_one_that_the_route_gives(route: routing.Route) -> None:
    good = [status for status in OPERATIONS[route.methods[0], route.path]["responses"] if status.startswith("2")]
    assert good == [str(route.status)]


def test_every_refusal_is_described() -> None:
    """MethodNotAllowed belongs to no operation: there is none for that method."""
    raised = {each.status for each in vars(api_errors).values() if isinstance(each, type) and hasattr(each, "status")}
    assert raised - {405} | {500} == set(texts.REFUSALS)


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
    "history": ("/apps/3/channels/news/history", b"", {"limit": "1", "after": "e:0", "direction": "forwards"}),
    "terminate": ("/apps/3/users/42/terminate_connections", b"{}", {}),
    "terminate_by_key": ("/users/42/terminate_connections", b"", {"reconnect": "1"}),
    "trigger_on_channel": ("/apps/3/channels/news/events", b'"x"', {"name": "created"}),
    "stats": ("/apps/3/channels/presence-cache-a/stats", b"", {}),
}


@pytest.fixture
def hub() -> fakes.Hub:
    channel = "presence-cache-a"
    engine = fakes.Engine(
        counts={channel: interface.ChannelCounts(3, 2), "news": interface.ChannelCounts(1, 0)},
        present={channel: [interface.Member("ann", '{"name":"Ann"}')]},
        holding={channel: interface.Cached(b'{"event":"e","channel":"presence-cache-a","data":"x"}', 60)},
    )
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
async def test_a_refusal_comes_exactly_where_it_is_described(
    key: tuple[str, str], status: int, client: fakes.Client, hub: fakes.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.01)
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
async def test_a_good_answer_has_the_shape_that_is_described(key: tuple[str, str], client: fakes.Client) -> None:
    operation = OPERATIONS[key]
    path, body, query = GOOD[operation["operationId"]]
    answer = await signed(client, (key[0], path, body, query))
    assert answer is not None
    (status,) = [status for status in operation["responses"] if status.startswith("2")]
    assert answer.status == int(status)
    reference = operation["responses"][status]["content"]["application/json"]["schema"]["$ref"]
    shape(reference.rpartition("/")[2], answer.json)
    if operation["operationId"] in ("trigger", "trigger_batch", "channel", "users", "history"):
        assert answer.json, "the request asks for everything that can be answered"


def shape(name: str, value: Any) -> None:
    """Raises if `value` is not what `answers` says; unknown fields are errors, too."""
    pydantic.TypeAdapter(getattr(answers, name)).validate_python(value, strict=True)


def test_every_answer_is_closed_and_explained() -> None:
    for name, schema in SCHEMA["components"]["schemas"].items():
        assert schema.get("description"), name
        if is_typeddict(getattr(answers, name, None)):
            assert schema["additionalProperties"] is False, name


@given(name=st.text(max_size=8) | st.from_regex(payloads.CHANNEL_PATTERN, fullmatch=True))
def test_the_pattern_of_a_channel_is_what_the_protocol_takes(name: str) -> None:
    try:
        names.check_publishable_channel(name, len(name))
    except refusals.InvalidName:
        taken = False
    else:
        taken = True
    assert matches(payloads.ChannelName, name) == taken


@given(text=st.text(max_size=8) | st.from_regex(payloads.SOCKET_ID_PATTERN, fullmatch=True))
def test_the_pattern_of_a_socket_id_is_what_is_taken(text: str) -> None:
    assert matches(payloads.SocketId, text) == accepts(validation.socket_id, text)


@given(text=st.text(min_size=1, max_size=8) | st.from_regex(payloads.POSITION_PATTERN, fullmatch=True))
def test_the_pattern_of_a_position_is_what_is_taken(text: str) -> None:
    assert matches(payloads.Position, text) == accepts(lambda value: validation.position("after", value), text)


@given(text=st.text(max_size=8))
def test_the_pattern_of_an_idempotency_key_is_what_is_taken(text: str) -> None:
    assert matches(payloads.IdempotencyKey, text) == accepts(validation.idempotency_key, text)


def matches(annotated: Any, value: str) -> bool:
    try:
        pydantic.TypeAdapter(annotated).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


def accepts(judge: Callable[[Any], Any], value: str) -> bool:
    try:
        judge(value)
    except api_errors.Invalid:
        return False
    return True


def test_an_operation_without_a_signature_is_not_described() -> None:
    schemes = SCHEMA["components"]["securitySchemes"]
    for key, operation in OPERATIONS.items():
        (required,) = operation["security"]
        assert set(texts.SIGNATURE) <= set(required) <= set(schemes), key
        assert ("body_md5" in required) == ("requestBody" in operation), key


async def test_the_description_is_served_to_tools_of_any_origin() -> None:
    described = serving.Described()
    first, second = await asyncio.gather(get(described), get(described))
    assert first == second
    status, headers, body = first
    assert status == 200
    assert headers["access-control-allow-origin"] == "*"
    assert json.loads(body) == SCHEMA


async def get(app: serving.Described) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": texts.PATH,
        "raw_path": texts.PATH.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"origin", b"https://tools.example")],
    }
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def test_a_worker_imports_no_framework_for_the_api_until_the_description_is_asked_for() -> None:
    code = (
        "import sys; import fanfare.api.application, fanfare.api.openapi.serving\n"
        "print([name for name in ('fastapi', 'pydantic', 'starlette') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
