"""Four workers act as one server: one order of events, and counts and presence of all workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.harness import calls, servers, sockets, waiting

Name = Callable[[str], str]
Sockets = dict[int, list[sockets.Socket]]


@pytest.fixture
async def spread(four_workers: servers.Server) -> AsyncIterator[Sockets]:
    """At least two connections to each of the four workers."""
    async with contextlib.AsyncExitStack() as stack:
        found = await sockets.spread(four_workers, stack, each=2)
        assert len(found) == 4
        yield found


@pytest.fixture
def callers(four_workers: servers.Server) -> Iterator[dict[int, calls.Caller]]:
    """An HTTP connection to each of the four workers."""
    with calls.to_each_worker(four_workers) as found:
        yield found


async def test_event_published_through_any_worker_reaches_subscribers_of_all(
    spread: Sockets, callers: dict[int, calls.Caller], name: Name
) -> None:
    channel = name("news")
    subscribers = [socket for found in spread.values() for socket in found]
    for socket in subscribers:
        await socket.subscribe(channel)
    for worker, caller in callers.items():
        await asyncio.to_thread(caller.publish, channel, "created", str(worker))
        for socket in subscribers:
            assert (await socket.expect("created", channel)).data == str(worker)


async def test_all_subscribers_see_one_order_of_concurrent_publishers(
    spread: Sockets, callers: dict[int, calls.Caller], name: Name
) -> None:
    channel = name("news")
    subscribers = [socket for found in spread.values() for socket in found]
    for socket in subscribers:
        await socket.subscribe(channel)

    def publish(caller: calls.Caller, worker: int) -> None:
        for n in range(50):
            caller.publish(channel, "created", f"{worker}:{n}")

    async with asyncio.TaskGroup() as group:
        for worker, caller in callers.items():
            group.create_task(asyncio.to_thread(publish, caller, worker))
    orders = [[(await socket.receive()).data for _ in range(200)] for socket in subscribers]
    assert all(order == orders[0] for order in orders)
    assert len(set(orders[0])) == 200
    for worker in callers:
        own = [text for text in orders[0] if text.startswith(f"{worker}:")]
        assert own == [f"{worker}:{n}" for n in range(50)], "each publisher's events keep their order"


async def test_excluded_socket_of_another_worker_gets_no_event(
    spread: Sockets, callers: dict[int, calls.Caller], name: Name
) -> None:
    channel = name("news")
    (home, (sender, *_)), *_others = spread.items()
    foreign = next(caller for worker, caller in callers.items() if worker != home)
    neighbours = [found[0] for worker, found in spread.items() if worker != home]
    for socket in (sender, *neighbours):
        await socket.subscribe(channel)
    await asyncio.to_thread(foreign.publish, channel, "first", "1", socket_id=sender.socket_id)
    await asyncio.to_thread(foreign.publish, channel, "second", "2")
    await sender.expect("second", channel)
    for socket in neighbours:
        await socket.expect("first", channel)
        await socket.expect("second", channel)


async def test_client_event_reaches_all_workers_but_not_its_sender(spread: Sockets, name: Name) -> None:
    room = name("presence-room")
    subscribers = [found[0] for found in spread.values()]
    for number, socket in enumerate(subscribers):
        await socket.subscribe(room, member={"user_id": str(number)})
    for number, socket in enumerate(subscribers):  # each member saw the later ones join
        for later in range(number + 1, len(subscribers)):
            added = await socket.expect("pusher_internal:member_added", room)
            assert added.decoded == {"user_id": str(later)}
    first, second, *others = subscribers
    await first.trigger(room, "client-typing", {"on": True})
    for socket in (second, *others):
        typing = await socket.expect("client-typing", room)
        assert (typing.data, typing.user_id) == ({"on": True}, "0")
    await second.trigger(room, "client-marker", {})
    for socket in (first, *others):
        await socket.expect("client-marker", room)
    await second.expect_silence()


async def test_user_with_connections_on_several_workers_joins_and_leaves_once(
    four_workers: servers.Server, spread: Sockets, callers: dict[int, calls.Caller], name: Name
) -> None:
    room = name("presence-room")
    watchers = [found[0] for found in spread.values()]
    for socket in watchers:
        await socket.subscribe(room, member={"user_id": "watcher"})
    for socket in watchers:
        await socket.expect_silence()

    tabs = [found[1] for found in spread.values()]
    for socket in tabs:
        snapshot = await socket.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Ann"}})
        assert sorted(snapshot.decoded["presence"]["ids"]) == ["ann", "watcher"]
    for caller in callers.values():
        answer = await asyncio.to_thread(
            caller.signed, "GET", f"channels/{room}", None, {"info": "user_count,subscription_count"}
        )
        assert answer.body == {"occupied": True, "user_count": 2, "subscription_count": 8}
        users = await asyncio.to_thread(caller.signed, "GET", f"channels/{room}/users")
        assert sorted(user["id"] for user in users.body["users"]) == ["ann", "watcher"]

    *first, last = tabs
    for socket in first:
        await socket.unsubscribe(room)
    caller = next(iter(callers.values()))

    async def one_tab_remains() -> bool:
        query = {"info": "subscription_count"}
        answer = await asyncio.to_thread(caller.signed, "GET", f"channels/{room}", None, query)
        return bool(answer.body["subscription_count"] == 5)

    await waiting.until_async(one_tab_remains, 5.0, "three tabs have unsubscribed")
    await asyncio.to_thread(caller.publish, room, "marker", "")
    for socket in watchers:
        await socket.expect("pusher_internal:member_added", room)
        await socket.expect("marker", room)  # so no member_removed came before

    await last.unsubscribe(room)
    for socket in watchers:
        removed = await socket.expect("pusher_internal:member_removed", room)
        assert removed.decoded == {"user_id": "ann"}


async def test_channel_list_covers_all_workers(spread: Sockets, callers: dict[int, calls.Caller], name: Name) -> None:
    prefix = name("news")
    channels: dict[str, dict[str, int]] = {}
    for worker, found in spread.items():
        channels[f"{prefix}-{worker}"] = {}
        await found[0].subscribe(f"{prefix}-{worker}")
    for caller in callers.values():
        answer = await asyncio.to_thread(caller.signed, "GET", "channels", None, {"filter_by_prefix": prefix})
        assert answer.body == {"channels": channels}


async def test_data_folders_are_separate_deployments(
    four_workers: servers.Server, uvicorn: servers.Server, name: Name
) -> None:
    """The same application and channel in another data folder."""
    channel = name("news")
    assert uvicorn.application.id == four_workers.application.id
    async with sockets.connect(uvicorn) as here, sockets.connect(four_workers) as there:
        await here.subscribe(channel)
        await there.subscribe(channel)
        await asyncio.to_thread(calls.publish, uvicorn, channel, "here", "")
        await asyncio.to_thread(calls.publish, four_workers, channel, "there", "")
        await here.expect("here", channel)
        await there.expect("there", channel)
        await here.expect_silence()
        await there.expect_silence()
