"""Who gets a stream, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest

from fanfare.sse import answers
from tests.unit.sse.clients import Response, asking, until
from tests.unit.sse.conftest import SECRET, Deployment

STREAM = {"accept": "text/event-stream"}


async def answer(deployment: Deployment, query: str, **options: Any) -> Response:
    async with asking(deployment.application, query, **options) as response:
        await until(lambda: response.complete or response.events)
    return response


def refused(response: Response) -> tuple[int | None, str]:
    return response.status, response.json["code"]


async def test_a_channel_that_is_not_public_takes_a_token(deployment: Deployment) -> None:
    query = "channels=private-kept,plain"
    assert refused(await answer(deployment, query)) == (401, "token_required")
    assert refused(await answer(deployment, f"{query}&token=x")) == (401, "invalid_token")
    other = deployment.token("private-other*")
    assert refused(await answer(deployment, f"{query}&token={other}")) == (403, "channel_not_granted")
    assert (await answer(deployment, f"{query}&token={deployment.token('private-k*')}")).status == 200
    assert (await answer(deployment, query, authorization=f"Bearer {deployment.token('private-kept')}")).status == 200
    assert (await answer(deployment, f"channels=private-encrypted-a&token={deployment.token('*')}")).status == 200


async def test_after_a_rotation_old_tokens_work_as_long_as_the_old_secret(deployment: Deployment) -> None:
    query = f"channels=private-kept&token={deployment.token('private-kept')}"
    deployment.put(secret="new", previous_secret=SECRET, previous_secret_until=1_800_000_001.0)
    assert (await answer(deployment, query)).status == 200
    deployment.put(secret="new", previous_secret=SECRET, previous_secret_until=1_800_000_000.0)
    assert (await answer(deployment, query)).status == 401


async def test_an_expired_token_on_a_first_visit_is_explained(deployment: Deployment) -> None:
    expired = deployment.token("private-kept", seconds=-1)
    assert refused(await answer(deployment, f"channels=private-kept&token={expired}")) == (401, "expired_token")


@pytest.mark.parametrize("token", ["expired", "revoked"])
async def test_a_client_that_comes_back_with_a_token_that_no_longer_holds_is_sent_away_for_good(
    deployment: Deployment, token: str
) -> None:
    """204 is what stops an EventSource."""
    text = deployment.token("private-kept", seconds=-1) if token == "expired" else "x.y.z"
    response = await answer(deployment, f"channels=private-kept&token={text}", last_event_id="1.e:1")
    assert (response.status, response.body) == (204, b"")


async def test_an_unknown_key_and_a_disabled_application_are_told_apart(deployment: Deployment) -> None:
    assert refused(await answer(deployment, "channels=a", key="other")) == (404, "unknown_application")
    deployment.put(enabled=False)
    assert refused(await answer(deployment, "channels=a")) == (403, "application_disabled")


async def test_pages_of_other_origins_are_refused(deployment: Deployment) -> None:
    deployment.put(allowed_origins=("https://shop.example.com",))
    assert refused(await answer(deployment, "channels=a", origin="https://evil.example")) == (403, "origin_not_allowed")
    response = await answer(deployment, "channels=a", origin="https://shop.example.com")
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == "https://shop.example.com"
    assert response.headers["vary"] == "origin"
    assert (await answer(deployment, "channels=a")).status == 200, "a program sends no origin"


async def test_a_full_application_says_come_again(deployment: Deployment) -> None:
    """A program gets a status; an EventSource would give up after one, so it gets a stream that ends."""
    deployment.put(limits=deployment.registry.all()[0].limits.__class__(max_connections=1))
    async with asking(deployment.application, "channels=a") as first:
        await until(lambda: first.events)
        program = await answer(deployment, "channels=a")
        assert refused(program) == (503, "connection_limit")
        assert program.headers["retry-after"] == str(answers.RETRY_AFTER_S)
        browser = await answer(deployment, "channels=a", **STREAM)
        assert (browser.status, browser.complete) == (200, True)
        assert browser.text.startswith("retry: ")
        [event] = browser.events
        assert (event.name, event.id, event.data["code"]) == ("unavailable", None, "connection_limit")
    assert (await answer(deployment, "channels=a")).status == 200
    assert deployment.hub.statistics()["connections.now"] == 0


async def test_a_log_that_is_away_says_come_again(deployment: Deployment) -> None:
    await deployment.hub.engine.close()
    response = await answer(deployment, "channels=kept", **STREAM)
    [event] = response.events
    assert (event.name, event.data["code"]) == ("unavailable", "engine_unavailable")
    assert (await answer(deployment, "channels=kept&last_event_id=earliest")).status == 503


async def test_head_has_the_headers_and_begins_nothing(deployment: Deployment) -> None:
    response = await answer(deployment, "channels=a", method="HEAD")
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    missing = await answer(deployment, "channels=private-a", method="HEAD")
    assert (missing.status, missing.body) == (401, b"")
    assert deployment.hub.statistics().get("connections", 0) == 0


async def test_a_browser_may_ask_first(deployment: Deployment) -> None:
    response = await answer(deployment, "channels=private-a", method="OPTIONS", origin="https://a.example")
    assert response.status == 204
    assert "last-event-id" in response.headers["access-control-allow-headers"]
    assert "authorization" in response.headers["access-control-allow-headers"]


async def test_other_methods_are_refused(deployment: Deployment) -> None:
    response = await answer(deployment, "channels=a", method="POST")
    assert refused(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_token_is_never_in_the_log(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    token = deployment.token("private-b")
    await answer(deployment, f"channels=private-a&token={token}")
    assert caplog.messages == [] or token not in caplog.text
