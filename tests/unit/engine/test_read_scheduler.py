"""When a worker reads the log: whenever there are new entries, and under load not for each commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fanfare.engine import interface
from fanfare.engine.local import appends, engine, read_scheduler, reader, worker
from tests.harness import waiting
from tests.unit.engine.workers import APP, Worker


@pytest.fixture
async def without_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """In these tests a lost notification is not made up for by the timer."""
    monkeypatch.setattr(worker, "TICK_S", 600.0)


@pytest.fixture
async def here(tmp_path: Path, without_timer: None) -> AsyncIterator[Worker]:
    opened = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    yield opened
    await opened.engine.close()


@pytest.fixture
async def other(tmp_path: Path, here: Worker) -> AsyncIterator[Worker]:
    opened = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    yield opened
    await opened.engine.close()


async def test_subscription_made_while_another_is_answered_is_answered(here: Worker) -> None:
    answers: list[str] = []

    def again(_: object) -> None:
        answers.append("first")
        here.engine.attach(interface.SubscribeRequest(APP, "c", durable=False), lambda _: answers.append("second"))

    here.engine.attach(interface.SubscribeRequest(APP, "c", durable=False), again)
    await here.until(lambda: answers == ["first", "second"], "both answers")


async def test_subscription_made_in_a_delivery_is_answered(tmp_path: Path, without_timer: None) -> None:
    local, answers = engine.LocalEngine(tmp_path / "engine"), list[str]()

    def deliver(entries: Sequence[interface.Entry]) -> None:
        local.attach(interface.SubscribeRequest(APP, "c", durable=False), lambda _: answers.append("attached"))

    await local.open(deliver, lambda reason, partition: None)
    local.listen(APP, "c", True)
    await local.append([interface.Publication(APP, "c", b"")])

    async def answered() -> bool:
        return answers == ["attached"]

    await waiting.until_async(answered, 5, "the answer")
    await local.close()


async def test_entry_written_during_the_delivery_of_a_backlog_is_read_after_it(
    here: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notification comes during the delivery, and no other one follows."""
    monkeypatch.setattr(reader, "STEP_BYTES", 100)
    local = here.engine
    assert isinstance(local, engine.LocalEngine)
    assert local._worker is not None
    hand_over = reader.LogReader._hand_over
    late: list[object] = []

    def handing_over(self: reader.LogReader) -> str | None:
        if not late:
            late.append(1)
            local._commits.write(appends.BlockingAppend([interface.Publication(APP, "c", b"late")]))
            self.advance()
        return hand_over(self)

    monkeypatch.setattr(reader.LogReader, "_hand_over", handing_over)
    await here.publish("c", *[b"x" * 100] * 5)
    await here.until(lambda: here.bodies("c")[-1:] == [b"late"], "the late one")
    assert len(here.bodies("c")) == 6


async def test_reads_are_shared_under_load_and_every_entry_is_delivered(here: Worker, other: Worker) -> None:
    """Some thousand commits in a row, then one when all is calm."""
    local = here.engine

    def publish() -> None:
        for number in range(3000):
            local.append_blocking([interface.Publication(APP, "c", b"%d" % number)], 60)

    await asyncio.to_thread(publish)
    for one in (here, other):
        await one.until(lambda one=one: len(one.entries) == 3000, "all of them", within=30)
        assert one.bodies("c") == [b"%d" % number for number in range(3000)]
    await here.publish("calm", b"1")
    for one in (here, other):
        await one.got("calm", b"1")


async def test_entries_of_the_worker_itself_are_delivered_without_a_read(here: Worker, other: Worker) -> None:
    await here.publish("c", b"0")
    await here.got("c", b"0")
    before = here.engine.statistics()["reads"]
    for number in range(1, 6):
        await here.publish("c", b"%d" % number)
        await here.got("c", *[b"%d" % one for one in range(number + 1)])
    assert here.engine.statistics()["reads"] == before
    assert here.engine.statistics()["reads_spared"] >= 5
    await other.got("c", *[b"%d" % one for one in range(6)])


async def test_joining_member_is_answered_after_the_entries_of_its_own_group(here: Worker, other: Worker) -> None:
    answered: list[tuple[int, object]] = []
    request = interface.SubscribeRequest(APP, "presence-c", "1.1", member=interface.Member("ann", "null"))
    here.engine.attach(request, lambda answer: answered.append((len(here.entries), answer)))
    appended = here.engine.append([interface.Publication(APP, "c", b"1")])
    await appended
    await here.until(lambda: bool(answered), "an answer")
    [(entries, answer)] = answered
    assert isinstance(answer, interface.SubscribeResult)
    assert [member.user_id for member in answer.members] == ["ann"]
    kinds = [interface.Kind.MEMBER_ADDED, interface.Kind.EVENT]
    assert [entry.kind for entry in here.entries[:entries]] == kinds
    assert here.engine.statistics()["reads_spared"] == 1, "the worker read its own entries"
    await other.until(lambda: [entry.kind for entry in other.entries] == kinds, "both entries")


async def test_handed_over_entry_equals_the_one_that_is_read(here: Worker, other: Worker) -> None:
    publications = [
        interface.Publication(APP, "c", b"plain"),
        interface.Publication(APP, "c", b"kept", retention=interface.Retention(10, 60)),
        interface.Publication(APP, "c", b"excluding", exclude="1.1"),
        interface.Publication(APP, "c", b"of a user", user_id="ann"),
    ]
    await here.engine.append(publications)
    for one in (here, other):
        await one.until(lambda one=one: len(one.entries) == 4, "four entries")
    assert [tuple(entry) for entry in here.entries] == [tuple(entry) for entry in other.entries]
    assert {type(value) for entry in here.entries for value in entry} <= {int, str, bytes, type(None)}
    assert here.engine.statistics()["reads_spared"] == 1


async def test_workers_that_publish_at_once_deliver_all_entries_in_one_order(here: Worker, other: Worker) -> None:
    """Each worker publishes on its loop and from a thread, so entries of the other lie between its own ones."""

    def publish(one: Worker) -> None:
        for _ in range(300):
            one.engine.append_blocking([interface.Publication(APP, "c", b"thread")], 60)

    async def publish_on_loop(one: Worker) -> None:
        for _ in range(300):
            await one.publish("c", b"loop")

    both = (here, other)
    await asyncio.gather(*(asyncio.to_thread(publish, one) for one in both), *(publish_on_loop(one) for one in both))
    for one in both:
        await one.until(lambda one=one: len(one.entries) == 1_200, "all of them", within=30)
    assert [entry.id for entry in here.entries] == sorted({entry.id for entry in here.entries})
    assert here.entries == other.entries
    assert here.engine.statistics()["reads_spared"] > 0
    assert here.gaps == other.gaps == []


async def test_resting_worker_is_notified_again_after_the_load(here: Worker, other: Worker) -> None:
    local = here.engine
    assert isinstance(local, engine.LocalEngine)
    assert local._worker is not None
    for number in range(5):
        local._worker.scheduler._rest()
        await other.publish("c", b"%d" % number)
        await here.got("c", *[b"%d" % one for one in range(number + 1)])


async def test_worker_closes_while_it_rests(tmp_path: Path) -> None:
    opened = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    local = opened.engine
    assert isinstance(local, engine.LocalEngine)
    assert local._worker is not None
    local._worker.scheduler._rest()
    await local.close()
    assert opened.gaps == []


async def test_commit_without_entries_notifies_no_worker(here: Worker, other: Worker) -> None:
    before = other.engine.statistics()["reads"]
    for number in range(5):
        await here.engine.take_session(APP, f"token-{number}", "1.1")
    await here.publish("c", b"1")
    await other.got("c", b"1")
    assert other.engine.statistics()["reads"] <= before + 2


async def test_rest_whose_end_failed_is_ended_by_the_timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that the worker would hear no notification any more."""
    monkeypatch.setattr(read_scheduler, "OVERDUE_S", 0.05)
    monkeypatch.setattr(worker, "TICK_S", 0.02)
    here = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    local = here.engine
    assert isinstance(local, engine.LocalEngine)
    assert local._worker is not None
    scheduler = local._worker.scheduler
    with monkeypatch.context() as patched:
        patched.setattr(scheduler, "_rested", lambda: 1 / 0)
        scheduler._rest()
        await here.until(lambda: scheduler._resting is None, "the end of the rest")
    await here.publish("c", b"1")
    await here.until(lambda: here.bodies("c") == [b"1"], "the next entry")
    await local.close()
