"""GET channels, one channel, its users."""

from __future__ import annotations

import pytest

from fanfare.api import queries
from fanfare.engine import interface
from tests.unit.api import fakes


@pytest.fixture
def hub() -> fakes.Hub:
    engine = fakes.Engine(
        counts={
            "presence-room": interface.ChannelCounts(subscriptions=3, users=2),
            "presence-hall": interface.ChannelCounts(subscriptions=1, users=1),
            "news": interface.ChannelCounts(subscriptions=5, users=0),
        },
        holding={"cache-price": interface.Cached(b'{"event":"e","channel":"cache-price","data":"{\\"eur\\":7}"}', 60)},
        joined={"presence-room": [interface.Member("ann", '{"name":"Ann"}'), interface.Member("7", "null")]},
    )
    return fakes.Hub(engine)


async def test_occupied_channels_are_listed(client: fakes.Client) -> None:
    answer = await client.get("channels")
    assert (answer.status, answer.json) == (200, {"channels": {"presence-room": {}, "presence-hall": {}, "news": {}}})


async def test_channels_can_be_filtered_by_a_prefix_and_counted(client: fakes.Client) -> None:
    answer = await client.get("channels", filter_by_prefix="presence-r", info="user_count,subscription_count")
    assert answer.json == {"channels": {"presence-room": {"user_count": 2, "subscription_count": 3}}}


async def test_no_occupied_channel_is_an_empty_object(client: fakes.Client) -> None:
    assert (await client.get("channels", filter_by_prefix="private-")).json == {"channels": {}}


@pytest.mark.parametrize("prefix", ["", "private-", "presence"])
async def test_user_count_needs_a_presence_prefix(client: fakes.Client, prefix: str) -> None:
    answer = await client.get("channels", filter_by_prefix=prefix, info="user_count")
    assert (answer.status, answer.json["code"]) == (400, "attribute_not_available")


@pytest.mark.parametrize("query", [{"filter_by_prefix[]": "news"}, {"filter_by_prefix": "ne\0ws"}])
async def test_prefix_that_is_a_list_or_has_a_nul_is_refused(client: fakes.Client, query: dict[str, str]) -> None:
    answer = await client.get("channels", **query)
    assert (answer.status, answer.json["code"]) == (400, "invalid_prefix")


async def test_occupied_channel_is_described(client: fakes.Client) -> None:
    assert (await client.get("channels/news")).json == {"occupied": True}
    answer = await client.get("channels/news", info="subscription_count")
    assert answer.json == {"occupied": True, "subscription_count": 5}
    answer = await client.get("channels/presence-room", info="user_count,subscription_count")
    assert answer.json == {"occupied": True, "user_count": 2, "subscription_count": 3}


async def test_unoccupied_channel_is_described(client: fakes.Client) -> None:
    assert (await client.get("channels/empty")).json == {"occupied": False}
    answer = await client.get("channels/presence-empty", info="user_count,subscription_count")
    assert answer.json == {"occupied": False, "user_count": 0, "subscription_count": 0}


@pytest.mark.parametrize(
    ("route", "info", "code"),
    [
        ("channels/news", "user_count", "attribute_not_available"),
        ("channels/news", "colour", "unknown_attribute"),
        ("channels/news", "cache", "attribute_not_available"),
        ("channels/presence-room", "user_count,cache", "attribute_not_available"),
        ("channels/cache-price", "user_count", "attribute_not_available"),
        ("channels", "cache", "unknown_attribute"),
        ("channels", "colour", "unknown_attribute"),
        ("channels/with%20space", "", "invalid_channel"),
        ("channels/" + "x" * 201, "", "invalid_channel"),
        ("channels/a%2Fb", "", "invalid_channel"),
        ("channels/%ff", "", "invalid_channel"),
        ("channels/news/users", "", "not_presence"),
        ("channels/with%20space/users", "", "invalid_channel"),
    ],
)
async def test_unavailable_attribute_is_a_400(client: fakes.Client, route: str, info: str, code: str) -> None:
    answer = await client.get(route, info=info)
    assert (answer.status, answer.json["code"]) == (400, code)


async def test_users_of_a_presence_channel_are_listed(client: fakes.Client) -> None:
    assert (await client.get("channels/presence-room/users")).json == {"users": [{"id": "ann"}, {"id": "7"}]}
    assert (await client.get("channels/presence-empty/users")).json == {"users": []}


@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_users_that_are_encoded_in_pieces_are_one_list(client: fakes.Client, hub: fakes.Hub, more: int) -> None:
    users = [interface.Member(f"user-{number}", "1") for number in range(2 * queries.ENCODED_AT_ONCE + more)]
    hub.engine.joined["presence-room"] = users
    answer = await client.get("channels/presence-room/users", with_user_info="1")
    assert answer.json == {"users": [{"id": user.user_id, "user_info": 1} for user in users]}


async def test_user_info_is_listed_with_with_user_info(client: fakes.Client) -> None:
    answer = await client.get("channels/presence-room/users", with_user_info="1")
    assert answer.json == {"users": [{"id": "ann", "user_info": {"name": "Ann"}}, {"id": "7", "user_info": None}]}
    answer = await client.get("channels/presence-room/users", with_user_info="0")
    assert answer.json == {"users": [{"id": "ann"}, {"id": "7"}]}
    answer = await client.get("channels/presence-room/users", with_user_info="maybe")
    assert (answer.status, answer.json["code"]) == (400, "invalid_flag")


async def test_event_of_a_cache_channel_is_described(client: fakes.Client) -> None:
    answer = await client.get("channels/cache-price", info="cache,subscription_count")
    assert answer.json == {"occupied": False, "subscription_count": 0, "cache": {"data": '{"eur":7}', "ttl": 60}}
    assert (await client.get("channels/private-cache-x", info="cache")).json == {"occupied": False, "cache": None}
    assert "cache" not in (await client.get("channels/cache-price")).json


async def test_stats_describe_a_channel(client: fakes.Client) -> None:
    assert (await client.get("channels/news/stats")).json == {"occupied": True, "connection_count": 5}
    answer = await client.get("channels/presence-room/stats")
    assert answer.json == {"occupied": True, "connection_count": 3, "user_count": 2}


@pytest.mark.parametrize("route", ["channels", "channels/news", "channels/presence-room/users"])
async def test_unavailable_engine_is_a_503(client: fakes.Client, hub: fakes.Hub, route: str) -> None:
    hub.engine.down = "no log"
    answer = await client.get(route)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"


async def test_head_is_signed_and_answered_like_get(client: fakes.Client) -> None:
    answer = await client.request("HEAD", fakes.signed("HEAD", "/apps/3/channels/news"))
    assert answer is not None
    assert answer.status == 200
