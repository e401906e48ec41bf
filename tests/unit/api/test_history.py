"""GET the history of a channel."""

from __future__ import annotations

import dataclasses

import pytest

from fanfare.applications import registry, rules
from fanfare.hub import event_frames, history_pages
from tests.unit.api import fakes

ROUTE = "channels/room-1/history"


@pytest.fixture
def applications() -> registry.Registry:
    applications = registry.Registry()
    kept = rules.Rules(tuple(rules.Rule(each, 10, 60) for each in ("room-*", "private-*", "presence-*", "#*")))
    applications.put(dataclasses.replace(fakes.APPLICATION, rules=kept))
    return applications


@pytest.fixture
def hub() -> fakes.Hub:
    engine = fakes.Engine()
    engine.keep("room-1", *(event_frames.event(f"event {number}", "room-1", str(number)) for number in range(1, 6)))
    return fakes.Hub(engine)


async def offsets(client: fakes.Client, **query: str) -> tuple[list[int], str | None]:
    """Those of a page, and where the next one starts."""
    answer = await client.get(ROUTE, **query)
    assert (answer.status, answer.json["position"]) == (200, "e:5")
    return [item["offset"] for item in answer.json["items"]], answer.json["next"]


async def test_newest_event_is_first(client: fakes.Client) -> None:
    answer = await client.get(ROUTE, limit="2")
    assert answer.json == {
        "items": [{"offset": 5, "event": "event 5", "data": "5"}, {"offset": 4, "event": "event 4", "data": "4"}],
        "position": "e:5",
        "next": "e:4",
    }


async def test_pages_backwards_reach_the_oldest(client: fakes.Client) -> None:
    assert await offsets(client, limit="3") == ([5, 4, 3], "e:3")
    assert await offsets(client, limit="3", before="e:3") == ([2, 1], None)


async def test_pages_forwards_reach_the_newest(client: fakes.Client) -> None:
    assert await offsets(client, limit="3", direction="forwards") == ([1, 2, 3], "e:3")
    assert await offsets(client, limit="2", direction="forwards", after="e:3") == ([4, 5], None)
    assert await offsets(client, direction="forwards", after="e:5") == ([], None)


async def test_after_and_before_are_exclusive_bounds(client: fakes.Client) -> None:
    assert await offsets(client, after="e:1", before="e:4") == ([3, 2], None)


@pytest.mark.parametrize("channel", ["private-encrypted-a", "presence-a", "private-cache-a", "#server-to-user-7"])
async def test_any_type_of_channel_can_have_a_history(client: fakes.Client, hub: fakes.Hub, channel: str) -> None:
    hub.engine.keep(channel, event_frames.event("client-x", channel, {"a": [1]}, "ann"), user_id="ann")
    answer = await client.get(f"channels/{channel.replace('#', '%23')}/history")
    assert answer.json["items"] == [{"offset": 1, "event": "client-x", "data": {"a": [1]}, "user_id": "ann"}]


async def test_channel_without_events_has_no_position(client: fakes.Client) -> None:
    answer = await client.get("channels/room-2/history")
    assert (answer.status, answer.json) == (200, {"items": [], "position": None, "next": None})


async def test_channel_without_a_rule_has_no_history(client: fakes.Client) -> None:
    answer = await client.get("channels/news/history")
    assert (answer.status, answer.json["code"]) == (400, "not_enabled")


@pytest.mark.parametrize("query", [{"after": "f:1"}, {"before": "f:1"}, {"after": "e:1", "before": "f:2"}])
async def test_position_of_another_epoch_is_gone_and_the_answer_has_the_new_one(
    client: fakes.Client, query: dict[str, str]
) -> None:
    answer = await client.get(ROUTE, **query)
    assert (answer.status, answer.json["code"]) == (410, "epoch_changed")
    assert "e:5" in answer.json["error"]


async def test_position_of_a_channel_without_events_is_gone(client: fakes.Client) -> None:
    answer = await client.get("channels/room-2/history", after="e:1")
    assert (answer.status, answer.json["code"]) == (410, "epoch_changed")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("limit", "0", "invalid_limit"),
        ("limit", str(history_pages.MOST + 1), "invalid_limit"),
        ("limit", "many", "invalid_limit"),
        ("limit", "9" * 30, "invalid_limit"),
        ("after", "7", "invalid_position"),
        ("before", "e:-1", "invalid_position"),
        ("before", "e:" + "9" * 19, "invalid_position"),
        ("direction", "up", "invalid_direction"),
    ],
)
async def test_invalid_parameter_is_a_400(client: fakes.Client, name: str, value: str, code: str) -> None:
    answer = await client.get(ROUTE, **{name: value})
    assert (answer.status, answer.json["code"]) == (400, code)
    assert value[:40] in answer.json["error"] or name == "direction"


async def test_unavailable_engine_is_a_503(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.down = "no log"
    assert (await client.get(ROUTE)).status == 503
