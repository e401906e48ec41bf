"""Many consoles at once, over HTTP. The pages themselves are tested in tests/browser."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from tests.harness import calls, consoles, servers, sockets

CONSOLES = 50
SEARCHES = 10
Name = Callable[[str], str]


async def test_fifty_consoles_are_answered_and_a_client_gets_every_event(
    four_workers: servers.Server, name: Name
) -> None:
    channel, app = name("orders"), four_workers.application.id
    console = consoles.Console(four_workers)
    texts = [f"<{number}>" for number in range(SEARCHES)]
    published = 0

    def publish_round() -> None:
        nonlocal published
        with calls.Caller(four_workers) as caller:
            for text in texts:
                caller.publish(channel, "created", f"{published} {text}")
                published += 1

    async with contextlib.AsyncExitStack() as stack:
        socket = await stack.enter_async_context(sockets.connect(four_workers))
        await socket.subscribe(channel)
        overviews = [await stack.enter_async_context(console.stream("overview")) for _ in range(CONSOLES // 5)]
        wanted = texts * (CONSOLES // SEARCHES - 1)
        tails = [
            await stack.enter_async_context(console.stream("tail", app=app, channel=f"{channel}*", text=text))
            for text in wanted[: CONSOLES - len(overviews)]
        ]
        assert len(overviews) + len(tails) == CONSOLES
        reports = await asyncio.gather(*(one.next() for one in overviews))
        assert all("workers" in report for report in reports)

        found = asyncio.gather(*(one.item(lambda item: item["channel"] == channel) for one in tails))
        while not found.done():  # a tail shows events from when its worker reads the log for it
            await asyncio.to_thread(publish_round)
            await asyncio.wait([found], timeout=0.5)
        items = await found
        assert [text in item["data"] for text, item in zip(wanted, items, strict=True) if item] == [True] * len(tails)
        received = [(await socket.expect("created", channel)).data for _ in range(published)]
        assert received == [f"{number} {texts[number % SEARCHES]}" for number in range(published)]
