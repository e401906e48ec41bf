"""Appends to several streams in one request, against fakes."""

from __future__ import annotations

import types
from typing import Any

import pytest

from fanfare.api import rates, streams
from fanfare.engine import interface
from tests.unit.api import fakes

ROUTE = "streams/append"


@pytest.fixture(autouse=True)
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has one second of its own."""
    monkeypatch.setattr(streams, "_rate", rates.Rate("appends to this stream", "too_many_appends"))
    monkeypatch.setattr(rates, "time", types.SimpleNamespace(monotonic=lambda: 5.0))


@pytest.fixture(autouse=True)
def opened(hub: fakes.Hub) -> None:
    for stream in ("a", "b"):
        hub.engine.streams[stream] = interface.Streamed(stream, interface.StreamState.OPEN, 0, 0, b'{"event":"answer"}')


def append(stream: str, text: str = "x", /, **fields: Any) -> dict[str, Any]:
    return {"channel": f"private-{stream}", "stream": stream, "seq": 1, "text": text, **fields}


async def test_each_item_is_answered_by_itself_and_in_order(
    client: fakes.Client, hub: fakes.Hub, settings: Any
) -> None:
    settings.FANFARE = {"STREAM_MAX_LENGTH": 10}
    batch: list[Any] = [
        append("a"),
        append("unknown"),
        append("b", "x" * 11),
        append("b", state="sleeping"),
        append("b", channel="cache-b"),
        append("b", channel=None),
        append("b", stream=None),
        "b",
        append("b", "yy"),
    ]
    answer = await client.post(ROUTE, {"batch": batch})
    assert answer.status == 200
    answers = answer.json["batch"]
    assert answers[0] == {"accepted": True, "id": "a", "state": "open", "seq": 1, "length": 1}
    assert answers[1] == {"accepted": False, "id": "unknown", "state": None, "seq": 0, "length": 0}
    assert [(each["status"], each["code"]) for each in answers[2:8]] == [
        (413, "stream_too_long"),
        (400, "invalid_state"),
        (400, "invalid_stream"),
        (400, "missing_channel"),
        (400, "invalid_stream"),
        (400, "invalid_append"),
    ]
    assert "would have 11 UTF-16 code units, the allowed maximum is 10" in answers[2]["error"]
    assert answers[8] == {"accepted": True, "id": "b", "state": "open", "seq": 1, "length": 2}
    assert [(write.channel, write.part) for write in hub.engine.writes] == [("private-a", b"x"), ("private-b", b"yy")]
    assert (hub.counters["streams.appended"], hub.counters["api.refused.400"]) == (2, 5)


@pytest.mark.parametrize("seq", [5, 6])
@pytest.mark.parametrize("more", [{}, {"state": "done"}])
async def test_empty_token_is_counted_and_may_come_with_the_end(
    client: fakes.Client, hub: fakes.Hub, seq: int, more: dict[str, str]
) -> None:
    """A request with an empty text may also have no token."""
    hub.engine.streams["a"] = hub.engine.streams["a"]._replace(seq=5)
    answer = await client.post(ROUTE, {"batch": [append("a", "", seq=seq, **more)]})
    assert answer.json["batch"] == [
        {"accepted": True, "id": "a", "state": more.get("state", "open"), "seq": seq, "length": 0}
    ]


async def test_end_without_a_text_needs_all_tokens_before_it(client: fakes.Client) -> None:
    item = {"channel": "private-a", "stream": "a", "seq": 1, "state": "done"}
    [answer] = (await client.post(ROUTE, {"batch": [item]})).json["batch"]
    assert (answer["accepted"], answer["state"], answer["seq"]) == (False, "open", 0)


async def test_ended_stream_is_kept_for_as_long_as_the_setting_says(
    client: fakes.Client, hub: fakes.Hub, settings: Any
) -> None:
    settings.FANFARE = {"STREAM_KEEP": 300}
    await client.post(ROUTE, {"batch": [append("a", state="done"), append("b")]})
    assert [(write.channel, write.seconds) for write in hub.engine.writes] == [
        ("private-a", 15),
        ("private-a", 300),
        ("private-b", 15),
    ]


async def test_stream_over_its_rate_does_not_stop_the_others(
    client: fakes.Client, hub: fakes.Hub, settings: Any
) -> None:
    settings.FANFARE = {"STREAM_MAX_APPENDS": 1}
    answer = await client.post(ROUTE, {"batch": [append("a"), append("a"), append("b")]})
    first, second, other = answer.json["batch"]
    assert (first["accepted"], other["accepted"]) == (True, True)
    assert (second["status"], second["code"]) == (429, "too_many_appends")
    assert "they are 2, the allowed maximum is 1" in second["error"]
    assert [write.channel for write in hub.engine.writes] == ["private-a", "private-b"]


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({}, "missing_batch", "a list of appends"),
        ({"batch": {}}, "missing_batch", "a list of appends"),
        ({"batch": [append("a")] * 101}, "batch_too_large", "it has 101 appends, the allowed maximum is 100"),
    ],
)
async def test_batch_that_is_no_list_or_too_long_is_refused_whole(
    client: fakes.Client, hub: fakes.Hub, fields: dict[str, Any], code: str, said: str
) -> None:
    answer = await client.post(ROUTE, fields)
    assert (answer.status, answer.json["code"]) == (400, code)
    assert said in answer.json["error"]
    assert hub.engine.writes == []


async def test_batch_without_a_change_makes_no_commit(
    client: fakes.Client, hub: fakes.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.engine, "write_streams", None)
    assert (await client.post(ROUTE, {"batch": []})).json == {"batch": []}
    answer = await client.post(ROUTE, {"batch": [append("a", seq=7), append("b", at=5)]})
    behind, refused = answer.json["batch"]
    assert (behind["accepted"], behind["seq"]) == (False, 0)
    assert refused["code"] == "invalid_at"


async def test_single_route_refuses_with_the_status_of_the_item(client: fakes.Client) -> None:
    fields = append("b", state="sleeping")
    [item] = (await client.post(ROUTE, {"batch": [fields]})).json["batch"]
    single = await client.post("channels/private-b/streams/b/append", fields)
    assert {"status": single.status, **single.json} == item
