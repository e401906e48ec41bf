"""pusher:history over the socket, from the frame to the page."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import orjson
import pytest

from fanfare.applications import registry, rules
from fanfare.engine import errors, interface
from fanfare.engine.local import engine
from fanfare.hub import event_frames, history_pages
from fanfare.hub import hub as hubs
from fanfare.protocol import sessions
from tests.harness import waiting
from tests.unit.hub.doubles import FakeWriter
from tests.unit.protocol import fakes

KEPT = rules.Rule("kept*", history_size=100, history_seconds=60)


class Client:
    """A connected client of an application that keeps the history of `kept…`."""

    def __init__(self, hub: hubs.Hub, **options: object) -> None:
        application = registry.Application("1", "k", "s", rules=rules.Rules((KEPT,)))
        self.hub = hub
        self.writer = FakeWriter()
        self.session = fakes.session(hub, application, self.writer, **options)
        self.session.open()

    def send(self, event: str, **data: object) -> float:
        """Returns the seconds before the next frame is read."""
        return self.session.received(orjson.dumps({"event": event, "data": data}).decode())

    async def answer(self, number: int) -> dict[str, object]:
        """The data of the so many-th pusher:history that came."""

        def found() -> list[dict[str, object]]:
            frames = [orjson.loads(body) for body in self.writer.bodies]
            return [orjson.loads(frame["data"]) for frame in frames if frame["event"] == "pusher:history"]

        async def look() -> object:
            return len(found()) > number

        await waiting.until_async(look, 30, "the answer")
        return found()[number]

    async def subscribe(self, channel: str) -> None:
        self.send("pusher:subscribe", channel=channel)

        async def look() -> object:
            return any(b"subscription_succeeded" in body and channel.encode() in body for body in self.writer.bodies)

        await waiting.until_async(look, 30, "the subscription")


@pytest.fixture
async def hub(tmp_path: Path):
    hub = hubs.Hub(engine.LocalEngine(tmp_path))
    await hub.start()
    await hub.publish(
        [
            interface.Publication("1", "kept", event_frames.event("n", "kept", str(n)), retention=KEPT.retention)
            for n in range(1, 6)
        ]
    )
    yield hub
    await hub.stop()


@pytest.fixture
def client(hub: hubs.Hub) -> Client:
    return Client(hub)


async def test_subscriber_pages_back_through_the_history(client: Client) -> None:
    await client.subscribe("kept")
    client.send("pusher:history", channel="kept", limit=2, rid="a")
    first = await client.answer(0)
    assert (first["rid"], [item["data"] for item in first["items"]]) == ("a", ["5", "4"])
    client.send("pusher:history", channel="kept", limit=10, rid=2, before=first["next"])
    second = await client.answer(1)
    assert (second["rid"], [item["data"] for item in second["items"]], second["next"]) == (2, ["3", "2", "1"], None)


async def test_refused_history_request_carries_the_reason_and_the_rid(client: Client) -> None:
    client.send("pusher:history", channel="kept", rid="a")
    assert await client.answer(0) == {
        "rid": "a",
        "error": {"message": "Only a channel's subscribers may read its history"},
    }
    await client.subscribe("plain")
    client.send("pusher:history", channel="plain", rid=["not a mark"])
    assert await client.answer(1) == {"rid": None, "error": {"message": "This channel keeps no history"}}
    await client.subscribe("kept")
    client.send("pusher:history", channel="kept", rid="b", before={"epoch": "another", "offset": 3})
    assert await client.answer(2) == {"rid": "b", "error": {"message": "epoch_changed"}}


async def test_history_that_the_engine_cannot_read_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise errors.EngineUnavailable("the store is away")

    await client.subscribe("kept")
    monkeypatch.setattr(history_pages, "read", fail)
    client.send("pusher:history", channel="kept", rid="a")
    message = "The history cannot be read: the store is away"
    assert await client.answer(0) == {"rid": "a", "error": {"message": message}}


async def test_second_request_for_history_is_refused_until_the_first_is_answered(client: Client) -> None:
    await client.subscribe("kept")
    for rid in ("a", "b"):
        client.send("pusher:history", channel="kept", rid=rid)
    refused, page = await client.answer(0), await client.answer(1)
    message = "Another page of history is being read: wait for it"
    assert refused == {"rid": "b", "error": {"message": message}}
    assert page["rid"] == "a"
    assert client.hub.counters["pusher.history_refused.busy"] == 1


async def test_flood_of_history_requests_is_read_more_slowly(client: Client) -> None:
    await client.subscribe("kept")
    rests_s = [client.send("pusher:history", channel="kept", limit=1) for _ in range(2 * sessions.REFUSALS_PER_SECOND)]
    assert sessions.REST_S in rests_s


async def test_pages_above_the_rate_wait_and_are_all_answered(hub: hubs.Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    client = Client(hub, history_pages_per_second=20)
    await client.subscribe("kept")
    for number in range(20 * sessions.HISTORY_BURST_S):
        client.send("pusher:history", channel="kept", limit=1)
        await client.answer(number)
    assert client.hub.counters["pusher.history_delayed"] == 0
    tokens = client.session._history_tokens
    assert tokens is not None
    tokens.take(0, 0, time.monotonic())  # empty, however long the pages above took
    client.send("pusher:history", channel="kept", limit=1, rid="late")
    assert (await client.answer(20 * sessions.HISTORY_BURST_S))["rid"] == "late"
    assert client.hub.counters["pusher.history_delayed"] == 1
    assert "it has read more than 100 pages at once, and 20 a second are allowed" in caplog.text


async def test_page_of_history_ends_before_its_limit_of_bytes(client: Client) -> None:
    await client.subscribe("kept")
    large = event_frames.event("n", "kept", "x" * (sessions.HISTORY_BYTES // 2))
    await client.hub.publish([interface.Publication("1", "kept", large, retention=KEPT.retention)] * 2)
    client.send("pusher:history", channel="kept")
    page = await client.answer(0)
    assert [item["offset"] for item in page["items"]] == [7]
    client.send("pusher:history", channel="kept", before=page["next"])
    assert [item["offset"] for item in (await client.answer(1))["items"]] == [6, 5, 4, 3, 2, 1]


async def test_client_that_leaves_while_its_page_waits_gets_nothing(hub: hubs.Hub) -> None:
    client = Client(hub, history_pages_per_second=1)
    await client.subscribe("kept")
    for number in range(sessions.HISTORY_BURST_S):
        client.send("pusher:history", channel="kept", limit=1)
        await client.answer(number)
    client.send("pusher:history", channel="kept", limit=1)
    waiting_read = client.session._history
    assert waiting_read is not None
    client.session.end()
    await asyncio.wait([waiting_read])
    assert waiting_read.cancelled()


async def test_history_that_cannot_be_read_is_refused_and_logged(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    await client.subscribe("kept")
    monkeypatch.setattr(history_pages, "read", fail)
    client.send("pusher:history", channel="kept", rid="a")
    assert await client.answer(0) == {"rid": "a", "error": {"message": "The history cannot be read: internal error"}}
    assert [record.getMessage() for record in caplog.records] == ["read of history failed"]
