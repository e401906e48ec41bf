"""A real server for a project's tests: uvicorn in a process of its own, on a free port, with the test's database.

    with running_server(tmp_path) as server:
        browser.goto(server.url("/orders/"))

What the test's process publishes inside the block reaches the server's clients, and sessions and tokens are good on
both sides. The database must be one that another process can open, so for SQLite a file:
`DATABASES["default"]["TEST"] = {"NAME": …}`. Tests that use it commit: `TransactionTestCase`, or pytest's
`transactional_db`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from fanfare.engine import current, interface
from fanfare.engine.local import engine as local_engine

if TYPE_CHECKING:
    from fanfare.applications.models import Application

HOST = "127.0.0.1"
START_S = 40.0  # importing Django on a busy machine takes seconds
STOP_S = 10.0
_LOOK_S = 0.05
_LOG_TAIL = 4_000  # characters


@dataclass(frozen=True, slots=True)
class RunningServer:
    """`application`: the one whose key clients connect with. `log`: the file that the server writes to."""

    port: int
    application: Application
    log: Path

    def url(self, path: str = "/") -> str:
        return f"http://{HOST}:{self.port}{path}"

    @property
    def socket_url(self) -> str:
        """Where a WebSocket client of the protocol connects."""
        return f"ws://{HOST}:{self.port}/app/{self.application.key}?protocol=7&client=tests&version=1"


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[RunningServer]:
    """Start it, and stop it after the block. `folder`: an empty one, for its log and what its workers share.

    Where the database has no application, it gets one. Raises ImproperlyConfigured for a database that no other process
    can open, and RuntimeError with the end of the server's log if it does not start.
    """
    from fanfare.applications import models

    environment = _environment(folder)
    engine = local_engine.LocalEngine(folder / "engine")
    with current.replaced(engine):
        try:
            application = models.Application.objects.order_by("pk").first() or models.Application.objects.create(
                name="Tests", client_events=True
            )
            server = RunningServer(_free_port(), application, folder / "server.log")
            with _process(server, environment):
                yield server
        finally:
            _close(engine)


@contextlib.contextmanager
def _process(server: RunningServer, environment: dict[str, str]) -> Iterator[None]:
    module, _, name = settings.ASGI_APPLICATION.rpartition(".")
    command = [sys.executable, "-m", "uvicorn", f"{module}:{name}", "--host", HOST, "--port", str(server.port)]
    with server.log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=settings.BASE_DIR,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(server, process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: RunningServer, process: subprocess.Popen[bytes]) -> None:
    """Until it answers, with all its parts."""
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        if _is_ready(server.port):
            return
        time.sleep(_LOOK_S)
    why = f"ended with {process.returncode}" if process.poll() is not None else f"is not ready after {START_S:g} s"
    raise RuntimeError(f"The server {why}:\n{server.log.read_text(errors='replace')[-_LOG_TAIL:]}")


def _is_ready(port: int) -> bool:
    asking = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        asking.request("GET", "/health/ready")
        return asking.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asking.close()


def _environment(folder: Path) -> dict[str, str]:
    """That of the test, with its database and a world of its own. The developer's `.env` is not read."""
    project = settings.ASGI_APPLICATION.partition(".")[0]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FANFARE_")}
    return {
        **inherited,
        "DJANGO_SETTINGS_MODULE": f"{project}.settings",
        "DATABASE_URL": _database_url(connection.settings_dict),
        "FANFARE_DATA_DIR": str(folder),
        "FANFARE_ENV_FILE": os.devnull,
        "FANFARE_SECRET_KEY": settings.SECRET_KEY,
        "PYTHONUNBUFFERED": "1",
    }


def _database_url(values: dict[str, Any]) -> str:
    name = str(values["NAME"])
    if values["ENGINE"].endswith("sqlite3"):
        if name == ":memory:" or "mode=memory" in name:
            raise ImproperlyConfigured(
                "The test database is in the memory of this process, where a server cannot read it. Give it a file: "
                'DATABASES["default"]["TEST"] = {"NAME": "test.sqlite3"}.'
            )
        return f"sqlite:///{quote(str(Path(name).absolute()))}"
    options = {key: value for key, value in values["OPTIONS"].items() if key != "pool"}
    # The host may be the folder of a Unix socket, which has no place in front of the path.
    query = urlencode({**options, **({"host": values["HOST"]} if values["HOST"] else {})})
    who = f"{quote(values['USER'], safe='')}:{quote(values['PASSWORD'], safe='')}@" if values["USER"] else ""
    where = f"localhost:{values['PORT']}" if values["PORT"] else ""
    return f"postgres://{who}{where}/{quote(name, safe='')}" + (f"?{query}" if query else "")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _close(engine: interface.Engine) -> None:
    """In a thread: a tool of the test may have a running event loop in this one."""

    def close() -> None:
        asyncio.run(engine.close())

    closing = threading.Thread(target=close, name="close the test's engine")
    closing.start()
    closing.join()
