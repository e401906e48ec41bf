"""`manage.py fanfare` beside a running server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness import calls, deployments, servers, sockets, waiting

Name = Callable[[str], str]


def run(server: servers.Server, *arguments: str) -> Any:
    return json.loads(server.deployment.manage("fanfare", "--json", *arguments))


async def test_channels_and_members_are_those_of_the_deployment(four_workers: servers.Server, name: Name) -> None:
    room = name("presence-room")
    async with sockets.connect(four_workers) as ann, sockets.connect(four_workers) as bob:
        await ann.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Ann"}})
        await bob.subscribe(room, member={"user_id": "bob"})
        assert run(four_workers, "channels", "--prefix", room) == {room: {"subscribers": 2, "users": 2}}
        assert run(four_workers, "members", room) == [
            {"id": "ann", "info": {"name": "Ann"}},
            {"id": "bob", "info": None},
        ]


async def test_an_event_is_published_and_a_user_is_disconnected(four_workers: servers.Server, name: Name) -> None:
    channel, guest = name("news"), name("guest")

    async with sockets.connect(four_workers) as socket:
        await socket.subscribe(channel)
        publish = ("publish", channel, "created", '{"id": 7}')
        printed = four_workers.deployment.manage("fanfare", *publish)
        assert re.search(r"trace \d+:\d+$", printed.strip())
        assert (await socket.expect("created", channel)).decoded == {"id": 7}
        assert set(run(four_workers, *publish)) == {"published", "entry", "position"}
        await socket.skip_to("created", channel)
        await socket.sign_in(guest)
        own = f"#server-to-user-{guest}"
        await socket.subscribe(own)
        waiting.until(lambda: own in run(four_workers, "channels", "--prefix", own), 10, "the user's channel is listed")
        assert own not in run(four_workers, "channels")
        assert run(four_workers, "disconnect", guest) == {"disconnected": guest}
        assert await socket.closed() == 4009


async def test_the_statistics_are_the_sum_of_the_workers(four_workers: servers.Server) -> None:
    async with sockets.connect(four_workers), sockets.connect(four_workers):
        found = run(four_workers, "stats", "--url", four_workers.url("").rstrip("/"))
    assert found["fanfare_workers"] == 4
    assert found["fanfare_connections"] >= 2
    assert found["fanfare_engine_up"] == 1


async def test_tail_and_trace_show_an_event_and_its_sockets(four_workers: servers.Server, name: Name) -> None:
    channel, url = name("tail"), four_workers.url("").rstrip("/")
    app = four_workers.application.id

    def manage(*arguments: str) -> str:
        return four_workers.deployment.manage("fanfare", "--json", "--app", app, *arguments, "--url", url)

    async with sockets.connect(four_workers) as socket:
        await socket.subscribe(channel)
        tail = asyncio.create_task(
            asyncio.to_thread(manage, "tail", "--channel", channel, "--types", "events", "--limit", "1")
        )
        while not tail.done():  # the log is read from when the command's first scan began
            await asyncio.to_thread(calls.publish, four_workers, channel, "created", '{"id":7}')
            await asyncio.wait([tail], timeout=1)
        [line] = (await tail).splitlines()
        item = json.loads(line)
        assert (item["channel"], item["event"], item["data"]) == (channel, "created", '{"id":7}')
        found = json.loads(await asyncio.to_thread(manage, "trace", item["entry"]))
        written = [one["delivery"]["written"] for one in found["workers"]]
        assert written in ([1], [])  # the channel is traced from when all workers have the lease of the tail


async def test_doctor_lists_a_refusal_with_its_sentence(four_workers: servers.Server, name: Name) -> None:
    channel = name("private-doctor")
    async with sockets.connect(four_workers) as socket:
        await socket.send({"event": "pusher:subscribe", "data": {"channel": channel, "auth": "nonsense:0"}})
        await socket.skip_to("pusher:subscription_error", channel)
        found = run(four_workers, "doctor", "--url", four_workers.url("").rstrip("/"))
    [refusal] = [one for one in found["refusals"] if one.get("channel") == channel]
    assert "Invalid key" in refusal["text"]


def test_status_is_good_until_a_worker_hangs(start: Callable[..., servers.Server]) -> None:
    server = start("gunicorn")
    status = ("status", "--url", server.url("").rstrip("/"))

    def printed() -> str:
        try:
            return server.deployment.manage("fanfare", *status).strip()
        except deployments.CommandFailed as failure:  # it exits with 1
            return f"failed: {failure}"

    waiting.until(lambda: printed() == "All is well. 4 of 4 workers answered.", 60, "all workers answer")
    suspended = server.workers()[0]
    os.kill(suspended, signal.SIGSTOP)
    try:
        # The figures of a worker are taken every 1.5 s.
        waiting.until(lambda: "BAD   1 worker of 4 did not answer" in printed(), 60, "a worker is missing")
        found = printed()
        assert found.startswith("failed: ")
        assert "Something is wrong. 3 of 4 workers answered." in found
    finally:
        os.kill(suspended, signal.SIGCONT)


def test_a_lost_database_is_named_in_a_sentence(four_workers: servers.Server) -> None:
    with pytest.raises(deployments.CommandFailed, match="Django's database cannot be used: unable to open") as failure:
        four_workers.deployment.manage("fanfare", "channels", DATABASE_URL="sqlite:////no/such/folder/db.sqlite3")
    assert "Traceback" not in str(failure.value)


def test_a_worker_that_does_not_answer_is_named(four_workers: servers.Server) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    with pytest.raises(deployments.CommandFailed, match="No worker answers at") as failure:
        four_workers.deployment.manage("fanfare", "stats", "--url", url)
    assert "Traceback" not in str(failure.value)


def test_a_wrong_channel_is_refused_with_a_sentence(four_workers: servers.Server) -> None:
    with pytest.raises(deployments.CommandFailed, match="presence") as failure:
        four_workers.deployment.manage("fanfare", "members", "news")
    assert "Traceback" not in str(failure.value)
