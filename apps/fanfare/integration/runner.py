"""The background work of one worker: started after the hub, supervised, stopped before it."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from dataclasses import dataclass

from asgiref.sync import ThreadSensitiveContext, iscoroutinefunction, sync_to_async
from django import db

from fanfare.engine import errors as engine_errors
from fanfare.hub import hub as hubs
from fanfare.integration import dispatcher, jobs

logger = logging.getLogger("fanfare.integration.background")

STOP_S = 3.0  # less than the time that a stopping server is given (FANFARE_GRACEFUL_TIMEOUT, 5 s)
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0  # what ran so long before it failed starts again after the first pause


class State(enum.Enum):
    """What a job does in this worker."""

    WAITING = "waiting"  # another worker does it
    RUNNING = "running"
    PAUSING = "pausing"  # between two runs, or before it is started again
    DONE = "done"  # it returned


@dataclass(slots=True)
class Status:
    """A job in this worker, for people. `error`: of the last failure."""

    job: jobs.Job
    state: State = State.WAITING
    runs: int = 0
    failures: int = 0
    error: str = ""


class Runner:
    """One per worker. `statuses`: one of each job, in order."""

    def __init__(self, hub: hubs.Hub, registered: jobs.Jobs = jobs.registered) -> None:
        self.statuses: list[Status] = []
        self._hub = hub
        self._registered = registered
        self._dispatcher = dispatcher.Dispatcher(hub)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """The hub must run. Returns at once."""
        self.statuses = [Status(job) for job in (self._dispatcher.job(), *self._registered.all())]
        self._tasks = [
            asyncio.create_task(self._supervise(status), name=f"background {status.job.name}")
            for status in self.statuses
        ]

    async def stop(self) -> None:
        """Cancel all, and wait for their cleaning up as long as they may take. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=STOP_S)
        for task in late:
            self._hub.count("background.left_behind")
            logger.error("%s did not stop within %g seconds", task.get_name(), STOP_S)

    async def _supervise(self, status: Status) -> None:
        """Do the job; whatever it raises is reported, and it is done again."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            started = loop.time()
            try:
                if await self._hold(status):
                    return
            except engine_errors.EngineUnavailable as error:
                logger.warning("%s waits for the engine: %s", status.job.name, error)
            except Exception as error:  # noqa: BLE001  (whatever it is: reported, and tried again)
                self._failed(status, error)
            status.state = State.PAUSING
            failures = 1 if loop.time() - started > STEADY_S else failures + 1
            longest = min(FIRST_PAUSE_S * 2 ** min(failures - 1, 10), LONGEST_PAUSE_S)
            await asyncio.sleep(longest * random.uniform(0.75, 1.0))  # noqa: S311  (not all workers at once)

    async def _hold(self, status: Status) -> bool:
        """Do the job when it is this worker's turn. True: it is done for as long as this worker lives."""
        if status.job.once_per == "worker":
            await self._do(status)
            return True
        status.state = State.WAITING
        lease = await self._hub.engine.lease(f"background-{status.job.name}")
        doing = asyncio.create_task(self._do(status), name=status.job.name)
        lost = asyncio.ensure_future(lease.lost.wait())
        try:
            await asyncio.wait([doing, lost], return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
                await lost  # it is done: while this worker lives, nobody does it again
            logger.warning("Another worker may do %s now", status.job.name)
            return False
        finally:
            for task in (doing, lost):
                task.cancel()
            await asyncio.gather(doing, lost, return_exceptions=True)
            lease.release()

    async def _do(self, status: Status) -> None:
        job = status.job
        if job.seconds is None:
            await self._run(status)
            status.state = State.DONE
            logger.info("%s is done", job.name)
            return
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + job.seconds
            try:
                await self._run(status)
            except Exception as error:  # noqa: BLE001  (whatever it is: reported, and the next turn comes)
                self._failed(status, error)
            status.state = State.PAUSING
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _run(self, status: Status) -> None:
        """Once. What it asks the database is asked in a thread of its own, whose connections are closed afterwards."""
        status.state = State.RUNNING
        status.runs += 1
        self._hub.count("background.runs")
        function = status.job.function
        async with ThreadSensitiveContext():
            try:
                await (function() if iscoroutinefunction(function) else sync_to_async(function)())
            finally:
                await asyncio.shield(sync_to_async(db.connections.close_all)())

    def _failed(self, status: Status, error: Exception) -> None:
        status.failures += 1
        status.error = f"{type(error).__name__}: {error}"
        self._hub.count("background.failed")
        logger.error("%s failed", status.job.name, exc_info=error)
