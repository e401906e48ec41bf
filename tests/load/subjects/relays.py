"""`ws` and Socket.IO in Node, without channels: each text goes to all connections (rivals/node)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness import servers
from tests.load import connections, errors, events, processes, publishers, subjects
from tests.load.subjects import pusher

FOLDER = processes.RIVALS / "node"


class Relay:
    one_frame_each = True

    def __init__(self, name: str, package: str) -> None:
        self.name = name
        self._package = package

    def absent(self) -> str | None:
        if shutil.which("node") is None:
            return "`node` is not on the PATH."
        if not self._folder.exists():
            return f"`npm ci --prefix {processes.relative(FOLDER)}` was not run."
        return None

    def versions(self) -> str:
        version = json.loads((self._folder / "package.json").read_text())["version"]
        return f"{self._package} {version}, Node {processes.output('node', '--version')}"

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[Running]:
        port = servers.free_port()
        command = [shutil.which("node") or "node", str(FOLDER / "relay.mjs"), self._package, str(port)]
        environment = {**os.environ, "NODE_ENV": "production"}
        with processes.running(command, port, environment, core=core, log=folder / "log") as process:
            yield SocketIo(process) if self._package == "socket.io" else Running(process)

    @property
    def _folder(self) -> Path:
        return FOLDER / "node_modules" / self._package


class Running(subjects.Silent):
    target = "/"
    body = staticmethod(events.body)

    def ways(self) -> Mapping[str, subjects.Way]:
        def request(first: int, count: int) -> bytes:
            return publishers.post("/publish", self.body(first))

        return {"POST, 16 connections": subjects.Way(lambda: publishers.Http(self.port, request, 16), pusher.WINDOW)}


class SocketIo(Running):
    target = "/socket.io/?EIO=4&transport=websocket"

    # Socket.IO sends `42["tick","…"]`: 13 bytes and the text, which must not need escapes.
    body = staticmethod(lambda number: events.padded(number, events.BODY_BYTES - len('42["tick",""]')).encode())

    def greeting(self) -> connections.Dialogue:
        for sent, expected in ((b"", b"0{"), (connections.text(b"40"), b"40{")):
            payload = yield sent
            if not payload.startswith(expected):
                raise errors.Lost(f"expected {expected!r}, received {payload!r}")
