"""This server: one uvicorn worker, started by the documented command."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness import servers, wire, worlds
from tests.load import errors, events, machine, processes, publishers, subjects

# More than all connections together carry, so that the server has the next request while its subscribers read; and
# 10 kB for each subscriber, far below the 1 MiB at which a slow one is let go.
WINDOW = 64

SUBSCRIBE = json.dumps({"event": "pusher:subscribe", "data": {"channel": events.CHANNEL}}).encode()


class Fanfare:
    name = subjects.FANFARE

    def absent(self) -> str | None:
        return None

    def versions(self) -> str:
        return machine.versions("django", "channels", "uvicorn", "uvloop", "websockets", "orjson")

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[Running]:
        world = worlds.template(folder / "data")
        port = servers.free_port()
        command = servers.COMMANDS["uvicorn"](port)
        with processes.running(command, port, world.environment(), core=core, log=folder / "log") as process:
            yield Running(process, world)


class Running:
    def __init__(self, process: processes.Process, world: worlds.World) -> None:
        self.pid = process.pid
        self._port = process.port
        self._world = world

    def join(self, count: int) -> list[wire.Wire]:
        target = f"/app/{self._world.application.key}?protocol=7&client=load&version=1.0.0"
        wires = [wire.Wire(self._port, target) for _ in range(count)]
        for one in wires:
            _expect(one, "pusher:connection_established")
            one.send(wire.WireFrame(wire.TEXT, SUBSCRIBE))
        for one in wires:
            _expect(one, "pusher_internal:subscription_succeeded")
        return wires

    def ways(self) -> Mapping[str, subjects.Way]:
        port, application, folder = self._port, self._world.application, self._world.folder
        return {
            "POST events, 16 connections": subjects.Way(lambda: publishers.Http(port, application, 16), WINDOW),
            "POST batch_events of 10, 4 connections": subjects.Way(
                lambda: publishers.Http(port, application, 4, batch=10), WINDOW
            ),
            "from the log, groups of 10": subjects.Way(lambda: publishers.Log(folder, application.id), WINDOW),
            # Each request waits for the answer to the last: there is next to nothing to join, and each event pays for a
            # system call of its own to each subscriber.
            "POST events, 1 connection": subjects.Way(
                lambda: publishers.Http(port, application, 1), WINDOW, saturates=False
            ),
        }


def _expect(one: wire.Wire, event: str) -> None:
    frame = one.receive()
    if frame is None or json.loads(frame.payload).get("event") != event:
        raise errors.Lost(f"Expected {event}, got {frame}")
