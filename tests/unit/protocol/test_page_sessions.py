"""The session of a page with a token: its pings, its record, and its token."""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from fanfare.applications import rules
from fanfare.engine import errors, interface
from fanfare.engine.local import engine
from fanfare.hub import hub as hubs
from fanfare.hub import pacing, writers
from fanfare.protocol import page_sessions, server_frames, session_owners
from tests.harness import waiting
from tests.unit.hub.doubles import FakeWriter
from tests.unit.protocol import fakes

KEPT = rules.Rule("kept*", history_size=1_000, history_seconds=60)
APPLICATION = fakes.application(id="1", rules=rules.Rules((KEPT,)))
NEVER_S = 3_600.0
TOKEN = "token-token-token"


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
        self.owners = session_owners.SessionOwners(self.hub)

    async def publish(self, *numbers: int, channel: str = "kept") -> None:
        await self.hub.publish([publication(number, channel) for number in numbers])


class Page:
    """A socket of the page."""

    def __init__(
        self,
        deployment: Deployment,
        ack_interval: float = 0.0,
        token: str = TOKEN,
        window: int = 100,
        origin: str = "",
        max_tokens: int = 1_000_000,
        **options: Any,
    ) -> None:
        self.deployment = deployment
        self.writer = FakeWriter()
        self.session = fakes.session(
            deployment.hub,
            APPLICATION,
            self.writer,
            token=token,
            owners=deployment.owners,
            origin=origin,
            resume=page_sessions.Options(window=window, ack_interval=ack_interval, max_tokens=max_tokens),
            **options,
        )
        page = self.session._page
        assert page is not None
        self.page = page
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
        return self.page.tracker is not None and not self.page._unpinged

    @property
    def pings(self) -> int:
        return self.writer.bodies.count(server_frames.PING)

    def numbers(self) -> list[int]:
        return [orjson.loads(body)["n"] for body in self.writer.bodies if body.startswith(b'{"n"')]

    def failures(self) -> list[tuple[str, str]]:
        """The channels and reasons of the `pusher:resume_failed` frames."""
        frames = [orjson.loads(body) for body in self.writer.bodies if b"pusher:resume_failed" in body]
        return [(frame["channel"], orjson.loads(frame["data"])["reason"]) for frame in frames]

    def seen(self, channel: str = "kept") -> int:
        """The acknowledged offset."""
        assert self.page.tracker is not None
        start, _ = self.page.tracker.start_of(channel)
        return start.offset if start is not None else -1


async def until(condition: Callable[[], object]) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 30, "the condition")


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    deployment = Deployment(tmp_path)
    await deployment.hub.start()
    yield deployment
    await deployment.hub.stop()


async def test_session_of_a_client_that_is_gone_is_freed_without_the_garbage_collector(deployment: Deployment) -> None:
    pages = [Page(deployment)]
    await pages[0].subscribed()
    await deployment.publish(1)
    await until(lambda: pages[0].pings == 1)
    writer = weakref.ref(pages[0].writer)  # the connection refers to it
    gc.collect()  # what the test itself leaves
    gc.disable()
    try:
        pages[0].writer.aborted = True
        pages.pop().session.end()
        await until(lambda: writer() is None)
    finally:
        gc.enable()


async def test_each_event_is_pinged_for_once(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    assert page.pings == 0
    for number in range(1, 4):
        await deployment.publish(number)
        await until(lambda number=number: page.pings == number)
        page.say("pusher:pong")
        assert page.seen() == number
        for _ in range(3):
            page.page.due()
        assert page.pings == number
        assert page.is_settled
    page.session.end()


async def test_one_ping_covers_all_channels(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed("kept-1")
    await page.subscribed("kept-2")
    await deployment.hub.publish([publication(1, "kept-1"), publication(1, "kept-2"), publication(2, "kept-2")])
    await until(lambda: page.pings)
    page.page.due()
    page.say("pusher:pong")
    assert (page.pings, page.seen("kept-1"), page.seen("kept-2")) == (1, 1, 2)
    page.session.end()


async def test_many_events_are_pinged_for_before_the_interval_has_passed(deployment: Deployment) -> None:
    page = Page(deployment, ack_interval=NEVER_S)
    await page.subscribed()
    await deployment.publish(1)
    await until(lambda: page.pings == 1)
    await deployment.publish(*range(2, page_sessions.PING_AFTER_EVENTS + 1))
    await until(lambda: len(page.numbers()) == page_sessions.PING_AFTER_EVENTS)
    page.page.due()
    assert page.pings == 1
    await deployment.publish(page_sessions.PING_AFTER_EVENTS + 1)
    await until(lambda: page.pings == 2)
    page.session.end()


async def test_recovered_entries_are_pinged_for_when_they_were_sent(deployment: Deployment) -> None:
    await deployment.publish(1)
    first = Page(deployment)
    await first.subscribed()
    first.session.end()
    await deployment.publish(2, 3)
    page = Page(deployment)
    page.writer.waiting = pacing.PACE_BYTES + 1  # it is not reading yet
    page.say("pusher:subscribe", channel="kept")
    await until(lambda: deployment.hub.statistics()["recoveries.now"])
    page.page.due()
    assert not page.is_settled
    assert (page.pings, page.numbers()) == (0, [])
    page.writer.waiting = 0
    await until(lambda: page.pings)
    assert page.numbers() == [2, 3]
    page.say("pusher:pong")
    assert page.seen() == 3
    page.session.end()


async def test_report_of_a_loss_is_repeated_until_the_page_has_acknowledged_it(deployment: Deployment) -> None:
    first = Page(deployment)
    await first.subscribed()
    first.session.end()
    await deployment.hub.publish(
        [publication(number, "kept")._replace(retention=interface.Retention(1, 60)) for number in (1, 2)]
    )
    for acknowledges, failures in (
        (False, [("kept", "position_expired")]),
        (True, [("kept", "position_expired")]),
        (True, []),
    ):
        page = Page(deployment, ack_interval=NEVER_S)
        await page.subscribed()
        assert page.failures() == failures
        assert page.pings == len(failures)
        if acknowledges:
            page.say("pusher:pong")
        page.session.end()


@pytest.mark.parametrize(("age_s", "pause_s"), [(0.0, 0.1), (0.5, 0.5), (60.0, 1.0)])
async def test_young_page_with_events_without_a_ping_is_looked_at_sooner(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, age_s: float, pause_s: float
) -> None:
    page = Page(deployment, ack_interval=NEVER_S)
    await page.subscribed()
    await deployment.publish(1)
    await until(lambda: page.pings == 1)
    await deployment.publish(2)
    await until(lambda: not page.is_settled)
    pauses: list[float] = []
    monkeypatch.setattr(deployment.owners.wheel, "schedule", lambda _, seconds: pauses.append(seconds))
    monkeypatch.setattr(page_sessions, "time", types.SimpleNamespace(monotonic=lambda: 1_000.0))
    page.page._began_s = 1_000.0 - age_s
    page.page.due()
    assert pauses == pytest.approx([pause_s])
    monkeypatch.undo()
    page.session.end()


async def test_ping_and_watch_of_a_channel_come_in_one_turn(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(deployment, ack_interval=NEVER_S)
    await page.subscribed()
    monkeypatch.setattr(deployment.owners.wheel, "schedule", lambda *_: None)  # the test is the timer
    await deployment.publish(1)
    await until(lambda: not page.is_settled)
    page.page.due()
    assert (page.pings, page.is_settled) == (1, True)
    page.session.end()


async def test_page_whose_buffer_is_full_is_closed_by_its_ping(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(deployment)
    await page.subscribed()
    monkeypatch.setattr(deployment.owners.wheel, "schedule", lambda *_: None)  # the test is the timer
    await deployment.publish(1)
    await until(lambda: not page.is_settled)
    page.writer.full = True
    page.page.due()
    assert page.writer.closed == (4100, "The connection reads too slowly")
    assert page.pings == 1
    page.session.end()


@pytest.mark.parametrize("ending", ["close", "lose_token"])
async def test_page_without_a_connection_or_token_is_not_looked_at_again(deployment: Deployment, ending: str) -> None:
    page = Page(deployment)
    await page.subscribed()
    if ending == "close":
        page.session.close(4200, "test")
    else:
        page.page.lose_token()
    deployment.owners.wheel.cancel(page.page)
    so_far = list(page.writer.bodies)
    page.page.due()
    assert page.page.slot is None
    assert page.writer.bodies == so_far
    page.session.end()


async def test_record_is_not_stored_again_before_it_is_refreshed(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    so_far = len(deployment.engine.saved)
    for _ in range(3):
        page.page.due()
    assert len(deployment.engine.saved) == so_far
    page.session.end()


async def test_unsubscribed_channel_causes_no_ping(deployment: Deployment) -> None:
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
        assert one.page.slot is None


async def test_record_of_an_idle_page_is_refreshed(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(page_sessions.REFRESHED) <= page_sessions.STORED - 1, "a window is left of it when the worker dies"
    monkeypatch.setattr(page_sessions, "REFRESHED", (0.001, 0.002))
    page = Page(deployment)
    await page.subscribed()
    so_far = len(deployment.engine.saved)
    await until(lambda: len(deployment.engine.saved) >= so_far + 3)
    assert set(deployment.engine.saved) == {page_sessions.STORED * 100}
    assert page.pings == 0
    page.session.end()
    assert deployment.engine.saved[-1] == 100


async def test_record_is_in_the_new_log_before_the_page_is_closed(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    await deployment.publish(1)
    await until(lambda: page.pings)
    page.say("pusher:pong")
    assert page.seen() == 1
    assert await deployment.engine.load_session("1", "token-token-token") is not None
    deployment.engine.paths.log.unlink()
    await deployment.publish(2)
    await until(lambda: page.writer.closed)
    assert page.writer.closed == (4200, "Events may have been missed; reconnect")
    assert page.numbers() == [1]
    back = Page(deployment)  # sooner than the server below tells of the end of the first socket
    await back.subscribed()
    assert back.failures() == [("kept", "epoch_changed")]
    for one in (page, back):
        one.session.end()


async def test_page_whose_record_cannot_be_read_waits_and_loses_nothing(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Page(deployment)
    await first.subscribed()
    first.session.end()
    await deployment.publish(1)
    failures = 3
    take = deployment.engine.take_session

    async def fail(app: str, token: str, holder: str) -> interface.Taken:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise errors.EngineUnavailable("The memory of the store is full")
        return await take(app, token, holder)

    monkeypatch.setattr(page_sessions, "WAIT_S", NEVER_S)
    monkeypatch.setattr(deployment.engine, "take_session", fail)
    back = Page(deployment)
    back.say("pusher:subscribe", channel="kept")
    await until(lambda: back.numbers() == [1])
    assert back.failures() == []
    assert deployment.hub.statistics().get("resume.not_looked_up", 0) == 0
    back.session.end()


@pytest.mark.parametrize(("lost_s", "expected"), [(0.0, [("kept", "epoch_changed")]), (1_000.0, []), (None, [])])
async def test_page_without_a_record_gets_epoch_changed_for_one_window_after_the_store_lost_records(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, lost_s: float | None, expected: list[tuple[str, str]]
) -> None:
    take = deployment.engine.take_session

    async def take_after_a_loss(app: str, token: str, holder: str) -> interface.Taken:
        return (await take(app, token, holder))._replace(lost_s=lost_s)

    monkeypatch.setattr(deployment.engine, "take_session", take_after_a_loss)
    page = Page(deployment, window=100)
    page.say("pusher:subscribe", channel="plain")  # keeps no history
    await page.subscribed()
    await until(lambda: page.seen() >= 0)
    assert page.failures() == expected
    page.session.end()
    back = Page(deployment, window=100)
    await deployment.publish(1)
    await back.subscribed()
    await until(lambda: back.numbers() == [1])
    assert back.failures() == [], "its record was written after the loss"
    back.session.end()


async def test_page_whose_record_stays_unreadable_is_closed_with_4100(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(app: str, token: str) -> bytes | None:
        raise errors.EngineUnavailable("The log cannot be read")

    monkeypatch.setattr(page_sessions, "WAIT_S", 0.0)
    monkeypatch.setattr(deployment.engine, "load_session", fail)
    page = Page(deployment)
    page.say("pusher:subscribe", channel="kept")
    await until(lambda: page.writer.closed)
    assert page.writer.closed == (4100, "The connection cannot be accepted now: The log cannot be read")
    assert page.failures() == []
    assert deployment.hub.statistics()["resume.not_looked_up"] == 1
    page.session.end()


async def test_page_whose_record_is_wrong_gets_resume_failed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(app: str, token: str) -> bytes | None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(deployment.engine, "load_session", fail)
    page = Page(deployment)
    for channel in ("kept", "plain"):
        page.say("pusher:subscribe", channel=channel)
    await until(page.failures)
    assert page.failures() == [("kept", "engine_unavailable")]
    assert deployment.hub.statistics()["resume.not_looked_up"] == 1
    page.session.end()


async def test_page_that_comes_back_late_recovers_from_its_record(deployment: Deployment) -> None:
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


async def test_ping_has_a_ready_answer_once_the_connection_is_established(deployment: Deployment) -> None:
    page = Page(deployment)  # its token is being looked up
    assert page.session.answers == {}
    await until(lambda: page.writer.bodies)
    [ping, answer] = [*page.session.answers.keys(), *page.session.answers.values()]
    page.session.received(ping.decode())
    assert writers.Batch(page.writer.bodies[-1:]).wire == answer
    page.session.end()


# -- the owner of a record ---------------------------------------------------------------------------------------------


async def test_socket_of_another_origin_gets_nothing_of_the_record_and_leaves_the_page_alone(
    deployment: Deployment,
) -> None:
    page = Page(deployment, origin="https://shop.example")
    await page.subscribed()
    await deployment.publish(1)
    for origin in ("https://evil.example", ""):
        thief = Page(deployment, origin=origin)
        thief.say("pusher:subscribe", channel="kept")
        await until(thief.failures)
        assert thief.failures() == [("kept", "token_foreign")]
        assert (thief.page.tracker, thief.numbers()) == (None, [])
        thief.session.end()
    assert page.writer.closed is None
    page.session.end()
    back = Page(deployment, origin="https://shop.example")
    await back.subscribed()
    assert back.numbers() == [1]
    back.session.end()
    assert deployment.hub.statistics()["resume.token_foreign"] == 2


async def signed_in(page: Page, user_id: str) -> None:
    page.session.received(fakes.signin(f'{{"id":"{user_id}"}}', socket_id=page.page.socket_id))
    await until(lambda: any(b"signin_success" in body for body in page.writer.bodies))


async def test_record_of_a_user_is_taken_only_by_a_socket_that_signs_in_as_that_user(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    await signed_in(page, "42")
    thief = Page(deployment)
    await thief.subscribed()
    assert page.writer.closed is None, "a socket that has not signed in evicts none"
    await signed_in(thief, "7")
    assert page.writer.closed is None
    assert thief.failures() == [("kept", "token_foreign")]
    assert deployment.hub.counters["resume.token_foreign"] == 1
    thief.session.end()
    back = Page(deployment)
    await back.subscribed()
    await signed_in(back, "42")
    await until(lambda: page.writer.closed)
    assert page.writer.closed == (4200, "Another connection of this page took over")
    assert back.failures() == []
    back.session.end()


async def test_new_token_over_the_limit_is_not_resumed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = Page(deployment)
    await known.subscribed()
    known.session.end()
    monkeypatch.setattr(deployment.engine, "statistics", lambda: {"sessions": 8, "sessions_late": 1})
    new = Page(deployment, token="another-token-token", max_tokens=7)
    new.say("pusher:subscribe", channel="kept")
    await until(new.failures)
    assert new.failures() == [("kept", "too_many_tokens")]
    assert deployment.hub.counters["resume.too_many_tokens"] == 1
    assert "the deployment has 7, and 7 are allowed" in caplog.text
    back = Page(deployment, max_tokens=7)
    await back.subscribed()
    assert back.failures() == []
    for page in (new, back):
        page.session.end()


@pytest.mark.parametrize("error", [errors.EngineUnavailable("away"), RuntimeError("a fault")])
async def test_page_whose_token_cannot_be_taken_reconnects_or_gets_resume_failed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    first = Page(deployment)
    await first.subscribed()
    await signed_in(first, "42")
    first.session.end()
    back = Page(deployment)
    await back.subscribed()

    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(deployment.owners, "take", fail)
    await signed_in(back, "42")
    await until(lambda: back.failures() or back.writer.closed)
    if isinstance(error, errors.EngineUnavailable):
        assert back.writer.closed == (4100, "The connection cannot be accepted now: away")
        assert back.failures() == []
    else:
        assert back.failures() == [("kept", "engine_unavailable")]
    back.session.end()


async def test_page_recovers_before_it_has_signed_in_again(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    await signed_in(page, "42")
    page.session.end()
    await deployment.publish(1)
    for user_id, expected in ((None, [1]), ("42", [1]), (None, [])):
        back = Page(deployment)
        back.say("pusher:subscribe", channel="kept")
        await until(lambda back=back: any(b"subscription_succeeded" in body for body in back.writer.bodies))
        if user_id is not None:
            await signed_in(back, user_id)
        if expected:
            await until(lambda back=back: back.pings)
            back.say("pusher:pong")
        assert back.numbers() == expected, "only a socket that has signed in changes the record"
        back.session.end()


async def test_unsubscribed_channels_make_room_in_the_record(deployment: Deployment) -> None:
    page = Page(deployment, max_subscriptions=2)
    await page.subscribed("kept-1")
    await page.subscribed("kept-2")
    page.say("pusher:unsubscribe", channel="kept-1")
    await page.subscribed("kept-3")
    assert "resume.record_full" not in deployment.hub.statistics()
    page.session.end()


# -- a newer socket ----------------------------------------------------------------------------------------------------


async def was_answered(deployment: Deployment) -> bool:
    return await deployment.engine.load_session("1", "token-token-token" + session_owners.ANSWERED) is not None


async def test_older_socket_is_closed_as_soon_as_its_client_answers_the_last_ping(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed()
    await deployment.publish(1)
    await until(lambda: page.pings == 1)
    newer = Page(deployment)
    await until(lambda: page.pings == 2)
    page.say("pusher:pong")  # the answer to the first ping, which may have come before the takeover
    assert page.writer.closed is None
    page.say("pusher:pong")
    assert page.writer.closed == (4200, "Another connection of this page took over")
    assert await was_answered(deployment)
    for one in (page, newer):
        one.session.end()


async def test_event_does_not_shorten_the_time_in_which_an_older_socket_may_answer(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_sessions, "ANSWER_S", 60.0)
    page = Page(deployment)
    await page.subscribed()
    newer = Page(deployment)
    await until(lambda: page.pings == 1)
    await deployment.publish(1)
    await asyncio.sleep(5 * page_sessions.FIRST_LOOK_S)
    assert page.writer.closed is None
    page.say("pusher:pong")
    assert page.writer.closed == (4200, "Another connection of this page took over")
    for one in (page, newer):
        one.session.end()


async def test_older_socket_without_an_answer_is_closed_and_does_not_count_as_a_second_page(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_sessions, "ANSWER_S", 0.2)
    pages = []
    for _ in range(4):
        page = Page(deployment)
        await page.subscribed()
        pages.append(page)
    for page in pages[:-1]:
        await until(lambda page=page: page.writer.closed is not None)
        assert page.writer.closed == (4200, "Another connection of this page took over")
    assert pages[-1].writer.closed is None
    assert [page.failures() for page in pages] == [[]] * 4
    assert not await was_answered(deployment)
    for page in pages:
        page.session.end()


async def test_socket_whose_token_is_taken_before_its_greeting_is_closed_at_once(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, deployment.engine, "take_session")
    page = Page(deployment)
    await gate.reached.wait()
    newer = Page(deployment)
    await until(lambda: page.writer.closed)
    assert page.writer.closed == (4200, "Another connection of this page took over")
    assert page.pings == 0
    gate.open.set()
    await newer.subscribed()
    assert newer.failures() == []
    for one in (page, newer):
        one.session.end()


# -- when the record is read and stored --------------------------------------------------------------------------------


async def stored(deployment: Deployment) -> Any:
    """The offset of each channel in the stored record; None without a record."""
    record = await deployment.engine.load_session("1", TOKEN)
    return None if not record else {name: offset for name, (_, offset) in orjson.loads(record)["seen"].items()}


async def until_stored(deployment: Deployment, expected: dict[str, int] | None) -> None:
    async def is_stored() -> object:
        return await stored(deployment) == expected

    await waiting.until_async(is_stored, 30, f"the record {expected}")


async def without_refreshes(page: Page) -> None:
    """The page's record is stored only when it changes."""
    await until(lambda: page.page.tracker is not None)
    page.page._refresh_s = float("inf")


class Gate:
    """Holds back the answers of an engine's method. `answers`: that it gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, on: object, name: str) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self.answers: list[Any] = []
        inner = getattr(on, name)

        async def held(*arguments: Any) -> Any:
            answer = await inner(*arguments)
            self.answers.append(answer)
            self.reached.set()
            await self.open.wait()
            return answer

        monkeypatch.setattr(on, name, held)


async def test_record_is_stored_when_a_channel_is_subscribed_acknowledged_and_left(deployment: Deployment) -> None:
    page = Page(deployment)
    await without_refreshes(page)
    await page.subscribed()
    await until_stored(deployment, {"kept": 0})
    await deployment.publish(1)
    await until(lambda: page.pings)
    page.say("pusher:pong")
    await until_stored(deployment, {"kept": 1})
    page.say("pusher:unsubscribe", channel="kept")
    assert page.seen() == -1
    page.session.end()
    await until_stored(deployment, {})
    assert not deployment.owners._owned


async def test_page_without_channels_gets_a_record(deployment: Deployment) -> None:
    page = Page(deployment)
    await until_stored(deployment, {})
    assert deployment.hub.counters["resume.opened"] == 1
    page.session.end()
    back = Page(deployment)
    await back.subscribed()
    assert (deployment.hub.counters["resume.opened"], deployment.hub.counters["resume.resumed"]) == (1, 1)
    back.session.end()


async def test_channel_that_is_left_before_its_ping_causes_none(deployment: Deployment) -> None:
    page = Page(deployment, ack_interval=NEVER_S)
    await page.subscribed()
    await deployment.publish(1)
    await until(lambda: page.pings == 1 and page.is_settled)
    await deployment.publish(2)
    await until(lambda: not page.is_settled)
    page.say("pusher:unsubscribe", channel="kept")
    assert page.is_settled
    page.page.due()
    assert page.pings == 1
    page.session.end()


async def test_socket_that_ends_while_it_takes_its_token_leaves_the_record_and_no_holder(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Page(deployment)
    await first.subscribed()
    first.session.end()
    gate = Gate(monkeypatch, deployment.engine, "take_session")
    short = Page(deployment)
    await gate.reached.wait()
    deployment.hub.disconnect(short.session._connection)
    gate.open.set()
    await until(lambda: not deployment.owners._owned)
    assert short.page.slot is None
    assert b"connection_established" not in b"".join(short.writer.bodies)
    await deployment.publish(1)
    back = Page(deployment)
    await back.subscribed()
    await until(lambda: back.numbers() == [1])
    assert gate.answers[-1].holder is None
    back.session.end()


async def test_record_that_changes_while_it_is_read_is_read_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Page(deployment)
    await first.subscribed()
    await deployment.publish(1)
    await until(lambda: first.pings)
    gate = Gate(monkeypatch, deployment.engine, "load_session")
    back = Page(deployment)
    await gate.reached.wait()
    first.say("pusher:pong")
    first.session.end()
    gate.open.set()
    await back.subscribed()
    assert (back.numbers(), back.failures()) == ([], [])
    back.session.end()


async def test_record_of_another_origin_that_appears_while_it_is_read_is_left_alone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, deployment.engine, "load_session")
    page = Page(deployment, origin="https://shop.example")
    await gate.reached.wait()
    deployment.engine.save_session("1", TOKEN, b'{"origin":"https://other.example","seen":{}}', 100)
    gate.open.set()
    await until(lambda: page.page.failed)
    assert (page.page.failed, page.page.tracker) == ("token_foreign", None)
    assert not deployment.owners._owned
    page.session.end()


@pytest.mark.parametrize(("statistics", "reason"), [({}, None), ({"sessions": 1}, "too_many_tokens")])
async def test_tokens_are_counted_by_the_figures_that_the_engine_has(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, statistics: dict[str, int], reason: str | None
) -> None:
    monkeypatch.setattr(deployment.engine, "statistics", lambda: statistics)
    page = Page(deployment, max_tokens=1)
    await until(lambda: page.page.failed or page.page.tracker)
    assert page.page.failed == reason
    page.session.end()


async def test_channel_that_does_not_fit_into_the_record_is_counted(deployment: Deployment) -> None:
    page = Page(deployment)
    await page.subscribed("kept-1")
    assert page.page.tracker is not None
    page.page.tracker.max_channels = 1
    await page.subscribed("kept-2")
    await until(lambda: deployment.hub.counters["resume.record_full"] == 1)
    assert (page.seen("kept-1"), page.seen("kept-2")) == (0, -1)
    page.session.end()


# -- a user's token ----------------------------------------------------------------------------------------------------


async def back_as_user(deployment: Deployment) -> Page:
    """A socket of a page of user 42 that has not signed in again."""
    first = Page(deployment)
    await first.subscribed()
    await signed_in(first, "42")
    first.session.end()
    back = Page(deployment)
    await back.subscribed()
    return back


async def test_page_that_signs_in_again_stores_its_record(deployment: Deployment) -> None:
    back = await back_as_user(deployment)
    await deployment.publish(1)
    await until(lambda: back.pings)
    back.say("pusher:pong")
    await without_refreshes(back)
    assert await stored(deployment) == {"kept": 0}, "the socket does not own the record yet"
    await signed_in(back, "42")
    await until_stored(deployment, {"kept": 1})
    back.session.end()


async def test_socket_that_ends_while_it_signs_in_leaves_no_holder(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = await back_as_user(deployment)
    gate = Gate(monkeypatch, deployment.engine, "take_session")
    await signed_in(back, "42")
    await gate.reached.wait()
    deployment.hub.disconnect(back.session._connection)
    gate.open.set()
    await until(lambda: not deployment.owners._owned)
    assert (await deployment.engine.take_session("1", TOKEN, "1.1")).holder is None


async def test_socket_that_took_the_token_of_another_user_gives_it_up_when_it_signs_in(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record got its user after the socket had read it."""
    first = Page(deployment)
    await first.subscribed()
    gate = Gate(monkeypatch, deployment.engine, "load_session")
    other = Page(deployment)
    await gate.reached.wait()
    await signed_in(first, "42")
    first.session.end()
    gate.open.set()
    await other.subscribed()
    assert deployment.owners.owns(other.page)
    await signed_in(other, "7")
    assert other.failures() == [("kept", "token_foreign")]
    assert not deployment.owners.owns(other.page)
    other.session.end()


async def test_record_outlives_a_socket_that_has_not_signed_in(deployment: Deployment) -> None:
    back = await back_as_user(deployment)
    deployment.engine.saved.clear()
    back.session.end()
    assert deployment.engine.saved == [100]
    assert await stored(deployment) == {"kept": 0}


async def test_token_is_released_if_the_answer_to_its_takeover_was_lost(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = await back_as_user(deployment)
    take = deployment.engine.take_session

    async def lose_the_answer(app: str, token: str, holder: str) -> interface.Taken:
        await take(app, token, holder)
        raise errors.EngineUnavailable("The connection broke")

    monkeypatch.setattr(deployment.engine, "take_session", lose_the_answer)
    await signed_in(back, "42")
    await until(lambda: back.writer.closed)
    assert back.writer.closed == (4100, "The connection cannot be accepted now: The connection broke")
    back.session.end()
    taken = await take("1", TOKEN, "1.1")
    assert (taken.holder, taken.changed_s) == (None, None)
    assert await stored(deployment) == {"kept": 0}


async def test_user_without_a_record_of_a_channel_gets_epoch_changed_after_the_store_lost_records(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = await back_as_user(deployment)
    take = deployment.engine.take_session

    async def take_after_a_loss(app: str, token: str, holder: str) -> interface.Taken:
        return (await take(app, token, holder))._replace(lost_s=0.0)

    monkeypatch.setattr(deployment.engine, "take_session", take_after_a_loss)
    await signed_in(back, "42")
    tracker = back.page.tracker
    assert tracker is not None
    await until(lambda: tracker.start_of("kept-2") == (None, "epoch_changed"))
    back.session.end()


@pytest.mark.parametrize(("meanwhile", "reasons"), [("", 1), ("lose_token", 1), ("evict", 0)])
async def test_user_whose_token_is_refused_gets_resume_failed_once_unless_a_newer_socket_has_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, meanwhile: str, reasons: int
) -> None:
    back = await back_as_user(deployment)

    async def refuse(*_: object) -> None:
        if meanwhile == "evict":
            back.page.evict(lambda: None)
        elif meanwhile:
            back.page.lose_token()
        over.set()

    over = asyncio.Event()
    monkeypatch.setattr(deployment.owners, "take", refuse)
    await signed_in(back, "42")
    await over.wait()
    await asyncio.sleep(0)
    assert back.failures() == [("kept", "token_shared")] * reasons
    back.session.end()
