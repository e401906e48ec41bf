"""Fanfare: one uvicorn worker, started with the documented command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness import deployments, servers
from tests.load import machine, processes, publishers, subjects
from tests.load.subjects import pusher


class Fanfare:
    name = subjects.FANFARE
    one_frame_each = True
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}

    def absent(self) -> str | None:
        return None

    def versions(self) -> str:
        return machine.versions("django", "channels", "uvicorn", "uvloop", "websockets", "orjson")

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[pusher.Running]:
        deployment = deployments.template(folder / "data")
        port = servers.free_port()
        command = [*servers.COMMANDS["uvicorn"](port), *self.flags]
        log = folder / "log"
        environment = deployment.environment(**self.environment)
        with processes.running(processes.own(command), port, environment, core=core, log=log) as process:
            yield self._running(process, deployment)

    def _running(self, process: processes.Process, deployment: deployments.Deployment) -> pusher.Running:
        return Running(process, deployment)


class OtherClass(Fanfare):
    """Fanfare with uvicorn's WebSocket class, in some rows, to show the effect of Fanfare's own."""

    name = subjects.FANFARE_OTHER
    flags = ("--ws", "websockets-sansio")

    def _running(self, process: processes.Process, deployment: deployments.Deployment) -> pusher.Running:
        return pusher.Running(process, deployment.application)


class Open(Fanfare):
    """Fanfare as the other servers run, in the rows of connecting clients: it accepts without a limit, and writes no
    line for a connection."""

    name = subjects.FANFARE_OPEN
    flags = ("--no-access-log",)
    environment: Mapping[str, str] = {"FANFARE_ACCEPT_RATE": "0"}


class Running(pusher.Running):
    def __init__(self, process: processes.Process, deployment: deployments.Deployment) -> None:
        super().__init__(process, deployment.application)
        self._deployment = deployment

    def ways(self) -> Mapping[str, subjects.Way]:
        folder, app = self._deployment.folder, self._deployment.application.id
        return {
            **super().ways(),
            "POST batch_events of 10, 4 connections": subjects.Way(lambda: self.http(4, batch=10), pusher.WINDOW),
            "from the log, groups of 10": subjects.Way(lambda: publishers.Log(folder, app), pusher.WINDOW),
            # Each request waits for the response to the last one: there are hardly any frames to join, so each event
            # costs a system call per subscriber.
            "POST events, 1 connection": subjects.Way(lambda: self.http(1), pusher.WINDOW, saturates=False),
        }
