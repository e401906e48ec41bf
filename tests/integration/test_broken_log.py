"""A full disk, a read-only log, a damaged log: publishers get 503, clients stay connected, no acknowledged event is
lost, and the server recovers by itself when the cause is removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import calls, deployments, event_streams, parts, pusherjs, servers, waiting
from tests.kills import chaos, followers, publisher, rounds

Start = Callable[..., servers.Server]

CHANNEL = "counts"
PAD = "x" * 5_000  # so that few events fill the remaining space
SOON_S = 15.0  # within which a worker detects the fault or its end

KEEPING = ("--history", "c*=10000,600", "--replay", "c*=10000,67108864")


class Backend:
    """Publishes 1, 2, 3, … once each and records the acknowledged numbers."""

    def __init__(self, caller: calls.Caller) -> None:
        self.acknowledged: list[int] = []
        self._caller = caller
        self._number = 0

    def publish(self) -> calls.Answer:
        self._number += 1
        event = {"name": "tick", "channels": [CHANNEL], "data": f"{self._number:06}", "info": "offset"}
        # Readers use the number only; the padding fills the disk.
        answer = self._caller.signed("POST", "events", {**event, "data": f"{self._number:06} {PAD}"})
        if answer.status == 200:
            self.acknowledged.append(self._number)
        return answer

    def until_refused(self) -> calls.Answer:
        return waiting.until(lambda: self._published(503), SOON_S, "a publication is refused")

    def until_acknowledged(self) -> calls.Answer:
        return waiting.until(lambda: self._published(200), SOON_S, "a publication is acknowledged")

    def _published(self, wanted: int) -> calls.Answer | None:
        answer = self.publish()
        assert answer.status in (200, 503), answer
        return answer if answer.status == wanted else None


def number_of(event: event_streams.Event) -> int:
    return int(event.data["data"].split()[0])


@pytest.fixture
def keeping(fleet: servers.Fleet) -> deployments.Deployment:
    deployment = fleet.deployment()
    deployment.application = deployment.create_application("Broken", *KEEPING)
    return deployment


def engine_check(caller: calls.Caller) -> dict[str, Any]:
    answer = caller.call("GET", "/health/ready")
    check: dict[str, Any] = answer.body["checks"].get("engine") or answer.body["checks"]["worker"]
    assert (answer.status == 200) is check["ok"]
    return check


# -- a full disk -------------------------------------------------------------------------------------------------------


class FileSizeLimit:
    """A full disk by RLIMIT_FSIZE: the server's processes cannot extend a file beyond a size."""

    BYTES = 400_000  # enough for a few more events

    def __init__(self, deployment: deployments.Deployment) -> None:
        self._log = deployment.folder / "engine" / "log.sqlite3-wal"
        self._before: dict[int, tuple[int, int]] = {}

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        yield

    def fill(self, server: servers.Server) -> None:
        for pid in server.workers():
            self._before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            most = self._log.stat().st_size + self.BYTES
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, self._before[pid][1]))

    def free(self) -> None:
        for pid, limits in self._before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


class SmallDisk:
    """A full disk by a tmpfs that a large file fills."""

    BYTES = 16 * 1024 * 1024

    def __init__(self, deployment: deployments.Deployment) -> None:
        self._folder = deployment.folder / "engine"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        for path in self._folder.iterdir():
            path.unlink() if path.is_file() else None
        self._folder.mkdir(exist_ok=True, mode=0o700)
        options = f"size={self.BYTES},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", self._folder], check=True)

    def fill(self, _server: servers.Server) -> None:
        block = b"\0" * 65_536
        with contextlib.suppress(OSError), (self._folder / "filler").open("wb", buffering=0) as file:
            while file.write(block) == len(block):
                continue

    def free(self) -> None:
        (self._folder / "filler").unlink()


def can_mount() -> bool:
    """Whether the test may mount a file system."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
        return True
    return False


DISKS = [FileSizeLimit, SmallDisk] if can_mount() else [FileSizeLimit]


@pytest.mark.parametrize("disk_of", DISKS)
async def test_full_disk_gives_503_and_red_health_until_there_is_space(
    start: Start, keeping: deployments.Deployment, disk_of: type[FileSizeLimit | SmallDisk]
) -> None:
    disk = disk_of(keeping)
    with disk.mounted():
        server = start("gunicorn", keeping)
        async with event_streams.listen(server, keeping.application, CHANNEL) as listener:
            await listener.statement()
            with calls.Caller(server) as caller, calls.to_each_worker(server) as workers:
                backend = Backend(caller)
                for _ in range(20):
                    assert backend.publish().status == 200
                disk.fill(server)
                refused = await asyncio.to_thread(backend.until_refused)
                assert refused.body["code"] == "engine_unavailable"
                assert "cannot be written" in refused.body["error"]
                assert "retry-after" in refused.headers
                for worker in workers.values():

                    def reports(worker: calls.Caller = worker) -> bool:
                        return "cannot be written" in engine_check(worker)["reason"]

                    await asyncio.to_thread(waiting.until, reports, SOON_S, "the worker reports the full disk")
                disk.free()
                await asyncio.to_thread(backend.until_acknowledged)
                for worker in workers.values():

                    def is_ready(worker: calls.Caller = worker) -> bool:
                        return bool(engine_check(worker)["ok"])

                    await asyncio.to_thread(waiting.until, is_ready, SOON_S, "the worker is ready again")
                for _ in range(20):
                    assert backend.publish().status == 200
            assert [number_of(await listener.next()) for _ in backend.acknowledged] == backend.acknowledged
        await everything_is_kept(server, backend)
        await asyncio.to_thread(server.stop)


async def everything_is_kept(server: servers.Server, backend: Backend) -> None:
    """A new reader gets every acknowledged event from the history."""
    async with event_streams.listen(server, server.application, CHANNEL, last_event_id="earliest") as reader:
        await reader.statement()
        assert [number_of(await reader.next()) for _ in backend.acknowledged] == backend.acknowledged


# -- a log that is read-only -------------------------------------------------------------------------------------------


def read_only(deployment: deployments.Deployment, is_so: bool) -> None:
    for path in deployment.log_files():
        path.chmod(stat.S_IRUSR if is_so else stat.S_IRUSR | stat.S_IWUSR)


def without_privileges() -> list[str]:
    """A command prefix without the capability of root to write read-only files."""
    if os.geteuid() != 0:
        return []
    return [parts.executable("setpriv"), "--bounding-set=-dac_override"]


async def test_new_worker_with_a_read_only_log_is_not_ready_and_the_others_publish(
    start: Start, keeping: deployments.Deployment
) -> None:
    server = start("gunicorn", keeping, under=without_privileges())
    with calls.to_each_worker(server) as workers:
        (victim, _), (survivor, caller), *_ = workers.items()
        backend = Backend(caller)
        assert backend.publish().status == 200
        read_only(keeping, True)
        os.kill(victim, signal.SIGKILL)
        new = await asyncio.to_thread(replacement, server, set(workers))
        assert survivor in server.workers()
        newcomer = await asyncio.to_thread(waiting.until, lambda: caller_of(server, new), SOON_S, "it serves")
        with newcomer:
            assert "read-only" in engine_check(newcomer)["reason"]
            answer = await asyncio.to_thread(Backend(newcomer).publish)
            assert (answer.status, "retry-after" in answer.headers) == (503, True)
            assert backend.publish().status == 200, "a worker that has the log open still publishes"
            read_only(keeping, False)
            await asyncio.to_thread(
                waiting.until, lambda: engine_check(newcomer)["ok"], SOON_S, "the new worker is ready"
            )
            backend._caller = newcomer
            assert backend.publish().status == 200
    await everything_is_kept(server, backend)


def replacement(server: servers.Server, old: set[int]) -> int:
    (new,) = waiting.until(
        lambda: set(server.workers()) - old if len(server.workers()) == len(old) else set(), SOON_S, "a new worker"
    )
    return new


def caller_of(server: servers.Server, worker: int) -> calls.Caller | None:
    """A connection to this worker, or None if it accepted none of 16."""
    for _ in range(16):
        caller = calls.Caller(server)
        with contextlib.suppress(OSError):
            if server.worker_of(caller.local_port()) == worker:
                return caller
        caller.__exit__()
    return None


async def test_server_starts_with_a_read_only_log_and_recovers(
    fleet: servers.Fleet, start: Start, keeping: deployments.Deployment
) -> None:
    server = start("uvicorn", keeping)
    with calls.Caller(server) as caller:
        backend = Backend(caller)
        assert backend.publish().status == 200
    await asyncio.to_thread(server.stop)
    read_only(keeping, True)
    server = servers.Server("uvicorn", keeping, fleet.folder / "read-only.log", under=without_privileges())
    fleet.servers.append(server)
    try:
        await asyncio.to_thread(waiting.until, lambda: is_listening(server), servers.START_SECONDS, "it answers")
        with calls.Caller(server) as caller:
            assert "read-only" in engine_check(caller)["reason"]
            backend._caller = caller
            assert backend.publish().status == 503
            read_only(keeping, False)
            await asyncio.to_thread(backend.until_acknowledged)
        await everything_is_kept(server, backend)
    finally:
        await asyncio.to_thread(server.stop)


def is_listening(server: servers.Server) -> bool:
    with contextlib.suppress(OSError):
        return server.health()[0] == 503
    return False


# -- a log that is damaged ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def clients_and_publisher(
    deployment: deployments.Deployment, restartable: chaos.RestartableServer, runtime: pusherjs.Runtime
) -> AsyncIterator[tuple[list[followers.Follower], publisher.Publisher]]:
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for kind in (followers.SESSION, followers.PLUGIN, followers.SSE):
            to = await stack.enter_async_context(restartable.proxy().running())
            one = followers.Follower(kind, CHANNEL, to, deployment.application)
            clients.append(await stack.enter_async_context(one.following(runtime)))
        to = await stack.enter_async_context(restartable.proxy().running())
        yield clients, publisher.Publisher(to, deployment.application, [CHANNEL], 100)


async def test_damaged_log_is_moved_aside_and_replaced(
    fleet: servers.Fleet, start: Start, keeping: deployments.Deployment, pusher_js: pusherjs.Runtime
) -> None:
    server = start("gunicorn", keeping)
    restartable = chaos.RestartableServer(fleet, server)
    async with clients_and_publisher(keeping, restartable, pusher_js) as (clients, backend):
        await backend.run(0.5)
        await rounds.arrival(clients, backend)
        damage(keeping.folder / "engine" / "log.sqlite3")
        # Either a publisher finds the damage first, and gets 503, or a reader does.
        await backend.run(1.5)
        await rounds.arrival(clients, backend)
        for client in clients:
            assert client.transcript.reasons == ["epoch_changed"], client.kind
            assert client.transcript.recoveries == 0, client.kind
            assert client.transcript.examine(backend.acknowledged).unreported == 0, client.kind
    assert len(list((keeping.folder / "engine").glob("log.sqlite3.damaged-*Z"))) == 1
    assert "CRITICAL" in server.log_text()
    await asyncio.to_thread(waiting.until, server.is_ready, SOON_S, "it is ready")


def damage(log: Path) -> None:
    """Overwrite every page of the log and its WAL, as a failing disk may."""
    for path in (log, log.with_name(f"{log.name}-wal")):
        size = path.stat().st_size
        with path.open("r+b") as file:  # safe: this process has not opened it with SQLite
            file.write(b"?" * size)
