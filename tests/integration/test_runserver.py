"""`manage.py runserver`, as every Django developer starts a project, serves sockets and reloads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket as sockets_of_the_system
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import calls, deployments, servers, sockets, waiting

Start = Callable[..., servers.Server]

PROMPT = 8.0  # seconds, as for the other commands


@pytest.fixture(autouse=True)
def _the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.COMMANDS, "runserver", lambda port: ["python", "manage.py", "runserver", str(port)])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone that a test may edit."""
    root = tmp_path / "clone"
    root.mkdir()
    for part in ("apps", "myproject"):
        shutil.copytree(deployments.REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(deployments.REPOSITORY / "manage.py", root)
    return root


def run(deployment: deployments.Deployment, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "manage.py", "runserver", *arguments],
        cwd=deployments.REPOSITORY,
        env=deployment.environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with sockets_of_the_system.socket() as listener:
        listener.bind((servers.HOST, 0))
        listener.listen(1)
        yield int(listener.getsockname()[1])


async def test_it_serves_sockets_and_the_http_api_and_says_what_django_says(
    start: Start, name: Callable[[str], str]
) -> None:
    server = start("runserver")
    channel = name("news")
    async with sockets.connect(server) as socket:
        await socket.subscribe(channel)
        await asyncio.to_thread(calls.publish, server, channel, "hello", "{}")
        await socket.expect("hello", channel)
    printed = server.log_text()
    for line in (
        "System check identified no issues",
        "using settings 'myproject.settings'",
        f"Starting development server at http://127.0.0.1:{server.port}/",
        "Quit the server with CONTROL-C.",
        "Started reloader process",
    ):
        assert line in printed


async def test_an_edited_file_restarts_it_and_clients_come_back(start: Start, project: Path) -> None:
    server = start("runserver", root=project)
    old = set(server.workers())
    async with sockets.connect(server) as socket:
        edited = project / "myproject" / "asgi.py"
        edited.write_text(edited.read_text() + "\n# edited\n")
        assert await socket.closed() in {1012, 4200}

    def restarted() -> bool:
        return bool(set(server.workers()) - old) and server.is_ready()

    await asyncio.to_thread(waiting.until, restarted, PROMPT * 2, "the new code serves")


async def test_control_c_ends_it_promptly_with_an_open_socket(start: Start) -> None:
    server = start("runserver")
    async with sockets.connect(server) as socket:
        server.interrupt()
        assert await socket.closed() in {1012, 4200}
        await asyncio.to_thread(server.wait_until_gone, PROMPT)


def test_without_reload_it_is_one_process(fleet: servers.Fleet, tmp_path: Path) -> None:
    port = servers.free_port()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "manage.py", "runserver", f"localhost:{port}", "--noreload"],
            cwd=deployments.REPOSITORY,
            env=fleet.deployment().environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(process.wait, PROMPT)
        stack.callback(process.terminate)
        own = f"Fanfare: worker {process.pid}"
        waiting.until(lambda: own in (tmp_path / "log").read_text(), 20.0, "it serves in the process itself")
    assert process.returncode in (0, -signal.SIGTERM)
    assert "reloader" not in (tmp_path / "log").read_text()


def test_a_port_that_is_taken_is_one_sentence(fleet: servers.Fleet, taken: int) -> None:
    ended = run(fleet.deployment(), str(taken))
    assert ended.returncode == 1
    assert f"Port {taken} of 127.0.0.1 is in use" in ended.stderr
    assert "`runserver PORT`" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_an_address_it_is_that_of_the_settings(fleet: servers.Fleet, taken: int) -> None:
    ended = run(fleet.deployment(), FANFARE_PORT=str(taken))
    assert f"Port {taken} of 127.0.0.1 is in use" in ended.stderr


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "8000x"])
def test_invalid_address_is_refused_with_djangos_message(fleet: servers.Fleet, address: str) -> None:
    ended = run(fleet.deployment(), address)
    assert ended.returncode == 1
    assert f'"{address}" is not a valid port number or address:port pair.' in ended.stderr


def test_wrong_settings_are_one_sentence(fleet: servers.Fleet) -> None:
    ended = run(fleet.deployment(), str(servers.free_port()), FANFARE_ACTIVITY_TIMEOUT="soon")
    assert ended.returncode != 0
    assert "FANFARE_ACTIVITY_TIMEOUT is 'soon'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_failed_check_stops_it(fleet: servers.Fleet, tmp_path: Path) -> None:
    (tmp_path / "broken_settings.py").write_text("from myproject.settings import *\nMIDDLEWARE = []\n")
    path = os.pathsep.join([str(tmp_path), str(deployments.REPOSITORY)])
    ended = run(fleet.deployment(), str(servers.free_port()), DJANGO_SETTINGS_MODULE="broken_settings", PYTHONPATH=path)
    assert ended.returncode == 1
    assert "admin.E408" in ended.stderr
