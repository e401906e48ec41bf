"""When a worker looks at the log: whenever there is something new, and under load not for each commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fanfare.engine import interface
from fanfare.engine.local import engine, publishing, tail, worker
from tests.harness import waiting
from tests.unit.engine.workers import APP, Worker


@pytest.fixture
async def slow_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer below the pokes saves nobody in these tests."""
    monkeypatch.setattr(worker, "TICK_S", 600.0)


@pytest.fixture
async def here(tmp_path: Path, slow_net: None) -> AsyncIterator[Worker]:
    opened = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    yield opened
    await opened.engine.close()


@pytest.fixture
async def other(tmp_path: Path, here: Worker) -> AsyncIterator[Worker]:
    opened = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    yield opened
    await opened.engine.close()


async def test_an_attachment_that_is_made_while_another_is_answered_is_answered_too(here: Worker) -> None:
    answers: list[str] = []

    def again(_: object) -> None:
        answers.append("first")
        here.engine.attach(interface.SubscribeRequest(APP, "c", durable=False), lambda _: answers.append("second"))

    here.engine.attach(interface.SubscribeRequest(APP, "c", durable=False), again)
    await here.until(lambda: answers == ["first", "second"], "both answers")


async def test_an_attachment_that_is_made_by_a_delivery_is_answered(tmp_path: Path, slow_net: None) -> None:
    local, answers = engine.LocalEngine(tmp_path / "engine"), list[str]()

    def deliver(entries: Sequence[interface.Entry]) -> None:
        local.attach(interface.SubscribeRequest(APP, "c", durable=False), lambda _: answers.append("attached"))

    await local.open(deliver, lambda reason: None)
    await local.append([interface.Publication(APP, "c", b"")])

    async def answered() -> bool:
        return answers == ["attached"]

    await waiting.until_async(answered, 5, "the answer")
    await local.close()


async def test_what_is_written_while_a_backlog_is_handed_over_is_read_after_it(
    here: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poke comes while there is still something to hand over, and no other one follows."""
    monkeypatch.setattr(tail, "STEP_BYTES", 100)
    local = here.engine
    assert isinstance(local, engine.LocalEngine)
    assert local._worker is not None
    hand_over = tail.Tail._hand_over
    late: list[object] = []

    def handing_over(self: tail.Tail) -> None:
        if not late:
            late.append(1)
            local._writer.write(publishing.BlockingAppend([interface.Publication(APP, "c", b"late")]))
            self.advance()
        hand_over(self)

    monkeypatch.setattr(tail.Tail, "_hand_over", handing_over)
    await here.publish("c", *[b"x" * 100] * 5)
    await here.until(lambda: here.bodies("c")[-1:] == [b"late"], "the late one")
    assert len(here.bodies("c")) == 6


async def test_under_load_reads_are_shared_and_nothing_is_lost_or_late(here: Worker, other: Worker) -> None:
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


async def test_a_worker_that_rests_hears_again_when_it_is_calm(here: Worker, other: Worker) -> None:
    local = here.engine
    assert isinstance(local, engine.LocalEngine)
    assert local._worker is not None
    for number in range(5):
        local._worker._pace._rest()
        await other.publish("c", b"%d" % number)
        await here.got("c", *[b"%d" % one for one in range(number + 1)])


async def test_a_worker_closes_while_it_rests(tmp_path: Path) -> None:
    opened = await Worker(engine.LocalEngine(tmp_path / "engine")).open()
    local = opened.engine
    assert isinstance(local, engine.LocalEngine)
    assert local._worker is not None
    local._worker._pace._rest()
    await local.close()
    assert opened.gaps == []


async def test_a_commit_that_adds_no_entry_wakes_nobody(here: Worker, other: Worker) -> None:
    before = other.engine.statistics()["reads"]
    for number in range(5):
        here.engine.save_session(APP, f"token-{number}", b"record", 60)
        assert await here.engine.load_session(APP, f"token-{number}") == b"record"
    await here.publish("c", b"1")
    await other.got("c", b"1")
    assert other.engine.statistics()["reads"] <= before + 2
