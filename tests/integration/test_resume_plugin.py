"""The browser plugin with pusher-js and Laravel Echo in Node, over breaking connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness import pusherjs, servers, streams
from tests.unit.docs import pages

PATIENCE_S = 30.0
CUTS = 4


class Follower:
    """A process of tests/clients that subscribes to one channel, and its reports."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.told: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()

    async def read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            said = json.loads(line)
            async with self._changed:
                if "n" in said:
                    self.numbers.append(said["n"])
                else:
                    self.told.append(said)
                self._changed.notify_all()

    def of(self, field: str) -> list[Any]:
        return [said[field] for said in self.told if field in said]

    async def until_number(self, number: int) -> None:
        await self._until(lambda: number in self.numbers[-100:])

    async def until_told(self, field: str, times: int = 1) -> None:
        await self._until(lambda: len(self.of(field)) >= times)

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(condition)


@contextlib.asynccontextmanager
async def following(
    runtime: pusherjs.Runtime, script: str, server: streams.StreamServer, channel: str, **environment: str
) -> AsyncIterator[Follower]:
    process = await asyncio.create_subprocess_exec(
        runtime.executable,
        str(pusherjs.CLIENTS / script),
        cwd=pusherjs.CLIENTS,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "HOST": servers.HOST,
            "PORT": str(server.port),
            "KEY": "key",
            "CHANNEL": channel,
            "AUTH": "secret",
            "JITTER": "100",
            **environment,
        },
    )
    assert process.stdout is not None
    follower = Follower()
    reader = asyncio.create_task(follower.read(process.stdout))
    try:
        await follower.until_told("subscribed")
        yield follower
    finally:
        process.kill()
        await process.wait()
        await reader


async def count_and_cut(server: streams.StreamServer, channel: str, follower: Follower) -> int:
    """Publish 1, 2, 3, … at about 1,000 a second while the connection breaks repeatedly; returns how many."""
    published = 0
    for cut in range(CUTS):
        subscriptions = len(follower.of("subscribed"))
        for _ in range(random.randint(100, 400)):
            published += 1
            server.publish(channel, {"n": published})
            await asyncio.sleep(0.001)
        if cut % 2:
            await server.close_connections(4200)  # pusher-js reconnects at once
        else:
            server.reset_connections()  # pusher-js reconnects after a second
        while len(follower.of("subscribed")) == subscriptions:
            published += 1
            server.publish(channel, {"n": published})
            await asyncio.sleep(0.001)
    published += 1
    server.publish(channel, {"n": published})
    return published


@pytest.mark.parametrize("channel", ["orders", "private-orders", "presence-orders"])
@pytest.mark.parametrize("environment", [{}, {"ECHO": "1"}], ids=["pusher-js", "Echo"])
async def test_every_event_is_delivered_once_and_in_order_over_breaking_connections(
    pusher_js: pusherjs.Runtime, channel: str, environment: dict[str, str]
) -> None:
    async with (
        streams.StreamServer(duplicates=True).running() as server,
        following(pusher_js, "plugin.mjs", server, channel, **environment) as follower,
    ):
        published = await count_and_cut(server, channel, follower)
        await follower.until_number(published)
    assert follower.numbers == list(range(1, published + 1))
    assert [stream["recovered"] for stream in follower.of("stream")] == [False] + [True] * CUTS
    assert follower.of("reset") == []


async def test_unit_tests_of_the_plugin(pusher_js: pusherjs.Runtime) -> None:
    """Run tests/clients/resume.test.mjs: pusher-js over simulated WebSockets."""
    process = await asyncio.create_subprocess_exec(
        pusher_js.executable, "--test", "resume.test.mjs", cwd=pusherjs.CLIENTS, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_pusher_js_without_the_plugin_loses_events(pusher_js: pusherjs.Runtime) -> None:
    """Shows that the tests above would detect a loss."""
    async with (
        streams.StreamServer().running() as server,
        following(pusher_js, "plain.mjs", server, "orders") as follower,
    ):
        published = await count_and_cut(server, "orders", follower)
        await follower.until_number(published)
    assert len(set(follower.numbers)) < published


async def test_client_is_notified_of_a_new_epoch(pusher_js: pusherjs.Runtime) -> None:
    async with (
        streams.StreamServer().running() as server,
        following(pusher_js, "plugin.mjs", server, "orders") as follower,
    ):
        for number in range(1, 6):
            server.publish("orders", {"n": number})
        await follower.until_number(5)
        server.epoch, server.logs["orders"] = "epoch002", [{"n": 100}]
        server.reset_connections()
        await follower.until_told("reset")
        server.publish("orders", {"n": 101})  # offset 2 of the new epoch, not a duplicate of 2
        await follower.until_number(101)
    assert follower.numbers == [1, 2, 3, 4, 5, 101]
    assert [(said["reset"], said["reason"]) for said in follower.told if "reset" in said] == [
        ("orders", "epoch_changed")
    ]


# -- outages -----------------------------------------------------------------------------------------------------------

BACK_S = 3.0  # after the server's return, at the latest

OUTAGES = [pytest.param(0.5, id="0.5 s"), pytest.param(2.0, id="2 s"), pytest.param(8.0, id="8 s")]


async def return_s(server: streams.StreamServer, follower: Follower, outage_s: float) -> float:
    """Seconds from the server's return until the client is subscribed again."""
    subscriptions = len(follower.of("subscribed"))
    await server.outage(outage_s)
    returned = time.monotonic()
    await follower.until_told("subscribed", subscriptions + 1)
    return time.monotonic() - returned


@pytest.mark.parametrize("outage_s", OUTAGES)
async def test_plugin_is_back_within_seconds_of_the_servers_return(
    pusher_js: pusherjs.Runtime, outage_s: float
) -> None:
    async with (
        streams.StreamServer().running() as server,
        following(pusher_js, "plugin.mjs", server, "orders", JITTER="2000") as follower,
    ):
        for _ in range(2):
            assert await return_s(server, follower, outage_s) < BACK_S
        server.publish("orders", {"n": 1})
        await follower.until_number(1)
        assert set(follower.of("state")) <= {"connecting", "connected"}, "pusher-js saw no failure"


async def test_snippet_brings_plain_pusher_js_back_within_seconds(pusher_js: pusherjs.Runtime) -> None:
    code = pages.snippet("docs/how-to/resume.md", "state_change")
    async with (
        streams.StreamServer().running() as server,
        following(pusher_js, "plain.mjs", server, "orders", SNIPPET=code) as follower,
    ):
        assert await return_s(server, follower, 6.0) < 5.0
        server.publish("orders", {"n": 1})
        await follower.until_number(1)
