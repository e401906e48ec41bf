"""Start, stop and reload with open sockets: promptly, with close codes, and without remaining processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import calls, deployments, publishers, servers, sockets, waiting

Name = Callable[[str], str]
Start = Callable[..., servers.Server]

PROMPT = 8.0  # seconds: well under the 10 s that process supervisors grant, on a busy machine
PATIENCE = 60.0  # seconds, for what takes as long as four workers take to start
RECONNECT_CODES = {1012, 4200}  # close codes after which every SDK reconnects


async def _closed(everybody: list[sockets.Socket]) -> set[int]:
    return set(await asyncio.gather(*(socket.closed(within=2 * PATIENCE) for socket in everybody)))


@pytest.mark.parametrize("command", ["uvicorn", "gunicorn"])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl+C"])
async def test_stop_closes_open_sockets_promptly_with_a_close_code(
    start: Start, name: Name, command: str, how: str
) -> None:
    server = start(command)
    async with contextlib.AsyncExitStack() as stack:
        everybody = [await stack.enter_async_context(sockets.connect(server)) for _ in range(12)]
        room = name("presence-room")
        for place, socket in enumerate(everybody):
            await socket.request_subscription(room, member={"user_id": str(place)})
            await socket.skip_to("pusher_internal:subscription_succeeded", room)
        if how.startswith("SIG"):  # to the first process alone; a terminal's Ctrl+C reaches them all
            server.send_signal(signal.Signals[how])
        else:
            server.interrupt()
        assert await _closed(everybody) <= RECONNECT_CODES
        await asyncio.to_thread(server.wait_until_gone, PROMPT)


OWN_WORKER = "gunicorn's own ASGI worker"


@pytest.mark.parametrize("command", ["daphne", OWN_WORKER])
async def test_other_servers_stop_promptly_and_close_with_4200(
    start: Start, monkeypatch: pytest.MonkeyPatch, command: str
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
        server.send_signal(signal.SIGTERM)
        assert await socket.closed() == 4200
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
        everybody = [socket for found in spread.values() for socket in found]
        server.send_signal(signal.SIGHUP)
        assert await _closed(everybody) <= RECONNECT_CODES

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


async def test_workers_stop_after_their_master_was_killed(start: Start) -> None:
    """UvicornWorker does not check its parent process; it would serve forever and hold the port."""
    server = start("gunicorn")
    async with sockets.connect(server) as socket:
        os.kill(server.process.pid, signal.SIGKILL)
        assert await socket.closed() in RECONNECT_CODES
    await asyncio.to_thread(server.wait_until_gone, PROMPT)


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
