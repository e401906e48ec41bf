"""Workers die, freeze and starve; clients stop reading; the log disappears. What the others see then."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Callable

from tests.harness import calls, publishers, servers, slow, sockets, waiting

Name = Callable[[str], str]
Start = Callable[..., servers.Server]

REAPED_WITHIN = 10.0  # seconds: the promise for a dead worker's members
LOG_SECONDS = 2  # how long entries are kept where a worker is stopped for longer than that


async def test_a_killed_worker_takes_nothing_from_the_others(start: Start, name: Name) -> None:
    server = start("gunicorn")
    channel, room = name("news"), name("presence-room")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=2)
        (victim, (victims_socket, *_)), *survivors = spread.items()
        listeners = [socket for _, found in survivors for socket in found]
        watcher = listeners.pop()
        await watcher.subscribe(room, member={"user_id": "watcher"})
        await victims_socket.subscribe(room, member={"user_id": "victim"})
        await watcher.expect("pusher_internal:member_added", room)
        for socket in listeners:
            await socket.subscribe(channel)

        async with publishers.publishing(server, channel) as publisher:
            await publisher.reach(100)
            os.kill(victim, signal.SIGKILL)
            removed = await watcher.expect("pusher_internal:member_removed", room, within=REAPED_WITHIN)
            assert removed.decoded == {"user_id": "victim"}
            await publisher.reach(publisher.published + 100)

        for socket in listeners:
            received = [int((await socket.expect("tick", channel)).data) for _ in range(publisher.published)]
            assert received == list(range(publisher.published)), "a survivor missed, doubled or reordered an event"

        users = await asyncio.to_thread(_users, server, room)
        assert users == ["watcher"]
        await _the_replacement_serves(server, stack, old=set(spread), channel=channel)


async def _the_replacement_serves(
    server: servers.Server, stack: contextlib.AsyncExitStack, old: set[int], channel: str
) -> None:
    def replacement() -> set[int]:
        return set(server.workers()) - old if len(server.workers()) == 4 else set()

    (new,) = await asyncio.to_thread(waiting.until, replacement, 15.0, "the dead worker is replaced")
    spread = await sockets.spread(server, stack, workers=[new])
    (socket, *_) = spread[new]
    await socket.subscribe(channel)
    await asyncio.to_thread(calls.publish, server, channel, "marker", "{}")
    await socket.expect("marker", channel)


async def test_a_worker_that_overslept_the_log_fences_itself_and_disturbs_nobody(
    start: Start, fleet: servers.Fleet, name: Name
) -> None:
    server = start("gunicorn", fleet.deployment(FANFARE_LOG_SECONDS=str(LOG_SECONDS)))
    channel = name("news")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=2)
        (sleeper, sleeping), *others = spread.items()
        listeners = [socket for _, found in others for socket in found]
        for socket in (*sleeping, *listeners):
            await socket.subscribe(channel)

        async with publishers.publishing(server, channel) as publisher:
            await publisher.reach(50)
            os.kill(sleeper, signal.SIGSTOP)
            try:
                # Long enough that entries which the sleeper has not read are trimmed. Nothing tells when that is done.
                await asyncio.sleep(LOG_SECONDS * 4)
            finally:
                os.kill(sleeper, signal.SIGCONT)
            codes = [await socket.closed() for socket in sleeping]
            assert set(codes) == {4200}, "a worker that may have missed entries tells its clients to come again"

        for socket in listeners:
            received = [int((await socket.expect("tick", channel)).data) for _ in range(publisher.published)]
            assert received == list(range(publisher.published))

        spread = await sockets.spread(server, stack, workers=[sleeper])
        (socket, *_) = spread[sleeper]
        await socket.subscribe(channel)
        await asyncio.to_thread(calls.publish, server, channel, "marker", "{}")
        await socket.expect("marker", channel)


async def test_a_stopped_worker_that_overslept_nothing_delivers_all_of_it(start: Start, name: Name) -> None:
    server = start("gunicorn")
    channel = name("news")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=1)
        sleeper, (socket, *_) = next(iter(spread.items()))
        await socket.subscribe(channel)
        async with publishers.publishing(server, channel) as publisher:
            await publisher.reach(20)
            os.kill(sleeper, signal.SIGSTOP)
            try:
                await publisher.reach(60)
            finally:
                os.kill(sleeper, signal.SIGCONT)
            await publisher.reach(80)
        received = [int((await socket.expect("tick", channel)).data) for _ in range(publisher.published)]
    assert received == list(range(publisher.published))


async def test_a_reader_that_stalls_is_gone_within_seconds_and_nobody_waits_for_it(
    server: servers.Server, name: Name
) -> None:
    room = name("presence-room")
    flood = "x" * 50_000
    async with sockets.connect(server) as watcher:
        await watcher.subscribe(room, member={"user_id": "watcher"})
        async with slow.stalled_member(server, room, user_id="stalled"):
            await watcher.expect("pusher_internal:member_added", room)
            sent = 0
            with calls.Caller(server) as caller:
                async with asyncio.timeout(20):
                    while await asyncio.to_thread(_users_of, caller, room) != ["watcher"]:
                        for _ in range(10):
                            await asyncio.to_thread(caller.publish, room, "flood", flood)
                            sent += 1
            received = 0
            while (frame := await watcher.receive()).event == "flood":
                received += 1
            assert frame.event == "pusher_internal:member_removed"
            assert frame.decoded == {"user_id": "stalled"}
            for _ in range(sent - received):
                await watcher.expect("flood", room)
            await watcher.expect_silence()


async def test_a_stalled_readers_connection_is_dropped(server: servers.Server, name: Name) -> None:
    """Out of the hub is not enough: a transport that waits for its reader lives for ever."""
    room = name("presence-room")
    async with slow.stalled_member(server, room, user_id="stalled") as port:
        with calls.Caller(server) as caller:
            async with asyncio.timeout(60):
                while await asyncio.to_thread(server.worker_of, port) is not None:
                    await asyncio.to_thread(caller.publish, room, "flood", "x" * 50_000)


async def test_when_the_log_is_deleted_all_workers_say_so_and_agree_again(start: Start, name: Name) -> None:
    server = start("gunicorn")
    channel = name("news")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=1)
        everybody = [socket for found in spread.values() for socket in found]
        for socket in everybody:
            await socket.subscribe(channel)

        for path in server.deployment.log_files():
            path.unlink()
        for attempt in itertools.count():  # a publisher tries again on 503, as an SDK's user does
            with calls.Caller(server) as caller:
                event = {"name": "after", "channels": [channel], "data": str(attempt)}
                answer = await asyncio.to_thread(caller.signed, "POST", "events", event)
            assert answer.status in (200, 503), answer
            if answer.status == 200:
                break
            assert "retry-after" in answer.headers
            await asyncio.sleep(0.2)
        codes = await asyncio.gather(*(socket.closed(within=15) for socket in everybody))
        assert set(codes) == {4200}, "nobody may go on as if nothing was missed"

    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=1)
        for found in spread.values():
            await found[0].subscribe(channel)
        with calls.to_each_worker(server) as callers:
            for worker, caller in callers.items():
                await asyncio.to_thread(caller.publish, channel, "one-truth", str(worker))
                for found in spread.values():
                    assert (await found[0].expect("one-truth", channel)).data == str(worker)


def _users(server: servers.Server, room: str) -> list[str]:
    with calls.Caller(server) as caller:
        return _users_of(caller, room)


def _users_of(caller: calls.Caller, room: str) -> list[str]:
    answer = caller.signed("GET", f"channels/{room}/users")
    assert answer.status == 200, answer
    return sorted(user["id"] for user in answer.body["users"])
