"""The consumer and the session: a WebSocket on one side, a real hub on the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from fanfare.engine import errors
from fanfare.hub import attempts, on_any
from fanfare.hub.connections import State
from fanfare.protocol import consumers, sessions
from fanfare.runtime.address_limit import AddressLimit
from fanfare.runtime.log_throttle import LogThrottle
from tests.unit.protocol import fakes
from tests.unit.protocol.workers import Worker

ANN, BOB = '{"user_id":"42","user_info":{"name":"Ann"}}', '{"user_id":"7"}'


async def test_first_frame_is_connection_established(worker: Worker) -> None:
    browser = await worker.connected()
    (frame,) = browser.frames
    assert orjson.loads(frame["data"]) == {"socket_id": browser.socket_id, "activity_timeout": 77}


async def test_connection_context_has_what_the_client_said_of_itself(worker: Worker) -> None:
    await worker.browser(path=f"/s/token/app/{fakes.APPLICATION.key}").connected()
    (connection,) = worker.hub.connections_of("3")
    assert connection.context == ("js", "8.6.0", "/s/token", "192.0.2.7")


async def test_headers_are_released_after_the_handshake(worker: Worker) -> None:
    browser = await worker.browser(headers=[(b"origin", b"https://example.com"), (b"cookie", b"secret")]).connected()
    assert browser.scope["headers"] == []


@pytest.mark.parametrize(
    ("path", "query", "origin", "code"),
    [
        ("/app/unknown", b"", b"", 4001),
        ("/nothing", b"", b"", 4005),
        (f"/app/{fakes.APPLICATION.key}", b"protocol=x", b"", 4006),
        (f"/app/{fakes.APPLICATION.key}", b"protocol=3", b"", 4007),
        (f"/app/{fakes.APPLICATION.key}", b"protocol=7", b"https://evil.example", 4009),
    ],
)
async def test_refused_handshake_is_accepted_answered_and_closed(
    worker: Worker, path: str, query: bytes, origin: bytes, code: int
) -> None:
    worker.registry.put(fakes.application(allowed_origins=("https://example.com",)))
    browser = worker.browser(path, query, [(b"origin", origin)] if origin else [])
    await browser.until(lambda: browser.closed)
    (frame,) = browser.frames
    assert frame["event"] == "pusher:error"
    assert frame["data"]["code"] == code
    assert browser.closed == (code, frame["data"]["message"])
    assert worker.hub.counters[f"pusher.refused.{code}"] == 1
    browser.send('{"event":"pusher:ping"}')  # nothing comes after the close
    await browser.leave()
    assert browser.frames == [frame]


async def test_disabled_application_is_refused_with_4003(worker: Worker) -> None:
    worker.registry.remove(fakes.APPLICATION.id)
    worker.registry.put(fakes.application(enabled=False))  # as a worker that starts finds it
    browser = worker.browser()
    await browser.until(lambda: browser.closed)
    assert browser.closed is not None
    assert browser.closed[0] == 4003


def suspend(worker: Worker) -> None:
    """Disable the application a moment ago."""
    worker.registry.put(fakes.application())
    worker.registry.put(fakes.application(enabled=False))


async def held(worker: Worker) -> fakes.Browser:
    browser = worker.browser()
    before = worker.hub.counters["pusher.suspended"]
    while worker.hub.counters["pusher.suspended"] == before:
        await asyncio.sleep(0)
    return browser


async def test_client_of_a_suspended_application_is_greeted_when_it_is_enabled_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RETURN_SPREAD_S", 0.01)
    suspend(worker)
    browsers = [await held(worker) for _ in range(3)]
    assert [browser.frames for browser in browsers] == [[]] * 3
    worker.registry.put(fakes.application())
    for browser in browsers:
        await browser.connected()
        await browser.subscribe("news")


async def test_clients_of_an_application_that_is_enabled_again_do_not_return_at_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, delays_s = list[tuple[float, float]](), iter((0.0, 3_600.0))

    def draw(lowest: float, highest: float) -> float:
        drawn.append((lowest, highest))
        return next(delays_s)

    monkeypatch.setattr(consumers.random, "uniform", draw)
    suspend(worker)
    first, second = await held(worker), await held(worker)
    worker.registry.put(fakes.application())
    await first.connected()
    await first.drained()
    assert second.frames == []
    assert drawn == [(0, consumers.RETURN_SPREAD_S)] * 2
    await second.leave()


async def test_client_of_a_suspended_application_is_refused_with_4003_when_the_grace_is_over(worker: Worker) -> None:
    worker.registry._grace_s = 0.05
    suspend(worker)
    browser = await held(worker)
    await browser.until(lambda: browser.closed)
    assert browser.closed == (4003, "This application is disabled")


async def test_client_of_a_suspended_application_is_refused_with_4001_when_it_is_deleted(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RETURN_SPREAD_S", 0.01)
    suspend(worker)
    browser = await held(worker)
    worker.registry.remove(fakes.APPLICATION.id)
    await browser.until(lambda: browser.closed)
    assert browser.closed is not None
    assert browser.closed[0] == 4001


async def test_client_that_sends_frames_while_its_application_is_suspended_is_closed_with_4100(worker: Worker) -> None:
    suspend(worker)
    browser = await held(worker)
    browser.send(fakes.subscribe("news"))
    await browser.until(lambda: browser.closed)
    assert browser.closed is not None
    assert browser.closed[0] == 4100


async def test_client_that_leaves_while_its_application_is_suspended_leaves_no_watcher(worker: Worker) -> None:
    suspend(worker)
    browser = await held(worker)
    await browser.leave()
    assert (browser.frames, browser.closed, worker.registry._watchers) == ([], None, {})


async def test_refused_client_that_does_not_answer_the_close_is_dropped(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[object] = []
    abort = on_any.AsgiWriter.abort
    monkeypatch.setattr(on_any.AsgiWriter, "abort", lambda writer: (aborted.append(writer), abort(writer)))
    monkeypatch.setattr(consumers, "CLOSE_SECONDS", 0.01)
    browser = worker.browser("/app/unknown")
    async with asyncio.timeout(fakes.DEADLINE_S):
        await browser.task
    assert len(aborted) == 1


async def test_log_lines_of_refusals_are_rate_limited(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = LogThrottle(logging.getLogger(sessions.__name__), 1.0, burst=2, clock=lambda: 0.0)
    monkeypatch.setattr(sessions, "_refusal_log", log)
    with caplog.at_level(logging.INFO, sessions.__name__):
        for _ in range(5):
            browser = worker.browser("/app/x\x1b[31m\nforged")
            await browser.until(lambda one=browser: one.closed)
    line = "Connection from 192.0.2.7 refused with 4001: App key x\\x1b[31m\\x0aforged does not exist on this server"
    assert caplog.messages == [line, line]
    assert worker.hub.counters["pusher.refused.4001"] == 5


async def test_every_frame_of_a_burst_is_answered_in_order(worker: Worker) -> None:
    browser = await worker.connected()
    for number in range(200):
        browser.send(fakes.subscribe(f"news-{number}"))
    await browser.drained()
    answered = [frame["channel"] for frame in browser.frames if "channel" in frame]
    assert answered == [f"news-{number}" for number in range(200)]


async def test_busy_client_leaves_the_loop_to_others(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await worker.connected()
    received: list[str] = []
    monkeypatch.setattr(sessions.Session, "received", lambda _, text: received.append(text) or 0.0)
    for _ in range(consumers.FRAMES_PER_TURN * 4):
        browser.send('{"event":"pusher:pong"}')
    in_turns: list[int] = []
    for _ in range(20):
        before = len(received)
        await asyncio.sleep(0)
        in_turns.append(len(received) - before)
    assert [number for number in in_turns if number] == [consumers.FRAMES_PER_TURN] * 4


async def test_presence_channel_sends_the_snapshot_and_member_events(worker: Worker) -> None:
    ann, bob = await worker.connected(), await worker.connected()
    await ann.subscribe("presence-x", ANN)
    await bob.subscribe("presence-x", BOB)
    snapshot = orjson.loads((await bob.frame("pusher_internal:subscription_succeeded"))["data"])["presence"]
    assert snapshot == {"ids": ["42", "7"], "hash": {"42": {"name": "Ann"}, "7": None}, "count": 2}
    added = await ann.frame("pusher_internal:member_added")
    assert orjson.loads(added["data"]) == {"user_id": "7"}
    assert not any(frame["event"] == "pusher_internal:member_added" for frame in bob.frames)
    await bob.leave()
    removed = await ann.frame("pusher_internal:member_removed")
    assert orjson.loads(removed["data"]) == {"user_id": "7"}


async def test_repeated_subscribe_to_a_presence_channel_sends_no_member_events(worker: Worker) -> None:
    ann, bob = await worker.connected(), await worker.connected()
    await ann.subscribe("presence-x", ANN)
    await bob.subscribe("presence-x", BOB)
    before = len(ann.frames)
    await bob.subscribe("presence-x", BOB)
    await bob.drained()
    await ann.drained()
    assert [frame["event"] for frame in ann.frames[before:]] == ["pusher:pong"]
    assert sum(frame["event"] == "pusher_internal:subscription_succeeded" for frame in bob.frames) == 2


async def test_unsubscribe_and_subscribe_at_once_is_answered_once(worker: Worker) -> None:
    browser = await worker.connected()
    worker.engine.held = True
    auth = fakes.auth("presence-x", ANN, socket_id=browser.socket_id)
    for frame in (
        fakes.subscribe("presence-x", ANN, auth=auth),
        fakes.unsubscribe("presence-x"),
        fakes.subscribe("presence-x", ANN, auth=auth),
    ):
        browser.send(frame)
    await browser.drained()
    worker.engine.release()
    await browser.frame("pusher_internal:subscription_succeeded")
    await browser.drained()
    assert sum(frame["event"] == "pusher_internal:subscription_succeeded" for frame in browser.frames) == 1
    [connection] = worker.hub.connections_of("3")
    assert connection.subscriptions["presence-x"].state is State.LIVE


async def test_client_event_reaches_the_other_members_with_the_user_id(worker: Worker) -> None:
    ann, bob = await worker.connected(), await worker.connected()
    await ann.subscribe("presence-x", ANN)
    await bob.subscribe("presence-x", BOB)
    ann.send(fakes.client_event("presence-x", {"on": True}))
    assert await bob.frame("client-x") == {
        "event": "client-x",
        "channel": "presence-x",
        "data": {"on": True},
        "user_id": "42",
    }
    await ann.drained()
    assert not any(frame["event"] == "client-x" for frame in ann.frames)
    assert worker.engine.published[-1].exclude == ann.socket_id
    assert worker.hub.statistics()["pusher.client_events"] == 1


async def test_client_event_that_the_engine_refuses_is_reported(worker: Worker) -> None:
    browser = await worker.connected()
    await browser.subscribe("private-x")
    worker.engine.down = "the disk is full"
    browser.send(fakes.client_event("private-x"))
    assert "the disk is full" in (await browser.frame("pusher:error"))["data"]["message"]
    worker.engine.down = ""
    await browser.drained()


async def test_client_event_that_the_engine_refuses_at_once_is_reported(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(publications: object) -> None:
        raise errors.EngineUnavailable("the log is closed")

    browser = await worker.connected()
    await browser.subscribe("private-x")
    monkeypatch.setattr(worker.engine, "append", refuse)
    browser.send(fakes.client_event("private-x"))
    assert "the log is closed" in (await browser.frame("pusher:error"))["data"]["message"]


async def test_subscribe_while_the_engine_is_away_succeeds_when_it_is_back(worker: Worker) -> None:
    browser = await worker.connected()
    worker.engine.down = "the disk is full"
    browser.send(fakes.subscribe("news"))
    await browser.repeats(worker.hub.counters)
    worker.engine.down = ""
    succeeded = await browser.frame("pusher_internal:subscription_succeeded")
    assert succeeded["channel"] == "news"


async def test_subscribe_that_the_engine_refuses_for_too_long_closes_the_connection(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "REPEATED_S", 0.3)
    browser = await worker.connected()
    worker.engine.down = "the disk is full"
    browser.send(fakes.subscribe("news"))
    await browser.until(lambda: browser.closed)
    assert browser.closed is not None
    assert browser.closed[0] == 4100
    assert "the disk is full" in browser.closed[1]


async def test_client_event_under_way_when_its_sender_leaves_is_harmless(worker: Worker) -> None:
    browser = await worker.connected()
    await browser.subscribe("private-x")
    worker.engine.held = True
    browser.send(fakes.client_event("private-x"))
    await browser.drained()
    await browser.leave()
    worker.engine.down = "the disk is full"
    worker.engine.release()
    other = await worker.connected()
    await other.drained()


@pytest.mark.parametrize(
    "event",
    [
        {"type": "websocket.receive", "text": "x" * 1_001},
        {"type": "websocket.receive", "text": "ü" * 501},
        {"type": "websocket.receive", "bytes": b"x" * 1_001},
        {"type": "websocket.receive", "bytes": b"x" * 1_001, "text": None},
    ],
)
async def test_frame_that_is_too_big_closes_with_1009_and_both_numbers(worker: Worker, event: dict[str, Any]) -> None:
    browser = await worker.connected()
    browser.say(event)
    await browser.until(lambda: browser.closed)
    size = 1_002 if "ü" in (event.get("text") or "") else 1_001
    assert browser.closed == (1009, f"The message has {size} bytes; 1000 are allowed")
    assert worker.hub.connections_of("3") == []


@pytest.mark.parametrize(
    "event",
    [
        {"type": "websocket.receive", "bytes": b'{"event":"pusher:ping"}'},
        {"type": "websocket.receive", "bytes": b"", "text": None},
        {"type": "websocket.receive", "text": ""},
        {"type": "websocket.receive", "text": "x" * 1_000},
    ],
)
async def test_bad_frame_is_answered_and_the_connection_stays_open(worker: Worker, event: dict[str, Any]) -> None:
    browser, neighbour = await worker.connected(), await worker.connected()
    browser.say(event)
    assert (await browser.frame("pusher:error"))["data"]["code"] is None
    await browser.drained()
    await neighbour.drained()
    assert [frame["event"] for frame in neighbour.frames] == ["pusher:connection_established", "pusher:pong"]


async def test_connections_over_the_limit_are_closed_with_4100_and_both_numbers(worker: Worker) -> None:
    worker.registry.put(fakes.application(max_connections=1))
    first = await worker.connected()
    second = worker.browser()
    await second.until(lambda: second.closed)
    assert second.closed == (4100, "The application has 2 connections; 1 are allowed")
    assert [frame["event"] for frame in second.frames] == ["pusher:error"]
    assert second.frames[0]["data"]["code"] == 4100
    await first.drained()
    await first.leave()
    await worker.connected()


async def test_frames_before_the_admission_are_answered_after_it(worker: Worker) -> None:
    worker.registry.put(fakes.application(max_connections=1))
    worker.engine.held = True
    browser = worker.browser()
    browser.send(fakes.subscribe("news"))
    while not worker.hub.connections_of("3"):
        await asyncio.sleep(0)
    worker.engine.release()
    await browser.frame("pusher_internal:subscription_succeeded")
    assert [frame["event"] for frame in browser.frames] == [
        "pusher:connection_established",
        "pusher_internal:subscription_succeeded",
    ]


async def test_client_that_leaves_before_its_admission_is_forgotten_at_once(worker: Worker) -> None:
    worker.registry.put(fakes.application(max_connections=1))
    worker.engine.held = True
    browser = worker.browser()
    await browser.leave()
    assert worker.hub.connections_of("3") == []
    worker.engine.release()
    assert browser.frames == []


async def test_client_that_leaves_is_out_of_the_hub_when_its_handler_ends(worker: Worker) -> None:
    browser = await worker.connected()
    await browser.subscribe("presence-x", ANN)
    await browser.leave()
    assert worker.hub.connections_of("3") == []
    assert worker.engine.members("presence-x") == []


async def test_cancelled_handler_leaves_the_hub(worker: Worker) -> None:
    browser = await worker.connected()
    browser.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await browser.task
    assert worker.hub.connections_of("3") == []


async def test_session_whose_opening_fails_leaves_the_hub(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = sessions.Session.open

    def fail(session: sessions.Session) -> None:
        opened(session)
        raise RuntimeError("it cannot be opened")

    monkeypatch.setattr(sessions.Session, "open", fail)
    with pytest.raises(RuntimeError, match="cannot be opened"):
        await worker.browser().task
    assert worker.hub.connections_of("3") == []


async def test_hub_sends_an_error_frame_before_the_close(worker: Worker) -> None:
    browser = await worker.connected()
    worker.hub.close_application("3", 4003, "This application is disabled")
    await browser.until(lambda: browser.closed)
    assert browser.closed == (4003, "This application is disabled")
    assert browser.frames[-1] == {
        "event": "pusher:error",
        "data": {"code": 4003, "message": "This application is disabled"},
    }
    before = list(browser.frames)
    browser.send('{"event":"pusher:ping"}')
    browser.say({"type": "websocket.receive", "text": "x" * 2_000})
    await browser.leave()
    assert browser.frames == before


async def test_transport_of_a_closed_connection_is_still_watched_when_its_handler_ends(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn reports the end right after a close of our own; a client that does not read is there for ever."""
    told: list[object] = []
    monkeypatch.setattr(worker.hub, "disconnect", told.append)
    evicted, gone = await worker.connected(), await worker.connected()
    connection = worker.hub.connections_of("3")[0]
    worker.hub.disconnect_slow(connection)
    await evicted.leave()
    assert told == []
    await gone.leave()
    assert len(told) == 1


async def test_messages_do_not_go_through_the_thread_of_channels(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hop(*arguments: object) -> Callable[..., None]:
        raise AssertionError("a message was taken to a thread")

    monkeypatch.setattr("channels.consumer.aclose_old_connections", hop)
    monkeypatch.setattr("channels.consumer.await_many_dispatch", hop)
    browser = await worker.connected()
    await browser.drained()


@pytest.mark.parametrize("channel", ["news", "private-x", "presence-x", "cache-x"])
async def test_second_subscribe_before_the_answer_gets_the_answer_of_the_first(worker: Worker, channel: str) -> None:
    browser = await worker.connected()
    worker.engine.held = True
    data = ANN if channel == "presence-x" else None
    for _ in range(2):
        browser.send(fakes.subscribe(channel, data, auth=fakes.auth(channel, data, socket_id=browser.socket_id)))
    await browser.drained()
    worker.engine.release()
    await browser.frame("pusher_internal:subscription_succeeded")
    await browser.drained()
    assert browser.events().count("pusher_internal:subscription_succeeded") == 1


async def test_answer_that_comes_after_an_unsubscribe_is_dropped(worker: Worker) -> None:
    browser = await worker.connected()
    worker.engine.held = True
    browser.send(fakes.subscribe("cache-x"))
    browser.send(fakes.unsubscribe("cache-x"))
    await browser.drained()
    worker.engine.down = "the disk is full"
    worker.engine.release()
    await browser.drained()
    assert browser.events() == ["pusher:connection_established", "pusher:pong", "pusher:pong"]


async def test_refused_connection_and_subscription_are_in_the_activity(worker: Worker) -> None:
    refused = worker.browser("/app/unknown")
    await refused.until(lambda: refused.closed)
    browser = await worker.connected()
    browser.send(fakes.subscribe("private-x", auth="wrong"))
    browser.send("no JSON")
    await browser.drained()
    items = list(worker.hub.activity.refusals)
    assert [(item["what"], item["reason"], item["address"], item.get("channel")) for item in items] == [
        ("connection", "4001", "192.0.2.7", None),
        ("subscription", "wrong_key", "192.0.2.7", "private-x"),
        ("frame", "malformed_json", "192.0.2.7", None),
    ]
    assert [item.get("socket") for item in items] == [None, browser.socket_id, browser.socket_id]
    assert items[1]["text"] == "Invalid key in subscription auth data: 'wrong'"


async def test_repeated_subscribe_that_cannot_be_answered_is_in_the_activity(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "REPEATED_S", 0.0)
    browser = await worker.connected()
    await browser.subscribe("presence-x", ANN)
    worker.engine.down = "the disk is full"
    auth = fakes.auth("presence-x", ANN, socket_id=browser.socket_id)
    browser.send(fakes.subscribe("presence-x", ANN, auth=auth))
    await browser.frame("pusher:error")
    [item] = worker.hub.activity.refusals
    assert (item["what"], item["reason"]) == ("refresh failed", "refresh_failed")


async def test_debug_log_has_each_subscription_and_refusal_with_its_ids(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    browser = await worker.connected()
    with caplog.at_level(logging.DEBUG, sessions.__name__):
        browser.send(fakes.subscribe("news"))
        browser.send(fakes.subscribe("private-x", auth="wrong"))
        browser.send("no JSON")
        await browser.drained()
    records = [record for record in caplog.records if record.name == sessions.__name__]
    ids = [(record.socket, record.channel) for record in records]  # type: ignore[attr-defined]
    assert ids == [(browser.socket_id, channel) for channel in ("news", "private-x", None)]
    assert records[0].getMessage() == f"{browser.socket_id}: subscribed to news"


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the consumer waits after each frame."""
    found: list[float] = []
    original = consumers.PusherConsumer.websocket_receive

    def receive(consumer: Any, event: Any, session: sessions.Session) -> float:
        found.append(original(consumer, event, session))
        return found[-1]

    monkeypatch.setattr(consumers.PusherConsumer, "websocket_receive", receive)
    return found


@pytest.mark.parametrize("message", ["no JSON", '{"event":"client-e","channel":"x","data":{}}', None])
async def test_client_with_too_many_refusals_is_read_more_slowly(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rests: list[float],
    message: str | None,
) -> None:
    monkeypatch.setattr(sessions, "_slowed_log", LogThrottle(logging.getLogger(sessions.__name__)))
    monkeypatch.setattr(sessions, "REFUSALS_PER_SECOND", few := 5)
    monkeypatch.setattr(sessions, "REST_S", 0.01)
    browser = await worker.connected()
    with caplog.at_level(logging.INFO, sessions.__name__):
        for _ in range(few + 30):
            browser.say({"type": "websocket.receive", "bytes": b"x"} if message is None else _text(message))
        browser.send('{"event":"pusher:ping","data":{}}')
        await browser.until(lambda: len(rests) == few + 31)
        await browser.frame("pusher:pong")
    assert rests[:few] == [0.0] * few
    assert rests.count(0.01) == worker.hub.counters["pusher.slowed"] > 0
    assert rests[-1] == 0.0
    assert len([line for line in caplog.messages if "is read more slowly" in line]) == 1


async def test_refusals_of_frames_that_waited_for_a_sign_in_delay_the_next_frame(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, rests: list[float]
) -> None:
    monkeypatch.setattr(sessions, "REFUSALS_PER_SECOND", few := 5)
    browser = await worker.connected()
    worker.engine.held = True
    browser.send(fakes.signin('{"id":"42"}', socket_id=browser.socket_id))
    for _ in range(few + 30):
        browser.send(fakes.subscribe("#server-to-user-7", auth=""))
    await browser.drained()
    assert not any(rests)
    worker.engine.release()
    await browser.frame("pusher:signin_success")
    await browser.drained()
    assert rests[few + 32 :] == [sessions.REST_S]
    assert worker.hub.counters["pusher.slowed"] > 0


def _text(text: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": text}


async def test_websockets_of_one_address_are_limited(worker: Worker) -> None:
    application = consumers.PusherConsumer.as_asgi(
        hub=worker.hub, registry=worker.registry, options=sessions.Options(addresses=AddressLimit(2, "WebSockets"))
    )
    first, second = await fakes.Browser(application).connected(), await fakes.Browser(application).connected()
    refused = fakes.Browser(application)
    await refused.until(lambda: refused.closed)
    assert refused.closed == (4100, "2 WebSockets of this address are open; 2 are allowed")
    await refused.leave()
    assert worker.hub.counters["sockets.refused.address"] == 1
    await first.leave()
    await (await fakes.Browser(application).connected()).leave()
    await second.leave()


async def test_subscription_ceiling_is_logged_once_per_connection(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = LogThrottle(logging.getLogger(sessions.__name__), 1.0, burst=100)
    monkeypatch.setattr(sessions, "_refusal_log", log)
    application = consumers.PusherConsumer.as_asgi(
        hub=worker.hub, registry=worker.registry, options=sessions.Options(max_subscriptions=3)
    )
    with caplog.at_level(logging.INFO, sessions.__name__):
        for _ in range(2):
            browser = await fakes.Browser(application).connected()
            for number in range(50):
                browser.send(fakes.subscribe(f"news-{number}"))
            await browser.drained()
            await browser.leave()
    lines = [line for line in caplog.messages if "3 are allowed" in line]
    assert len(lines) == 2
    assert f"Socket {browser.socket_id} from 192.0.2.7: The connection has 3 subscriptions" in lines[1]
    assert worker.hub.counters["pusher.subscription_refused.too_many_subscriptions"] == 2 * 47
