"""Background jobs, run by real workers on one log."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from asgiref.sync import sync_to_async
from django import db
from django.contrib.auth.models import Group

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.engine.local import engine as local_engine
from fanfare.hub import hub as hubs
from fanfare.jobs import declarations, runner
from fanfare.runtime.supervisor import State, Status
from tests.harness import waiting

Start = Callable[[], Awaitable[runner.Runner]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(declarations, "SHORTEST_SECONDS", 0.01)


@pytest.fixture
def declared() -> declarations.Jobs:
    """The jobs of this test alone."""
    return declarations.Jobs()


@pytest.fixture
async def start(make_engine: Callable[[], interface.Engine], declared: declarations.Jobs) -> AsyncIterator[Start]:
    """Start one more worker of this test's deployment."""
    started: list[tuple[runner.Runner, hubs.Hub]] = []

    async def one() -> runner.Runner:
        hub = hubs.Hub(make_engine())
        await hub.start()
        worker = runner.Runner(hub, declared=declared)
        started.append((worker, hub))
        await worker.start()
        return worker

    yield one
    for worker, hub in started:
        await worker.stop()
        await hub.stop()


async def until(condition: Callable[[], object], what: str) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 10, what)


def status(worker: runner.Runner, name: str = "job") -> Status:
    [found] = [one for one in worker.statuses if one.name.endswith(name)]
    return found


def count(worker: runner.Runner, name: str) -> int:
    return int(worker._hub.counters[name])


# -- which worker runs it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_engine", ["local", "postgres", "redis"], indirect=True)
async def test_one_worker_runs_a_job_of_the_deployment_and_another_takes_over(
    declared: declarations.Jobs, start: Start
) -> None:
    running = most = begun = 0

    async def job() -> None:
        nonlocal running, most, begun
        running, begun = running + 1, begun + 1
        most = max(most, running)
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    declared.add(job, "deployment", None)
    first, second = await start(), await start()
    await until(lambda: running == 1, "one worker runs it")
    leader, other = (first, second) if status(first).state is State.RUNNING else (second, first)
    assert status(other).state is State.WAITING
    await leader.stop()
    assert running == 0
    assert status(leader).state is State.STOPPED
    await until(lambda: status(other).state is State.RUNNING, "the other worker runs it")
    assert (most, begun) == (1, 2)


async def test_each_worker_runs_its_own_job(declared: declarations.Jobs, start: Start) -> None:
    begun: list[int] = []

    async def job() -> None:
        begun.append(1)

    declared.add(job, "worker", None)
    workers = [await start(), await start()]
    await until(lambda: all(status(one).state is State.DONE for one in workers), "both are done")
    assert len(begun) == 2


async def test_finished_job_of_the_deployment_is_not_run_again_by_another_worker(
    declared: declarations.Jobs, start: Start
) -> None:
    begun: list[int] = []

    async def job() -> None:
        begun.append(1)

    declared.add(job, "deployment", None)
    first, second = await start(), await start()
    states = {State.DONE, State.WAITING}
    await until(lambda: {status(one).state for one in (first, second)} == states, "one is done")
    await asyncio.sleep(1.2)  # longer than the pause between two tries for the lease
    assert begun == [1]


async def test_job_of_the_deployment_is_cancelled_and_started_again_when_its_lease_is_lost(
    declared: declarations.Jobs, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[int] = []
    ended: list[int] = []
    leases: list[interface.Lease] = []

    async def job() -> None:
        begun.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(len(leases))

    acquire = local_engine.LocalEngine.lease

    async def lease(self: local_engine.LocalEngine, name: str) -> interface.Lease:
        acquired = await acquire(self, name)
        acquired.lost = asyncio.Event()  # that of the local engine is never set
        leases.append(acquired)
        return acquired

    monkeypatch.setattr(local_engine.LocalEngine, "lease", lease)
    declared.add(job, "deployment", None)
    worker = await start()
    await until(lambda: begun, "it runs")
    leases[0].lost.set()  # type: ignore[attr-defined]
    await until(lambda: len(begun) == 2, "it runs again")
    assert ended == [1]
    assert "LeaseLost: Another worker may hold the lease" in caplog.text
    assert status(worker).state is State.RUNNING


# -- periodic jobs -----------------------------------------------------------------------------------------------------


async def test_periodic_job_runs_at_once_and_continues_after_an_exception(
    declared: declarations.Jobs, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    async def job() -> None:
        runs.append(1)
        if len(runs) == 2:
            raise ZeroDivisionError("second time")

    declared.add(job, "worker", 0.02)
    worker = await start()
    await until(lambda: len(runs) >= 4, "four runs")
    assert status(worker).failures == 1
    assert status(worker).error == "ZeroDivisionError: second time"
    assert status(worker).runs >= 4
    assert count(worker, "background.failed") == 1
    assert "Traceback" in caplog.text


async def test_periodic_job_that_always_fails_does_not_fill_the_log(
    declared: declarations.Jobs, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    async def job() -> None:
        runs.append(1)
        raise ZeroDivisionError

    declared.add(job, "worker", 0.01)
    worker = await start()
    await until(lambda: len(runs) >= 10, "ten runs")
    assert len([record for record in caplog.records if "job failed" in record.getMessage()]) == 1
    assert count(worker, "background.failed") >= 9


async def test_periodic_job_that_finds_the_engine_away_is_logged_without_a_traceback(
    declared: declarations.Jobs, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def job() -> None:
        raise engine_errors.EngineUnavailable("the disk is full")

    declared.add(job, "worker", 60)
    worker = await start()
    await until(lambda: status(worker).failures, "the failure")
    assert "job failed: EngineUnavailable: the disk is full" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.django_db(transaction=True)
async def test_plain_function_runs_in_a_thread_and_leaves_no_connection_open(
    declared: declarations.Jobs, start: Start
) -> None:
    seen: list[tuple[bool, bool]] = []

    def job() -> None:
        was_open = db.connection.connection is not None
        Group.objects.get_or_create(name="made")
        seen.append((threading.current_thread() is threading.main_thread(), was_open))

    declared.add(job, "worker", 0.02)
    await start()
    await until(lambda: len(seen) >= 3, "three runs")
    assert set(seen) == {(False, False)}
    assert await sync_to_async(Group.objects.filter(name="made").count)() == 1


# -- long-running jobs -------------------------------------------------------------------------------------------------


async def test_long_running_job_that_raises_is_started_again_after_growing_pauses(
    declared: declarations.Jobs, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE_S", 0.04)
    begun: list[float] = []

    async def job() -> None:
        begun.append(asyncio.get_running_loop().time())
        if len(begun) < 4:
            raise ConnectionError("the exchange hung up")
        await asyncio.Event().wait()

    declared.add(job, "deployment", None)
    worker = await start()
    await until(lambda: len(begun) == 4, "four starts")
    assert status(worker).failures == 3
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    # Each is twice the one before, less a quarter at most. A busy machine makes them longer.
    for pause, shortest in zip(pauses, (0.03, 0.06, 0.12), strict=True):
        assert pause >= shortest


async def test_job_that_raises_does_not_stop_the_others(declared: declarations.Jobs, start: Start) -> None:
    ticks: list[int] = []

    async def broken() -> None:
        raise RuntimeError("broken")

    async def steady() -> None:
        ticks.append(1)

    declared.add(broken, "worker", None)
    declared.add(broken, "deployment", None)
    declared.add(steady, "worker", 0.01)
    await start()
    await until(lambda: len(ticks) >= 10, "ten ticks of the other job")


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_stopping_worker_lets_its_jobs_clean_up(declared: declarations.Jobs, start: Start) -> None:
    cleaned: list[str] = []

    async def job() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("job")

    declared.add(job, "deployment", None)
    worker = await start()
    await until(lambda: status(worker).state is State.RUNNING, "it runs")
    await worker.stop()
    await worker.stop()
    assert cleaned == ["job"]


async def test_job_that_does_not_stop_is_left_behind_and_counted(
    declared: declarations.Jobs, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "STOP_S", 0.05)
    release = asyncio.Event()

    async def job() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    declared.add(job, "worker", None)
    worker = await start()
    try:
        await until(lambda: status(worker).runs, "it runs")
        await worker.stop()
        assert count(worker, "background.left_behind") == 1
        assert any("job did not stop" in record.getMessage() for record in caplog.records)
    finally:
        release.set()  # or the test's own event loop would wait for it
