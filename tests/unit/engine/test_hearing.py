"""A worker that wants it so reads only what somebody on it can hear, and misses nothing of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine, tail
from fanfare.hub import hub
from tests.harness import waiting
from tests.unit.engine import workers
from tests.unit.engine.workers import APP

KEPT = interface.Retention(size=10_000, seconds=60)


class Worker(workers.Worker):
    def bodies(self, channel: str) -> list[bytes]:
        """Of events: what tells that the channel is occupied has none."""
        return [one.body for one in self.entries if one.channel == channel and one.kind == interface.Kind.EVENT]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Worker]:
    local = engine.LocalEngine(tmp_path)
    local.skip_unheard(True)
    opened = Worker(local)
    await opened.open()
    yield opened
    await local.close()


def tail_of(worker: Worker) -> tail.Tail:
    assert isinstance(worker.engine, engine.LocalEngine)
    assert worker.engine._worker is not None
    return worker.engine._worker.tail


async def caught_up(worker: Worker, receipts: list[interface.Receipt]) -> None:
    await worker.until(lambda: tail_of(worker).position >= receipts[-1].id, "the tail to reach the end")


async def test_only_what_is_heard_here_is_delivered(here: Worker) -> None:
    here.engine.set_subscribers(APP, "heard", 2)
    await here.publish("unheard", b"1")
    await here.publish("heard", b"2")
    await here.engine.append([interface.Publication("another", "heard", b"3")])
    await caught_up(here, await here.publish("unheard", b"4"))
    assert here.bodies("heard") == [b"2"]
    assert here.bodies("unheard") == []


async def test_listening_delivers_without_counting(here: Worker) -> None:
    here.engine.listen("", "mailbox", True)
    message = interface.Publication("", "mailbox", b"1", interface.Kind.MESSAGE)
    await here.engine.append([message, message._replace(channel="another")])
    await here.until(lambda: here.entries, "the message")
    here.engine.set_subscribers("", "mailbox", 1)
    here.engine.set_subscribers("", "mailbox", 0)
    await here.engine.append([message])
    await here.until(lambda: len([one for one in here.entries if one.kind == message.kind]) == 2, "the message")
    here.engine.listen("", "mailbox", False)
    await caught_up(here, await here.engine.append([message]))
    assert [one.channel for one in here.entries if one.kind == message.kind] == ["mailbox"] * 2
    assert await here.engine.channels("") == {}


async def test_commands_and_users_concern_every_worker(here: Worker) -> None:
    await here.engine.append([interface.Publication(APP, "reload", b"1", interface.Kind.CONTROL)])
    await here.join(interface.USERS, "ann", "1.1")
    await here.until(lambda: len(here.entries) == 2, "both")
    assert [entry.kind for entry in here.entries] == [interface.Kind.CONTROL, interface.Kind.MEMBER_ADDED]


async def test_a_channel_whose_last_subscriber_went_is_not_delivered_any_more(here: Worker) -> None:
    here.engine.set_subscribers(APP, "c", 1)
    await here.publish("c", b"1")
    await here.got("c", b"1")
    here.engine.set_subscribers(APP, "c", 0)
    await caught_up(here, await here.publish("c", b"2"))
    here.engine.set_subscribers(APP, "c", 1)
    await here.publish("c", b"3")
    await here.got("c", b"1", b"3")


async def test_from_its_attachment_on_a_subscriber_misses_nothing(here: Worker) -> None:
    """Subscribers come and go while somebody publishes."""
    local = here.engine
    done = asyncio.Event()

    def publish() -> None:
        for number in range(400):
            local.append_blocking([interface.Publication(APP, "c", b"%d" % number, retention=KEPT)], 60)

    async def publishing() -> None:
        await asyncio.to_thread(publish)
        done.set()

    running = asyncio.create_task(publishing())
    rounds = 0
    while not done.is_set():
        rounds += 1
        local.set_subscribers(APP, "c", 1)
        attached = await here.attach("c", f"1.{rounds}", history=interface.RecoveryRequest())
        assert isinstance(attached, interface.SubscribeResult)
        assert attached.replayed is not None
        assert attached.replayed.position is not None
        start = attached.replayed.position.offset
        await here.publish("c", b"mine", retention=KEPT)
        await here.until(lambda: b"mine" in here.bodies("c"), "an event")
        offsets = [entry.offset for entry in here.entries if entry.offset is not None and entry.offset > start]
        assert offsets == list(range(start + 1, start + 1 + len(offsets)))
        local.set_subscribers(APP, "c", 0)
        here.entries.clear()
    await running


async def test_many_entries_that_nobody_hears_are_passed_in_steps(
    here: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "SCAN_ENTRIES", 3)
    here.engine.set_subscribers(APP, "c", 1)
    await here.engine.append(
        [interface.Publication(APP, f"other-{number}" if number != 40 else "c", b"x") for number in range(100)]
    )
    await caught_up(here, await here.publish("last", b"x"))
    assert here.bodies("c") == [b"x"]


async def test_an_attachment_behind_entries_that_nobody_hears_is_answered(
    here: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "SCAN_ENTRIES", 3)
    monkeypatch.setattr(tail, "STEP_ENTRIES", 2)
    here.engine.set_subscribers(APP, "c", 1)
    appended = asyncio.ensure_future(
        here.engine.append([interface.Publication(APP, "c" if number % 5 else "d", b"x") for number in range(50)])
    )
    assert isinstance(await here.attach("c"), interface.SubscribeResult)
    await appended
    await here.until(lambda: len(here.bodies("c")) == 40, "what is heard")


async def test_who_wants_to_see_everything_again_gets_what_comes_next_whole(
    here: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was read already without the rest, and waits to be delivered."""
    monkeypatch.setattr(tail, "STEP_BYTES", 100)
    local, seen, taken_back = here.engine, tail_of(here), list[int]()
    hand_over = tail.Tail._hand_over

    def take_back() -> None:
        assert seen._backlog
        taken_back.append(seen.position)
        local.skip_unheard(False)

    def handing_over(self: tail.Tail) -> None:
        hand_over(self)
        if not taken_back and self.position > first:
            asyncio.get_running_loop().call_soon(take_back)

    monkeypatch.setattr(tail.Tail, "_hand_over", handing_over)
    local.set_subscribers(APP, "heard", 1)
    first = (await here.publish("heard", b"0"))[0].id
    receipts = await local.append(
        [interface.Publication(APP, name, b"%d" % number * 60) for number in range(9) for name in ("heard", "not")]
    )
    await caught_up(here, receipts)
    ids = [entry.id for entry in here.entries]
    assert ids == sorted(set(ids))
    assert [one for one in ids if one > taken_back[0]] == [one.id for one in receipts if one.id > taken_back[0]]


async def test_a_tail_that_starts_again_still_knows_what_is_heard(here: Worker) -> None:
    here.engine.set_subscribers(APP, "c", 1)
    await here.publish("c", b"1")
    await here.got("c", b"1")
    tail_of(here).follow(tail_of(here).position)
    await here.publish("unheard", b"2")
    await here.publish("c", b"3")
    await here.got("c", b"1", b"3")
    assert here.bodies("unheard") == []


class Observer:
    def __init__(self) -> None:
        self.channels: list[str] = []

    def delivered(self, entries: Sequence[interface.Entry]) -> None:
        self.channels += [entry.channel for entry in entries]

    def gap_detected(self) -> None:
        raise AssertionError("nothing was missed")


async def test_an_observer_of_the_hub_sees_what_nobody_hears(tmp_path: Path) -> None:
    local = engine.LocalEngine(tmp_path)
    here, observer = hub.Hub(local), Observer()
    await here.start()
    assert local._worker is not None
    following = local._worker.tail
    watching: tuple[Observer | None, ...] = (None, observer, None)
    for number, one in enumerate(watching):
        here.observe(one)
        [receipt] = await here.publish([interface.Publication(APP, f"c-{number}", b"{}")])

        async def passed(upto: int = receipt.id) -> bool:
            return following.position >= upto

        await waiting.until_async(passed, 5, "the tail")
    await here.stop()
    assert observer.channels == ["c-1"]
