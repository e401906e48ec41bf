"""What a worker sets itself, without a flag and without a gunicorn.conf.py: in a project that has no such file."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.harness import calls, deployments, servers, sockets

WORKERS = 2
STOP_S = 12.0  # FANFARE_GRACEFUL_TIMEOUT is 5 s; uvicorn's own default waits for ever
FRAME_BYTES = 131_072  # FANFARE_MAX_FRAME_BYTES

COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "one uvicorn": lambda port: ["uvicorn", servers.APPLICATION, "--port", str(port)],
    "uvicorn --workers": lambda port: [
        "uvicorn", servers.APPLICATION, "--workers", str(WORKERS), "--port", str(port),
    ],
    "plain gunicorn": lambda port: [
        "gunicorn", "-w", str(WORKERS), "-k", servers.UVICORN_WORKER, servers.APPLICATION,
        "-b", f"{servers.HOST}:{port}", "--access-logfile", "-",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bare") / "project"
    root.mkdir()
    for part in ("apps", "myproject"):
        shutil.copytree(deployments.REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(deployments.REPOSITORY / "manage.py", root)
    return root


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, fleet: servers.Fleet, project: Path) -> Iterator[servers.Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(servers.COMMANDS, request.param, COMMANDS[request.param])
        if request.param == "one uvicorn":
            patch.setattr(servers.Server, "workers", lambda self: [self.process.pid])
        else:
            patch.setattr(servers.Server, "expected_workers", WORKERS)
        server = fleet.start(request.param, root=project)
        yield server
        if server.process.poll() is None:
            server.stop()


async def test_larger_frame_closes_with_1009(server: servers.Server) -> None:
    async with sockets.connect(server) as socket:
        await socket.send_text('{"event":"x","data":"' + "x" * FRAME_BYTES + '"}')
        assert await socket.closed() == 1009


async def test_compression_is_not_negotiated(server: servers.Server) -> None:
    async with connect(server.socket_url(), proxy=None) as websocket:  # which offers it
        assert websocket.response is not None
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers


def test_forwarded_headers_of_an_untrusted_peer_do_not_count(server: servers.Server) -> None:
    before = server.log_size()
    with calls.Caller(server) as caller:
        caller.call("GET", "/health/live", headers={"X-Forwarded-For": "203.0.113.9"})
    text = server.log_text(before)
    assert "203.0.113.9" not in text


def test_idle_connection_stays_open_for_longer_than_the_servers_default(server: servers.Server) -> None:
    """uvicorn closes it after 5 s and gunicorn after 2, just when an SDK's pool sends its next request."""
    connection = http.client.HTTPConnection(servers.HOST, server.port, timeout=5)
    try:
        for pause_s in (6.0, 0.0):
            connection.request("GET", "/health/live")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b'{"status":"alive"}')
            connection.auto_open = 0  # a closed connection is an error from here on, and not opened again
            time.sleep(pause_s)
    finally:
        connection.close()


def test_worker_uses_fanfares_websocket_class(server: servers.Server) -> None:
    lines = [line for line in server.log_text().splitlines() if "Fanfare: worker" in line]
    assert lines
    assert all("websockets fanfare" in line for line in lines)


async def test_stop_does_not_wait_for_open_connections(server: servers.Server) -> None:
    """The last test of each server."""
    async with sockets.connect(server):
        await asyncio.to_thread(server.process.terminate)
        await asyncio.to_thread(server.wait_until_gone, STOP_S)
