"""One request, to a real receiver on the loopback."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest

from fanfare.applications import registry
from fanfare.webhooks import courier, errors, sockets
from tests.harness import receivers, waiting

APPLICATION = registry.Application(id="42", key="shop-key", secret="shop-secret")
PAYLOADS = ['{"name":"channel_occupied","channel":"news"}', '{"name":"channel_vacated","channel":"olds"}']


@pytest.fixture
def receiver() -> Iterator[receivers.Receiver]:
    with receivers.receiver() as made:
        yield made


@pytest.fixture
async def post() -> AsyncIterator[courier.Courier]:
    async with courier.Courier(timeout_seconds=0.5, allow_private=True) as made:
        yield made


def webhook(url: str) -> registry.Webhook:
    return registry.Webhook(id=1, url=url, headers=(("Authorization", "Bearer abc"),))


async def test_the_signature_is_that_of_the_bytes_that_are_sent(
    post: courier.Courier, receiver: receivers.Receiver
) -> None:
    outcome = await post.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert outcome.accepted
    assert outcome.status == 200
    waiting.until(lambda: receiver.requests, 5, "the request was noted")
    [request] = receiver.requests
    assert request.headers["X-Pusher-Key"] == "shop-key"
    expected = hmac.new(b"shop-secret", request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-Pusher-Signature"] == expected
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == "Bearer abc"
    body = orjson.loads(request.body)
    assert body["events"] == [orjson.loads(payload) for payload in PAYLOADS]
    assert abs(time.time() * 1000 - body["time_ms"]) < 5_000


async def test_a_refusal_keeps_the_beginning_of_the_answer(post: courier.Courier, receiver: receivers.Receiver) -> None:
    receiver.answer = lambda handler, _: receivers.say(handler, 503, b"later, please\x00" + b"." * 5_000)
    outcome = await post.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert (outcome.status, outcome.error) == (503, "HTTP 503")
    assert outcome.answer.startswith("later, please.")
    assert len(outcome.answer) < 1_001


@pytest.mark.parametrize(
    ("answer", "text"),
    [(receivers.hang, "No answer within 0.5 seconds"), (receivers.reset, "disconnected|reset")],
)
async def test_a_receiver_that_hangs_or_resets_is_a_failure(
    post: courier.Courier, receiver: receivers.Receiver, answer: receivers.Answer, text: str
) -> None:
    receiver.answer = answer
    outcome = await post.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert outcome.status is None
    assert any(word in outcome.error for word in text.split("|")), outcome


async def test_307_and_308_are_followed_with_the_same_body(post: courier.Courier, receiver: receivers.Receiver) -> None:
    def answer(handler, events) -> bool:
        step = {"/hook": (307, "/second"), "/second": (308, "/third")}.get(handler.path)
        return receivers.say(handler, step[0], Location=step[1]) if step else receivers.accept(handler, events)

    receiver.answer = answer
    assert (await post.post(APPLICATION, webhook(receiver.url), PAYLOADS)).accepted
    waiting.until(lambda: len(receiver.requests) == 3, 5, "the last request was noted")
    assert len({request.body for request in receiver.requests}) == 1
    assert [request.path for request in receiver.requests] == ["/hook", "/second", "/third"]


async def test_a_redirect_to_another_origin_does_not_get_the_endpoints_own_headers(
    post: courier.Courier, receiver: receivers.Receiver
) -> None:
    with receivers.receiver() as other:
        receiver.answer = lambda handler, _: receivers.say(handler, 307, Location=other.url)
        assert (await post.post(APPLICATION, webhook(receiver.url), PAYLOADS)).accepted
        waiting.until(lambda: other.requests, 5, "the request was noted")
        [request] = other.requests
    assert "Authorization" not in request.headers
    assert "X-Pusher-Signature" in request.headers


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_other_redirects_are_failures_that_say_so(
    post: courier.Courier, receiver: receivers.Receiver, status: int
) -> None:
    receiver.answer = lambda handler, _: receivers.say(handler, status, Location="/second?token=abc")
    outcome = await post.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert outcome.status == status
    assert "only 307 and 308" in outcome.error
    assert "abc" not in outcome.error


async def test_redirects_without_an_end_are_given_up(post: courier.Courier, receiver: receivers.Receiver) -> None:
    receiver.answer = lambda handler, _: receivers.say(handler, 307, Location="/hook")
    assert "redirects" in (await post.post(APPLICATION, webhook(receiver.url), PAYLOADS)).error
    waiting.until(lambda: len(receiver.requests) == courier.REDIRECTS + 1, 5, "as many requests as are allowed")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"])
async def test_an_address_inside_the_network_is_refused_however_it_is_written(
    receiver: receivers.Receiver, host: str
) -> None:
    async with courier.Courier(timeout_seconds=2, allow_private=False) as post:
        outcome = await post.post(APPLICATION, webhook(receiver.url.replace("127.0.0.1", host)), PAYLOADS)
    assert not outcome.accepted
    assert receiver.requests == []


async def test_a_redirect_into_the_network_is_refused(
    receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for an address outside."""
    inside = sockets.open_public

    def open_but_one(information):
        return sockets.open_any(information) if information[4][0] == "127.0.0.2" else inside(information)

    monkeypatch.setattr(sockets, "open_public", open_but_one)
    with receivers.receiver(host="127.0.0.2") as outside:
        outside.answer = lambda handler, _: receivers.say(handler, 307, Location=receiver.url)
        async with courier.Courier(timeout_seconds=2, allow_private=False) as post:
            outcome = await post.post(APPLICATION, webhook(outside.url), PAYLOADS)
        waiting.until(lambda: outside.requests, 5, "the request outside was noted")
    assert "127.0.0.1 is not a public address" in outcome.error
    assert receiver.requests == []


def test_a_refused_address_is_an_os_error_with_both_facts() -> None:
    with pytest.raises(errors.AddressRefused, match=r"169\.254\.169\.254.*FANFARE_WEBHOOKS_ALLOW_PRIVATE") as caught:
        sockets.open_public((2, 1, 6, "", ("169.254.169.254", 80)))
    assert isinstance(caught.value, OSError)
