"""Members with a time to live over HTTP, against fakes."""

from __future__ import annotations

from typing import Any

import pytest

from fanfare.api import members, rates
from fanfare.engine import interface
from tests.unit.api import fakes

ROUTE = "channels/presence-room/members/bot"


@pytest.fixture(autouse=True)
def rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a second of its own."""
    monkeypatch.setattr(members, "_rate", rates.Rate("writes of this member", "too_many_writes"))


async def test_member_joins_for_sixty_seconds_by_default(client: fakes.Client, hub: fakes.Hub) -> None:
    answer = await client.post(ROUTE, {"user_info": {"name": "Bot"}})
    assert (answer.status, answer.json) == (200, {"joined": True, "ttl": 60})
    assert (await client.post(ROUTE, {"ttl": 5})).json == {"joined": True, "ttl": 5}
    assert hub.engine.leases == [
        ("presence-room", "bot", '{"name":"Bot"}', 60.0),
        ("presence-room", "bot", None, 5.0),
    ]
    assert (await client.post(f"{ROUTE}/leave", {})).json == {"left": True}


@pytest.mark.parametrize(
    ("route", "fields", "status", "code", "said"),
    [
        ("channels/room/members/bot", {}, 400, "not_presence", "room is not a presence channel"),
        (ROUTE, {"ttl": 3_601}, 400, "invalid_ttl", "from 1 to 3600"),
        (ROUTE, {"ttl": 0}, 400, "invalid_ttl", "from 1 to 3600"),
        (ROUTE, {"user_info": "x" * 2_047}, 413, "event_too_large", "(2048 bytes): it has 2049 bytes"),
    ],
)
async def test_refusal_names_the_limit(
    client: fakes.Client, hub: fakes.Hub, route: str, fields: dict[str, Any], status: int, code: str, said: str
) -> None:
    answer = await client.post(route, fields)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert said in answer.json["error"]
    assert hub.engine.leases == []


async def test_full_channel_is_refused_with_both_numbers(client: fakes.Client, hub: fakes.Hub) -> None:
    hub.engine.joined["presence-room"] = [interface.Member(str(number), "null") for number in range(100)]
    answer = await client.post(ROUTE, {})
    assert (answer.status, answer.json["code"]) == (400, "too_many_members")
    assert "presence-room has 100, the allowed maximum is 100" in answer.json["error"]


async def test_writes_of_one_member_are_limited_and_those_of_others_are_not(
    client: fakes.Client, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.FANFARE = {"MEMBER_MAX_WRITES": 2}
    monkeypatch.setattr(rates.time, "monotonic", lambda: 1_000_000.0)
    answers = [await client.post(ROUTE, {}) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "1"
    assert "3, the allowed maximum is 2" in answers[2].json["error"]
    assert (await client.post(ROUTE.replace("bot", "bee"), {})).status == 200
