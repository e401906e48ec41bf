"""Signed-in users, watchlists, counts and cached events through a real hub."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.protocol import termination
from tests.unit.protocol import fakes
from tests.unit.protocol.workers import Worker

ANN, BOB = '{"id":"42","user_info":{"name":"Ann"}}', '{"id":"7"}'
OWN = "#server-to-user-42"


def publish(worker: Worker, channel: str, event: str, **more: Any) -> None:
    body = event_frames.event(event, channel, "data")
    worker.engine.append([interface.Publication("3", channel, body, **more)])


def terminate(worker: Worker, user_id: str, code: int = termination.FOR_GOOD) -> None:
    body = termination.body(user_id, code)
    worker.engine.append([interface.Publication("3", termination.COMMAND, body, kind=interface.Kind.CONTROL)])


def watchlist_events(browser: fakes.Browser) -> list[tuple[str, list[str]]]:
    found = [frame for frame in browser.frames if frame["event"] == "pusher_internal:watchlist_events"]
    return [(one["name"], one["user_ids"]) for frame in found for one in orjson.loads(frame["data"])["events"]]


def counts(browser: fakes.Browser) -> list[int]:
    found = [frame for frame in browser.frames if frame["event"] == "pusher_internal:subscription_count"]
    return [orjson.loads(frame["data"])["subscription_count"] for frame in found]


# -- users -------------------------------------------------------------------------------------------------------------


async def test_event_to_a_user_reaches_all_connections_of_that_user_only(worker: Worker) -> None:
    first, second, bob = await worker.connected(), await worker.connected(), await worker.connected()
    for browser, user in ((first, ANN), (second, ANN), (bob, BOB)):
        browser.send(fakes.signin(user, socket_id=browser.socket_id))
        browser.send(fakes.subscribe(f"#server-to-user-{orjson.loads(user)['id']}", auth=""))
        await browser.frame("pusher_internal:subscription_succeeded")
    publish(worker, OWN, "invoice")
    assert await first.frame("invoice") == {"event": "invoice", "channel": OWN, "data": "data"}
    await second.frame("invoice")
    await bob.drained()
    assert "invoice" not in bob.events()


async def test_frames_after_a_sign_in_wait_for_a_slow_engine(worker: Worker) -> None:
    browser = await worker.connected()
    worker.engine.held = True
    auth = fakes.auth("presence-x", socket_id=browser.socket_id)
    for frame in (
        fakes.signin(ANN, socket_id=browser.socket_id),
        fakes.subscribe(OWN, auth=""),
        fakes.subscribe("presence-x", auth=auth),
    ):
        browser.send(frame)
    await browser.drained()
    assert browser.events() == ["pusher:connection_established", "pusher:pong"]
    worker.engine.release()
    await browser.until(lambda: len(browser.frames) == 5)
    assert browser.events()[2:] == ["pusher:signin_success", *["pusher_internal:subscription_succeeded"] * 2]
    presence = orjson.loads(browser.frames[-1]["data"])["presence"]
    assert presence == {"ids": ["42"], "hash": {"42": {"name": "Ann"}}, "count": 1}


async def test_client_that_leaves_before_it_is_signed_in_is_no_user(worker: Worker) -> None:
    browser = await worker.connected()
    worker.engine.held = True
    browser.send(fakes.signin(ANN, socket_id=browser.socket_id))
    await browser.drained()
    await browser.leave()
    worker.engine.release()
    assert worker.engine.present() == {}
    assert worker.hub.connections_of_user("3", "42") == []


async def test_watchlist_reports_the_first_connection_and_the_end_of_the_last(worker: Worker) -> None:
    watcher, first, second = await worker.connected(), await worker.connected(), await worker.connected()
    await watcher.sign_in('{"id":"1","watchlist":["42","7"]}')
    await first.sign_in(ANN)
    await second.sign_in(ANN)
    await first.leave()
    await watcher.drained()
    assert watchlist_events(watcher) == [("offline", ["42", "7"]), ("online", ["42"])]
    await second.leave()
    await watcher.drained()
    assert watchlist_events(watcher)[2:] == [("offline", ["42"])]


async def test_online_users_are_reported_after_the_sign_in(worker: Worker) -> None:
    ann, watcher = await worker.connected(), await worker.connected()
    await ann.sign_in(ANN)
    await watcher.sign_in('{"id":"1","watchlist":["7","42","1"]}')
    await watcher.drained()
    assert watchlist_events(watcher) == [("online", ["42", "1"]), ("offline", ["7"])]


async def test_sign_in_while_the_engine_is_away_succeeds_when_it_is_back(worker: Worker) -> None:
    browser = await worker.connected()
    worker.engine.down = "the disk is full"
    browser.send(fakes.signin(ANN, socket_id=browser.socket_id))
    await browser.repeats(worker.hub.counters)
    worker.engine.down = ""
    await browser.frame("pusher:signin_success")


async def test_connection_that_ends_during_a_repeated_sign_in_leaves_no_user(worker: Worker) -> None:
    browser = await worker.connected()
    worker.engine.down = "the disk is full"
    browser.send(fakes.signin(ANN, socket_id=browser.socket_id))
    await browser.repeats(worker.hub.counters)
    await browser.leave()
    worker.engine.down = ""
    other = await worker.connected()
    await other.sign_in(BOB)
    assert list(worker.engine.present().values()) == ["7"]


# -- termination -------------------------------------------------------------------------------------------------------


async def test_terminating_a_user_closes_its_connections_only(worker: Worker) -> None:
    first, second, bob, member = [await worker.connected() for _ in range(4)]
    for browser, user in ((first, ANN), (second, ANN), (bob, BOB)):
        await browser.sign_in(user)
    await member.subscribe("presence-x", '{"user_id":"42"}')
    terminate(worker, "42")
    for browser in (first, second):
        await browser.until(lambda one=browser: one.closed)
        assert browser.closed == (4009, "The application ended this user's connections")
        assert browser.frames[-1]["event"] == "pusher:error"
        assert browser.frames[-1]["data"]["code"] == 4009
    for browser in (bob, member):
        await browser.drained()
    assert worker.hub.connections_of_user("3", "42") == []
    assert worker.hub.counters["pusher.terminated"] == 2


async def test_termination_with_4200_lets_the_user_come_back(worker: Worker) -> None:
    browser = await worker.connected()
    await browser.sign_in(ANN)
    terminate(worker, "42", termination.TO_RECONNECT)
    await browser.until(lambda: browser.closed)
    assert browser.closed is not None
    assert browser.closed[0] == 4200
    await (await worker.connected()).sign_in(ANN)


async def test_terminated_user_gets_earlier_events_and_no_later_ones(worker: Worker) -> None:
    browser = await worker.connected()
    await browser.sign_in(ANN)
    await browser.subscribe("news")
    events = [event_frames.event(name, "news", "data") for name in ("before", "after")]
    command = termination.body("42")
    kinds = (interface.Kind.EVENT, interface.Kind.CONTROL, interface.Kind.EVENT)
    bodies = zip(("news", termination.COMMAND, "news"), kinds, (events[0], command, events[1]), strict=True)
    worker.engine.deliver(
        [interface.Entry(1, kind, "3", channel, None, None, None, body) for channel, kind, body in bodies]
    )
    await browser.until(lambda: browser.closed)
    assert browser.events()[-2:] == ["before", "pusher:error"]


async def test_terminating_an_unknown_user_is_no_error(worker: Worker) -> None:
    terminate(worker, "nobody")
    assert "controls.failed" not in worker.hub.counters


# -- authorized connections --------------------------------------------------------------------------------------------


async def test_connection_without_authorization_in_time_is_closed(worker: Worker) -> None:
    worker.registry.put(fakes.application(authorization_timeout=0))
    browser = await worker.connected()
    await browser.until(lambda: browser.closed)
    assert browser.closed == (4009, "Connection not authorized within timeout")
    assert browser.frames[-1]["data"] == {"code": 4009, "message": "Connection not authorized within timeout"}
    assert worker.hub.counters["pusher.refused.4009"] == 1


@pytest.mark.parametrize("end", ["leave", "sign in", "join"])
async def test_authorization_timer_is_cancelled_when_it_is_not_needed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    loop = asyncio.get_running_loop()
    start, timers = loop.call_later, []

    def call_later(delay: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        timer = start(delay, *arguments, **options)
        if delay == 3600:
            timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_later", call_later)
    worker.registry.put(fakes.application(authorization_timeout=3600))
    browser = await worker.connected()
    (timer,) = timers
    assert not timer.cancelled()
    if end == "leave":
        await browser.leave()
    elif end == "sign in":
        await browser.sign_in(ANN)
    else:
        await browser.subscribe("private-x")
    assert timer.cancelled()


async def test_application_without_a_timeout_has_no_authorization_timers(worker: Worker) -> None:
    browser = await worker.connected()
    await browser.drained()
    assert browser.closed is None
    assert worker.hub.statistics().get("pusher.refused.4009") is None


# -- cache channels and counts -----------------------------------------------------------------------------------------


async def test_cache_channel_sends_its_last_event_to_later_subscribers(worker: Worker) -> None:
    early, late = await worker.connected(), await worker.connected()
    await early.subscribe("private-cache-x")
    assert await early.frame("pusher:cache_miss") == {
        "event": "pusher:cache_miss",
        "channel": "private-cache-x",
    }
    publish(worker, "private-cache-x", "price", cache_seconds=60)
    await early.frame("price")
    await late.subscribe("private-cache-x")
    assert await late.frame("price") == await early.frame("price")
    assert "pusher:cache_miss" not in late.events()


async def test_client_events_are_not_cached(worker: Worker) -> None:
    browser = await worker.connected()
    await browser.subscribe("private-cache-x")
    browser.send(fakes.client_event("private-cache-x"))
    await browser.drained()
    published = worker.engine.published[-1]
    assert published.kind is interface.Kind.CLIENT_EVENT
    assert published.cache_seconds is None
    assert worker.engine.last_events == {}


async def test_every_subscriber_gets_the_subscription_count(worker: Worker) -> None:
    worker.registry.put(fakes.application(subscription_counts=True))
    first, second = await worker.connected(), await worker.connected()
    await first.subscribe("news")
    await second.subscribe("news")
    await second.leave()
    await first.drained()
    assert counts(first) == [1, 2, 1]
    assert counts(second) == [2]


async def test_subscription_counts_are_off_by_default(worker: Worker) -> None:
    first, second = await worker.connected(), await worker.connected()
    await first.subscribe("news")
    await second.subscribe("news")
    await first.drained()
    assert counts(first) == []
