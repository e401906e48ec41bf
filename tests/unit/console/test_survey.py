"""Questions to all workers, on one real log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.console.workers import Worker, until_known


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    one, two = await Worker(tmp_path / "engine", "one").start(), await Worker(tmp_path / "engine", "other").start()
    await until_known(one, two)
    yield one, two
    for worker in (one, two):
        await worker.hub.stop()


async def test_every_worker_answers_whichever_asks(pair: tuple[Worker, Worker]) -> None:
    for worker in pair:
        worker.survey.on("name", lambda argument, name=worker.name: {"name": name, "asked": argument["x"]})
    for worker in pair:
        answers = await worker.survey.ask("name", {"x": 1}, wait_s=10)
        assert answers.missing == 0
        assert answers.workers == {name: {"name": name, "asked": 1} for name in ("one", "other")}


async def test_coroutine_is_awaited_for_the_answer(pair: tuple[Worker, Worker]) -> None:
    one, two = pair

    async def slowly(argument: dict[str, object]) -> str:
        await asyncio.sleep(0)
        return "late"

    two.survey.on("slow", slowly)
    answers = await one.survey.ask("slow", wait_s=10)
    assert answers == ({"other": "late"}, 0)  # a worker that does not know the question has no answer


async def test_worker_that_does_not_answer_is_missing(pair: tuple[Worker, Worker]) -> None:
    one, two = pair

    async def never(argument: dict[str, object]) -> None:
        await asyncio.Event().wait()

    one.survey.on("name", lambda _: "one")
    two.survey.on("name", never)
    answers = await one.survey.ask("name", wait_s=0.2)
    assert answers == ({"one": "one"}, 1)


async def test_lone_worker_answers_without_the_log(tmp_path: Path) -> None:
    worker = await Worker(tmp_path / "engine").start()
    worker.survey.on("name", lambda _: "one")
    assert await worker.survey.ask("name") == ({"one": "one"}, 0)
    await worker.hub.stop()
