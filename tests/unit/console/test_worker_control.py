"""Drain and restart of one worker, asked for at another one, on one real log."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from fanfare.console import worker_control
from fanfare.engine import current
from fanfare.engine.local import engine as local_engine
from fanfare.hub import hub as hubs
from fanfare.runtime.supervisor import Supervisor
from fanfare.sockets import drain
from tests.harness import waiting


class Worker:
    def __init__(self, folder: Path, name: str) -> None:
        self.hub = hubs.Hub(local_engine.LocalEngine(folder))
        self.tasks = Supervisor(logging.getLogger(__name__))
        self.drain = drain.Drain(self.tasks, seconds=0.2, count=self.hub.count)
        self.stops = 0
        self._killed = asyncio.Event()
        self.control = worker_control.WorkerControl(
            self.hub, name, self.drain, self.tasks, stop=self._stop, kill=self._killed.set
        )

    def _stop(self) -> None:
        self.stops += 1

    async def is_draining(self) -> bool:
        return self.drain.is_draining and self.drain.refuses_new

    async def serves(self) -> bool:
        return not self.drain.is_draining and not self.drain.refuses_new

    async def is_killed(self) -> bool:
        return self._killed.is_set()

    async def has_stopped(self) -> bool:
        return self.stops == 1


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    both = Worker(tmp_path / "engine", "one"), Worker(tmp_path / "engine", "two")
    for worker in both:
        await worker.hub.start()
    yield both
    for worker in both:
        await worker.tasks.stop()
        await worker.hub.stop()


async def test_request_reaches_the_named_worker_only(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    await one.control.request("two", worker_control.Action.DRAIN)
    await waiting.until_async(two.is_draining, 5, "the drain")
    assert not one.drain.is_draining
    await one.control.request("two", worker_control.Action.RESUME)
    await waiting.until_async(two.serves, 5, "the end of the drain")
    await two.control.request("one", worker_control.Action.RESTART)
    await waiting.until_async(one.has_stopped, 5, "the stop")
    assert two.stops == 0


async def test_old_worker_waits_until_each_new_one_serves_or_has_ended(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = workers
    booting = {101, 102, 103}
    waits = asyncio.create_task(one.control.wait_for(lambda: booting, 60.0))
    for pid in (101, 102):
        monkeypatch.setattr(worker_control.os, "getpid", lambda pid=pid: pid)
        two.control.introduce()
        await waiting.until_async(lambda pid=pid: has_heard(one, pid), 30, "the new worker")
    assert not waits.done()
    booting.remove(103)  # it has ended
    assert await asyncio.wait_for(waits, 30)


async def has_heard(worker: Worker, pid: int) -> bool:
    return pid in worker.control._started


async def test_old_worker_does_not_wait_for_workers_that_serve_already(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = workers
    monkeypatch.setattr(worker_control.os, "getpid", lambda: 101)
    two.control.introduce()
    await waiting.until_async(lambda: has_heard(one, 101), 30, "the other worker")
    await asyncio.wait_for(one.control.wait_for(lambda: {101}, 600.0), 30)


async def test_wait_for_new_workers_that_is_cancelled_ends_at_once(workers: tuple[Worker, Worker]) -> None:
    """Also in the turn of the loop in which a new worker announces itself."""
    one, _ = workers
    for turns in range(6):
        waits = asyncio.create_task(one.control.wait_for(lambda: {7}, 600.0))
        await asyncio.sleep(0)
        one.control._on_started("", orjson.dumps({"worker": "two", "node": socket.gethostname(), "pid": 8}))
        for _ in range(turns):
            await asyncio.sleep(0)
        waits.cancel()
        done, _ = await asyncio.wait([waits], timeout=30)
        assert done, f"cancelled {turns} turns after the announcement"
        assert waits.cancelled()


async def test_wait_for_new_workers_ends_in_time(
    workers: tuple[Worker, Worker], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert not await asyncio.wait_for(workers[0].control.wait_for(lambda: {7, 8}, 0.01), 20)
    assert "The workers 7, 8 do not serve after 0.01 s." in caplog.text


async def test_worker_of_a_connection_is_killed(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = workers
    monkeypatch.setitem(two.hub.by_socket, "1.2", None)
    with current.replaced(one.hub.engine):
        await asyncio.to_thread(worker_control.kill_worker_of, "1.2")
    await waiting.until_async(two.is_killed, 30, "the end of the worker")
    assert not await one.is_killed()
    monkeypatch.undo()
