"""The endpoints about events, on two workers with one real log."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from fanfare.applications import database, registry, rules
from fanfare.console import audit, permissions, requests, tails
from fanfare.console.endpoints import auth_doctor, event_creator, time_travel, tracing
from fanfare.console.endpoints import tail as tail_endpoint
from fanfare.engine import interface
from fanfare.hub import connections
from tests.harness import waiting
from tests.unit.console.workers import Worker, until_known

RIGHTS = ("view_console", "publish_event")
SHOP = registry.Application("1", "key", "secret", name="Shop")
EVERYTHING = permissions.Access("1", "ann", dict.fromkeys(RIGHTS))
OF_ANOTHER = permissions.Access("2", "bob", dict.fromkeys(RIGHTS, frozenset({"2"})))


class Pair:
    """Two workers; requests are served by the first one, sockets are at the second."""

    def __init__(self, one: Worker, two: Worker) -> None:
        self.one, self.two = one, two
        for worker in (one, two):
            tracing.register(worker.survey, worker.hub)
            auth_doctor.register(worker.survey, worker.hub)
        applications = registry.Registry()
        applications.put(SHOP)
        self.server = SimpleNamespace(
            hub=one.hub, survey=one.survey, tails=tails.Tails(one.hub, "one"), registry=applications
        )

    def request(self, access: permissions.Access = EVERYTHING, body: Any = None, **query: str) -> requests.Request:
        return requests.Request(self.server, access, query, body or {})

    async def subscriber(self, channel: str) -> connections.Connection:
        connection = self.two.connect()
        self.two.hub.subscribe(connection, channel)

        async def is_live() -> bool:
            return connection.subscriptions[channel].state is connections.State.LIVE

        await waiting.until_async(is_live, 10, "the subscription is live")
        return connection


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    one, two = await Worker(tmp_path / "engine", "one").start(), await Worker(tmp_path / "engine", "other").start()
    await until_known(one, two)
    rows: list[Any] = []

    async def record(access: permissions.Access, action: str, **more: Any) -> None:
        rows.append((access.user, action, more["target"]))

    async def no_deliveries(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(audit, "record", record)
    monkeypatch.setattr(database, "run", no_deliveries)
    found = Pair(one, two)
    found.server.rows = rows
    yield found
    for worker in (one, two):
        await worker.hub.stop()


async def test_created_event_is_audited_and_its_sockets_are_known(pair: Pair) -> None:
    connection = await pair.subscriber("orders")
    body = {"app": "1", "channel": "orders", "event": "created", "data": '{"id":1}'}
    published = await event_creator.publish(pair.request(body=body))
    assert published["is_json"]
    assert pair.server.rows == [("ann", "publish", "orders")]

    async def traced() -> Any:
        found = await tracing.trace(pair.request(entry=published["entry"]))
        return found if found["workers"] and "last_ms" in found["workers"][0]["delivery"] else None

    found = await waiting.until_async(traced, 10, "the event is traced")
    [worker] = found["workers"]
    assert [one["socket"] for one in worker["delivery"]["sockets"]] == [connection.socket_id]
    assert found["publication"]["publisher"] == {"by": "console", "user": "ann"}
    with pytest.raises(requests.Problem, match="may not see"):
        await tracing.trace(pair.request(OF_ANOTHER, entry=published["entry"]))
    events = (await tracing.recent(pair.request(app="1", channel="orders")))["events"]
    assert [(one["entry"], one["written"]) for one in events] == [(published["entry"], 1)]
    assert (await tracing.recent(pair.request(OF_ANOTHER)))["events"] == []


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"channel": "orders", "event": "pusher:e"}, 400, "reserved"),
        ({"channel": "or ders", "event": "e"}, 400, "name"),
        ({"event": "e"}, 400, "channel or a user"),
        ({"channel": "a", "user": "b", "event": "e"}, 400, "channel or a user"),
        ({"channel": "private-encrypted-a", "event": "e"}, 400, "encrypted"),
        ({"channel": "a", "event": "e", "exclude": "x"}, 400, "socket_id"),
        ({"channel": "a", "event": "e", "data": "x" * 200_000}, 400, "200000 bytes; 102400"),
        ({"channel": "a", "event": "e", "app": "3"}, 404, "no application"),
    ],
)
async def test_event_that_cannot_be_published_is_answered_with_a_sentence(
    pair: Pair, body: dict[str, str], status: int, words: str
) -> None:
    with pytest.raises(requests.Problem, match=words) as caught:
        await event_creator.publish(pair.request(body={"app": "1", **body}))
    assert caught.value.status == status
    assert pair.server.rows == []


async def test_viewer_of_another_application_may_not_publish(pair: Pair) -> None:
    body = {"app": "1", "channel": "orders", "event": "e"}
    with pytest.raises(requests.Problem, match="publish_event"):
        await event_creator.publish(pair.request(OF_ANOTHER, body=body))


async def test_refusals_of_all_workers_are_listed_for_those_who_may_see_them(pair: Pair) -> None:
    for worker, text in ((pair.one, "first"), (pair.two, "second")):
        worker.hub.activity.refused("subscription", "wrong_signature", text, app="1")
    found = await auth_doctor.refusals(pair.request())
    assert [one["text"] for one in found["refusals"]] == ["second", "first"]
    assert (await auth_doctor.refusals(pair.request(OF_ANOTHER)))["refusals"] == []


async def test_examination_needs_a_known_kind(pair: Pair) -> None:
    with pytest.raises(requests.Problem, match="kind is one of"):
        await auth_doctor.examine(pair.request(body={"app": "1", "kind": "nonsense"}))
    found = await auth_doctor.examine(
        pair.request(body={"app": "1", "channel": "private-a", "socket_id": "1.2", "auth": "key:0"})
    )
    assert not found["ok"]


async def test_timeline_of_a_channel_without_history_says_so(pair: Pair) -> None:
    with pytest.raises(requests.Problem, match="keeps no history"):
        await time_travel.timeline(pair.request(app="1", channel="orders"))


async def test_timeline_of_the_largest_events_comes_in_bounded_answers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_travel, "AT_ONCE", 10)
    monkeypatch.setattr(time_travel, "MOST_BYTES", 500_000)
    rule = rules.Rule("orders", history_size=100, history_seconds=600)
    pair.server.registry.put(dataclasses.replace(SHOP, rules=rules.Rules([rule])))
    data, kept = "x" * 40_000, interface.Retention(100, 600)
    body = orjson.dumps({"event": "e", "channel": "orders", "data": data})
    await pair.one.hub.publish([interface.Publication("1", "orders", body, retention=kept) for _ in range(30)])
    offsets: list[int] = []
    before: dict[str, str] = {}
    while len(offsets) < 30:
        answer = await time_travel.timeline(pair.request(app="1", channel="orders", **before))
        assert 0 < len(answer["events"]) <= 12
        offsets = [*(event["offset"] for event in answer["events"]), *offsets]
        before = {"before": str(answer["first"])}
    assert offsets == list(range(1, 31))
    answer = await time_travel.timeline(pair.request(app="1", channel="orders", before="8", limit="3"))
    assert [event["offset"] for event in answer["events"]] == [5, 6, 7]


async def test_tail_answers_a_bad_filter_before_it_begins(pair: Pair) -> None:
    [answer] = [value async for value in tail_endpoint.tail(pair.request(channel="a b"))]
    assert "cannot be in the name" in answer["problem"]
    assert answer["field"] == "channel"
    values = tail_endpoint.tail(pair.request(app="1"))
    assert (await anext(values))["items"] == []
    await values.aclose()


@pytest.mark.parametrize("entry", ["", "nonsense", "0:x"])
async def test_position_that_is_none_is_answered_with_its_form(pair: Pair, entry: str) -> None:
    with pytest.raises(requests.Problem, match="PARTITION:ID"):
        await tracing.trace(pair.request(entry=entry))


def test_percentiles_lie_between_the_first_and_the_last_write() -> None:
    found = tracing.latencies({"created": 10.0, "read": 10.01, "first_write": 10.02, "last_write": 10.12})
    assert found == {"read_ms": 10.0, "p50_ms": 70.0, "p95_ms": 115.0, "p99_ms": 119.0, "last_ms": 120.0}
    assert tracing.latencies({"created": 10.0}) == {}


async def test_publisher_of_a_traced_channel_is_recorded_for_each_event(pair: Pair) -> None:
    pair.one.hub.recorder.trace("1", "orders", 60)
    publication = interface.Publication("1", "orders", b'{"event":"e","data":"{}"}')
    assert pair.one.hub.recorder.wants("1", "orders")
    receipts = await pair.one.hub.publish([publication])
    pair.one.hub.recorder.published([publication], receipts, {"by": "HTTP API"}, 1.0)
    found = await tracing.trace(pair.request(entry=f"0:{receipts[0].id}"))
    assert found["publication"]["publisher"] == {"by": "HTTP API"}
