"""Workers of one deployment in one process, for the tests of the console."""

from __future__ import annotations

from pathlib import Path

from fanfare.console import survey
from fanfare.engine.local import engine as local_engine
from fanfare.hub import connections
from fanfare.hub import hub as hubs
from tests.harness import waiting
from tests.unit.hub import doubles


class Owner:
    """An owner that needs no answers."""

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: None


class Worker:
    """A hub with an engine of its own on the shared log, and its part of the surveys."""

    def __init__(self, folder: Path, name: str = "one") -> None:
        self.name = name
        self.hub = hubs.Hub(local_engine.LocalEngine(folder))
        self.survey = survey.Survey(self.hub, name)
        self.sockets = 0

    async def start(self) -> Worker:
        await self.hub.start()
        return self

    def connect(self, app: str = "1", **more: object) -> connections.Connection:
        self.sockets += 1
        connection = connections.Connection(
            app,
            f"{len(self.name)}.{self.sockets}",
            doubles.FakeWriter(),
            Owner(),
            **more,  # type: ignore[arg-type]
        )
        self.hub.connect(connection)
        return connection


async def until_known(*workers: Worker) -> None:
    """Wait until each worker knows how many there are."""

    async def all_are_known() -> bool:
        return all(one.hub.engine.statistics()["workers"] == len(workers) for one in workers)

    await waiting.until_async(all_are_known, 5, "every worker knows the others")
