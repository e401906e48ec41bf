"""Centrifugo, if it is on the PATH. Not in the rows of the fan-out: see `Subject.one_frame_each`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.harness import servers
from tests.load import connections, errors, events, processes, publishers, subjects

CONNECT = connections.text(b'{"id":1,"connect":{}}')


class Centrifugo:
    name = subjects.CENTRIFUGO
    one_frame_each = False

    def absent(self) -> str | None:
        return None if shutil.which("centrifugo") else "there is no `centrifugo` on the PATH."

    def versions(self) -> str:
        return processes.output("centrifugo", "version")

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[Running]:
        with started(folder, core) as process:
            yield Running(process)


@contextlib.contextmanager
def started(folder: Path, core: int | None, **more: object) -> Iterator[processes.Process]:
    """`more`: more of the configuration, such as `engine`."""
    port = servers.free_port()
    file = folder / "config.json"
    configuration = {
        "http_server": {"address": servers.HOST, "port": port},
        "client": {"insecure": True, "allowed_origins": ["*"]},
        "http_api": {"insecure": True},
        "log": {"level": "error"},
        **more,
    }
    file.write_text(json.dumps(configuration))
    command = [shutil.which("centrifugo") or "centrifugo", "--config", str(file)]
    environment = {**os.environ, "GOMAXPROCS": "1"}
    with processes.running(command, port, environment, core=core, log=folder / "log") as process:
        yield process


class Running:
    target = "/connection/websocket"

    def __init__(self, process: processes.Process) -> None:
        self.pid = process.pid
        self.port = process.port

    def greeting(self) -> connections.Dialogue:
        reply = yield CONNECT
        if b'"connect"' not in reply:
            raise errors.Lost(f"Centrifugo refused a client: {reply!r}")

    def joining(self) -> connections.Dialogue:
        yield from self.joining_room(events.CHANNEL)

    def room_target(self, room: str) -> str:
        return self.target

    def joining_room(self, room: str) -> connections.Dialogue:
        yield from self.greeting()
        reply = yield connections.text(json.dumps({"id": 2, "subscribe": {"channel": room}}).encode())
        if b'"subscribe"' not in reply:
            raise errors.Lost(f"Centrifugo refused a subscription: {reply!r}")

    def requests(self, batch: int) -> Callable[[int, int], bytes]:
        """Without an API key: a key costs it next to nothing, and it is no signature."""

        def request(first: int, count: int) -> bytes:
            commands = [
                {"channel": events.CHANNEL, "data": {"event": events.NAME, "data": events.data(number)}}
                for number in range(first, first + count)
            ]
            if batch == 1:
                return publishers.post("/api/publish", json.dumps(commands[0]).encode())
            return publishers.post(
                "/api/batch", json.dumps({"commands": [{"publish": one} for one in commands]}).encode()
            )

        return request

    def room_request(self, room: str, number: int) -> bytes:
        command = {"channel": room, "data": {"event": events.NAME, "data": events.data(number)}}
        return publishers.post("/api/publish", json.dumps(command).encode())

    def ways(self) -> Mapping[str, subjects.Way]:
        return {}
