"""The overview of the deployment: the figures and the state of all workers, once for all pages that look.

Every worker answers two questions: `state`, what it is doing now, and `recent`, its last hour. A worker that reads
nothing gets no question. It therefore checks itself, and reports a fault to the others by a command of the log.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import orjson

from fanfare import __version__
from fanfare.console import recent, reports, survey, verdict
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.runtime import histograms, supervisor

EVERY_S: Final = 2.0
STATE, RECENT = "state", "recent"
FAULT: Final = "worker.fault"  # a command of the log
CHECK_S: Final = 20.0  # between two checks of a worker; each writes one entry
CONFIRM_S: Final = 6.0  # a fault is reported when it is there after this time, too
FAULT_S: Final = 3 * CHECK_S  # a fault that is not reported again is over
RATES: Final = ("published", "deliveries", "delivered_bytes", "connections")
QUANTILES: Final = (0.5, 0.95, 0.99)


class Parts(Protocol):
    """What the board reads of `fanfare.server.lifespan.Server`."""

    hub: hubs.Hub
    tasks: supervisor.Supervisor
    reports: reports.Reports
    survey: survey.Survey
    background: Any
    loader: Any
    mounts: Any
    drain: Any
    probe: Any
    schema: Any
    server_pid: int


class _Fault(NamedTuple):
    """`name`: "NODE PID" of the worker. `at`: monotonic."""

    name: str
    reason: str
    at: float


class Board:
    """One per worker. `counters` and `gauges`: of this worker's reports."""

    def __init__(
        self, parts: Parts, counters: Callable[[], reports.Values], gauges: Callable[[], reports.Values]
    ) -> None:
        self._parts = parts
        self.recent = recent.Recent(counters, gauges)
        self._snapshot: asyncio.Task[dict[str, Any]] | None = None
        self._taken_s = float("-inf")
        self._names: dict[str, str] = {}  # "NODE PID" of the workers, since all of them last answered
        self._servers: dict[str, int | None] = {}  # the process ids of the workers' servers, as far as they are known
        self._faults: dict[str, _Fault] = {}  # that workers have reported, by worker
        self._before: tuple[float, reports.Values] | None = None  # the counters of the snapshot before, and its time
        parts.hub.on_control(FAULT, self._on_fault)
        parts.survey.on(STATE, lambda _: self.state())
        parts.survey.on(RECENT, lambda asked: recent.as_columns(self.recent.samples(asked["after"])))

    async def watch(self) -> None:
        """Check this worker until the task is cancelled, and report a fault to the others."""
        while True:
            await asyncio.sleep(CHECK_S)
            if await self._fault():
                await asyncio.sleep(CONFIRM_S)
                if reason := await self._fault():
                    self._report(reason)

    def _report(self, reason: str) -> None:
        body = {"worker": self._parts.survey.worker, "name": _name(), "reason": reason}
        # If it cannot be written, the others only see that this worker does not answer.
        self._parts.hub.engine.post(
            interface.Publication("", FAULT, orjson.dumps(body), interface.Kind.CONTROL), lambda _reason: None
        )

    def _on_fault(self, _app: str, body: bytes) -> None:
        found = orjson.loads(body)
        now = time.monotonic()
        self._faults = {worker: fault for worker, fault in self._faults.items() if fault.at > now - FAULT_S}
        self._faults[found["worker"]] = _Fault(found["name"], found["reason"], now)

    async def _fault(self) -> str:
        """Why events do not reach this worker; empty if they do. The probe finds an engine that accepts entries and
        does not deliver them."""
        health = self._parts.hub.engine.health()
        return (health.reason if not health.ok else "") or await self._parts.probe.problem()

    async def state(self) -> dict[str, Any]:
        """What this worker is doing now."""
        parts = self._parts
        fault, database = await asyncio.gather(self._fault(), parts.schema.problem())
        return {
            "node": socket.gethostname(),
            "server": parts.server_pid,
            "pid": os.getpid(),
            "version": __version__,
            "cpu_s": time.process_time(),
            "engine": {"ok": not fault, "reason": fault},
            "applications": parts.loader.problem or "",
            "database": database,
            "mounts": parts.mounts.problem,
            "draining": bool(parts.drain.is_draining),
            "jobs": [_job(status) for status in parts.background.statuses],
            "troubles": self.recent.troubles(verdict.WINDOW_S),
        }

    async def snapshot(self) -> dict[str, Any]:
        """The current figures of the deployment. All pages of this worker share one snapshot every `EVERY_S`."""
        now = asyncio.get_running_loop().time()
        if self._snapshot is None or (self._snapshot.done() and now - self._taken_s >= EVERY_S * 0.75):
            self._taken_s = now
            self._snapshot = self._parts.tasks.spawn("figures of the console", self._take())
        # Shielded: one page may close while others wait for the same snapshot.
        return await asyncio.shield(self._snapshot)

    async def _take(self) -> dict[str, Any]:
        collected, states = await asyncio.gather(self._parts.reports.collect(), self._parts.survey.ask(STATE))
        gauges = collected.gauges
        answered = len(collected.reports)
        faults = self._faults_of_missing(collected)
        servers = {worker: state.get("server") for worker, state in states.workers.items()}  # none of an older release
        self._servers = {
            one.worker: servers.get(one.worker) or self._servers.get(one.worker) for one in collected.reports
        }
        found = verdict.findings(
            states.workers,
            expected=collected.expected,
            answered=answered,
            gauges=gauges,
            missing=self._missing(collected),
            faults=faults,
        )
        return {
            "at": time.time(),
            "expected": collected.expected,
            "faults": faults,
            "findings": [{"level": one.level, "text": one.text, "page": one.page} for one in found],
            "gauges": gauges,
            "rates": self._rates(collected.counters),
            "workers": [
                _worker(one, states.workers.get(one.worker), self._servers[one.worker]) for one in collected.reports
            ],
        }

    def _faults_of_missing(self, collected: reports.Collection) -> list[dict[str, str]]:
        """The faults that workers have reported which do not answer."""
        answered = {one.worker for one in collected.reports}
        oldest = time.monotonic() - FAULT_S
        self._faults = {
            worker: fault
            for worker, fault in self._faults.items()
            if worker not in answered and fault.at > oldest and len(answered) < collected.expected
        }
        return [{"name": fault.name, "reason": fault.reason} for fault in self._faults.values()]

    def _missing(self, collected: reports.Collection) -> list[str]:
        """The names of the workers that do not answer. Empty unless an earlier snapshot had all of them, or each has
        reported a fault."""
        answered = {one.worker: f"{one.node} {one.pid}" for one in collected.reports}
        known = self._names | {worker: fault.name for worker, fault in self._faults.items()}
        missing = [name for worker, name in known.items() if worker not in answered]
        if len(answered) >= collected.expected:
            self._names = answered
        elif self._names:
            self._names |= answered
        return missing if len(missing) == collected.expected - len(answered) else []

    def _rates(self, counters: reports.Values) -> dict[str, Any]:
        """Per second since the snapshot before. Empty for the first one, and after a pause."""
        now = time.monotonic()
        before, self._before = self._before, (now, counters)
        if before is None or now - before[0] > EVERY_S * 5:
            return {}
        seconds = now - before[0]
        delta = recent.grown(counters, before[1])
        found: dict[str, Any] = {name: delta.get(name, 0) / seconds for name in RATES}
        found["refused"] = recent.total(delta, recent.REFUSALS) / seconds
        found["delivery"] = [histograms.quantile(delta, recent.DELIVERY, fraction) for fraction in QUANTILES]
        return found


def _name() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _worker(report: reports.Report, state: dict[str, Any] | None, server: int | None) -> dict[str, Any]:
    return {
        "worker": report.worker,
        "node": report.node,
        "server": server,
        "pid": report.pid,
        "version": report.version,
        "started": report.started,
        "gauges": {name: value for name, value in report.gauges.items() if not name.startswith("jobs.")},
        "deliveries": report.counters.get("deliveries", 0),
        "state": state,
    }


def _job(status: supervisor.Status) -> dict[str, Any]:
    return {
        "name": status.name,
        "state": status.state.value,
        "since": status.since,
        "runs": status.runs,
        "failures": status.failures,
        "error": status.error,
        "retry_at": status.retry_at,
    }
