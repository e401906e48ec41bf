"""Background work, done by real workers on one log."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django import db
from django.contrib.auth.models import Group

from fanfare.engine.local import engine as local_engine
from fanfare.hub import hub as hubs
from fanfare.integration import errors, jobs, runner
from tests.harness import waiting

Hire = Callable[[], Awaitable[runner.Runner]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(jobs, "SHORTEST_SECONDS", 0.01)


@pytest.fixture
def registered() -> jobs.Jobs:  # type: ignore[override]
    """Jobs of this test alone."""
    return jobs.Jobs()


@pytest.fixture
async def hire(tmp_path: Path, registered: jobs.Jobs) -> AsyncIterator[Hire]:
    """Start one more worker of this test's deployment."""
    hired: list[tuple[runner.Runner, hubs.Hub]] = []

    async def one() -> runner.Runner:
        hub = hubs.Hub(local_engine.LocalEngine(tmp_path / "engine"))
        await hub.start()
        working = runner.Runner(hub, registered)
        hired.append((working, hub))
        await working.start()
        return working

    yield one
    for working, hub in hired:
        await working.stop()
        await hub.stop()


async def until(condition: Callable[[], object], what: str) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, 10, what)


def status(working: runner.Runner, name: str) -> runner.Status:
    [found] = [one for one in working.statuses if one.job.name.endswith(name)]
    return found


def count(working: runner.Runner, name: str) -> int:
    return int(working._hub.counters[name])


# -- who does it ------------------------------------------------------------------------------------------------------


async def test_one_worker_does_it_for_the_deployment_and_another_takes_over(registered: jobs.Jobs, hire: Hire) -> None:
    doing = 0
    most = 0
    begun = 0

    async def job() -> None:
        nonlocal doing, most, begun
        doing, begun = doing + 1, begun + 1
        most = max(most, doing)
        try:
            await asyncio.Event().wait()
        finally:
            doing -= 1

    registered.add(job, "deployment", None)
    first, second = await hire(), await hire()
    await until(lambda: doing == 1, "one worker does it")
    holder, other = (first, second) if status(first, "job").state is runner.State.RUNNING else (second, first)
    assert status(other, "job").state is runner.State.WAITING
    await holder.stop()
    assert doing == 0
    await until(lambda: status(other, "job").state is runner.State.RUNNING, "the other one does it")
    assert (most, begun) == (1, 2)


async def test_every_worker_does_its_own(registered: jobs.Jobs, hire: Hire) -> None:
    begun: list[int] = []

    async def job() -> None:
        begun.append(1)

    registered.add(job, "worker", None)
    workers = [await hire(), await hire()]
    await until(lambda: all(status(one, "job").state is runner.State.DONE for one in workers), "both are done")
    assert len(begun) == 2


async def test_what_is_done_for_the_deployment_is_not_done_again_by_another(registered: jobs.Jobs, hire: Hire) -> None:
    begun: list[int] = []

    async def job() -> None:
        begun.append(1)

    registered.add(job, "deployment", None)
    first, second = await hire(), await hire()
    states = [runner.State.DONE, runner.State.WAITING]
    await until(lambda: {status(one, "job").state for one in (first, second)} == set(states), "one is done")
    await asyncio.sleep(1.2)  # longer than the other one waits between two looks at the lease
    assert begun == [1]


# -- again and again --------------------------------------------------------------------------------------------------


async def test_a_periodic_job_runs_at_once_and_again_whatever_it_raises(
    registered: jobs.Jobs, hire: Hire, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    async def job() -> None:
        runs.append(1)
        if len(runs) == 2:
            raise ZeroDivisionError("second time")

    registered.add(job, "worker", 0.02)
    working = await hire()
    await until(lambda: len(runs) >= 4, "four runs")
    assert status(working, "job").failures == 1
    assert status(working, "job").error == "ZeroDivisionError: second time"
    assert count(working, "background.failed") == 1
    assert "Traceback" in caplog.text


@pytest.mark.django_db(transaction=True)
async def test_a_plain_function_gets_a_thread_and_leaves_no_connection(registered: jobs.Jobs, hire: Hire) -> None:
    Seen = tuple[bool, bool]
    seen: list[Seen] = []

    def job() -> None:
        was_open = db.connection.connection is not None
        Group.objects.get_or_create(name="made")
        seen.append((threading.current_thread() is threading.main_thread(), was_open))

    registered.add(job, "worker", 0.02)
    await hire()
    await until(lambda: len(seen) >= 3, "three runs")
    assert set(seen) == {(False, False)}
    assert await sync_to_async(Group.objects.filter(name="made").count)() == 1


async def test_a_long_lived_job_that_breaks_off_is_started_again_after_a_pause(
    registered: jobs.Jobs, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE_S", 0.04)
    begun: list[float] = []

    async def job() -> None:
        begun.append(asyncio.get_running_loop().time())
        if len(begun) < 4:
            raise ConnectionError("the exchange hung up")
        await asyncio.Event().wait()

    registered.add(job, "deployment", None)
    working = await hire()
    await until(lambda: len(begun) == 4, "four starts")
    assert status(working, "job").failures == 3
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    # Each twice the one before, less a quarter at most; how much longer a busy machine makes them says nothing.
    for pause, shortest in zip(pauses, (0.03, 0.06, 0.12), strict=True):
        assert pause >= shortest


# -- the end ----------------------------------------------------------------------------------------------------------


async def test_a_stopping_worker_lets_its_jobs_clean_up(registered: jobs.Jobs, hire: Hire) -> None:
    cleaned: list[str] = []

    async def job() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("job")

    registered.add(job, "deployment", None)
    working = await hire()
    await until(lambda: status(working, "job").state is runner.State.RUNNING, "it runs")
    await working.stop()
    await working.stop()
    assert cleaned == ["job"]


async def test_a_job_that_does_not_stop_is_left_behind_and_counted(
    registered: jobs.Jobs, hire: Hire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "STOP_S", 0.05)
    release = asyncio.Event()

    async def job() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    registered.add(job, "worker", None)
    working = await hire()
    try:
        await until(lambda: status(working, "job").state is runner.State.RUNNING, "it runs")
        await working.stop()
        # On a busy machine others may need longer than this, too.
        assert count(working, "background.left_behind") >= 1
        assert any("job did not stop" in record.getMessage() for record in caplog.records)
    finally:
        release.set()  # or the test's own loop would wait for it for ever


# -- declarations -----------------------------------------------------------------------------------------------------


async def forever() -> None: ...


def plain() -> None: ...


@pytest.mark.parametrize(
    ("function", "once_per", "seconds", "message"),
    [
        (plain, "worker", None, "async def"),
        (forever, "machine", None, "'machine'"),
        (forever, "worker", 0, "every 0 seconds"),
        (forever, "worker", float("nan"), "every nan seconds"),
    ],
)
def test_what_cannot_be_done_is_refused_when_it_is_declared(
    function: Any, once_per: Any, seconds: float | None, message: str
) -> None:
    with pytest.raises(errors.InvalidJob, match=message):
        jobs.Jobs().add(function, once_per, seconds)


def test_the_decorators_register_and_leave_the_function_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = jobs.Jobs()
    monkeypatch.setattr(jobs, "registered", mine)
    assert jobs.background(forever) is forever
    assert jobs.periodic(seconds=5, once_per="worker")(plain) is plain
    assert jobs.background(once_per="worker")(forever) is forever  # its module was loaded again
    assert [(job.function, job.once_per, job.seconds) for job in mine.all()] == [
        (forever, "worker", None),
        (plain, "worker", 5),
    ]
