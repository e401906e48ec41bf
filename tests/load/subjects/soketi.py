"""soketi: the Pusher protocol in Node, on uWebSockets. One process, no limits, no metrics.

soketi depends on uWebSockets.js by a git address. In rivals/soketi, npm installs a third-party build of it instead. A
soketi that was installed otherwise is used from the PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.harness import deployments, servers
from tests.load import processes, subjects
from tests.load.subjects import pusher

FOLDER = processes.RIVALS / "soketi"
SERVER = FOLDER / "node_modules" / "@soketi" / "soketi"

APPLICATION = deployments.Application("load", "load-key", "load-secret")
ENVIRONMENT = {
    "SOKETI_HOST": servers.HOST,
    "SOKETI_DEFAULT_APP_ID": APPLICATION.id,
    "SOKETI_DEFAULT_APP_KEY": APPLICATION.key,
    "SOKETI_DEFAULT_APP_SECRET": APPLICATION.secret,
    "SOKETI_DEFAULT_APP_ENABLE_CLIENT_MESSAGES": "true",
    # -1 means no limit; the default is 100 connections.
    "SOKETI_DEFAULT_APP_MAX_CONNECTIONS": "-1",
    "SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC": "-1",
    "SOKETI_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC": "-1",
    "SOKETI_DEFAULT_APP_MAX_READ_REQ_PER_SEC": "-1",
    "SOKETI_METRICS_ENABLED": "false",
    "NODE_ENV": "production",
}


class Soketi:
    name = subjects.SOKETI
    one_frame_each = True

    def absent(self) -> str | None:
        if _program() is None:
            return f"no `soketi` on the PATH, and `npm ci --prefix {processes.relative(FOLDER)}` was not run."
        return None

    def versions(self) -> str:
        package = SERVER / "package.json"
        if not package.exists():
            return "soketi of the PATH"
        version = json.loads(package.read_text())["version"]
        copy = json.loads((FOLDER / "node_modules" / "uWebSockets.js" / "package.json").read_text())
        node = processes.output("node", "--version")
        return f"soketi {version}, Node {node}, uWebSockets from {copy['name']} {copy['version']}"

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[pusher.Running]:
        port = servers.free_port()
        # soketi always listens on a second port, also without metrics.
        ports = {"SOKETI_PORT": str(port), "SOKETI_METRICS_SERVER_PORT": str(servers.free_port())}
        environment = {**os.environ, **ENVIRONMENT, **ports}
        command = [*(_program() or ()), "start"]
        with processes.running(command, port, environment, core=core, log=folder / "log") as process:
            yield pusher.Running(process, APPLICATION)


def _program() -> list[str] | None:
    script, node = SERVER / "bin" / "server.js", shutil.which("node")
    if script.exists() and node:
        return [node, "--require", str(FOLDER / "routes.cjs"), str(script)]
    program = shutil.which("soketi")
    return [program] if program else None
