"""A token that several pages use: they keep their connections, and learn that they are not resumed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from fanfare.applications import registry, rules
from fanfare.engine.local import engine
from fanfare.hub import hub as hubs
from fanfare.hub import writers
from fanfare.protocol import server_frames, session_owners
from tests.harness import waiting
from tests.unit.hub.doubles import FakeWriter
from tests.unit.protocol import fakes

KEPT = rules.Rule("kept*", history_size=100, history_seconds=60)
TOKEN = "token-token-token"


class AnsweringWriter(FakeWriter):
    """The client answers each ping a moment later."""

    def __init__(self, pong: Callable[[], None]) -> None:
        super().__init__()
        self._pong = pong
        self.has_answered = False

    def write(self, batch: writers.Batch) -> bool:
        for _ in range(batch.bodies.count(server_frames.PING)):
            asyncio.get_running_loop().call_soon(self._answer)
        return super().write(batch)

    def _answer(self) -> None:
        self._pong()
        self.has_answered = True


class Page:
    """A connection with the token."""

    def __init__(self, hub: hubs.Hub, owners: session_owners.SessionOwners) -> None:
        application = registry.Application("1", "k", "s", rules=rules.Rules((KEPT,)))
        self.writer = AnsweringWriter(lambda: self.session.received('{"event":"pusher:pong"}'))
        self.session = fakes.session(hub, application, self.writer, token=TOKEN, owners=owners)
        self.session.open()
        for channel in ("kept", "plain"):
            frame = {"event": "pusher:subscribe", "data": {"channel": channel}}
            self.session.received(orjson.dumps(frame).decode())

    def failures(self) -> list[tuple[str, str]]:
        frames = [orjson.loads(body) for body in self.writer.bodies]
        failed = [frame for frame in frames if frame["event"] == "pusher:resume_failed"]
        return [(frame["channel"], orjson.loads(frame["data"])["reason"]) for frame in failed]

    async def subscribed(self) -> None:
        await until(lambda: sum(b"subscription_succeeded" in body for body in self.writer.bodies) == 2)


async def until(condition: object) -> None:
    async def look() -> object:
        return condition()  # type: ignore[operator]

    await waiting.until_async(look, 30, "the condition")


async def test_pages_that_share_a_token_stay_open_and_are_not_resumed(tmp_path: Path) -> None:
    hub = hubs.Hub(engine.LocalEngine(tmp_path))
    owners = session_owners.SessionOwners(hub)
    await hub.start()
    pages = []
    for _ in range(4):
        page = Page(hub, owners)
        await page.subscribed()
        pages.append(page)
        if len(pages) == 2:
            await until(lambda: pages[0].writer.closed is not None)
    await until(lambda: all(page.failures() for page in pages[1:]))
    assert pages[0].writer.closed is not None, "the first takeover may be that of a page whose socket had died"
    assert [page.writer.closed for page in pages[1:]] == [None] * 3
    assert [page.failures() for page in pages[1:]] == [[("kept", "token_shared")]] * 3
    for page in pages:
        page.session.end()
    await hub.stop()


async def test_page_of_a_refused_token_learns_later_that_it_may_have_lost_events(tmp_path: Path) -> None:
    now = time.time()
    hub = hubs.Hub(engine.LocalEngine(tmp_path))
    owners = session_owners.SessionOwners(hub, clock=lambda: now)
    await hub.start()
    first = Page(hub, owners)
    await first.subscribed()
    Page(hub, owners)
    await until(lambda: first.writer.closed is not None)
    page = Page(hub, owners)
    await page.subscribed()
    await until(page.failures)
    page.session.end()
    now += session_owners.REFUSED_S + 1
    for failures in ([("kept", "token_shared")], []):
        page = Page(hub, owners)
        await page.subscribed()
        assert page.failures() == failures
        if failures:
            await until(lambda page=page: page.writer.has_answered)  # the answer acknowledges the report
        page.session.end()
        await hub.engine.load_session("1", TOKEN)  # its record is written
    await hub.stop()
