"""A page with a token: asked about what was sent, left alone otherwise."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from fanfare.applications import registry, rules
from fanfare.engine import errors, interface
from fanfare.engine.local import engine
from fanfare.hub import hub as hubs
from fanfare.hub import recovery, writers
from fanfare.protocol import page_sessions, server_frames, session_owners, sessions, state_machine
from tests.harness import waiting
from tests.unit.hub.doubles import FakeWriter

KEPT = rules.Rule("kept*", history_size=1_000, history_seconds=60)
APPLICATION = registry.Application("1", "k", "s", rules=rules.Rules((KEPT,)))
NEVER_S = 3_600.0


class RememberingEngine(engine.LocalEngine):
    """`saved`: for how many seconds, each time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.saved: list[int] = []

    def save_session(self, app: str, token: str, record: bytes, seconds: int, **more: Any) -> None:
        self.saved.append(seconds)
        super().save_session(app, token, record, seconds, **more)


def publication(number: int, channel: str) -> interface.Publication:
    return interface.Publication("1", channel, b'{"n":%d}' % number, retention=KEPT.retention)


class Deployment:
    """One worker."""

    def __init__(self, folder: Path) -> None:
        self.engine = RememberingEngine(folder)
        self.hub = hubs.Hub(self.engine)
        self.tokens = session_owners.SessionOwners(self.hub, time.monotonic)
        self.applications = registry.Registry()
        self.applications.put(APPLICATION)
        self.pages = 0

    async def publish(self, *numbers: int, channel: str = "kept") -> None:
        await self.hub.publish([publication(number, channel) for number in numbers])


class Page:
    """A socket of the page."""

    def __init__(
        self, deployment: Deployment, ack_interval: float = 0.0, token: str = "token-token-token", window: int = 100
    ) -> None:
        deployment.pages += 1
        self.deployment = deployment
        self.writer = FakeWriter()
        machine = state_machine.StateMachine(
            deployment.applications,
            APPLICATION,
            f"1.{deployment.pages}",
            activity_timeout=120,
            clock=time.monotonic,
            wall_clock=time.time,
        )
        connection = hubs.Connection("1", machine.socket_id, self.writer)
        options = page_sessions.Options(window=window, ack_interval=ack_interval)
        self.resume = page_sessions.PageSession(
            deployment.hub, deployment.tokens, connection, token, options=options, keeps_history=machine.keeps_history
        )
        self.session = sessions.Session(deployment.hub, connection, machine, "", self.resume)
        self.session.open()

    def say(self, event: str, **data: object) -> None:
        self.session.received(orjson.dumps({"event": event, "data": data}).decode())

    async def subscribed(self, channel: str = "kept") -> None:
        """And all was asked about that there is."""
        self.say("pusher:subscribe", channel=channel)
        await until(lambda: any(b"subscription_succeeded" in body for body in self.writer.bodies))
        await until(lambda: self.is_settled)

    @property
    def is_settled(self) -> bool:
        return self.resume.resumption is not None and not self.resume._unasked

    @property
    def pings(self) -> int:
        return self.writer.bodies.count(server_frames.PING)

    def numbers(self) -> list[int]:
        return [orjson.loads(body)["n"] for body in self.writer.bodies if body.startswith(b'{"n"')]

    def failures(self) -> list[tuple[str, str]]:
        """The channels and reasons of what the page is told to have lost."""
        told = [orjson.loads(body) for body in self.writer.bodies if b"pusher:resume_failed" in body]
        return [(frame["channel"], orjson.loads(frame["data"])["reason"]) for frame in told]

    def seen(self, channel: str = "kept") -> int:
        """As far as is known."""
        assert self.resume.resumption is not None
        start = self.resume.resumption.start_of(channel)
        return start.offset if start is not None else -1


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 10, "the condition")


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    deployment = Deployment(tmp_path)
    await deployment.hub.start()
    yield deployment
    await deployment.hub.stop()


async def test_each_thing_that_is_sent_is_asked_about_once(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    assert page.pings == 0
    for number in range(1, 4):
        await deployment.publish(number)
        await until(lambda number=number: page.pings == number)
        page.say("pusher:pong")
        assert page.seen() == number
        for _ in range(3):
            page.resume.look()
        assert page.pings == number
        assert page.is_settled
    page.session.end()


async def test_one_ping_asks_about_all_channels(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed("kept-1")
    await page.subscribed("kept-2")
    await deployment.hub.publish([publication(1, "kept-1"), publication(1, "kept-2"), publication(2, "kept-2")])
    await until(lambda: page.pings)
    page.resume.look()
    page.say("pusher:pong")
    assert (page.pings, page.seen("kept-1"), page.seen("kept-2")) == (1, 1, 2)
    page.session.end()


async def test_many_events_are_asked_about_before_their_time(deployment: Deployment) -> None:
    page = Page(deployment, ack_interval=NEVER_S)
    await page.subscribed()
    await deployment.publish(1)
    await until(lambda: page.pings == 1)
    await deployment.publish(*range(2, page_sessions.PING_AFTER_EVENTS + 1))
    await until(lambda: len(page.numbers()) == page_sessions.PING_AFTER_EVENTS)
    page.resume.look()
    assert page.pings == 1
    await deployment.publish(page_sessions.PING_AFTER_EVENTS + 1)
    await until(lambda: page.pings == 2)
    page.session.end()


async def test_a_replay_is_asked_about_when_it_has_come_though_nothing_follows(deployment: Deployment) -> None:
    await deployment.publish(1)
    first = Page(deployment)
    await first.subscribed()
    first.session.end()
    await deployment.publish(2, 3)
    page = Page(deployment)
    page.writer.waiting = recovery.PACE_BYTES + 1  # it is not reading yet
    page.say("pusher:subscribe", channel="kept")
    await until(lambda: deployment.hub.statistics()["replays.now"])
    page.resume.look()
    assert not page.is_settled
    assert (page.pings, page.numbers()) == (0, [])
    page.writer.waiting = 0
    await until(lambda: page.pings)
    assert page.numbers() == [2, 3]
    page.say("pusher:pong")
    assert page.seen() == 3
    page.session.end()


async def test_a_channel_that_was_left_wakes_nobody(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    other = Page(deployment, token="token-token-other")
    await other.subscribed()
    page.say("pusher:unsubscribe", channel="kept")
    await deployment.publish(1)
    await until(lambda: other.pings)
    assert page.is_settled
    assert page.pings == 0
    for one in (page, other):
        one.session.end()
        assert one.resume.slot is None


async def test_the_record_of_a_page_to_which_nothing_is_sent_is_kept_from_expiring(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(page_sessions.REFRESHED) <= page_sessions.KEPT - 1, "a window is left of it when the worker dies"
    monkeypatch.setattr(page_sessions, "REFRESHED", (0.001, 0.002))
    page = Page(deployment)
    await page.subscribed()
    so_far = len(deployment.engine.saved)
    await until(lambda: len(deployment.engine.saved) >= so_far + 3)
    assert set(deployment.engine.saved) == {page_sessions.KEPT * 100}
    assert page.pings == 0
    page.session.end()
    assert deployment.engine.saved[-1] == 100


async def test_the_progress_of_a_page_is_in_the_new_log_before_the_page_is_sent_away(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    await deployment.publish(1)
    await until(lambda: page.pings)
    page.say("pusher:pong")
    assert page.seen() == 1
    assert await deployment.engine.load_session("1", "token-token-token") is not None
    deployment.engine.place.log.unlink()
    await deployment.publish(2)
    await until(lambda: page.writer.closed)
    assert page.writer.closed == (4200, "Events may have been missed; reconnect")
    assert page.numbers() == [1]
    back = Page(deployment)  # sooner than the server below tells of the end of the first socket
    await back.subscribed()
    assert back.failures() == [("kept", "epoch_changed")]
    for one in (page, back):
        one.session.end()


async def test_a_page_that_cannot_be_looked_up_is_told_that_it_is_not_resumed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(app: str, token: str) -> bytes | None:
        raise errors.EngineUnavailable("The log cannot be read")

    monkeypatch.setattr(deployment.engine, "load_session", fail)
    page = Page(deployment)
    for channel in ("kept", "plain"):
        page.say("pusher:subscribe", channel=channel)
    await until(page.failures)
    assert page.failures() == [("kept", "engine_unavailable")]
    assert deployment.hub.statistics()["resume.not_looked_up"] == 1
    page.session.end()


async def test_a_page_that_comes_back_too_late_is_no_new_page(deployment: Deployment) -> None:
    first = Page(deployment, window=-1)
    await first.subscribed()
    await deployment.publish(1)
    await until(lambda: first.pings)
    first.say("pusher:pong")
    first.session.end()
    await deployment.publish(2)
    late = Page(deployment)
    await late.subscribed()
    assert late.numbers() == [2]
    late.session.end()


async def test_a_ping_has_a_ready_answer_once_the_client_was_greeted(deployment: Deployment) -> None:
    page = Page(deployment)  # its token is being looked up
    assert page.session.answers == {}
    await until(lambda: page.writer.bodies)
    [ping, answer] = [*page.session.answers.keys(), *page.session.answers.values()]
    page.session.received(ping.decode())
    assert writers.Batch(page.writer.bodies[-1:]).wire == answer
    page.session.end()
