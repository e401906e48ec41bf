"""The background jobs of one worker: started after the hub, supervised, stopped before it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from asgiref.sync import ThreadSensitiveContext, iscoroutinefunction, sync_to_async
from django import db

from fanfare.engine import errors as engine_errors
from fanfare.hub import hub as hubs
from fanfare.jobs import declarations, errors, leases
from fanfare.runtime import backoff, supervisor
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

STOP_S = 3.0  # shorter than FANFARE_GRACEFUL_TIMEOUT (5 s)
FIRST_PAUSE_S, LONGEST_PAUSE_S = backoff.FIRST_S, backoff.LONGEST_S

# Failures of external parts are logged in one line; the job starts again.
EXPECTED = (engine_errors.EngineUnavailable, errors.LeaseLost)


class Runner:
    """One per worker. `built_in`: Fanfare's own jobs, which come before those of the project."""

    def __init__(
        self,
        hub: hubs.Hub,
        built_in: Iterable[declarations.Job] = (),
        declared: declarations.Jobs = declarations.declared,
    ) -> None:
        self._hub = hub
        self._built_in = tuple(built_in)
        self._declared = declared
        self._jobs: list[declarations.Job] = []
        self._tasks = supervisor.Supervisor(logger, count=hub.count, prefix="background")
        self._failures = LogThrottle(logger)

    @property
    def statuses(self) -> Sequence[supervisor.Status]:
        """The status of each job in the order of declaration, each followed by those of its parts."""
        found = {status.name: status for status in self._tasks.statuses}
        return [one for job in self._jobs for one in (found[job.name], *job.parts()) if job.name in found]

    @property
    def own_statuses(self) -> Sequence[supervisor.Status]:
        """The statuses of the jobs, without their parts."""
        found = {status.name: status for status in self._tasks.statuses}
        return [found[job.name] for job in self._jobs if job.name in found]

    async def start(self) -> None:
        """The hub must run. Returns at once."""
        self._jobs = [*self._built_in, *self._declared.all()]
        for job in self._jobs:
            self._start(job)

    def _start(self, job: declarations.Job) -> None:
        status = supervisor.Status(job.name, supervisor.State.WAITING)
        self._tasks.run(
            job.name,
            lambda: self._perform(job, status),
            expected=EXPECTED,
            backoff=backoff.Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S),
            status=status,
        )

    async def stop(self) -> None:
        """Cancel all jobs and wait `STOP_S` for their cleanup. Idempotent."""
        await self._tasks.stop(STOP_S)

    async def _perform(self, job: declarations.Job, status: supervisor.Status) -> None:
        """Returns when the job is done for the life of this worker."""
        if job.once_per == "worker":
            await self._call(job, status)
            return
        status.enter(supervisor.State.WAITING)
        async with leases.held(self._hub.engine, f"background-{job.name}") as lease:
            await self._call(job, status)
            status.enter(supervisor.State.DONE)
            await lease.lost.wait()  # while this worker holds the lease, no other worker runs the job

    async def _call(self, job: declarations.Job, status: supervisor.Status) -> None:
        if job.seconds is None:
            await self._once(job, status)
            # The signals job returns at every start of a project without receivers.
            level = logging.DEBUG if job in self._built_in else logging.INFO
            logger.log(level, "The background job %s is done: its function has returned", job.name)
            return
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + job.seconds
            try:
                await self._once(job, status)
            except Exception as error:  # noqa: BLE001  (any failure is reported, and the next call follows)
                self._failed(job, status, error)
            status.enter(supervisor.State.PAUSING)
            pause_s = max(0.0, due - loop.time())
            status.retry_at = status.since + pause_s
            await asyncio.sleep(pause_s)

    def _failed(self, job: declarations.Job, status: supervisor.Status, error: Exception) -> None:
        status.failed(error)
        self._hub.count("background.failed")
        key = (job.name, type(error))
        if isinstance(error, EXPECTED):
            self._failures.warning("%s failed: %s", job.name, status.error, key=key)
        else:
            self._failures.error("%s failed", job.name, key=key, error=error)

    async def _once(self, job: declarations.Job, status: supervisor.Status) -> None:
        """One call. Database work runs in a separate thread, whose connections are closed afterwards."""
        status.enter(supervisor.State.RUNNING)
        status.runs += 1
        self._hub.count("background.runs")
        async with ThreadSensitiveContext():
            try:
                await (job.function() if iscoroutinefunction(job.function) else sync_to_async(job.function)())
            finally:
                await asyncio.shield(sync_to_async(db.connections.close_all)())
