"""One report from every worker of the deployment, collected through the log.

A worker that needs the figures of all workers publishes a request. Each worker answers with a report of its own, and
every worker reads every answer, because commands reach all of them. Nothing is sent while no figures are wanted, and
the way of the answers is the way of the events: a worker that cannot be reached does not answer.

A counter must not fall when a worker stops, or a monitoring system takes the sum for a restarted counter. Each worker
therefore keeps the last report of the workers that are gone. A new worker asks for these once, when it starts.
"""

from __future__ import annotations

import asyncio
import collections
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.runtime import supervisor

REQUEST, ANSWER, DEPARTED = "report.request", "report.answer", "report.departed"

WAIT_S = 1.0  # a worker whose loop does not turn within this time is left out
FRESH_S = 0.5  # requests that come closer together share one collection
DEPARTED_WORKERS = 500  # about 1 kB each

Values = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one worker. `counters` only grow; `gauges` are what they are now; `started` is Unix time."""

    worker: str
    node: str
    pid: int
    version: str
    started: float
    counters: Values = field(default_factory=dict)
    gauges: Values = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collection:
    """`reports`: one of each worker that answered, sorted by node and process id. `departed`: the counters of workers
    that are gone, summed. `expected`: how many workers the engine knows."""

    reports: tuple[Report, ...]
    departed: Values
    expected: int

    @property
    def counters(self) -> Values:
        """Sums over all workers, those that are gone included."""
        return _sum([self.departed, *(report.counters for report in self.reports)])

    @property
    def gauges(self) -> Values:
        """Sums over the workers that answered."""
        return _sum([report.gauges for report in self.reports])


class Reports:
    """The reports of one worker, and its view of the others'.

    `counters` and `gauges` give this worker's figures; they are called when a report is asked for. All methods are
    called on the hub's loop.
    """

    def __init__(
        self,
        hub: hubs.Hub,
        tasks: supervisor.Supervisor,
        *,
        counters: Callable[[], Mapping[str, int | float]],
        gauges: Callable[[], Mapping[str, int | float]],
        version: str,
    ) -> None:
        self.worker = secrets.token_hex(8)
        self._hub = hub
        self._tasks = tasks
        self._counters = counters
        self._gauges = gauges
        self._version = version
        self._started = time.time()
        self._last: collections.OrderedDict[str, Report] = collections.OrderedDict()  # the newest of each worker
        self._answered: set[str] = set()  # workers that answered the request that is under way
        self._expected = 1
        self._request = ""  # the request that is under way
        self._complete = asyncio.Event()
        self._collecting: asyncio.Task[Collection] | None = None
        self._collected_s = float("-inf")
        hub.on_control(REQUEST, self._on_request)
        hub.on_control(ANSWER, self._on_answer)
        hub.on_control(DEPARTED, self._on_departed)

    def own(self) -> Report:
        """This worker's report, as it is now."""
        return Report(
            self.worker,
            socket.gethostname(),
            os.getpid(),
            self._version,
            self._started,
            dict(self._counters()),
            dict(self._gauges()),
        )

    def introduce(self) -> None:
        """Ask the others for the reports of workers that are gone. Called once, after the hub has started."""
        self._post(REQUEST, {"id": "", "worker": self.worker})

    async def collect(self) -> Collection:
        """The figures of all workers. Calls that come together share one request. Without the log the collection holds
        this worker alone."""
        now = asyncio.get_running_loop().time()
        if self._collecting is None or (self._collecting.done() and now - self._collected_s >= FRESH_S):
            self._collected_s = now
            self._collecting = self._tasks.spawn("figures of all workers", self._ask())
        # Shielded: one caller may disconnect while others wait for the same collection.
        return await asyncio.shield(self._collecting)

    async def _ask(self) -> Collection:
        self._request = secrets.token_hex(8)
        self._answered = set()
        self._complete.clear()
        self._expected = max(1, int(self._hub.engine.statistics().get("workers", 1)))
        try:
            await self._hub.engine.append([_command(REQUEST, {"id": self._request, "worker": self.worker})])
            async with asyncio.timeout(WAIT_S):
                await self._complete.wait()
        except (engine_errors.EngineError, TimeoutError):
            pass  # the collection says how many workers are missing
        finally:
            self._request = ""
        self._keep(self.own())
        present = {*self._answered, self.worker}
        reports = [report for worker, report in self._last.items() if worker in present]
        departed = _sum([report.counters for worker, report in self._last.items() if worker not in present])
        reports.sort(key=lambda report: (report.node, report.pid, report.worker))
        return Collection(tuple(reports), departed, self._expected)

    # -- from the log --------------------------------------------------------------------------------------------------

    def _on_request(self, _app: str, body: bytes) -> None:
        request = orjson.loads(body)
        if request["id"]:
            self._post(ANSWER, {"id": request["id"], "report": _to_json(self.own())})
        elif request["worker"] != self.worker and self._last:
            self._post(DEPARTED, {"to": request["worker"], "reports": [_to_json(one) for one in self._last.values()]})

    def _on_answer(self, _app: str, body: bytes) -> None:
        answer = orjson.loads(body)
        report = Report(**answer["report"])
        self._keep(report)
        if answer["id"] == self._request:
            self._answered.add(report.worker)
            if len(self._answered) >= self._expected:
                self._complete.set()

    def _on_departed(self, _app: str, body: bytes) -> None:
        told = orjson.loads(body)
        if told["to"] == self.worker:
            for report in (Report(**one) for one in told["reports"]):
                known = self._last.get(report.worker)
                if known is None or sum(known.counters.values()) < sum(report.counters.values()):
                    self._keep(report)

    def _keep(self, report: Report) -> None:
        self._last[report.worker] = report
        self._last.move_to_end(report.worker)
        while len(self._last) > DEPARTED_WORKERS:
            self._last.popitem(last=False)

    def _post(self, command: str, value: Any) -> None:
        self._hub.engine.post(
            _command(command, value), lambda _reason: None
        )  # a report that is lost is asked for again


def _command(name: str, value: Any) -> interface.Publication:
    return interface.Publication("", name, orjson.dumps(value), interface.Kind.CONTROL)


def _to_json(report: Report) -> dict[str, Any]:
    return {name: getattr(report, name) for name in Report.__slots__}


def _sum(values: list[Values]) -> Values:
    total: Values = {}
    for one in values:
        for name, value in one.items():
            total[name] = total.get(name, 0) + value
    return total
