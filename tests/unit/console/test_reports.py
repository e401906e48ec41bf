"""Reports of several workers on one real log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fanfare.console import reports
from fanfare.engine.local import engine as local_engine
from fanfare.hub import hub as hubs
from tests.harness import waiting


class Worker:
    """A hub with an engine of its own on the shared log, and its reports."""

    def __init__(self, folder: Path) -> None:
        self.hub = hubs.Hub(local_engine.LocalEngine(folder))
        self.counters: dict[str, int | float] = {}
        self.gauges: dict[str, int | float] = {}
        self.reports = reports.Reports(
            self.hub, self.hub.supervisor, counters=lambda: self.counters, gauges=lambda: self.gauges, version="1.0"
        )

    async def start(self) -> Worker:
        await self.hub.start()
        self.reports.introduce()
        return self

    def known(self) -> int | float:
        return self.hub.engine.statistics()["workers"]


Start = Callable[[], "asyncio.Future[Worker]"]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[Worker] = []

    async def start() -> Worker:
        worker = await Worker(tmp_path / "engine").start()
        started.append(worker)

        async def all_are_known() -> bool:
            return all(one.known() == len(started) for one in started)

        await waiting.until_async(all_are_known, 5, "every worker knows the others")
        return worker

    yield start  # type: ignore[misc]
    for worker in started:
        await worker.hub.stop()


async def test_a_collection_holds_the_figures_of_all_workers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "WAIT_S", 30.0)
    first, second = await start(), await start()
    first.counters, second.counters = {"deliveries": 3, "published": 1}, {"deliveries": 4}
    first.gauges, second.gauges = {"connections.now": 10}, {"connections.now": 5}
    for worker in (first, second):
        collected = await worker.reports.collect()
        assert collected.expected == len(collected.reports) == 2
        assert collected.counters == {"deliveries": 7, "published": 1}
        assert collected.gauges == {"connections.now": 15}


async def test_the_counters_of_a_worker_that_stopped_stay_in_the_sum(start: Start) -> None:
    first, second = await start(), await start()
    second.counters = {"deliveries": 4}
    await first.reports.collect()
    await second.hub.stop()

    async def it_is_gone() -> bool:
        return first.known() == 1

    await waiting.until_async(it_is_gone, 5, "the first worker knows that it is alone")
    await asyncio.sleep(reports.FRESH_S)
    collected = await first.reports.collect()
    assert len(collected.reports) == 1
    assert collected.counters == {"deliveries": 4}


async def test_a_new_worker_learns_the_counters_of_workers_that_are_gone(start: Start, tmp_path: Path) -> None:
    first = await start()
    gone = await Worker(tmp_path / "engine").start()
    gone.counters = {"deliveries": 4}

    async def both_are_known() -> bool:
        return first.known() == 2

    await waiting.until_async(both_are_known, 5, "the first worker knows the second")
    await first.reports.collect()
    await gone.hub.stop()
    third = await start()

    async def it_knows() -> bool:
        return (await third.reports.collect()).counters == {"deliveries": 4}

    await waiting.until_async(it_knows, 5, "the new worker reports the counters of the one that is gone")


async def test_a_worker_that_does_not_answer_is_missing_and_costs_one_wait(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "WAIT_S", 0.2)
    first, second = await start(), await start()
    monkeypatch.setattr(second.reports, "_post", lambda command, value: None)
    second.hub.on_control(reports.REQUEST, lambda app, body: None)
    collected = await first.reports.collect()
    assert collected.expected == 2
    assert [report.worker for report in collected.reports] == [first.reports.worker]


async def test_caller_that_disconnects_does_not_end_the_collection_of_the_others(start: Start) -> None:
    first = await start()
    gone, other = asyncio.ensure_future(first.reports.collect()), asyncio.ensure_future(first.reports.collect())
    while not first.reports._request:
        await asyncio.sleep(0)
    gone.cancel()
    assert [report.worker for report in (await other).reports] == [first.reports.worker]
    assert gone.cancelled()


async def test_simultaneous_calls_share_one_request(start: Start) -> None:
    first = await start()
    requests: list[bytes] = []
    first.hub.on_control(reports.ANSWER, lambda app, body: (requests.append(body), first.reports._on_answer(app, body)))
    collected = await asyncio.gather(*(first.reports.collect() for _ in range(20)))
    assert all(one is collected[0] for one in collected)
    assert len(requests) == 1
