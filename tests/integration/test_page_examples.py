"""The JSON of the pages. A server accepts what it reads; what it sends has the fields and types that the pages show."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from tests.harness import calls, servers, signing, sockets
from tests.unit.docs import pages


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> Iterator[servers.Server]:
    deployment = fleet.deployment()
    history = ("--history", "orders*=100,600", "--history", "private-chat-*=100,600")
    deployment.application = deployment.create_application("Examples", *history)
    server = fleet.start("uvicorn", deployment)
    yield server
    server.stop()


def example(page: str, containing: str) -> Any:
    return json.loads(pages.snippet(page, containing, language="json"))


def shape(value: Any) -> Any:
    """The fields and the types of a value; of a list, those of its first item."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return [shape(each) for each in value[:1]] if isinstance(value, list) else type(value)


def requests(page: str) -> list[tuple[str, str, str]]:
    """The requests with a body in the indented blocks of a page: method, path, body."""
    text = (pages.ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^    (POST) (/apps/\S+) +(\{.*\})$", text, re.MULTILINE)


async def test_http_api_answers_as_its_page_shows(server: servers.Server) -> None:
    guide = "docs/reference/http-api.md"
    async with sockets.connect(server) as socket:
        await socket.subscribe("orders")
        await socket.subscribe("presence-kitchen", member={"user_id": "1"})
        await socket.subscribe("cache-score")
        with calls.Caller(server) as caller:

            def answer(method: str, route: str, payload: object = None, **query: str) -> Any:
                found = caller.signed(method, route, payload, query)
                assert found.status == 200, found
                return found.body

            published = answer("POST", "events", example(guide, '"info": "user_count,subscription_count"'))
            assert shape(published) == shape(example(guide, '"orders": {"subscription_count"'))
            assert answer("POST", "batch_events", example(guide, '"data": "2"')) == {}
            caller.publish("cache-score", "goal", '{"home": 1}')
            presence = answer("GET", "channels", filter_by_prefix="presence-", info="user_count")
            assert shape(presence) == shape(example(guide, '{"channels": {"presence-kitchen"'))
            state = answer("GET", "channels/orders", info="subscription_count")
            assert shape(state) == shape(example(guide, '{"occupied": true, "subscription_count"'))
            cached = answer("GET", "channels/cache-score", info="cache")
            assert shape(cached) == shape(example(guide, '"ttl"'))
            users = answer("GET", "channels/presence-kitchen/users")
            assert shape(users) == shape(example(guide, '"users"'))
            page = shape(answer("GET", "channels/orders/history", limit="1"))
            assert page == shape(example(guide, '"items"')) == shape(example("docs/how-to/history.md", '"items"'))


def test_streams_are_appended_as_the_pages_show(server: servers.Server) -> None:
    guide = "docs/reference/http-api.md"
    batch = example(guide, '"state": "done"')
    with calls.Caller(server) as caller:
        for method, path, body in requests("docs/how-to/stream-answers.md"):
            route = path.removeprefix("/apps/1001/").replace("private-chat-7", "private-chat-9")
            answer = caller.signed(method, route, json.loads(body))
            assert answer.status == 200
            assert answer.body["accepted"]
            assert shape(answer.body) == shape(example(guide, '"accepted"'))
        for item in batch["batch"]:
            opening = {"name": "answer", "id": item["stream"], "seq": item["seq"] - ("text" in item)}
            assert caller.signed("POST", f"channels/{item['channel']}/streams", opening).status == 200
        answers = caller.signed("POST", "streams/append", batch).body["batch"]
    assert [(one["accepted"], one["state"]) for one in answers] == [(True, "open"), (True, "done")]


def test_readiness_is_answered_as_the_page_shows(server: servers.Server) -> None:
    with urlopen(server.url("/health/ready")) as answer:
        assert json.load(answer) == example("docs/reference/http-api.md", '"status": "ready"')


async def test_refused_subscription_gets_the_two_frames_of_the_page(server: servers.Server) -> None:
    guide = "docs/reference/codes.md"
    expected = [example(guide, '"pusher:error"'), example(guide, '"pusher:subscription_error"')]
    async with sockets.connect(server) as socket:
        await socket.request_subscription("private-orders", auth=f"{server.application.key}:0000")
        for frame in expected:
            text = json.dumps(frame["data"]).replace("1234.5678", socket.socket_id)
            received = await socket.expect(frame["event"], frame.get("channel"))
            assert received.decoded == json.loads(text)


async def test_token_with_the_claims_of_the_page_admits_to_its_channels(server: servers.Server) -> None:
    """The claims are valid until 2026-08-29; their times are moved to today."""
    claims = example("docs/how-to/capability-tokens.md", '"jti"')
    now = int(time.time())
    claims |= {"iat": now, "exp": now + claims["exp"] - claims["iat"]}
    token = signing.capability_token(server.application, claims)
    async with sockets.connect(server) as socket:
        await socket.request_subscription("private-orders-7", auth=token)
        await socket.expect("pusher_internal:subscription_succeeded", "private-orders-7")


@pytest.mark.parametrize(
    "declared",
    [
        example("docs/how-to/declare-applications.md", '"client_events"'),
        example("docs/how-to/history.md", '"rules"'),
        example("docs/how-to/webhooks.md", '"webhooks"'),
    ],
    ids=["all", "rules", "webhooks"],
)
async def test_declared_application_of_the_page_is_served(fleet: servers.Fleet, declared: Any) -> None:
    deployment = fleet.deployment(FANFARE_APPS=json.dumps(declared))
    server = fleet.start("uvicorn", deployment)
    async with sockets.connect(server, url=server.socket_url("my-key")) as socket:
        await socket.subscribe("orders")
    server.stop()


def test_body_of_the_page_is_a_webhook_for_its_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = "docs/how-to/webhooks.md"
    body = pages.snippet(guide, '"time_ms"', language="json").strip().encode()
    sent = json.loads(body)
    monkeypatch.setattr(time, "time", lambda: sent["time_ms"] / 1000 + 1)
    events_of = pages.run(guide, containing="def events_of")["events_of"]
    signature = hmac.new(b"my-secret", body, "sha256").hexdigest()
    assert events_of(body, "my-key", signature, {"my-key": "my-secret"}) == sent["events"]
    with pytest.raises(PermissionError):
        events_of(body, "my-key", signature, {"my-key": "another"})
