"""`manage.py fanfare` beside a running server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness import deployments, servers, sockets

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
    channel = name("news")
    async with sockets.connect(four_workers) as socket:
        await socket.subscribe(channel)
        assert run(four_workers, "publish", channel, "created", '{"id": 7}') == {"published": True}
        assert (await socket.expect("created", channel)).decoded == {"id": 7}


async def test_the_statistics_are_the_sum_of_the_workers(four_workers: servers.Server) -> None:
    async with sockets.connect(four_workers), sockets.connect(four_workers):
        found = run(four_workers, "stats", "--url", four_workers.url("").rstrip("/"))
    assert found["fanfare_workers"] == 4
    assert found["fanfare_connections"] >= 2
    assert found["fanfare_engine_up"] == 1


def test_a_worker_that_does_not_answer_is_named(four_workers: servers.Server) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    with pytest.raises(deployments.CommandFailed, match="No worker answers at") as failure:
        four_workers.deployment.manage("fanfare", "stats", "--url", url)
    assert "Traceback" not in str(failure.value)


def test_a_wrong_channel_is_refused_with_a_sentence(four_workers: servers.Server) -> None:
    with pytest.raises(deployments.CommandFailed, match="presence") as failure:
        four_workers.deployment.manage("fanfare", "members", "news")
    assert "Traceback" not in str(failure.value)
