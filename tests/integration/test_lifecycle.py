"""Start, stop and reload with open sockets: promptly, with close codes, and without remaining processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import create_connection, create_server

import pytest
from websockets.exceptions import WebSocketException

from tests.harness import calls, deployments, publishers, servers, sockets, waiting

Name = Callable[[str], str]
Start = Callable[..., servers.Server]

PROMPT = 8.0  # seconds: well under the 10 s that process supervisors grant, on a busy machine
PATIENCE = 60.0  # seconds, for what takes as long as four workers take to start
RECONNECT_CODES = {1012, 4200}  # close codes after which every SDK reconnects


async def _closed(connected: list[sockets.Socket]) -> set[int]:
    return set(await asyncio.gather(*(socket.closed(within=2 * PATIENCE) for socket in connected)))


@pytest.fixture
def hang_up() -> Iterator[None]:
    """Let the servers of a test inherit the default handling of SIGHUP, also if the tests run below `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize(
    ("command", "how"),
    [
        *itertools.product(["uvicorn", "gunicorn"], ["SIGTERM", "SIGINT", "Ctrl+C"]),
        ("uvicorn", "SIGHUP"),  # as of a terminal that is closed; gunicorn reloads
    ],
)
async def test_stop_closes_open_sockets_promptly_with_a_close_code(
    start: Start, name: Name, command: str, how: str
) -> None:
    server = start(command)
    async with contextlib.AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(sockets.connect(server)) for _ in range(12)]
        room = name("presence-room")
        for place, socket in enumerate(connected):
            await socket.request_subscription(room, member={"user_id": str(place)})
            await socket.skip_to("pusher_internal:subscription_succeeded", room)
        if how.startswith("SIG"):  # to the first process alone; a terminal's Ctrl+C reaches them all
            server.send_signal(signal.Signals[how])
        else:
            server.interrupt()
        assert await _closed(connected) <= RECONNECT_CODES
        await asyncio.to_thread(server.wait_until_gone, PROMPT)


OWN_WORKER = "gunicorn's own ASGI worker"


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize(
    ("command", "number"),
    [("daphne", signal.SIGTERM), ("daphne", signal.SIGHUP), (OWN_WORKER, signal.SIGTERM)],
)
async def test_other_servers_stop_promptly_and_close_with_4200(
    start: Start, monkeypatch: pytest.MonkeyPatch, command: str, number: signal.Signals
) -> None:
    """Daphne would drop the sockets, and gunicorn's own ASGI worker wait for them up to its time-out."""
    monkeypatch.setitem(
        servers.COMMANDS,
        OWN_WORKER,
        lambda port: ["gunicorn", "-k", "asgi", servers.APPLICATION, "-b", f"{servers.HOST}:{port}"],
    )
    server = start(command)
    async with sockets.connect(server) as socket:
        await socket.subscribe("news")
        server.send_signal(number)
        assert await socket.closed() == 4200
        with contextlib.suppress(OSError, WebSocketException):  # the listener may be closed by now
            async with sockets.open_raw(server) as returned:
                assert await returned.closed() != 4200, "a client that returns is refused, and not closed again"
        await asyncio.to_thread(server.wait_until_gone, PROMPT)


async def test_members_of_a_stopped_server_are_removed(start: Start, name: Name) -> None:
    room = name("presence-room")
    first = start("uvicorn")
    async with sockets.connect(first) as socket:
        await socket.subscribe(room, member={"user_id": "old"})
        await asyncio.to_thread(first.stop)
    second = start("uvicorn", first.deployment)
    async with sockets.connect(second) as socket:
        snapshot = await socket.subscribe(room, member={"user_id": "new"})
        assert snapshot.decoded["presence"]["ids"] == ["new"]


async def test_stopped_daphne_leaves_no_worker_member_or_count_behind(start: Start, name: Name) -> None:
    """Daphne does not report its end to applications: the worker ends at the signal."""
    room, news = name("presence-room"), name("news")
    first = start("daphne")
    async with sockets.connect(first) as socket, sockets.connect(first) as other:
        await socket.subscribe(room, member={"user_id": "old"})
        await socket.subscribe(news)
        await other.subscribe(news)
        first.send_signal(signal.SIGTERM)
        assert await _closed([socket, other]) == {4200}
        await asyncio.to_thread(first.wait_until_gone, PROMPT)
    assert not list((first.deployment.folder / "engine" / "workers").iterdir())
    second = start("daphne", first.deployment)
    async with sockets.connect(second) as socket:
        snapshot = await socket.subscribe(room, member={"user_id": "new"})
        assert snapshot.decoded["presence"]["ids"] == ["new"]
    with calls.Caller(second) as caller:
        assert caller.signed("GET", f"channels/{news}").body["occupied"] is False
    assert "is dead" not in second.log_text()


async def test_hup_replaces_all_workers_with_open_sockets(start: Start, name: Name) -> None:
    server = start("gunicorn")
    channel = name("news")
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack, each=2)
        connected = [socket for found in spread.values() for socket in found]
        server.send_signal(signal.SIGHUP)
        assert await _closed(connected) <= RECONNECT_CODES

    def replaced() -> bool:
        now = set(server.workers())
        return len(now) == 4 and not now & set(spread)

    await asyncio.to_thread(waiting.until, replaced, PATIENCE, "four new workers")
    await asyncio.to_thread(server.wait_until_ready)  # a worker that starts accepts nothing, and handshakes time out
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack)
        for found in spread.values():
            await found[0].subscribe(channel)
        await asyncio.to_thread(calls.publish, server, channel, "after", "{}")
        for found in spread.values():
            await found[0].expect("after", channel)


async def test_hup_refuses_no_request(start: Start, name: Name) -> None:
    server = start("gunicorn")
    old = set(server.workers())
    async with publishers.publishing(server, name("news")) as publisher:
        await publisher.reach(20)
        server.send_signal(signal.SIGHUP)
        await asyncio.to_thread(
            waiting.until, lambda: len(set(server.workers()) - old) == 4, PROMPT * 2, "four new workers"
        )
        await publisher.reach(publisher.published + 20)
        # While the old workers serve, the master does not read a signal to stop.
        await asyncio.to_thread(waiting.until, lambda: not set(server.workers()) & old, PATIENCE, "the old ones' end")
        await publisher.reach(publisher.published + 20)


@pytest.mark.parametrize("command", ["gunicorn", "uvicorn pair"])
async def test_workers_stop_after_their_master_was_killed(start: Start, command: str) -> None:
    """The workers do not check their parent process by themselves; they would serve forever and hold the port."""
    server = start(command)
    async with contextlib.AsyncExitStack() as stack:
        spread = await sockets.spread(server, stack)
        server.process.kill()
        assert await _closed([found[0] for found in spread.values()]) <= RECONNECT_CODES
    await asyncio.to_thread(server.process.wait)
    await asyncio.to_thread(waiting.until, lambda: not server.remaining_processes(), PROMPT, "the workers' end")
    create_server((servers.HOST, server.port)).close()


def _knock(port: int, stop: threading.Event) -> int:
    """Connect again and again until `stop`; the number of connects. Raises ConnectionRefusedError."""
    connects = 0
    while not stop.wait(0.05):  # at most: the backlog holds 4,096 connections while no server runs
        with create_connection((servers.HOST, port)):
            connects += 1
    return connects


def test_connections_wait_in_the_socket_of_systemd_while_the_server_restarts(
    start: Start, fleet: servers.Fleet
) -> None:
    """deploy/fanfare.socket holds the listener. Here the test does."""
    deployment, stop = fleet.deployment(), threading.Event()
    handshake = (
        f"GET /app/{deployment.application.key}?protocol=7 HTTP/1.1\r\nHost: {servers.HOST}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    request = f"GET /health/live HTTP/1.1\r\nHost: {servers.HOST}\r\nConnection: close\r\n\r\n"
    with (
        create_server((servers.HOST, 0), backlog=4096) as listener,
        concurrent.futures.ThreadPoolExecutor(1) as knocking,
    ):
        port = listener.getsockname()[1]
        connects = knocking.submit(_knock, port, stop)
        try:
            for command in ("gunicorn activated", "uvicorn activated"):
                with contextlib.ExitStack() as stack:
                    waiting_ones = []
                    for text in [handshake, request] * 5:
                        client = stack.enter_context(create_connection((servers.HOST, port), servers.START_SECONDS))
                        client.sendall(text.encode())
                        waiting_ones.append(client)
                    server = start(command, deployment, listener=listener)
                    answers = {client.recv(12) for client in waiting_ones}
                    assert answers == {b"HTTP/1.1 101", b"HTTP/1.1 200"}
                server.stop()
        finally:
            stop.set()
        assert connects.result() > 0


@pytest.fixture
def copy_of_the_project(tmp_path: Path) -> Path:
    """A copy of the project that a test may edit."""
    root = tmp_path / "clone"
    root.mkdir()
    for part in ("apps", "myproject"):
        shutil.copytree(deployments.REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(deployments.REPOSITORY / "manage.py", root)
    return root


async def test_edited_file_reloads_promptly_with_an_open_socket(
    start: Start, copy_of_the_project: Path, name: Name
) -> None:
    server = start("reload", root=copy_of_the_project)
    old = set(server.workers())
    async with sockets.connect(server) as socket:
        await socket.subscribe(name("news"))
        edited = copy_of_the_project / "myproject" / "asgi.py"
        edited.write_text(edited.read_text() + "\n# edited\n")
        assert await socket.closed() in RECONNECT_CODES

    def reloaded() -> bool:
        return bool(set(server.workers()) - old) and server.is_ready()

    await asyncio.to_thread(waiting.until, reloaded, PROMPT * 2, "the new code is served")


def test_startup_log_has_the_topology_in_one_line(server: servers.Server) -> None:
    (line, *_) = [line for line in server.log_text().splitlines() if "engine local" in line]
    assert str(server.deployment.folder) in line
    if server.command != "daphne":
        for word in ("uvloop", "httptools", "fanfare"):
            assert word in line
