"""Killed and stopped workers, stalled clients, a deleted log: effects on the other workers and clients."""

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

REAPED_WITHIN = 10.0  # seconds until the members of a dead worker are removed
LOG_SECONDS = 2  # retention of the log in the test that stops a worker for longer


async def test_killed_worker_costs_other_workers_no_event(start: Start, name: Name) -> None:
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
            assert received == list(range(publisher.published)), (
                "lost, duplicated or reordered event on a surviving worker"
            )

        users = await asyncio.to_thread(_users, server, room)
        assert users == ["watcher"]
        await _replacement_serves(server, stack, old=set(spread), channel=channel)


async def _replacement_serves(
    server: servers.Server, stack: contextlib.AsyncExitStack, old: set[int], channel: str
) -> None:
    def replacement() -> set[int]:
        return set(server.workers()) - old if len(server.workers()) == 4 else set()

    (new,) = await asyncio.to_thread(waiting.until, replacement, 15.0, "the killed worker is replaced")
    spread = await sockets.spread(server, stack, workers=[new])
    (socket, *_) = spread[new]
    await socket.subscribe(channel)
    await asyncio.to_thread(calls.publish, server, channel, "marker", "{}")
    await socket.expect("marker", channel)


async def test_worker_with_a_gap_closes_its_clients_with_4200_and_affects_no_others(
    start: Start, fleet: servers.Fleet, name: Name
) -> None:
    server = start("gunicorn", fleet.deployment(FANFARE_LOG_SECONDS=str(LOG_SECONDS)))
    channel = name("news")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=2)
        (stopped, stopped_sockets), *others = spread.items()
        listeners = [socket for _, found in others for socket in found]
        for socket in (*stopped_sockets, *listeners):
            await socket.subscribe(channel)

        async with publishers.publishing(server, channel) as publisher:
            await publisher.reach(50)
            os.kill(stopped, signal.SIGSTOP)
            try:
                # Until unread entries are trimmed, which cannot be observed from outside.
                await asyncio.sleep(LOG_SECONDS * 4)
            finally:
                os.kill(stopped, signal.SIGCONT)
            codes = [await socket.closed() for socket in stopped_sockets]
            assert set(codes) == {4200}, "after a gap, a worker asks its clients to reconnect"

        for socket in listeners:
            received = [int((await socket.expect("tick", channel)).data) for _ in range(publisher.published)]
            assert received == list(range(publisher.published))

        spread = await sockets.spread(server, stack, workers=[stopped])
        (socket, *_) = spread[stopped]
        await socket.subscribe(channel)
        await asyncio.to_thread(calls.publish, server, channel, "marker", "{}")
        await socket.expect("marker", channel)


async def test_stopped_worker_without_a_gap_delivers_all_events(start: Start, name: Name) -> None:
    server = start("gunicorn")
    channel = name("news")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=1)
        stopped, (socket, *_) = next(iter(spread.items()))
        await socket.subscribe(channel)
        async with publishers.publishing(server, channel) as publisher:
            await publisher.reach(20)
            os.kill(stopped, signal.SIGSTOP)
            try:
                await publisher.reach(60)
            finally:
                os.kill(stopped, signal.SIGCONT)
            await publisher.reach(80)
        received = [int((await socket.expect("tick", channel)).data) for _ in range(publisher.published)]
    assert received == list(range(publisher.published))


async def test_stalled_reader_is_removed_within_seconds_and_delays_no_other_client(
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


async def test_connection_of_a_stalled_reader_is_closed(server: servers.Server, name: Name) -> None:
    """Removal from the hub is not enough: a transport with unsent data would stay open forever."""
    room = name("presence-room")
    async with slow.stalled_member(server, room, user_id="stalled") as port:
        with calls.Caller(server) as caller:
            async with asyncio.timeout(60):
                while await asyncio.to_thread(server.worker_of, port) is not None:
                    await asyncio.to_thread(caller.publish, room, "flood", "x" * 50_000)


async def test_deleted_log_closes_all_clients_with_4200_and_workers_share_a_new_log(start: Start, name: Name) -> None:
    server = start("gunicorn")
    channel = name("news")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=1)
        subscribers = [socket for found in spread.values() for socket in found]
        for socket in subscribers:
            await socket.subscribe(channel)

        for path in server.deployment.log_files():
            path.unlink()
        for attempt in itertools.count():  # retry on 503, as a publisher does
            with calls.Caller(server) as caller:
                event = {"name": "after", "channels": [channel], "data": str(attempt)}
                answer = await asyncio.to_thread(caller.signed, "POST", "events", event)
            assert answer.status in (200, 503), answer
            if answer.status == 200:
                break
            assert "retry-after" in answer.headers
            await asyncio.sleep(0.2)
        codes = await asyncio.gather(*(socket.closed(within=15) for socket in subscribers))
        assert set(codes) == {4200}, "every client must learn of the loss"

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
