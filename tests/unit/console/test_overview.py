"""The last hour of a worker, the verdict on the deployment, and the snapshot that pages share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fanfare.console import board, recent, reports, verdict
from fanfare.console.reports import Collection, Report
from fanfare.console.survey import Answers
from fanfare.runtime.supervisor import Supervisor
from fanfare.server import probe
from tests.harness import waiting
from tests.unit.console import workers

STATE: dict[str, Any] = {
    "node": "a",
    "pid": 1,
    "engine": {"ok": True, "reason": ""},
    "applications": "",
    "database": "",
    "mounts": "",
    "draining": False,
    "jobs": [],
    "troubles": {},
}


def texts(*states: dict[str, Any], expected: int | None = None, gauges: dict[str, float] | None = None) -> list[str]:
    """The sentences of the verdict on workers with these differences from a healthy one."""
    answers = {str(index): STATE | state for index, state in enumerate(states)}
    found = verdict.findings(
        answers, expected=len(states) if expected is None else expected, answered=len(states), gauges=gauges or {}
    )
    return [f"{one.level}: {one.text}" for one in found]


async def no_problem() -> str:
    return ""


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_healthy_deployment_has_no_findings() -> None:
    assert texts({}, {}) == []


def test_missing_worker_is_found() -> None:
    assert texts({}, expected=2)[0].startswith("bad: 1 worker of 2 did not answer")


def test_failing_engine_is_named_with_its_worker_and_reason() -> None:
    engine = {"ok": False, "reason": "The disk is full."}
    assert texts({}, {"pid": 7, "engine": engine}) == ["bad: The engine of worker a 7 fails: The disk is full."]


def test_database_that_does_not_answer_is_named_with_its_worker() -> None:
    found = texts({}, {"pid": 7, "database": "The database does not answer."})
    assert found == ["bad: Worker a 7 cannot use Django's database: The database does not answer."]


def test_failing_engine_is_named_before_the_workers_that_do_not_answer() -> None:
    found = texts({"engine": {"ok": False, "reason": "Redis does not answer"}}, expected=2)
    assert [one.partition(":")[0] for one in found] == ["bad", "bad"]
    assert found[0].endswith("fails: Redis does not answer.")


def test_failing_job_is_named_with_its_error() -> None:
    job = {"name": "webhooks", "state": "pausing", "error": "OSError: no route"}
    assert texts({"jobs": [job]}) == ["bad: The job webhooks of worker a 1 fails: OSError: no route"]
    assert texts({"jobs": [job | {"state": "running"}]}) == [], "it runs again"


def test_counters_of_all_workers_are_summed() -> None:
    found = texts({"troubles": {"closed.slow": 1}}, {"troubles": {"closed.slow": 2}})
    assert found == ["warn: 3 clients read too slowly and were closed with 4100 in the last 5 minutes."]


def test_dead_worker_is_named_after_the_others_have_removed_it() -> None:
    found = texts({"troubles": {"engine.reaped": 1}}, {})
    assert found[0].startswith("bad: 1 worker died in the last 5 minutes: killed, crashed, or ")


def test_most_frequent_refusal_is_named() -> None:
    found = texts({"troubles": {"pusher.refused.4001": 2, "pusher.subscription_refused.wrong_signature": 5}})
    assert found == ["warn: 7 refusals in the last 5 minutes, most of subscriptions (wrong signature)."]
    only = texts({"troubles": {"pusher.subscription_refused.wrong_signature": 1}})
    assert only == ["warn: 1 refusal of subscriptions (wrong signature) in the last 5 minutes."]


def test_full_log_is_found_before_publishers_are_refused() -> None:
    gauges = {"engine.log_used_bytes": 90.0, "engine.log_limit_bytes": 100.0}
    assert texts({}, gauges=gauges)[0].startswith("bad: The log uses 90% of FANFARE_LOG_MAX_BYTES")


def test_faults_come_before_warnings() -> None:
    found = texts({"draining": True, "mounts": "shop did not start"})
    assert [text.partition(":")[0] for text in found] == ["bad", "warn"]


@pytest.mark.parametrize("prefix", recent.REFUSALS)
def test_every_refusal_has_words(prefix: str) -> None:
    assert "refusal" in texts({"troubles": {f"{prefix}x": 1}})[0]


# -- the last hour -----------------------------------------------------------------------------------------------------


def test_sample_has_what_the_counters_grew_by() -> None:
    counters = {"published": 5.0}
    hour = recent.Recent(lambda: dict(counters), lambda: {"connections.now": 3})
    hour.sample(100.0)
    counters |= {"published": 8.0, "pusher.refused.4001": 2.0, "delivery_seconds.0.001": 4.0}
    hour.sample(110.0)
    _, sample = hour.samples()
    assert (sample.at, sample.connections, sample.published, sample.refused) == (110.0, 3, 3, 2)
    assert sum(sample.delivery) == 4
    assert hour.samples(after=105.0) == [sample]


def test_hour_is_bounded() -> None:
    hour = recent.Recent(dict, dict)
    for number in range(recent.SAMPLES + 50):
        hour.sample(float(number))
    assert len(hour.samples()) == recent.SAMPLES
    assert hour.samples()[0].at == 50.0


def test_troubles_are_those_of_the_last_minutes_and_of_the_current_sample() -> None:
    counters = {"closed.slow": 1.0, "published": 9.0}
    hour = recent.Recent(lambda: dict(counters), dict)
    for number in range(60):
        hour.sample(number * 10.0)
    assert hour.troubles(300) == {}
    counters["closed.slow"] = 3.0
    assert hour.troubles(300) == {"closed.slow": 2}


def test_columns_have_the_fields_of_a_sample() -> None:
    hour = recent.Recent(dict, dict)
    hour.sample(1.0)
    assert recent.as_columns(hour.samples())["at"] == [1.0]


# -- the snapshot ------------------------------------------------------------------------------------------------------


class Fleet:
    """Reports and answers of one worker, counted."""

    def __init__(self) -> None:
        self.collected = 0
        self.counters: dict[str, float] = {"published": 0}

    async def collect(self) -> Collection:
        self.collected += 1
        await asyncio.sleep(0)
        self.counters = {"published": self.counters["published"] + 10}
        report = Report("w", "a", 1, "1.0", 0.0, dict(self.counters), {"connections.now": 2})
        return Collection((report,), {}, 1)

    def on(self, _question: str, _answer: Any) -> None:
        return

    async def ask(self, _question: str) -> Answers:
        return Answers({"w": STATE}, 0)


def board_of(fleet: Fleet) -> board.Board:
    hub = SimpleNamespace(on_control=lambda command, handler: None)
    parts = SimpleNamespace(hub=hub, tasks=Supervisor(), reports=fleet, survey=fleet)
    return board.Board(parts, dict, dict)  # type: ignore[arg-type]


async def test_pages_share_one_snapshot() -> None:
    fleet = Fleet()
    shared = board_of(fleet)
    found = await asyncio.gather(*(shared.snapshot() for _ in range(50)))
    assert fleet.collected == 1
    assert all(one is found[0] for one in found)
    assert found[0]["workers"][0]["state"] is STATE


async def test_worker_that_stops_answering_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "EVERY_S", 0.0)

    class Node(Fleet):
        def __init__(self) -> None:
            super().__init__()
            self.pids, self.expected = [1, 2], 2

        async def collect(self) -> Collection:
            found = [Report(str(pid), "a", pid, "1.0", 0.0, {}, {}) for pid in self.pids]
            return Collection(tuple(found), {}, self.expected)

        async def ask(self, _question: str) -> Answers:
            return Answers({}, 0)

    fleet = Node()
    shared = board_of(fleet)

    async def found(shared: board.Board = shared) -> list[str]:
        return [one["text"].partition(":")[0] for one in (await shared.snapshot())["findings"]]

    assert await found() == []
    fleet.pids = [1]
    assert await found() == ["1 worker of 2 did not answer within a second (a 2)"]
    fleet.pids = [1, 3]  # the supervisor has started another one, and the dead one is still counted
    fleet.expected = 3
    assert await found() == ["1 worker of 3 did not answer within a second (a 2)"]
    fleet.expected = 2
    assert await found() == []
    fleet.pids = [3]
    assert await found() == ["1 worker of 2 did not answer within a second (a 1)"]

    later = board_of(fleet)  # it has never seen the worker 1
    assert await found(later) == ["1 worker of 2 did not answer within a second"]
    fleet.pids = [4]  # the worker 3 has died, and 1 still does not answer
    assert await found(later) == ["1 worker of 2 did not answer within a second"]


async def test_page_that_closes_does_not_end_the_snapshot_of_the_others() -> None:
    fleet = Fleet()
    shared = board_of(fleet)
    closed, other = asyncio.ensure_future(shared.snapshot()), asyncio.ensure_future(shared.snapshot())
    while not fleet.collected:
        await asyncio.sleep(0)
    closed.cancel()
    assert (await other)["workers"][0]["state"] is STATE
    assert closed.cancelled()


async def test_rates_are_per_second_since_the_snapshot_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "EVERY_S", 0.0)
    now = [100.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    fleet = Fleet()
    shared = board_of(fleet)
    assert (await shared.snapshot())["rates"] == {}
    monkeypatch.setattr(board, "EVERY_S", 2.0)
    shared._taken_s = float("-inf")
    now[0] += 2.0
    assert (await shared.snapshot())["rates"]["published"] == 5.0


async def test_engine_that_accepts_and_does_not_deliver_fails_by_the_probe() -> None:
    async def problem() -> str:
        return "This worker has not read back an entry of its own within 5 s."

    parts: Any = SimpleNamespace(
        hub=SimpleNamespace(
            engine=SimpleNamespace(health=lambda: SimpleNamespace(ok=True, reason="")),
            on_control=lambda command, handler: None,
        ),
        survey=SimpleNamespace(on=lambda question, answer: None),
        background=SimpleNamespace(statuses=()),
        loader=SimpleNamespace(problem=None),
        mounts=SimpleNamespace(problem=""),
        drain=SimpleNamespace(is_draining=False),
        probe=SimpleNamespace(problem=problem),
        schema=SimpleNamespace(problem=no_problem),
        server_pid=1,
    )
    state = await board.Board(parts, dict, dict).state()
    assert state["engine"] == {"ok": False, "reason": await problem()}


@contextlib.asynccontextmanager
async def board_on_log(folder: Path, name: str) -> AsyncIterator[tuple[workers.Worker, board.Board]]:
    """A worker on the shared log, with its board."""
    worker, tasks = workers.Worker(folder, name), Supervisor()
    parts: Any = SimpleNamespace(
        hub=worker.hub,
        tasks=tasks,
        survey=worker.survey,
        background=SimpleNamespace(statuses=()),
        loader=SimpleNamespace(problem=None),
        mounts=SimpleNamespace(problem=""),
        drain=SimpleNamespace(is_draining=False),
        probe=probe.Probe(worker.hub, tasks),
        schema=SimpleNamespace(problem=no_problem),
        server_pid=1,
    )
    parts.reports = reports.Reports(worker.hub, tasks, counters=dict, gauges=dict, version="1.0")
    parts.reports.worker = parts.survey.worker
    shown = board.Board(parts, dict, dict)
    await worker.start()
    tasks.run("check of the worker", shown.watch)
    try:
        yield worker, shown
    finally:
        await tasks.stop()
        await worker.hub.stop()


async def test_worker_that_reads_nothing_tells_the_others_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (board, "CHECK_S", 0.2),
        (board, "CONFIRM_S", 0.3),
        (board, "FAULT_S", 30.0),
        (board, "EVERY_S", 0.0),
        (probe, "FRESH_S", 0.1),
        (probe, "VALID_S", 0.2),
        (probe, "WAIT_S", 0.1),
    ):
        monkeypatch.setattr(module, name, seconds)
    async with board_on_log(tmp_path, "one") as (one, shown), board_on_log(tmp_path, "two") as (two, _):
        await workers.until_known(one, two)
        reader = two.hub.engine._worker.reader  # type: ignore[attr-defined]
        with monkeypatch.context() as broken:
            broken.setattr(reader, "_deliver", lambda entries: None)

            async def is_told() -> bool:
                snapshot = await shown.snapshot()
                return len(snapshot["findings"]) == 2 and len(snapshot["faults"]) == 1

            await waiting.until_async(is_told, 15, "the worker tells its fault")
            missing, fault = (found["text"] for found in (await shown.snapshot())["findings"])
            assert missing.startswith(f"1 worker of 2 did not answer within a second ({board._name()}): ")
            reason = "This worker has not read back an entry of its own within 0.2 s."
            assert fault == f"Worker {board._name()} reads no events: {reason}"

        async def is_well() -> bool:
            return not (await shown.snapshot())["findings"]

        await waiting.until_async(is_well, 15, "the worker reads again")


async def test_worker_keeps_the_server_that_it_last_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "EVERY_S", 0.0)
    states = [{"w": STATE | {"server": 7}}, {}, {"w": STATE}]  # the last one is of an older release

    class Answering(Fleet):
        async def ask(self, _question: str) -> Answers:
            return Answers(states.pop(0), 0)

    shown = board_of(Answering())
    assert [(await shown.snapshot())["workers"][0]["server"] for _ in range(3)] == [7, 7, 7]
    assert (await board_of(Fleet()).snapshot())["workers"][0]["server"] is None
