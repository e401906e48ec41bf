"""Access to SSE connections: tokens, origins, limits and termination."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.protocol import capabilities, termination
from fanfare.sse import responses
from tests.unit.sse.clients import Response, asking, until
from tests.unit.sse.conftest import APP, NOW, SECRET, Deployment

STREAM = {"accept": "text/event-stream"}


async def answer(deployment: Deployment, query: str, **options: Any) -> Response:
    async with asking(deployment.application, query, **options) as response:
        await until(lambda: response.complete or response.events)
    return response


def refused(response: Response) -> tuple[int | None, str]:
    return response.status, response.json["code"]


async def test_private_channel_requires_a_token(deployment: Deployment) -> None:
    query = "channels=private-kept,plain"
    assert refused(await answer(deployment, query)) == (401, "token_required")
    assert refused(await answer(deployment, f"{query}&token=x")) == (401, "invalid_token")
    other = deployment.token("private-other*")
    assert refused(await answer(deployment, f"{query}&token={other}")) == (403, "channel_not_granted")
    assert (await answer(deployment, f"{query}&token={deployment.token('private-k*')}")).status == 200
    assert (await answer(deployment, query, authorization=f"Bearer {deployment.token('private-kept')}")).status == 200
    assert (await answer(deployment, f"channels=private-encrypted-a&token={deployment.token('*')}")).status == 200


async def test_old_tokens_are_valid_as_long_as_the_previous_secret(deployment: Deployment) -> None:
    query = f"channels=private-kept&token={deployment.token('private-kept')}"
    deployment.put(secret="new", previous_secret=SECRET, previous_secret_until=1_800_000_001.0)
    assert (await answer(deployment, query)).status == 200
    deployment.put(secret="new", previous_secret=SECRET, previous_secret_until=1_800_000_000.0)
    assert (await answer(deployment, query)).status == 401


async def test_expired_token_on_a_first_visit_is_a_401_with_the_reason(deployment: Deployment) -> None:
    expired = deployment.token("private-kept", seconds=-1)
    assert refused(await answer(deployment, f"channels=private-kept&token={expired}")) == (401, "expired_token")


@pytest.mark.parametrize("token", ["expired", "revoked"])
async def test_reconnect_with_an_invalid_token_gets_204(deployment: Deployment, token: str) -> None:
    """204 is what stops an EventSource."""
    text = deployment.token("private-kept", seconds=-1) if token == "expired" else "x.y.z"
    response = await answer(deployment, f"channels=private-kept&token={text}", last_event_id="1.e:1")
    assert (response.status, response.body) == (204, b"")


async def test_unknown_key_is_a_404_and_disabled_application_a_403(deployment: Deployment) -> None:
    assert refused(await answer(deployment, "channels=a", key="other")) == (404, "unknown_application")
    deployment.registry.remove(APP)
    deployment.put(enabled=False)
    assert refused(await answer(deployment, "channels=a")) == (403, "application_disabled")


async def test_application_that_was_disabled_a_moment_ago_is_a_503_and_a_stream_that_lets_clients_come_back(
    deployment: Deployment,
) -> None:
    deployment.put(enabled=False)
    assert refused(await answer(deployment, "channels=a")) == (503, "application_disabled")
    response = await answer(deployment, "channels=a", **STREAM)
    assert (response.status, b"event: unavailable" in response.body) == (200, True)


async def test_page_of_another_origin_is_a_403(deployment: Deployment) -> None:
    deployment.put(allowed_origins=("https://shop.example.com",))
    assert refused(await answer(deployment, "channels=a", origin="https://evil.example")) == (403, "origin_not_allowed")
    response = await answer(deployment, "channels=a", origin="https://shop.example.com")
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == "https://shop.example.com"
    assert response.headers["vary"] == "origin"
    assert (await answer(deployment, "channels=a")).status == 200, "a program sends no origin"


async def test_connection_limit_is_a_503_or_an_unavailable_event(deployment: Deployment) -> None:
    """A program gets a status; an EventSource would give up after one, so it gets a stream that ends."""
    deployment.put(limits=deployment.registry.all()[0].limits.__class__(max_connections=1))
    async with asking(deployment.application, "channels=a") as first:
        await until(lambda: first.events)
        program = await answer(deployment, "channels=a")
        assert refused(program) == (503, "connection_limit")
        assert program.headers["retry-after"] == str(responses.RETRY_AFTER_S)
        browser = await answer(deployment, "channels=a", **STREAM)
        assert (browser.status, browser.complete) == (200, True)
        assert browser.text.startswith("retry: ")
        [event] = browser.events
        assert (event.name, event.id, event.data["code"]) == ("unavailable", None, "connection_limit")
    assert (await answer(deployment, "channels=a")).status == 200
    assert deployment.hub.statistics()["connections.now"] == 0


async def test_unavailable_engine_is_a_503_or_an_unavailable_event(deployment: Deployment) -> None:
    await deployment.hub.engine.close()
    response = await answer(deployment, "channels=kept", **STREAM)
    [event] = response.events
    assert (event.name, event.data["code"]) == ("unavailable", "engine_unavailable")
    assert (await answer(deployment, "channels=kept&last_event_id=earliest")).status == 503


async def test_head_returns_the_headers_and_opens_no_stream(deployment: Deployment) -> None:
    response = await answer(deployment, "channels=a", method="HEAD")
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    missing = await answer(deployment, "channels=private-a", method="HEAD")
    assert (missing.status, missing.body) == (401, b"")
    assert deployment.hub.statistics().get("connections", 0) == 0


async def test_preflight_allows_the_headers(deployment: Deployment) -> None:
    response = await answer(deployment, "channels=private-a", method="OPTIONS", origin="https://a.example")
    assert response.status == 204
    assert "last-event-id" in response.headers["access-control-allow-headers"]
    assert "authorization" in response.headers["access-control-allow-headers"]


async def test_other_methods_are_a_405(deployment: Deployment) -> None:
    response = await answer(deployment, "channels=a", method="POST")
    assert refused(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_token_is_not_logged(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    token = deployment.token("private-b")
    await answer(deployment, f"channels=private-a&token={token}")
    assert caplog.messages == [] or token not in caplog.text


# -- termination of a user's connections -------------------------------------------------------------------------------


async def terminate(deployment: Deployment, user_id: str, at: float = NOW, *, reconnect: bool = False) -> None:
    await deployment.hub.publish(termination.publications(APP, user_id, reconnect=reconnect, now=at))


async def test_termination_ends_streams_of_the_user_after_earlier_events(deployment: Deployment) -> None:
    query = "channels=private-kept&token="
    async with (
        asking(deployment.application, query + deployment.token("private-*", user_id="42")) as own,
        asking(deployment.application, query + deployment.token("private-*", user_id="43")) as other,
        asking(deployment.application, query + deployment.token("private-*")) as nameless,
    ):
        await until(lambda: own.events and other.events and nameless.events)
        await deployment.publish(1, channel="private-kept")
        await terminate(deployment, "42")
        await until(lambda: own.complete)
        assert own.numbers == [1]
        assert "ended this user's connections" in own.text
        await deployment.publish(2, channel="private-kept")
        await until(lambda: other.numbers == nameless.numbers == [1, 2])
    assert deployment.hub.statistics()["sse.ended.terminated"] == 1


async def test_tokens_from_before_a_termination_are_refused_and_later_ones_accepted(deployment: Deployment) -> None:
    await terminate(deployment, "42")
    query = "channels=private-kept&token="
    old = deployment.token("private-*", user_id="42", issued=NOW - 0.001)
    assert refused(await answer(deployment, query + old)) == (401, "terminated")
    assert (await answer(deployment, query + old, last_event_id="1.e:1")).status == 204
    undated = capabilities.sign(SECRET, capabilities.Capability(("private-*",), NOW + 60, "42", issued=NOW))
    assert refused(await answer(deployment, query + undated)) == (401, "terminated")
    assert (await answer(deployment, query + deployment.token("private-*", user_id="42", issued=NOW + 1))).status == 200
    assert (await answer(deployment, query + deployment.token("private-*", user_id="43"))).status == 200
    assert (await answer(deployment, "channels=kept")).status == 200


async def test_termination_is_remembered_by_other_workers(deployment: Deployment, tmp_path: Path) -> None:
    """The worker that gets the next request may have started after the command."""
    await terminate(deployment, "42")
    other = Deployment(tmp_path / "engine", 65_536)
    await other.hub.start()
    try:
        token = deployment.token("private-*", user_id="42", issued=NOW - 1)
        assert refused(await answer(other, f"channels=private-kept&token={token}")) == (401, "terminated")
    finally:
        await other.hub.stop()


async def test_termination_with_reconnect_ends_the_stream_and_leaves_the_token_valid(deployment: Deployment) -> None:
    query = f"channels=private-kept&token={deployment.token('private-*', user_id='42')}"
    async with asking(deployment.application, query) as stream:
        await until(lambda: stream.events)
        await terminate(deployment, "42", reconnect=True)
        await until(lambda: stream.complete)
    assert (await answer(deployment, query)).status == 200


async def test_termination_while_the_record_is_read_refuses_the_stream(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_before(engine: interface.Engine, app: str, user_id: str) -> None:
        await terminate(deployment, user_id)
        await until(lambda: deployment.application._revocations._revoked_at)

    monkeypatch.setattr(termination, "terminated_at", read_before)
    token = deployment.token("private-*", user_id="42")
    assert refused(await answer(deployment, f"channels=private-kept&token={token}")) == (401, "terminated")


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_streams_of_one_address_are_limited_with_both_numbers(deployment: Deployment) -> None:
    application = deployment.application = deployment.serve(streams_per_address=2)
    async with (
        asking(application, "channels=a") as first,
        asking(application, "channels=a") as second,
    ):
        await until(lambda: first.events and second.events)
        program = await answer(deployment, "channels=a")
        assert refused(program) == (503, "too_many_streams")
        assert "2 SSE connections of this address are open; 2 are allowed" in program.json["error"]
        [event] = (await answer(deployment, "channels=a", **STREAM)).events
        assert (event.name, event.data["code"]) == ("unavailable", "too_many_streams")
        assert (await answer(deployment, "channels=a", client="192.0.2.7")).status == 200
    assert (await answer(deployment, "channels=a")).status == 200
    assert deployment.hub.statistics()["sse.refused.too_many_streams"] == 2


async def test_refusals_are_throttled_in_the_log(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fanfare.sse"):
        for _ in range(50):
            await answer(deployment, "channels=" + "x" * 5_000)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("fanfare.sse")]
    assert 1 <= len(lines) <= 20
    assert max(map(len, lines)) < 300
