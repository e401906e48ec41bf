"""POST events: what is published, what is refused, what is answered."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from fanfare.applications import registry, rules
from fanfare.engine import interface
from tests.unit.api import fakes

EVENT: dict[str, Any] = {"name": "created", "channels": ["news"], "data": '{"id":7}'}


async def test_event_becomes_one_publication_and_the_answer_is_empty(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await client.post("events", EVENT)
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["content-type"] == "application/json"
    assert hub.published == [
        [
            interface.Publication(
                app="3", channel="news", body=b'{"event":"created","channel":"news","data":"{\\"id\\":7}"}'
            )
        ]
    ]
    assert hub.counters == {"api.requests": 1, "api.published": 1}


async def test_event_for_several_channels_is_one_call_with_each_channel_once(
    client: fakes.Client, hub: fakes.Hub
) -> None:
    await client.post("events", {**EVENT, "channels": ["a", "b", "a", "private-c"], "socket_id": "12.34"})
    (call,) = hub.published
    assert [publication.channel for publication in call] == ["a", "b", "private-c"]
    assert {publication.exclude for publication in call} == {"12.34"}
    assert [frame["channel"] for frame in hub.frames] == ["a", "b", "private-c"]
    assert {frame["data"] for frame in hub.frames} == {'{"id":7}'}


@pytest.mark.parametrize("name", ["channel", "channels"])
async def test_single_channel_parameter_is_accepted(client: fakes.Client, hub: fakes.Hub, name: str) -> None:
    value = "news" if name == "channel" else ["news"]
    await client.post("events", {"name": "created", "data": "x", name: value})
    assert hub.frames == [{"event": "created", "channel": "news", "data": "x"}]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ([], "[]"),
        (7, "7"),
        (False, "false"),
        (None, "null"),
        ("", ""),
        ("Ärger, 日本, 🎺\u2028\0", "Ärger, 日本, 🎺\u2028\0"),
    ],
)
async def test_data_that_is_not_a_string_becomes_its_json_text(
    client: fakes.Client, hub: fakes.Hub, data: Any, text: str
) -> None:
    await client.post("events", {**EVENT, "data": data})
    assert hub.frames[0]["data"] == text


async def test_parameters_may_be_in_the_query(client: fakes.Client, hub: fakes.Hub) -> None:
    query = {"name": "created", "channel": "news", "data": "x", "socket_id": "1.2"}
    assert (await client.post("events", b"", query=query)).status == 200
    assert hub.frames == [{"event": "created", "channel": "news", "data": "x"}]
    assert hub.published[0][0].exclude == "1.2"


async def test_body_takes_precedence_over_the_query(client: fakes.Client, hub: fakes.Hub) -> None:
    await client.post("events", EVENT, query={"name": "deleted"})
    assert hub.frames[0]["event"] == "created"


async def test_event_can_be_published_to_a_users_own_channel(client: fakes.Client, hub: fakes.Hub) -> None:
    assert (await client.post("events", {**EVENT, "channels": ["#server-to-user-7"]})).status == 200
    assert hub.frames[0]["channel"] == "#server-to-user-7"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": None}, "missing_name"),
        ({"name": ""}, "missing_name"),
        ({"name": 7}, "invalid_name"),
        ({"name": "x" * 201}, "invalid_name"),
        ({"channels": None}, "missing_channel"),
        ({"channels": None, "channel": ""}, "missing_channel"),
        ({"channels": None, "channel": 7}, "invalid_channel"),
        ({"channels": []}, "invalid_channels"),
        ({"channels": "news"}, "invalid_channels"),
        ({"channels": {"a": "b"}}, "invalid_channels"),
        ({"channels": [["news"]]}, "invalid_channel"),
        ({"channels": ["news", None]}, "missing_channel"),
        ({"channels": ["news\n"]}, "invalid_channel"),
        ({"channels": ["with space"]}, "invalid_channel"),
        ({"channels": ["ünicode"]}, "invalid_channel"),
        ({"channels": ["#reserved"]}, "invalid_channel"),
        ({"channels": ["#server-to-user-"]}, "invalid_channel"),
        ({"channels": ["x" * 201]}, "invalid_channel"),
        ({"channels": [f"c{n}" for n in range(101)]}, "too_many_channels"),
        ({"channels": ["private-encrypted-a", "b"]}, "encrypted_with_others"),
        ({"channel": "other"}, "invalid_channels"),
        ({"socket_id": "12"}, "invalid_socket_id"),
        ({"socket_id": "12.34\n"}, "invalid_socket_id"),
        ({"socket_id": ""}, "invalid_socket_id"),
        ({"socket_id": 12.34}, "invalid_socket_id"),
        ({"socket_id": "1" * 100 + ".1"}, "invalid_socket_id"),
        ({"name": "pusher:subscription_succeeded"}, "reserved_name"),
        ({"name": "pusher_internal:member_added"}, "reserved_name"),
        ({"info": "colour"}, "unknown_attribute"),
        ({"info": 7}, "invalid_info"),
        ({"info": ["user_count", {}]}, "invalid_info"),
        ({"idempotency_key": ""}, "invalid_idempotency_key"),
        ({"idempotency_key": "a\nb"}, "invalid_idempotency_key"),
        ({"idempotency_key": "x" * 129}, "invalid_idempotency_key"),
        ({"idempotency_key": 7}, "invalid_idempotency_key"),
    ],
)
async def test_invalid_parameter_is_refused_and_nothing_is_published(
    client: fakes.Client, hub: fakes.Hub, change: dict[str, Any], code: str
) -> None:
    answer = await client.post("events", {**EVENT, **change})
    assert (answer.status, answer.json["code"]) == (400, code)
    assert hub.published == []


@pytest.mark.parametrize("name", ["pusher", "pusher_internal", "client-x", "my-pusher:x", "Pusher:x", "laravel:x"])
async def test_names_that_only_resemble_reserved_ones_are_published(
    client: fakes.Client, hub: fakes.Hub, name: str
) -> None:
    assert (await client.post("events", {**EVENT, "name": name})).status == 200
    assert hub.frames[0]["event"] == name


async def test_refusal_of_a_reserved_name_says_the_reason(client: fakes.Client) -> None:
    for call, body in (("events", EVENT), ("batch_events", {"batch": [BATCH[0], BATCH[0]]})):
        named = {**EVENT, "name": "pusher:x"} if call == "events" else {"batch": [{**BATCH[0], "name": "pusher:x"}]}
        answer = await client.post(call, named)
        assert answer.status == 400
        assert 'names that start with "pusher:" or "pusher_internal:"' in answer.json["error"]
        assert (await client.post(call, body)).status == 200


@pytest.mark.parametrize(
    "name", ["name", "channel", "channels", "data", "socket_id", "info", "idempotency_key", "batch", "other"]
)
@pytest.mark.parametrize("depth", [200, 400, 1_000])
async def test_deeply_nested_parameter_is_answered(client: fakes.Client, name: str, depth: int) -> None:
    fields = {"name": b'"created"', "channel": b'"news"', "data": b'""', name: b"[" * depth + b"]" * depth}
    body = b"{" + b",".join([b'"%s":%s' % (key.encode(), value) for key, value in fields.items()]) + b"}"
    for route in ["events", "batch_events"]:
        assert (await client.post(route, body)).status in {200, 400}


async def test_missing_data_is_refused(client: fakes.Client) -> None:
    answer = await client.post("events", {"name": "created", "channel": "news"})
    assert (answer.status, answer.json["code"]) == (400, "missing_data")


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b'{"name":NaN}', b'{"name":"\\ud800"}', b"[" * 100_000],
    ids=["half", "list", "text", "null", "not UTF-8", "NaN", "half a character", "deep"],
)
async def test_body_that_is_not_a_json_object_is_refused(client: fakes.Client, body: bytes) -> None:
    answer = await client.post("events", body)
    assert (answer.status, answer.json["code"]) == (400, "invalid_json")


async def test_data_nested_too_deeply_to_encode_is_refused(client: fakes.Client) -> None:
    body = b'{"name":"created","channel":"news","data":' + b"[" * 600 + b"]" * 600 + b"}"
    answer = await client.post("events", body)
    assert (answer.status, answer.json["code"]) == (400, "invalid_data")


@pytest.mark.parametrize(("character", "size"), [("x", 1), ("ä", 2), ("\0", 1)])
async def test_data_limit_counts_bytes_before_escaping(
    client: fakes.Client, hub: fakes.Hub, character: str, size: int
) -> None:
    limit = fakes.APPLICATION.limits.max_event_bytes
    assert (await client.post("events", {**EVENT, "data": character * (limit // size)})).status == 200
    hub.published.clear()
    answer = await client.post("events", {**EVENT, "data": character * (limit // size + 1)})
    assert (answer.status, answer.json["code"]) == (413, "event_too_large")
    assert "content of this event exceeds the allowed maximum (102400 bytes)" in answer.json["error"]
    assert str(limit + size) in answer.json["error"]
    assert hub.published == []


async def test_counts_of_info_are_answered(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.counts = {
        "presence-a": interface.ChannelCounts(subscriptions=51, users=42),
        "b": interface.ChannelCounts(subscriptions=13, users=0),
    }
    channels = ["presence-a", "b", "presence-empty"]
    answer = await client.post("events", {**EVENT, "channels": channels, "info": "user_count,subscription_count"})
    assert answer.json == {
        "channels": {
            "presence-a": {"user_count": 42, "subscription_count": 51},
            "b": {"subscription_count": 13},
            "presence-empty": {"user_count": 0, "subscription_count": 0},
        }
    }


async def test_event_of_a_channel_with_history_has_an_offset(
    client: fakes.Client, hub: fakes.Hub, applications: registry.Registry
) -> None:
    kept = rules.Rules((rules.Rule("room-*", history_size=50, history_seconds=60),))
    applications.put(dataclasses.replace(fakes.APPLICATION, rules=kept))
    event = {**EVENT, "channels": ["news", "room-1"], "info": "offset,subscription_count"}
    answer = await client.post("events", event)
    assert [publication.retention for publication in hub.published[0]] == [None, interface.Retention(50, 60)]
    assert answer.json == {
        "channels": {
            "news": {"subscription_count": 0},
            "room-1": {"offset": 1, "epoch": "e", "subscription_count": 0},
        }
    }
    batch = [{**BATCH[0], "channel": channel, "info": "offset"} for channel in ("room-1", "news", "room-2", "room-1")]
    answer = await client.post("batch_events", {"batch": [BATCH[0], *batch]})
    places = [each.get("offset") for each in answer.json["batch"]]
    assert places == [None, 2, None, 1, 3]


async def test_idempotency_key_is_taken_from_the_header_or_the_body(client: fakes.Client, hub: fakes.Hub) -> None:
    header = [(b"idempotency-key", b"order-7")]
    await client.post("events", {**EVENT, "channels": ["a", "b"]}, headers=header)
    await client.post("events", {**EVENT, "idempotency_key": "own"}, headers=header)
    assert [[each.idempotency_key for each in call] for call in hub.published] == [["order-7", "order-7"], ["own"]]


async def test_idempotency_key_in_the_header_is_checked(client: fakes.Client, hub: fakes.Hub) -> None:
    for key in [b"\xe4", b"x" * 129]:
        answer = await client.post("events", EVENT, headers=[(b"idempotency-key", key)])
        assert (answer.status, answer.json["code"]) == (400, "invalid_idempotency_key")
    assert hub.published == []


async def test_duplicate_is_answered_like_the_first_event_whatever_its_data(
    client: fakes.Client, hub: fakes.Hub
) -> None:
    hub.engine.counts = {"news": interface.ChannelCounts(subscriptions=3, users=0)}
    for event in [EVENT, {**EVENT, "info": "subscription_count"}]:
        header = [(b"idempotency-key", b"order-%d" % len(event))]
        first = await client.post("events", event, headers=header)
        second = await client.post("events", {**event, "data": "other"}, headers=header)
        assert (first.status, first.body) == (second.status, second.body)
        assert first.status == 200


@pytest.mark.parametrize("channel", ["cache-a", "private-cache-a", "private-encrypted-cache-a", "presence-cache-a"])
async def test_cache_channel_holds_its_event_for_cache_seconds(
    client: fakes.Client, hub: fakes.Hub, applications: registry.Registry, channel: str
) -> None:
    applications.put(dataclasses.replace(fakes.APPLICATION, cache_seconds=60))
    await client.post("events", {**EVENT, "channels": [channel]})
    await client.post("batch_events", {"batch": [{**BATCH[0], "channel": channel}, BATCH[0]]})
    held = [publication.cache_seconds for call in hub.published for publication in call]
    assert held == [60, 60, None]


@pytest.mark.parametrize("channel", ["news", "caches-a", "private-a", "presence-cached", "#server-to-user-7"])
async def test_other_channels_hold_no_event(client: fakes.Client, hub: fakes.Hub, channel: str) -> None:
    await client.post("events", {**EVENT, "channels": [channel]})
    assert hub.published[0][0].cache_seconds is None


async def test_events_over_the_rate_limit_are_refused_with_both_numbers(
    client: fakes.Client, hub: fakes.Hub, applications: registry.Registry
) -> None:
    """An event counts once for each channel, wherever it came from; what was refused does not count."""
    limits = registry.Limits(max_events_per_second=7)
    applications.put(dataclasses.replace(fakes.APPLICATION, limits=limits))
    assert (await client.post("events", {**EVENT, "channels": ["a", "b"]})).status == 200
    assert (await client.post("batch_events", {"batch": BATCH})).status == 200
    answer = await client.post("batch_events", {"batch": BATCH})
    assert (answer.status, answer.json["code"]) == (429, "too_many_events")
    assert answer.headers["retry-after"] == "1"
    assert "they are 8, the allowed maximum is 7" in answer.json["error"]
    assert (await client.post("events", {**EVENT, "channels": ["a", "b"]})).status == 200
    assert len(hub.published) == 3
    assert hub.counters["api.refused.429"] == 1
    assert hub.counters["api.published"] == 7


async def test_application_without_a_rate_limit_has_no_budget(client: fakes.Client, hub: fakes.Hub) -> None:
    for _ in range(20):
        assert (await client.post("batch_events", {"batch": BATCH})).status == 200
    assert not hub.spent


@pytest.mark.parametrize("body", [b'{"id":7}', "not JSON, but Ärger".encode(), b'"a"'])
async def test_deprecated_call_takes_the_body_as_the_data(client: fakes.Client, hub: fakes.Hub, body: bytes) -> None:
    query = {"name": "created", "socket_id": "1.2"}
    answer = await client.post("channels/cache-news/events", body, query=query)
    assert (answer.status, answer.body) == (202, b"{}")
    assert hub.frames == [{"event": "created", "channel": "cache-news", "data": body.decode()}]
    assert hub.published[0][0].exclude == "1.2"
    assert hub.published[0][0].cache_seconds == fakes.APPLICATION.cache_seconds


@pytest.mark.parametrize(
    ("channel", "query", "body", "status", "code"),
    [
        ("news", {}, b"{}", 400, "missing_name"),
        ("news", {"name": "x"}, b"", 400, "missing_data"),
        ("news", {"name": "x"}, b"\xff", 400, "invalid_data"),
        ("news", {"name": "x", "socket_id": "1"}, b"{}", 400, "invalid_socket_id"),
        ("with*star", {"name": "x"}, b"{}", 400, "invalid_channel"),
        ("news", {"name": "x"}, b"x" * 102_401, 413, "event_too_large"),
    ],
)
async def test_deprecated_call_refuses_invalid_parameters(
    client: fakes.Client, hub: fakes.Hub, channel: str, query: dict[str, str], body: bytes, status: int, code: str
) -> None:
    answer = await client.post(f"channels/{channel}/events", body, query=query)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert hub.published == []


async def test_unavailable_engine_is_a_503_with_its_reason(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.down = "the disk is full"
    answer = await client.post("events", EVENT)
    assert (answer.status, answer.json["code"]) == (503, "engine_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "the disk is full" in answer.json["error"]
    assert hub.counters["api.published"] == 0


async def test_engine_failure_after_publishing_leaves_the_info_out(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine_fails_after_publishing = "the disk is full"
    answer = await client.post("events", {**EVENT, "info": "subscription_count"})
    assert (answer.status, answer.json) == (200, {"channels": {"news": {}}})
    assert hub.counters["api.info_unavailable"] == 1


async def test_500_does_not_show_the_exception(
    client: fakes.Client, hub: fakes.Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.engine.counts = None  # type: ignore[assignment]
    answer = await client.post("events", {**EVENT, "info": "subscription_count"})
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert "NoneType" not in answer.json["error"]
    assert "NoneType" in caplog.text
    assert hub.counters["api.failed"] == 1


BATCH = [
    {"name": "one", "channel": "a", "data": "1"},
    {"name": "two", "channel": "a", "data": {"n": 2}, "socket_id": "1.2"},
    {"name": "three", "channel": "presence-b", "data": "3"},
]


async def test_batch_is_published_in_order_and_in_one_call(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await client.post("batch_events", {"batch": BATCH})
    assert (answer.status, answer.body) == (200, b"{}")
    assert len(hub.published) == 1
    assert hub.frames == [
        {"event": "one", "channel": "a", "data": "1"},
        {"event": "two", "channel": "a", "data": '{"n":2}'},
        {"event": "three", "channel": "presence-b", "data": "3"},
    ]
    assert [publication.exclude for publication in hub.published[0]] == [None, "1.2", None]
    assert hub.counters["api.published"] == 3


async def test_info_of_a_batch_is_in_the_order_of_its_events(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.counts = {"presence-b": interface.ChannelCounts(subscriptions=3, users=2)}
    batch = [*BATCH[:2], {**BATCH[2], "info": "user_count"}]
    answer = await client.post("batch_events", {"batch": batch})
    assert answer.json == {"batch": [{}, {}, {"user_count": 2}]}


async def test_empty_batch_publishes_nothing(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await client.post("batch_events", {"batch": []})
    assert (answer.status, answer.body) == (200, b"{}")
    assert hub.published == []


async def test_batch_over_the_limit_is_refused_with_both_numbers(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await client.post("batch_events", {"batch": [BATCH[0]] * 11})
    assert (answer.status, answer.json["code"]) == (400, "batch_too_large")
    assert "Batch too large" in answer.json["error"]
    assert "11" in answer.json["error"]
    assert "10" in answer.json["error"]
    assert hub.published == []


@pytest.mark.parametrize(
    ("item", "status", "code"),
    [
        ({"name": "x", "channel": "with space", "data": ""}, 400, "invalid_channel"),
        ({"name": "x", "channels": ["a"], "data": ""}, 400, "missing_channel"),
        ({"name": "x", "channel": "a"}, 400, "missing_data"),
        ("text", 400, "invalid_batch"),
        ({"name": "x", "channel": "a", "data": "x" * 102_401}, 413, "event_too_large"),
    ],
)
async def test_one_invalid_event_refuses_the_batch_and_its_index_is_named(
    client: fakes.Client, hub: fakes.Hub, item: Any, status: int, code: str
) -> None:
    answer = await client.post("batch_events", {"batch": [BATCH[0], item]})
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.json["error"].startswith("Event 1 of the batch: ")
    assert ("content of this event" in answer.json["error"]) == (status == 413)
    assert hub.published == []


@pytest.mark.parametrize("body", [{}, {"batch": None}, {"batch": "x"}, {"batch": {"0": BATCH[0]}}])
async def test_batch_that_is_not_a_list_is_refused(client: fakes.Client, body: dict[str, Any]) -> None:
    answer = await client.post("batch_events", body)
    assert (answer.status, answer.json["code"]) == (400, "missing_batch")


async def test_idempotency_key_of_a_batch_becomes_one_for_each_event(client: fakes.Client, hub: fakes.Hub) -> None:
    """Two events of a batch for one channel must not be taken for one event that was sent twice."""
    batch = [BATCH[0], {**BATCH[1], "idempotency_key": "own"}, BATCH[2]]
    body = json.dumps({"batch": batch}).encode()
    for _ in range(2):
        await client.post("batch_events", body, headers=[(b"idempotency-key", b"order-7")])
    first, second = [[each.idempotency_key for each in call] for call in hub.published]
    assert first == second == ["order-7:0", "own", "order-7:2"]
