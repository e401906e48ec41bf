"""Pages that are rendered while their data changes: no change between the rendering and the subscribing is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from fanfare.engine.local import engine as local_engine
from tests.harness import calls, servers, sockets

Name = Callable[[str], str]
COMMITS = int(os.environ.get("SNAPSHOT_COMMITS", "2000"))  # 10000 for the proof


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> servers.Server:
    deployment = fleet.deployment()
    deployment.shell(
        f"application = Application.objects.get(app_id={deployment.application.id!r})\n"
        "application.rules.create(pattern='orders-*', history_size=5000, history_seconds=600, max_replay_entries=5000)"
    )
    return fleet.start("uvicorn", deployment)


async def test_no_commit_is_lost_between_the_snapshot_and_the_subscription(server: servers.Server, name: Name) -> None:
    """A page reads the position, then the data, then subscribes at the position, as `snapshot()` has it do."""
    channel = name("orders")
    committed = 0  # the newest value that the "database" has

    def commit() -> None:
        nonlocal committed
        with calls.Caller(server) as caller:
            for number in range(1, COMMITS + 1):
                committed = number
                caller.publish(channel, "saved", str(number))

    engine = local_engine.LocalEngine(server.deployment.folder / "engine")

    def position() -> dict[str, object] | None:
        with engine.queries() as queries:
            _, top = queries.read(server.application.id, channel, 0, 1, newest_first=True)
        return None if top is None else {"epoch": top.epoch, "offset": top.offset}

    async def page() -> None:
        since = await asyncio.to_thread(position)
        row = committed
        url = server.socket_url(query="protocol=7&client=tests&version=1.0.0&rt=1")
        async with sockets.connect(server, url=url) as socket:
            await socket.send({"event": "pusher:subscribe", "data": {"channel": channel, "auth": "", "resume": since}})
            answer = await socket.expect("pusher_internal:subscription_succeeded", channel)
            assert answer.decoded["stream"]["recovered"] is True
            events = [int((await socket.expect("saved", channel)).data) for _ in range(20)]
        assert events == list(range(events[0], events[0] + 20))
        assert events[0] <= row + 1, "a change between the data and the subscription is missing"

    await asyncio.to_thread(calls.publish, server, channel, "saved", "0")  # from here on the channel has a position
    committing = asyncio.create_task(asyncio.to_thread(commit))
    pages = 0
    while committed < COMMITS - 200:
        await asyncio.gather(*(page() for _ in range(4)))
        pages += 4
    await committing
    assert pages >= 20
    await engine.close()
