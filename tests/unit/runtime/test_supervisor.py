"""The supervisor keeps tasks, reports their failures and restarts the long-running ones."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections import Counter

import pytest

from fanfare.runtime.backoff import Backoff
from fanfare.runtime.supervisor import State, Supervisor, as_future
from tests.harness import waiting

LOGGER = logging.getLogger("tests.supervisor")


class Away(Exception):
    """A service that is not reachable."""


@pytest.fixture
def counters() -> Counter[str]:
    return Counter()


@pytest.fixture
def supervisor(counters: Counter[str]) -> Supervisor:
    return Supervisor(LOGGER, count=lambda name: counters.update([name]))


def quick() -> Backoff:
    return Backoff(first_s=0.001, longest_s=0.002)


async def test_one_off_task_is_kept_until_it_ends(supervisor: Supervisor) -> None:
    waits: asyncio.Event = asyncio.Event()
    ended = []

    async def work() -> None:
        await waits.wait()
        ended.append(True)

    task = weakref.ref(supervisor.spawn("work", work()))
    await asyncio.sleep(0)
    gc.collect()
    assert task() is not None
    assert supervisor.tasks == 1
    waits.set()
    await waiting.until_async(lambda: _true(supervisor.tasks == 0), 5, "the task's end")
    assert ended == [True]


async def _true(value: bool) -> bool:
    return value


async def test_failure_of_one_off_task_is_logged_and_counted(
    supervisor: Supervisor, counters: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raise RuntimeError("broken")

    task = supervisor.spawn("work", work())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert counters == {"tasks.failed": 1}
    [record] = caplog.records
    assert record.getMessage() == "work failed"
    assert record.exc_info is not None


async def test_expected_failure_of_one_off_task_is_one_line(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raise Away("no answer\nforged line")

    task = supervisor.spawn("work", work(), expected=(Away,))
    await asyncio.wait([task])
    await asyncio.sleep(0)
    [record] = caplog.records
    assert record.getMessage() == "work failed: Away: no answer\\x0aforged line"
    assert record.exc_info is None


async def test_many_failures_of_the_same_task_are_one_line(
    supervisor: Supervisor, counters: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raise RuntimeError("broken")

    await asyncio.wait([supervisor.spawn("work", work()) for _ in range(100)])
    await asyncio.sleep(0)
    assert counters["tasks.failed"] == 100
    assert len(caplog.records) == 1


async def test_long_running_task_is_restarted_after_a_growing_pause(
    supervisor: Supervisor, counters: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise RuntimeError(f"failure {runs}")

    await supervisor.run("work", work, backoff=quick())
    [status] = supervisor.statuses
    assert (status.name, status.state, status.runs, status.failures) == ("work", State.DONE, 4, 3)
    assert status.error == "RuntimeError: failure 3"
    assert status.failed_at is not None
    assert counters == {"tasks.failed": 3, "tasks.restarted": 3}
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
    await supervisor.stop()


async def test_pausing_names_the_failed_task_and_its_error(supervisor: Supervisor) -> None:
    async def work() -> None:
        raise ValueError("wrong")

    supervisor.run("The writer", work, backoff=Backoff(first_s=60))

    async def is_pausing() -> bool:
        return supervisor.statuses[0].state is State.PAUSING

    assert supervisor.pausing("The writer") is None
    await waiting.until_async(is_pausing, 10, "it failed")
    assert supervisor.pausing("The reader", "The wr") == "The writer failed and is started again: ValueError: wrong"
    assert supervisor.pausing("The reader") is None
    await supervisor.stop()
    assert supervisor.pausing("The writer") is None


async def test_status_says_when_a_failed_task_starts_again(supervisor: Supervisor) -> None:
    async def work() -> None:
        raise Away

    supervisor.run("work", work, expected=(Away,), backoff=Backoff(first_s=60))
    [status] = supervisor.statuses
    await waiting.until_async(lambda: _true(status.state is State.PAUSING), 5, "the failure")
    assert status.retry_at is not None
    assert 40 <= status.retry_at - status.since <= 61
    await supervisor.stop()
    assert status.state is State.STOPPED
    assert status.retry_at is None


async def test_task_whose_awaited_future_is_cancelled_is_restarted(supervisor: Supervisor) -> None:
    """A CancelledError from inside is a failure: the task itself was not cancelled."""
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    await supervisor.run("work", work, backoff=quick())
    assert runs == 2


async def test_stop_waits_for_cleanup(supervisor: Supervisor) -> None:
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    supervisor.run("work", work)
    supervisor.spawn("once", work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await supervisor.stop()
    assert cleaned == [True, True]
    assert supervisor.tasks == 0
    await supervisor.stop()


async def test_task_that_ignores_its_cancellation_is_counted(
    supervisor: Supervisor, counters: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def work() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = supervisor.run("stubborn", work)
    await asyncio.sleep(0)
    await supervisor.stop(0.01)
    assert counters == {"tasks.left_behind": 1}
    assert caplog.messages == ["stubborn did not stop within 0.01 s"]
    release.set()
    await task


async def test_task_that_fails_while_it_is_cancelled_is_not_restarted(
    supervisor: Supervisor, counters: Counter[str]
) -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("cleanup failed")

    supervisor.run("work", work)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await supervisor.stop()
    [status] = supervisor.statuses
    assert (status.state, status.runs) == (State.STOPPED, 1)
    assert counters == {"tasks.failed": 1}


async def test_name_of_a_running_task_is_refused_and_of_an_ended_one_reused(supervisor: Supervisor) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    supervisor.run("work", work)
    with pytest.raises(ValueError, match="'work' runs already"):
        supervisor.run("work", work)
    await supervisor.stop()
    supervisor.run("work", work)
    assert len(supervisor.statuses) == 1
    await supervisor.stop()


async def test_future_stays_itself_and_a_coroutine_becomes_a_task_that_is_kept() -> None:
    async def work() -> None:
        await asyncio.Event().wait()  # nothing else refers to the task

    made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert as_future(made) is made
    task = weakref.ref(as_future(work()))
    await asyncio.sleep(0)
    gc.collect()
    kept = task()
    assert kept is not None
    kept.cancel()
