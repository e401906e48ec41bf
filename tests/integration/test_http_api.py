"""HTTP API behaviour across four workers: one rate limit, one cache, one user."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from itertools import cycle, islice

from tests.harness import calls, sdk, servers, sockets, waiting

Name = Callable[[str], str]


async def test_terminate_connections_closes_the_user_on_every_worker_and_no_other_user(
    four_workers: servers.Server, name: Name
) -> None:
    user = name("ann")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(four_workers, stack)
        mine = [socket for found in spread.values() for socket in found]
        stranger = await stack.enter_async_context(sockets.connect(four_workers))
        await asyncio.gather(*(socket.sign_in(user) for socket in mine))
        await stranger.sign_in(name("bob"))
        assert await asyncio.to_thread(sdk.client(four_workers).terminate_user_connections, user) == {}
        codes = await asyncio.gather(*(socket.closed() for socket in mine))
        await stranger.expect_silence()
    assert len(spread) == 4
    assert set(codes) == {4009}


async def test_terminate_connections_with_reconnect_closes_with_4200(four_workers: servers.Server, name: Name) -> None:
    user = name("ann")
    async with sockets.connect(four_workers) as socket:
        await socket.sign_in(user)
        with calls.Caller(four_workers) as caller:
            route = f"users/{user}/terminate_connections"
            answer = await asyncio.to_thread(caller.signed, "POST", route, query={"reconnect": "1"})
        assert (answer.status, answer.body) == (200, {})
        assert await socket.closed() == 4200


async def test_every_worker_returns_the_cached_event_of_a_cache_channel(
    four_workers: servers.Server, name: Name
) -> None:
    channel = name("cache")
    calls.publish(four_workers, channel, "price", '{"eur":7}')
    with calls.to_each_worker(four_workers) as callers:
        for caller in callers.values():
            answer = caller.signed("GET", f"channels/{channel}", query={"info": "cache"})
            assert answer.body["cache"]["data"] == '{"eur":7}'
            assert 0 < answer.body["cache"]["ttl"] <= 1_800
    async with sockets.connect(four_workers) as socket:
        await socket.subscribe(channel)
        assert (await socket.expect("price", channel)).data == '{"eur":7}'


async def test_workers_share_one_rate_limit_and_the_refusal_has_both_numbers(
    four_workers: servers.Server, name: Name
) -> None:
    application = await asyncio.to_thread(four_workers.deployment.create_application, name("bounded"))
    change = f"Application.objects.filter(app_id={application.id!r}).get()"
    code = f"one = {change}\none.max_events_per_second = 10\none.save()"
    await asyncio.to_thread(four_workers.deployment.shell, code)
    event = {"name": "e", "channels": ["a", "b", "c", "d", "e"], "data": ""}
    with calls.to_each_worker(four_workers) as callers:
        for caller in callers.values():
            caller.application = application

        def refused() -> calls.Answer | None:
            """Send twelve requests with five events each, more than the limit of a second, spread over the workers."""
            for caller in islice(cycle(callers.values()), 12):
                answer = caller.signed("POST", "events", event)
                if answer.status == 429:
                    return answer
            return None

        async def found() -> calls.Answer | None:
            return await asyncio.to_thread(refused)

        answer = await waiting.until_async(found, 10.0, "a publish is refused")
        assert answer is not None
        assert answer.headers["retry-after"] == "1"
        assert "15" in answer.body["error"]
        assert "10" in answer.body["error"]

        async def accepted() -> bool:
            for caller in callers.values():
                if (await asyncio.to_thread(caller.signed, "POST", "events", event)).status == 200:
                    return True
            return False

        await waiting.until_async(accepted, 5.0, "a publish is accepted in the next second")


async def test_repeated_publish_is_delivered_once_and_gets_the_same_response_from_every_worker(
    four_workers: servers.Server, name: Name
) -> None:
    channel = name("orders")
    key = name("key")
    event = {"name": "created", "channel": channel, "data": "x", "info": "subscription_count", "idempotency_key": key}
    async with sockets.connect(four_workers) as socket:
        await socket.subscribe(channel)
        with calls.to_each_worker(four_workers) as callers:
            answers = [caller.signed("POST", "events", event) for caller in callers.values()]
        await socket.expect("created", channel)
        await socket.expect_silence()
    assert [(answer.status, answer.body) for answer in answers] == [
        (200, {"channels": {channel: {"subscription_count": 1}}})
    ] * 4


def test_legacy_calls_work(four_workers: servers.Server, name: Name) -> None:
    channel = name("news")
    with calls.Caller(four_workers) as caller:
        answer = caller.signed("POST", f"channels/{channel}/events", b"hello", {"name": "created"})
        assert (answer.status, answer.body) == (202, {})
        answer = caller.signed("GET", f"channels/{channel}/stats")
        assert answer.body == {"occupied": False, "connection_count": 0}
