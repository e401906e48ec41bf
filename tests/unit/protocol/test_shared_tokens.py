"""A token that several pages use: they keep their connections, and hear that they will not be resumed."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

from fanfare.applications import registry, rules
from fanfare.engine.local import engine
from fanfare.hub import hub as hubs
from fanfare.protocol import page_sessions, session_owners, sessions, state_machine
from tests.harness import waiting
from tests.unit.hub.doubles import FakeWriter

KEPT = rules.Rule("kept*", history_size=100, history_seconds=60)
TOKEN = "token-token-token"


class Page:
    """A connection with the token."""

    def __init__(self, hub: hubs.Hub, tokens: session_owners.SessionOwners, socket_id: str) -> None:
        applications = registry.Registry()
        application = registry.Application("1", "k", "s", rules=rules.Rules((KEPT,)))
        applications.put(application)
        self.writer = FakeWriter()
        machine = state_machine.StateMachine(
            applications, application, socket_id, activity_timeout=120, clock=time.monotonic, wall_clock=time.time
        )
        connection = hubs.Connection("1", socket_id, self.writer)
        self.resume = page_sessions.PageSession(
            hub, tokens, connection, TOKEN, options=page_sessions.Options(), keeps_history=machine.keeps_history
        )
        self.session = sessions.Session(hub, connection, machine, "", self.resume)
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

    await waiting.until_async(look, 5, "the condition")


async def test_pages_with_one_token_are_told_and_closed_only_once(tmp_path: Path) -> None:
    hub = hubs.Hub(engine.LocalEngine(tmp_path))
    tokens = session_owners.SessionOwners(hub, time.monotonic)
    await hub.start()
    pages = []
    for number in range(4):
        page = Page(hub, tokens, f"1.{number}")
        await page.subscribed()
        pages.append(page)
    await until(lambda: all(page.failures() for page in pages[1:]))
    assert pages[0].writer.closed is not None, "the first takeover may be that of a page whose socket had died"
    assert [page.writer.closed for page in pages[1:]] == [None] * 3
    assert [page.failures() for page in pages[1:]] == [[("kept", "token_shared")]] * 3
    for page in pages:
        page.session.end()
    await hub.stop()
