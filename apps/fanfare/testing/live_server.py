"""running_server(): a real server for a project's tests.

    with running_server(tmp_path) as server:
        browser.goto(server.url("/orders/"))

It is uvicorn in a process of its own, on a free port, with the settings of the project and the database of the test.
Events that the test publishes inside the block reach the server's clients, and sessions and tokens are valid on both
sides. Another process must be able to open the database, so SQLite needs a file: `DATABASES["default"]["TEST"] =
{"NAME": …}`. The test must commit: it is a `TransactionTestCase`, or uses pytest's `transactional_db`. Settings that
the test overrides stay in its own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
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

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from fanfare import conf
from fanfare.engine import current, interface
from fanfare.engine.local import engine as local_engine
from fanfare.integration import rule_cache, target

if TYPE_CHECKING:
    from fanfare.applications.models import Application

HOST = "127.0.0.1"
START_S = 40.0  # importing Django on a busy machine takes seconds
STOP_S = 10.0
_LOOK_S = 0.05
_LOG_TAIL = 4_000  # characters


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server for the length of a test.

    `port`: on 127.0.0.1. `application`: the one whose key clients connect with. `log`: the file that it writes to.
    """

    port: int
    application: Application
    log: Path

    def url(self, path: str = "/") -> str:
        return f"http://{HOST}:{self.port}{path}"

    @property
    def socket_url(self) -> str:
        """The URL that a WebSocket client of the Pusher protocol connects to."""
        return f"ws://{HOST}:{self.port}/app/{self.application.key}?protocol=7&client=tests&version=1"


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[RunningServer]:
    """Start a server, and stop it after the block. Yields a `RunningServer`.

    `folder`: an empty one, for its log and what its workers share. A database without an application gets one. With
    pytest-xdist each process has servers of its own.

    Raises ImproperlyConfigured for a database in memory and for a project in remote mode, and RuntimeError with the end
    of the server's log if the server does not start.
    """
    from fanfare.applications import models

    if conf.settings.REMOTE_URL:
        raise ImproperlyConfigured(
            "This project publishes to the deployment of FANFARE_REMOTE_URL: test against that one, or unset the four "
            "FANFARE_REMOTE_… settings for this test."
        )
    port = _free_port()
    plan = _plan(folder, port)
    engine = local_engine.LocalEngine(folder / "engine")
    with current.replaced(engine):
        try:
            application = models.Application.objects.order_by("pk").first() or models.Application.objects.create(
                name="Tests", client_events=True
            )
            target.forget()  # the cached application may be that of the test before, which the database has no more
            rule_cache.cache.clear()
            server = RunningServer(port, application, folder / "server.log")
            with _process(server, plan):
                yield server
        finally:
            _close(engine)


@contextlib.contextmanager
def _process(server: RunningServer, plan: dict[str, Any]) -> Iterator[None]:
    file = server.log.with_name("server.json")
    file.touch(0o600)  # it holds the secret key and the passwords of databases
    file.write_text(json.dumps(plan), encoding="utf-8")
    with server.log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fanfare.testing.server_process", str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"},
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
    """Until it is ready."""
    end = time.monotonic() + START_S
    status = None
    while process.poll() is None and time.monotonic() < end:
        status = _health(server.port)
        if status == 200:
            return
        if status == 404:
            raise RuntimeError(
                f"The ASGI application of this project, {settings.ASGI_APPLICATION}, has no Fanfare in it: write "
                "`application = fanfare.asgi.application()` in its asgi.py, or unset ASGI_APPLICATION."
            )
        time.sleep(_LOOK_S)
    why = f"ended with {process.returncode}" if process.poll() is not None else f"is not ready after {START_S:g} s"
    raise RuntimeError(f"The server {why}:\n{server.log.read_text(errors='replace')[-_LOG_TAIL:]}")


def _health(port: int) -> int | None:
    asking = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        asking.request("GET", f"{conf.settings.URL_PREFIX}health/ready")
        return asking.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        asking.close()


def _plan(folder: Path, port: int) -> dict[str, Any]:
    """What the server's process needs to know. Raises ImproperlyConfigured."""
    module = getattr(settings, "SETTINGS_MODULE", None)
    if module is None:
        raise ImproperlyConfigured(
            "The settings of this test come from settings.configure(), which another process cannot repeat: put them "
            "into a module and name it in DJANGO_SETTINGS_MODULE."
        )
    return {
        "settings": module,
        "host": HOST,
        "port": port,
        "secret_key": settings.SECRET_KEY,
        "environment": {"FANFARE_DATA_DIR": str(folder), "FANFARE_ENGINE": "local"},
        "databases": {alias: _database_name(connections[alias].settings_dict) for alias in connections},
    }


def _database_name(values: dict[str, Any]) -> str:
    name = str(values["NAME"])
    if values["ENGINE"].endswith("sqlite3") and (name == ":memory:" or "mode=memory" in name):
        raise ImproperlyConfigured(
            "The test database is in the memory of this process, where a server cannot read it. Give it a file: "
            'DATABASES["default"]["TEST"] = {"NAME": "test.sqlite3"}.'
        )
    return name


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
