"""Sockudo, if it is on the PATH: the Pusher protocol in Rust. One thread, without rate limits and metrics."""

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

APPLICATION = deployments.Application("load", "load-key", "load-secret")
UNLIMITED = 100_000_000


class Sockudo:
    name = subjects.SOCKUDO
    one_frame_each = True

    def absent(self) -> str | None:
        return None if shutil.which("sockudo") else "there is no `sockudo` on the PATH."

    def versions(self) -> str:
        return processes.output("sockudo", "--version")

    @contextlib.contextmanager
    def running(self, folder: Path, core: int) -> Iterator[pusher.Running]:
        port = servers.free_port()
        file = folder / "config.json"
        application = {
            "id": APPLICATION.id,
            "key": APPLICATION.key,
            "secret": APPLICATION.secret,
            "enabled": True,
            "policy": {
                "limits": {"max_connections": UNLIMITED, "max_client_events_per_second": UNLIMITED},
                "features": {"enable_client_messages": True},
            },
        }
        configuration = {
            "host": servers.HOST,
            "port": port,
            "max_connections": UNLIMITED,
            "app_manager": {"driver": "memory", "array": {"apps": [application]}},
            "rate_limiter": {"enabled": False},
            "metrics": {"enabled": False},
        }
        file.write_text(json.dumps(configuration))
        command = [shutil.which("sockudo") or "sockudo", "--config", str(file)]
        environment = {**os.environ, "TOKIO_WORKER_THREADS": "1", "RUST_LOG": "error"}
        with processes.running(command, port, environment, core=core, log=folder / "log") as process:
            yield pusher.Running(process, APPLICATION)
