"""One request to a real receiver on the loopback interface."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import orjson
import pytest

from fanfare.applications import registry
from fanfare.webhooks import errors, http_client
from tests.harness import receivers, waiting
from tests.unit.webhooks import hostile

APPLICATION = registry.Application(id="42", key="shop-key", secret="shop-secret")
PAYLOADS = ['{"name":"channel_occupied","channel":"news"}', '{"name":"channel_vacated","channel":"olds"}']


@pytest.fixture
def receiver() -> Iterator[receivers.Receiver]:
    with receivers.receiver() as made:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[http_client.HttpClient]:
    async with http_client.HttpClient(timeout_seconds=0.5, allow_private=True) as made:
        yield made


def webhook(url: str) -> registry.Webhook:
    return registry.Webhook(id=1, url=url, headers=(("Authorization", "Bearer abc"),))


async def test_slow_endpoints_leave_requests_for_the_others(
    receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "REQUESTS", 3)
    monkeypatch.setattr(http_client, "SLOW_REQUESTS", 2)
    quick = webhook(receiver.url)
    async with http_client.HttpClient(timeout_seconds=60.0, allow_private=True) as client:
        assert (await client.post(APPLICATION, quick, PAYLOADS)).accepted
        with receivers.receiver(receivers.hang) as hanging:
            slow = [registry.Webhook(id=number, url=hanging.url) for number in range(2, 10)]
            requests = [asyncio.create_task(client.post(APPLICATION, one, PAYLOADS)) for one in slow]
            await asyncio.to_thread(waiting.until, lambda: hanging.together == 2, 10, "two requests hang")
            assert (await client.post(APPLICATION, quick, PAYLOADS)).accepted
            for request in requests:
                request.cancel()
            await asyncio.wait(requests)
    assert hanging.most_together == 2


async def test_wait_for_other_endpoints_of_the_host_is_not_part_of_the_timeout(
    receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "REQUESTS_PER_HOST", 1)
    may_answer = threading.Event()

    def late(handler: BaseHTTPRequestHandler, events: list[dict[str, Any]]) -> bool:
        may_answer.wait(30)
        return receivers.accept(handler, events)

    async with http_client.HttpClient(timeout_seconds=60.0, allow_private=True) as client:
        with receivers.receiver(late) as busy:
            first = asyncio.create_task(client.post(APPLICATION, webhook(busy.url), PAYLOADS))
            await asyncio.to_thread(waiting.until, lambda: busy.together == 1, 10, "the first request")
            client._timeout_seconds = 0.0  # of a request that begins now
            second = asyncio.create_task(client.post(APPLICATION, webhook(busy.url), PAYLOADS))
            assert not (await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)).accepted
            client._timeout_seconds = 60.0
            may_answer.set()
            assert (await first).accepted
            assert (await second).accepted
            assert busy.most_together == 1
    assert not client._hosts


async def test_endpoint_that_takes_long_counts_as_slow_until_it_is_quick_again(
    client: http_client.HttpClient, receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for quick_s, expected in ((60.0, {1}), (0.0, set()), (60.0, {1})):
        monkeypatch.setattr(http_client, "QUICK_S", quick_s)
        await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
        assert client._quick == expected


async def test_signature_is_of_the_bytes_that_are_sent(
    client: http_client.HttpClient, receiver: receivers.Receiver
) -> None:
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
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


async def test_beginning_of_an_error_response_is_kept(
    client: http_client.HttpClient, receiver: receivers.Receiver
) -> None:
    receiver.answer = lambda handler, _: receivers.say(handler, 503, b"later, please\x00" + b"." * 5_000)
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert (outcome.status, outcome.error) == (503, "HTTP 503")
    assert outcome.answer.startswith("later, please\\x00.")
    assert len(outcome.answer) < 1_001


async def test_port_without_a_receiver_is_named_with_the_cause(client: http_client.HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    outcome = await client.post(APPLICATION, webhook(f"http://127.0.0.1:{port}/hooks"), PAYLOADS)
    assert outcome.error == f"Cannot connect to 127.0.0.1:{port}: Connection refused"


@pytest.mark.parametrize(
    ("answer", "text"),
    [(receivers.hang, "No response within 0.5 s"), (receivers.reset, "disconnected|reset")],
)
async def test_receiver_that_hangs_or_resets_is_a_failure(
    client: http_client.HttpClient, receiver: receivers.Receiver, answer: receivers.Answer, text: str
) -> None:
    receiver.answer = answer
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert outcome.status is None
    assert any(word in outcome.error for word in text.split("|")), outcome


async def test_307_and_308_are_followed_with_the_same_body(
    client: http_client.HttpClient, receiver: receivers.Receiver
) -> None:
    def answer(handler, events) -> bool:
        step = {"/hook": (307, "/second"), "/second": (308, "/third")}.get(handler.path)
        return receivers.say(handler, step[0], Location=step[1]) if step else receivers.accept(handler, events)

    receiver.answer = answer
    assert (await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)).accepted
    waiting.until(lambda: len(receiver.requests) == 3, 5, "the last request was noted")
    assert len({request.body for request in receiver.requests}) == 1
    # Its threads may note them in another order.
    assert {request.path for request in receiver.requests} == {"/hook", "/second", "/third"}


async def test_configured_headers_are_not_sent_to_another_origin(
    client: http_client.HttpClient, receiver: receivers.Receiver
) -> None:
    with receivers.receiver() as other:
        receiver.answer = lambda handler, _: receivers.say(handler, 307, Location=other.url)
        assert (await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)).accepted
        waiting.until(lambda: other.requests, 5, "the request was noted")
        [request] = other.requests
    assert "Authorization" not in request.headers
    assert "X-Pusher-Signature" in request.headers


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_redirects_other_than_307_and_308_are_failures(
    client: http_client.HttpClient, receiver: receivers.Receiver, status: int
) -> None:
    receiver.answer = lambda handler, _: receivers.say(handler, status, Location="/second?token=abc")
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert outcome.status == status
    assert "only 307 and 308" in outcome.error
    assert "abc" not in outcome.error


async def test_endless_redirects_are_given_up(client: http_client.HttpClient, receiver: receivers.Receiver) -> None:
    receiver.answer = lambda handler, _: receivers.say(handler, 307, Location="/hook")
    assert "redirects" in (await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)).error
    waiting.until(lambda: len(receiver.requests) == http_client.REDIRECTS + 1, 5, "as many requests as are allowed")


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "localhost",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "0.0.0.0",
            "0",
        ),
        *(
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
        ),
        *("[2002:7f00:1::]", "[::ffff:0:127.0.0.1]", "[64:ff9b:1::7f00:1]", "[fe80::1%25lo]", "[::]"),
        *("169.254.169.254", "10.0.0.1", "192.0.0.8", "192.0.0.170"),
    ],
)
async def test_private_address_is_refused_in_every_notation(receiver: receivers.Receiver, host: str) -> None:
    async with http_client.HttpClient(timeout_seconds=2, allow_private=False) as client:
        outcome = await client.post(APPLICATION, webhook(receiver.url.replace("127.0.0.1", host)), PAYLOADS)
    assert not outcome.accepted
    assert receiver.requests == []


async def test_redirect_to_a_private_address_is_refused(
    receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for a public address."""
    inside = http_client.open_public

    def open_but_one(information):
        return http_client.open_any(information) if information[4][0] == "127.0.0.2" else inside(information)

    monkeypatch.setattr(http_client, "open_public", open_but_one)
    with receivers.receiver(host="127.0.0.2") as outside:
        outside.answer = lambda handler, _: receivers.say(handler, 307, Location=receiver.url)
        async with http_client.HttpClient(timeout_seconds=2, allow_private=False) as client:
            outcome = await client.post(APPLICATION, webhook(outside.url), PAYLOADS)
        waiting.until(lambda: outside.requests, 5, "the request outside was noted")
    assert "127.0.0.1 is not a public address" in outcome.error
    assert receiver.requests == []


def test_refused_address_is_an_os_error_that_names_address_and_setting() -> None:
    with pytest.raises(errors.AddressRefused, match=r"169\.254\.169\.254.*FANFARE_WEBHOOKS_ALLOW_PRIVATE") as caught:
        http_client.open_public((2, 1, 6, "", ("169.254.169.254", 80)))
    assert isinstance(caught.value, OSError)


class Rebinding:
    """A resolver whose name has another address at each lookup."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.lookups = 0

    def getaddrinfo(self, host: str, port: int, *_: object, **__: object) -> list[object]:
        address = self.addresses[min(self.lookups, len(self.addresses) - 1)]
        self.lookups += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]


async def test_connection_goes_to_the_checked_address_when_the_name_is_rebound(
    receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is public at the first lookup and private from then on: no second lookup happens before the connect."""
    rebinding = Rebinding("203.0.114.1", "127.0.0.1")
    connected: list[str] = []
    monkeypatch.setattr(http_client.socket, "getaddrinfo", rebinding.getaddrinfo)

    async def connect(_loop: object, _socket: object, address: tuple[str, int]) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.get_running_loop().__class__, "sock_connect", connect)
    async with http_client.HttpClient(timeout_seconds=2, allow_private=False) as client:
        first = await client.post(APPLICATION, webhook("http://rebound.example/hook"), PAYLOADS)
    async with http_client.HttpClient(timeout_seconds=2, allow_private=False) as client:  # without the lookup's cache
        second = await client.post(APPLICATION, webhook("http://rebound.example/hook"), PAYLOADS)
    assert not first.accepted
    assert set(connected) == {"203.0.114.1"}
    assert "127.0.0.1 is not a public address" in second.error
    assert receiver.requests == []


async def test_only_the_public_addresses_of_a_name_are_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[object]:
        addresses = ("10.0.0.1", "203.0.114.1", "169.254.169.254")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    connected: list[str] = []

    async def connect(_loop: object, _socket: object, address: tuple[str, int]) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(http_client.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(asyncio.get_running_loop().__class__, "sock_connect", connect)
    async with http_client.HttpClient(timeout_seconds=2, allow_private=False) as client:
        assert not (await client.post(APPLICATION, webhook("http://many.example/hook"), PAYLOADS)).accepted
    assert set(connected) == {"203.0.114.1"}


# -- hostile receivers -------------------------------------------------------------------------------------------------


def is_storable(text: str) -> bool:
    return text.encode().decode() == text and text.isprintable()


@pytest.mark.parametrize("kind", hostile.REFUSING)
async def test_hostile_receiver_gives_a_storable_failure_in_time(
    client: http_client.HttpClient, receiver: receivers.Receiver, kind: str
) -> None:
    receiver.answer = hostile.REFUSING[kind]
    before, started = resident_bytes(), time.monotonic()
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert not outcome.accepted
    assert is_storable(outcome.error), outcome
    assert is_storable(outcome.answer), outcome
    assert len(outcome.error) <= 500
    assert time.monotonic() - started < 3
    assert resident_bytes() - before < 60_000_000


@pytest.mark.parametrize("kind", hostile.ACCEPTING)
async def test_body_of_a_success_is_not_read(
    client: http_client.HttpClient, receiver: receivers.Receiver, kind: str
) -> None:
    receiver.answer = hostile.ACCEPTING[kind]
    before, started = resident_bytes(), time.monotonic()
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert (outcome.status, outcome.error) == (200, "")
    assert time.monotonic() - started < 1
    assert resident_bytes() - before < 60_000_000


async def test_status_of_a_slow_error_response_is_kept(
    client: http_client.HttpClient, receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "ANSWER_S", 0.2)
    receiver.answer = hostile.REFUSING["slow error body"]
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert (outcome.status, outcome.error) == (500, "HTTP 500")
    assert outcome.answer.startswith(".")


async def test_compressed_error_body_is_not_shown(client: http_client.HttpClient, receiver: receivers.Receiver) -> None:
    receiver.answer = hostile.REFUSING["compressed bomb in an error body"]
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert (outcome.status, outcome.answer) == (500, "(a body with Content-Encoding gzip)")


@pytest.mark.parametrize("kind", ["invalid chunks in a success", "status of five digits", "redirect to itself"])
async def test_query_of_the_url_is_not_in_the_error(
    client: http_client.HttpClient, receiver: receivers.Receiver, kind: str
) -> None:
    receiver.answer = hostile.REFUSING[kind]
    outcome = await client.post(APPLICATION, webhook(f"{receiver.url}?token=a-secret"), PAYLOADS)
    assert outcome.error
    assert "a-secret" not in outcome.error


async def test_fault_of_ours_is_a_logged_failure(
    client: http_client.HttpClient, receiver: receivers.Receiver, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    async def follow(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(client, "_follow", follow)
    outcome = await client.post(APPLICATION, webhook(receiver.url), PAYLOADS)
    assert (outcome.status, outcome.error) == (None, "ZeroDivisionError")
    assert "A request to webhook 1 failed" in caplog.text


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
