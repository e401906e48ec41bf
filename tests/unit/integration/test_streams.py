"""Streams from their producer to a page, through a real log and a real hub."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fanfare
from fanfare import errors
from fanfare.applications import models, registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.engine.local import engine as local_engine
from fanfare.hub import connections, streams
from fanfare.hub import hub as hubs
from fanfare.integration import history, payloads, stream_flusher, stream_producer
from fanfare.integration import streams as producers
from fanfare.protocol import streams as stream_rules
from tests.harness import waiting
from tests.unit.hub import doubles

pytestmark = pytest.mark.django_db(transaction=True)

State = interface.StreamState
CHANNEL = "private-chat-7"


@pytest.fixture(autouse=True)
def rule(application: models.Application) -> models.ChannelRule:
    return models.ChannelRule.objects.create(
        application=application, pattern="private-chat-*", history_size=100, history_seconds=60
    )


@pytest.fixture
async def hub(here: local_engine.LocalEngine, tmp_path: Path) -> AsyncIterator[hubs.Hub]:
    """A worker, beside the process of the producer."""
    hub = hubs.Hub(local_engine.LocalEngine(tmp_path / "engine"))
    await hub.start()
    yield hub
    await hub.stop()


@contextlib.contextmanager
def flushing_held() -> Iterator[None]:
    """Inside the block the thread that writes the streams does not look."""
    with stream_flusher.flusher()._changed:
        yield


class Page:
    """What ten lines of JavaScript make of the events of a stream."""

    def __init__(self, channel: str = CHANNEL, sealed: bool = False) -> None:
        self.channel = channel
        self.sealed = sealed
        self.texts: dict[str, bytes] = {}  # UTF-16
        self.states: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        self.writer = doubles.FakeWriter()
        self.connection: connections.Connection | None = None

    def subscribe(self, hub: hubs.Hub, recovery: connections.Recovery | None = None) -> Page:
        owner = _Owner()
        number = len(hub.by_socket) + 1
        self.connection = connections.Connection("7", f"{id(self)}.{number}", self.writer, owner)
        hub.connect(self.connection)
        hub.subscribe(self.connection, self.channel, recovery=recovery)
        return self

    def look(self) -> Page:
        """Handle what has arrived."""
        bodies, self.writer.bodies = self.writer.bodies, []
        for body in bodies:
            frame = json.loads(body)
            self.frames.append(frame)
            text = payloads.decrypt(self.channel, frame["data"]) if self.sealed else frame["data"]
            event = json.loads(text)
            self.events.append(event)
            before = self.texts.get(event["id"], b"")
            at = event.get("at")
            self.texts[event["id"]] = (before if at is None else before[: 2 * at]) + event["text"].encode("utf-16-le")
            self.states[event["id"]] = event["state"]
        return self

    def text(self, stream: str) -> str:
        return self.look().texts.get(stream, b"").decode("utf-16-le")

    async def until_text(self, stream: str, text: str) -> Page:
        async def look() -> bool:
            return self.text(stream) == text

        await waiting.until_async(look, 60, text)
        return self

    async def until(self, stream: str, state: str) -> Page:
        async def look() -> bool:
            return self.look().states.get(stream) == state

        await waiting.until_async(look, 10, f"{state} of {stream}: {self.states}")
        return self


class _Owner:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


async def settled(hub: hubs.Hub) -> None:
    """Everything that was written before is delivered."""
    await hub.engine.ask(lambda queries: None)
    done = asyncio.Event()
    hub.engine.attach(interface.SubscribeRequest("7", "x", durable=False), lambda _: done.set())
    await done.wait()


async def test_page_gets_the_text_as_it_grows_and_the_end(hub: hubs.Hub) -> None:
    page = Page().subscribe(hub)
    async with fanfare.stream(CHANNEL, "answer", id="a", meta={"by": "assistant"}) as answer:
        for token in ("Grüß", " ", "Gott 🎉", "!"):
            await answer.append(token)
            await page.until_text("a", answer.text)
    await page.until("a", "done")
    assert page.text("a") == "Grüß Gott 🎉!"
    assert page.events[0] == {"id": "a", "seq": 0, "at": 0, "text": "", "state": "open", "meta": {"by": "assistant"}}
    assert page.events[-1] == {"id": "a", "seq": 4, "at": 13, "text": "", "state": "done"}
    assert {frame["event"] for frame in page.frames} == {"answer"}


async def test_appends_of_one_window_are_one_event(hub: hubs.Hub, rule: models.ChannelRule) -> None:
    await models.ChannelRule.objects.filter(pk=rule.pk).aupdate(stream_window_ms=300)
    page = Page().subscribe(hub)
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        for number in range(500):
            await answer.append(f"{number} ")
    await page.until("a", "done")
    assert page.text("a") == "".join(f"{number} " for number in range(500))
    assert len(page.events) <= 5


async def test_late_subscriber_gets_one_event_with_everything_and_then_the_rest(hub: hubs.Hub) -> None:
    first = Page().subscribe(hub)
    async with fanfare.stream(CHANNEL, "answer", id="a", meta=[1]) as answer:
        await answer.append("one ")
        await first.until_text("a", "one ")
        late = await Page().subscribe(hub).until_text("a", "one ")
        assert late.events == [{"id": "a", "seq": 1, "at": 0, "text": "one ", "state": "open", "meta": [1]}]
        await answer.append("two")
    for page in (first, late):
        await page.until("a", "done")
        assert page.text("a") == "one two"


async def test_subscribers_at_any_moment_have_every_token_once(hub: hubs.Hub) -> None:
    pages = [Page().subscribe(hub)]
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        for number in range(200):
            await answer.append(f"<{number}>")
            if number % 5 == 0:
                pages.append(Page().subscribe(hub))
                await asyncio.sleep(0.004)
    for page in pages:
        await page.until("a", "done")
        assert page.text("a") == "".join(f"<{number}>" for number in range(200))
        assert not any(event["at"] > 0 for event in page.events[:1])


async def test_page_that_was_away_at_the_end_gets_the_whole_text_with_its_recovery(hub: hubs.Hub) -> None:
    page = Page().subscribe(hub, recovery=connections.Recovery(interface.RecoveryRequest()))
    await settled(hub)
    assert page.connection is not None
    position = page.connection.subscriptions[CHANNEL].position
    hub.disconnect(page.connection)
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        await answer.append("all of it")
    page.subscribe(hub, recovery=connections.Recovery(interface.RecoveryRequest(after=position)))
    await page.until("a", "done")
    assert [(event["at"], event["text"]) for event in page.events] == [(0, "all of it")]


@pytest.mark.parametrize("channel", [CHANNEL, "private-unkept"])
async def test_page_without_a_position_learns_of_a_stream_that_ended_lately(hub: hubs.Hub, channel: str) -> None:
    async with fanfare.stream(channel, "answer", id="a") as answer:
        await answer.append("all of it")
    for _ in range(2):  # the second one is not the first subscriber of this worker
        page = await Page(channel).subscribe(hub).until("a", "done")
        assert page.text("a") == "all of it"


async def test_history_has_one_event_with_the_whole_text(hub: hubs.Hub) -> None:
    async with fanfare.stream(CHANNEL, "answer", id="a", meta={"by": "x"}) as answer:
        await answer.append("all")
        await answer.append(" of it")
    [event] = await history.aevents(CHANNEL)
    assert (event.name, event.user_id) == ("answer", None)
    assert json.loads(event.data)["text"] == "all of it"


def test_sync_block_in_a_thread(here: local_engine.LocalEngine) -> None:
    with fanfare.stream(CHANNEL, "answer") as answer:
        for token in "abc":
            answer.append(token)
        assert answer.text == "abc"
    with here.queries() as queries:
        [found] = queries.streams("7", CHANNEL)
    assert (found.id, found.state, found.seq, streams.text_of(found)) == (answer.id, State.DONE, 3, "abc")


async def test_exception_in_the_block_fails_the_stream(hub: hubs.Hub) -> None:
    page = Page().subscribe(hub)
    with pytest.raises(ZeroDivisionError):
        async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
            await answer.append("half")
            _ = 1 / 0
    await page.until("a", "failed")
    assert page.text("a") == "half"
    async with fanfare.stream(CHANNEL, "answer", id="b") as answer:
        answer.fail("The model is overloaded")
    await page.until("b", "failed")
    assert page.events[-1]["error"] == "The model is overloaded"


async def test_cancelled_task_interrupts_the_stream(hub: hubs.Hub) -> None:
    page = Page().subscribe(hub)

    async def produce() -> None:
        async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
            await answer.append("half")
            await asyncio.Event().wait()

    task = asyncio.ensure_future(produce())
    await page.until_text("a", "half")
    task.cancel()
    await page.until("a", "interrupted")


async def test_task_that_is_cancelled_while_it_opens_its_stream_interrupts_it(
    hub: hubs.Hub, here: local_engine.LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens it cannot be cancelled, and the flusher would renew the lease for the process's life."""
    page = Page().subscribe(hub)
    write, opening, go_on = here.write_streams, threading.Event(), threading.Event()

    def slow(writes: Any, timeout: float | None = None) -> Any:
        opening.set()
        go_on.wait()
        return write(writes, timeout)

    async def produce() -> None:
        async with fanfare.stream(CHANNEL, "answer", id="a"):
            pytest.fail("the block is not entered")

    monkeypatch.setattr(here, "write_streams", slow)
    task = asyncio.ensure_future(produce())
    await asyncio.to_thread(opening.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await page.until("a", "interrupted")


async def test_repeated_task_continues_by_the_numbers_of_its_tokens(hub: hubs.Hub) -> None:
    tokens = [f"<{number}>" for number in range(1, 21)]
    page = Page().subscribe(hub)

    async def task(tries: int) -> None:
        async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
            for number, token in enumerate(tokens, 1):
                await answer.append(token, seq=number)
                if number == 7 * tries:
                    raise ConnectionError

    for tries in (1, 2):
        with pytest.raises(ConnectionError):
            await task(tries)
        await page.until("a", "failed")
    await task(3)
    await page.until("a", "done")
    assert page.text("a") == "".join(tokens)
    [event] = await history.aevents(CHANNEL)
    assert json.loads(event.data)["state"] == "done"


async def test_restart_replaces_the_text(hub: hubs.Hub) -> None:
    page = Page().subscribe(hub)
    with contextlib.suppress(RuntimeError):
        async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
            await answer.append("another answer, which was longer")
            raise RuntimeError
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        assert (answer.is_resumed, answer.text, answer.seq) == (True, "another answer, which was longer", 1)
        answer.restart()
        await answer.append("this", seq=1)
        await answer.append(" one", seq=2)
    await page.until("a", "done")
    assert page.text("a") == "this one"


async def test_empty_token_may_be_the_last_one(hub: hubs.Hub) -> None:
    """A model's last token often is empty, and comes after the window of those before it."""
    page = Page().subscribe(hub)
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        await answer.append("all")
        await page.until_text("a", "all")
        await answer.append("")
    await page.until("a", "done")
    assert (page.text("a"), page.events[-1]["seq"]) == ("all", 2)


@pytest.mark.parametrize("appended", ["", "new"])
@pytest.mark.parametrize("is_written", [True, False])
async def test_restart_after_a_write_whose_answer_was_lost_replaces_the_text(
    hub: hubs.Hub, here: local_engine.LocalEngine, monkeypatch: pytest.MonkeyPatch, is_written: bool, appended: str
) -> None:
    page = Page().subscribe(hub)
    write, lost = here.write_streams, threading.Event()

    def lose_one_answer(writes: Any, timeout: float | None = None) -> Any:
        if lost.is_set():
            return write(writes, timeout)
        if is_written:
            write(writes, timeout)
        lost.set()
        raise engine_errors.EngineUnavailable("The answer is lost")

    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        await answer.append("old")
        await page.until_text("a", "old")
        monkeypatch.setattr(here, "write_streams", lose_one_answer)
        await answer.append(" text")
        await asyncio.to_thread(lost.wait)
        answer.restart()
        if appended:
            await answer.append(appended)
    await page.until("a", "done")
    assert page.text("a") == appended


async def test_number_that_was_left_out_is_refused_with_both_numbers(hub: hubs.Hub) -> None:
    with pytest.raises(errors.StreamConflict, match="5 follows 1") as caught:
        async with fanfare.stream(CHANNEL, "answer") as answer:
            await answer.append("a", seq=1)
            await answer.append("b", seq=5)
    assert (caught.value.expected, caught.value.actual) == (2, 5)


async def test_second_producer_of_a_stream_is_refused(hub: hubs.Hub) -> None:
    async def append_until_refused(answer: producers.AsyncStream) -> None:
        while True:
            await answer.append("x")
            await asyncio.sleep(0.01)

    with pytest.raises(errors.StreamConflict, match="Another producer"):
        async with fanfare.stream(CHANNEL, "answer", id="a") as one:
            await one.append("1")
            async with fanfare.stream(CHANNEL, "answer", id="a") as two:
                await asyncio.gather(append_until_refused(one), append_until_refused(two))


async def test_cancelled_stream_stops_its_producer(hub: hubs.Hub) -> None:
    page = Page().subscribe(hub)
    with pytest.raises(fanfare.StreamCancelled):
        async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
            await answer.append("half")
            await page.until_text("a", "half")
            assert await fanfare.acancel_stream(CHANNEL, "a") is True
            while True:
                await answer.append(".")
                await asyncio.sleep(0.01)
    await page.until("a", "cancelled")
    assert await fanfare.acancel_stream(CHANNEL, "a") is False
    with pytest.raises(fanfare.StreamEnded) as ended:
        await fanfare.stream(CHANNEL, "answer", id="a").__aenter__()
    assert isinstance(ended.value, fanfare.StreamCancelled)
    assert ended.value.text == page.text("a")


async def test_silent_producer_leaves_an_interrupted_stream(hub: hubs.Hub) -> None:
    page = Page().subscribe(hub)
    where = interface.StreamName("7", CHANNEL, "a")
    opening = stream_rules.opening(where, streams.Head("answer", {"m": 1}))
    await asyncio.to_thread(
        hub.engine.write_streams,
        [
            opening,
            stream_rules.piece(where, streams.Head("answer"), "half", after=0, seq=1, at=0, lease_s=-1),
        ],
    )
    await stream_rules.end_lapsed(hub, registry.Registry())
    await page.until("a", "interrupted")
    assert page.text("a") == "half"


async def test_end_of_a_stream_that_does_not_exist_changes_nothing(hub: hubs.Hub) -> None:
    unknown = interface.StreamName("7", CHANNEL, "unknown")
    assert await stream_rules.end(hub, None, unknown, interface.StreamState.CANCELLED) is None
    assert hub.counters["streams.cancelled"] == 0


async def test_living_producer_renews_its_lease(hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_producer, "RENEWALS", 1000)

    def lease(queries: Any) -> int:
        [(until_ms,)] = queries._connect().execute("SELECT until_ms FROM texts").fetchall()
        return int(until_ms)

    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        before = await hub.engine.ask(lease)

        async def is_renewed() -> bool:
            return await hub.engine.ask(lease) > before

        await waiting.until_async(is_renewed, 5, "a renewal")
        await answer.append("x")


async def test_log_that_is_away_holds_back_and_loses_nothing(
    hub: hubs.Hub, here: local_engine.LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page().subscribe(hub)
    write, refuse, lost = here.write_streams, threading.Event(), threading.Event()

    def flaky(writes: list[interface.StreamWrite], timeout: float | None = None) -> list[interface.StreamReceipt]:
        if refuse.is_set():
            raise engine_errors.EngineUnavailable("away")
        receipts = write(writes, timeout)
        if lost.is_set():  # it was done, and the answer did not arrive
            raise engine_errors.EngineUnavailable("away")
        return receipts

    monkeypatch.setattr(here, "write_streams", flaky)
    monkeypatch.setattr(stream_producer, "RETRY_S", 0.02)
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        for number in range(300):
            (refuse.set if number % 60 in range(20, 40) else refuse.clear)()
            (lost.set if number % 60 in range(45, 55) else lost.clear)()
            await answer.append(f"<{number}>")
            await asyncio.sleep(0.002)
    await page.until("a", "done")
    assert page.text("a") == "".join(f"<{number}>" for number in range(300))


async def test_encrypted_stream_is_sealed_piece_by_piece(hub: hubs.Hub, settings: Any) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": "Y4RmdXnXxhFHvtE1fVkHlV3l3n8mZBQw0fGhpZ1lC2U="}
    channel = "private-encrypted-chat"
    first = Page(channel, sealed=True).subscribe(hub)
    async with fanfare.stream(channel, "answer", id="a", meta={"by": "x"}) as answer:
        await answer.append("one 🎉 ")
        await first.until_text("a", "one 🎉 ")
        late = await Page(channel, sealed=True).subscribe(hub).until_text("a", "one 🎉 ")
        await answer.append("two")
    for page in (first, late, Page(channel, sealed=True).subscribe(hub)):
        await page.until("a", "done")
        assert page.text("a") == "one 🎉 two"
    with contextlib.suppress(RuntimeError):
        async with fanfare.stream(channel, "answer", id="b") as answer:
            await answer.append("half 🎉")
            raise RuntimeError
    with pytest.raises(fanfare.StreamCancelled):
        async with fanfare.stream(channel, "answer", id="b") as answer:
            assert answer.text == "half 🎉"
            assert await fanfare.acancel_stream(channel, "b") is True
    await first.until("b", "cancelled")
    assert first.text("b") == "half 🎉"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cache-chat", "answer", None), "needs a channel of another name"),
        (("chat!", "answer", None), "Invalid channel name"),
        (("chat", "pusher:answer", None), "reserved"),
        (("chat", "answer", "ä"), "Invalid stream id"),
        (("chat", "answer", "a" * 101), "Invalid stream id"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, str, str | None], message: str) -> None:
    channel, event, stream_id = arguments
    with pytest.raises(errors.InvalidName, match=message), fanfare.stream(channel, event, id=stream_id):
        pass


def test_bounds_are_in_the_errors(here: local_engine.LocalEngine, settings: Any) -> None:
    settings.FANFARE = {"STREAM_MAX_LENGTH": 10, "STREAM_MAX_IN_CHANNEL": 1}
    too_long = pytest.raises(errors.StreamTooLong, match="12 UTF-16 code units; 10 are allowed")
    with too_long, fanfare.stream(CHANNEL, "answer") as answer:
        answer.append("🎉" * 3)
        answer.append("🎉" * 3)
    too_many = pytest.raises(errors.TooManyStreams, match="1 streams are open; 1 are allowed")
    with fanfare.stream(CHANNEL, "answer"), too_many, fanfare.stream(CHANNEL, "answer"):
        pass


async def test_blocking_form_is_refused_on_an_event_loop() -> None:
    with pytest.raises(errors.CalledOnEventLoop, match="async with"), fanfare.stream(CHANNEL, "answer"):
        pass


def test_streams_of_a_test_without_a_log_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from fanfare.testing import captured_events

    with captured_events() as events, fanfare.stream(CHANNEL, "answer") as answer:
        answer.append("x")
    assert list(events) == []


async def test_many_streams_of_one_process_share_the_commits(hub: hubs.Hub) -> None:
    pages = [Page(f"private-chat-{number}").subscribe(hub) for number in range(20)]

    async def produce(number: int) -> None:
        async with fanfare.stream(f"private-chat-{number}", "answer", id="a") as answer:
            for token in range(100):
                await answer.append(f"<{number}.{token}>")
                await asyncio.sleep(0.001)

    await asyncio.gather(*map(produce, range(20)))
    for number, page in enumerate(pages):
        await page.until("a", "done")
        assert page.text("a") == "".join(f"<{number}.{token}>" for token in range(100))


@pytest.mark.parametrize("text", [None, 5, "\ud83d"])
async def test_text_that_is_none_is_refused_and_the_stream_goes_on(hub: hubs.Hub, text: Any) -> None:
    page = Page().subscribe(hub)
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        with pytest.raises(errors.UnencodableData, match=r"is a str, not|lone surrogate"):
            await answer.append(text)
        await answer.append("x")
    await page.until("a", "done")
    assert page.text("a") == "x"


@pytest.mark.parametrize(("error", "shown"), [(ValueError("No model"), "No model"), ("half \ud83d", r"half \ud83d")])
async def test_failure_is_reported_whatever_its_message_is(hub: hubs.Hub, error: Any, shown: str) -> None:
    page = Page().subscribe(hub)
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        answer.fail(error)
    await page.until("a", "failed")
    assert page.events[-1]["error"] == shown


async def test_stream_that_cannot_be_encoded_fails_alone(
    hub: hubs.Hub, here: local_engine.LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are due in the same turn of the flusher."""
    page = Page().subscribe(hub)
    async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
        with pytest.raises(errors.StreamError, match="ZeroDivisionError"):
            async with fanfare.stream(CHANNEL, "answer", id="b") as broken:
                monkeypatch.setattr(broken._producer, "_piece", lambda taken: 1 / 0)
                with flushing_held():
                    await answer.append("x")
                    await broken.append("y")
                    await asyncio.sleep(answer._producer.window_s)
    await page.until("a", "done")
    assert page.text("a") == "x"


async def test_failure_of_one_stream_leaves_the_thread_to_the_others(
    hub: hubs.Hub, here: local_engine.LocalEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All streams of a process are written by one thread, which must not end."""
    page = Page().subscribe(hub)
    write = here.write_streams
    with pytest.raises(errors.StreamError, match="ZeroDivisionError"):
        async with fanfare.stream(CHANNEL, "answer", id="a") as answer:
            monkeypatch.setattr(here, "write_streams", lambda writes, timeout=None: 1 / 0)
            await answer.append("x")
    monkeypatch.setattr(here, "write_streams", write)
    async with fanfare.stream(CHANNEL, "answer", id="b") as answer:
        await answer.append("y")
    await page.until("b", "done")
    assert page.text("b") == "y"
    gc.collect()
    assert "never retrieved" not in caplog.text, "the block has raised it"
