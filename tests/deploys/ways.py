"""The ways to deploy: a command that starts the server, and what an operator does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.harness import consoles, deployments, parts, postgresql, reverse_proxies, servers, waiting

WITHIN_S = 60.0
STRANGERS = 2  # connections of a worker without clients: publishers
MOVED_S = 10.0  # for its clients to be back at other workers
RESTART_S = 2.0  # RestartSec of deploy/fanfare.service
NOTICED_S = 3.0  # within which HAProxy sends clients to a machine that is ready again; it looks every 2 s

# A PID namespace, as of a container: its process 1 has no default handlers of signals, and all others end with it.
NAMESPACE = (
    "unshare",
    "--pid",
    "--fork",
    "--mount-proc",
    *(() if os.geteuid() == 0 else ("--user", "--map-root-user")),
)
IN_NAMESPACE = """
import os, sys
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.environ["WEB_CONCURRENCY"] = "4"
os.execvp(sys.argv[1], sys.argv[1:])
"""


def container(port: int) -> list[str]:
    """The command of the Dockerfile as process 1."""
    text = (deployments.REPOSITORY / "deploy/Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)
    arguments = [one.replace("0.0.0.0:8000", f"{servers.HOST}:{port}") for one in json.loads(command)]
    return ["python", "-c", IN_NAMESPACE, *NAMESPACE, *arguments]


def require_namespaces() -> None:
    """Skip or fail the test if this process may not make a PID namespace."""
    parts.executable(NAMESPACE[0])
    tried = subprocess.run([*NAMESPACE, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if tried.returncode:
        parts.refused("PID namespaces", tried.stderr)


servers.COMMANDS.update(
    {
        # On a busy machine a worker takes longer to start than uvicorn's default of 5 s.
        "uvicorn workers": lambda port: [
            *("uvicorn", servers.APPLICATION, "--port", str(port)),
            *("--workers", "4", "--timeout-worker-healthcheck", "30"),
        ],
        servers.CONTAINER: container,
        "max-requests": lambda port: [*servers.COMMANDS["gunicorn"](port), "--max-requests", "40"],
    }
)


Start = Callable[..., servers.Server]  # Fleet.start, or a test's


@contextlib.contextmanager
def alone(command: str, start: Start, _fleet: servers.Fleet) -> Iterator[servers.Server]:
    yield start(command)


@contextlib.contextmanager
def activated(command: str, start: Start, _fleet: servers.Fleet) -> Iterator[servers.Server]:
    """The listener stays open while no server runs, as with a socket of systemd."""
    with socket.create_server((servers.HOST, 0), backlog=4096) as listener:
        yield start(command, listener=listener)


class Machines:
    """Servers as their clients see them: `port` is that of a proxy."""

    def __init__(self, port: int, behind: list[servers.Server]) -> None:
        self.port = port
        self.behind = behind
        self.deployment = behind[0].deployment


@contextlib.contextmanager
def machines(command: str, start: Start, fleet: servers.Fleet) -> Iterator[Machines]:
    """Two servers that share PostgreSQL, behind HAProxy as configured in deploy/."""
    with postgresql.running() as cluster, tempfile.TemporaryDirectory(prefix="fanfare-haproxy-") as folder:
        cluster.create("deploys")
        environment = {
            "DATABASE_URL": cluster.url("deploys"),
            "FANFARE_ENGINE": cluster.url("deploys", schema="deploys_log"),
            "FANFARE_SECRET_KEY": "the same on both machines " * 3,
            "FANFARE_TRUSTED_PROXIES": servers.HOST,
            "FANFARE_DRAIN_DELAY": "5",
        }
        first, second = fleet.deployment(**environment), fleet.deployment(**environment)
        first.manage("migrate", "--verbosity", "0")
        behind = [start(command, first), start(command, second)]
        ports = [one.port for one in behind]
        with reverse_proxies.running(reverse_proxies.haproxy, Path(folder), ports) as port:
            seen = Machines(port, behind)
            yield seen
        for one in seen.behind:
            one.stop()


@dataclass(frozen=True)
class Way:
    """`act` deploys, and returns when the server's new processes are ready. `running` starts the server."""

    command: str
    act: Callable[[Any, servers.Fleet], object]
    help: str
    serve: Callable[[str, Start, servers.Fleet], contextlib.AbstractContextManager[Any]] = alone

    def running(self, start: Start, fleet: servers.Fleet) -> contextlib.AbstractContextManager[Any]:
        return self.serve(self.command, start, fleet)


def children(pid: int) -> set[int]:
    try:
        found = psutil.Process(pid).children()
        return {one.pid for one in found if servers.is_alive(one) and "resource_tracker" not in " ".join(one.cmdline())}
    except psutil.NoSuchProcess:
        return set()


def _replaced(server: servers.Server, old: set[int]) -> Callable[[], bool]:
    def are_replaced() -> bool:
        now = children(server.process.pid)
        return len(now) == len(old) and not now & old and server.is_ready()

    return are_replaced


def hup(server: servers.Server, _fleet: servers.Fleet) -> None:
    old = children(server.process.pid)
    server.send_signal(signal.SIGHUP)
    waiting.until(_replaced(server, old), WITHIN_S, "new workers only")


def usr2(server: servers.Server, _fleet: servers.Fleet) -> None:
    """A new master beside the old one, which is then stopped."""
    old = children(server.process.pid)
    server.send_signal(signal.SIGUSR2)
    waiting.until(lambda: len(children(server.process.pid) - old) == 1, WITHIN_S, "the new master")
    (new_master,) = children(server.process.pid) - old
    waiting.until(
        lambda: (
            all(f"Fanfare: worker {pid}," in server.log_text() for pid in children(new_master))
            and len(children(new_master)) == len(old)
        ),
        WITHIN_S,
        "the new master's workers",
    )
    server.send_signal(signal.SIGTERM)
    server.process.wait(WITHIN_S)


def max_requests(server: servers.Server, _fleet: servers.Fleet) -> None:
    """Requests until each worker was replaced once."""
    old = children(server.process.pid)
    end = time.monotonic() + WITHIN_S

    def are_replaced() -> bool:
        for _ in range(20):
            server.is_ready()
        return not children(server.process.pid) & old

    waiting.until(are_replaced, end - time.monotonic(), "new workers only")


def restart(server: servers.Server, fleet: servers.Fleet) -> servers.Server:
    server.send_signal(signal.SIGTERM)
    server.wait_until_gone(WITHIN_S)
    return fleet.start(server.command, server.deployment, port=server.port, listener=server.listener)


def restart_in_turn(seen: Machines, fleet: servers.Fleet) -> None:
    """Restart one machine after the other, each when HAProxy sends clients to the one before."""
    for number, one in enumerate(seen.behind):
        seen.behind[number] = restart(one, fleet)
        time.sleep(NOTICED_S)


def kill_in_turn(seen: Machines, fleet: servers.Fleet) -> None:
    """SIGKILL to all processes of one machine, and a new start after the pause of systemd; then the other machine."""
    for number, one in enumerate(seen.behind):
        os.killpg(one.process.pid, signal.SIGKILL)
        one.wait_until_gone(WITHIN_S)
        time.sleep(RESTART_S)
        seen.behind[number] = fleet.start(one.command, one.deployment, port=one.port)
        time.sleep(NOTICED_S)


def drain_in_turn(server: servers.Server, _fleet: servers.Fleet) -> None:
    """In the console: drain a worker, restart it once it has no clients, and go on with the next."""
    asyncio.run(_drain_in_turn(server))


async def _drain_in_turn(server: servers.Server) -> None:
    console = consoles.Console(server)
    async with console.stream("overview") as stream:
        while len(workers := (await stream.next())["workers"]) < server.expected_workers:
            pass
    for worker in workers:
        await console.post("worker", worker=worker["worker"], action="drain")
        await asyncio.to_thread(_wait_until_left, psutil.Process(worker["pid"]))
        await console.post("worker", worker=worker["worker"], action="restart")
        await asyncio.to_thread(_wait_until_replaced, server, worker["pid"])


def _wait_until_left(worker: psutil.Process) -> None:
    def is_left() -> bool:
        established = [one for one in worker.net_connections() if one.status == psutil.CONN_ESTABLISHED]
        return len(established) <= STRANGERS

    waiting.until(is_left, WITHIN_S, "the worker has no clients")
    time.sleep(MOVED_S)


def _wait_until_replaced(server: servers.Server, worker: int) -> None:
    def is_replaced() -> bool:
        now = children(server.process.pid)
        are_started = all(f"Fanfare: worker {pid}," in server.log_text() for pid in now)
        return len(now) == server.expected_workers and worker not in now and are_started

    waiting.until(is_replaced, WITHIN_S, "the next worker")


def stop_too_late(server: servers.Server, fleet: servers.Fleet) -> None:
    """A container whose time to stop is too short: SIGTERM to process 1, and SIGKILL before it has ended."""
    server.send_signal(signal.SIGTERM)
    server.send_signal(signal.SIGKILL)
    server.wait_until_gone(WITHIN_S)
    fleet.start(server.command, server.deployment, port=server.port)


def kill(server: servers.Server, fleet: servers.Fleet) -> None:
    """SIGKILL of the master; the orphans must go."""
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(WITHIN_S)
    waiting.until(lambda: not server.remaining_processes(), WITHIN_S, "the workers have ended")
    fleet.start(server.command, server.deployment, port=server.port)


def edit(server: servers.Server, _fleet: servers.Fleet) -> None:
    """Write a file below --reload again, as it is."""
    old = children(server.process.pid)
    file = Path(server.root) / "myproject" / "asgi.py"
    file.write_text(file.read_text())
    waiting.until(_replaced(server, old), WITHIN_S, "the new code is served")


WAYS: dict[str, Way] = {
    "hup": Way("gunicorn", hup, "SIGHUP to gunicorn's master"),
    "usr2": Way("gunicorn", usr2, "SIGUSR2, then SIGTERM to the old master"),
    "max-requests": Way("max-requests", max_requests, "gunicorn --max-requests"),
    "restart": Way("gunicorn", restart, "SIGTERM to gunicorn's master, then a new one"),
    "container": Way(servers.CONTAINER, restart, "SIGTERM to process 1 of a container, then a new one"),
    "container-kill": Way(
        servers.CONTAINER, stop_too_late, "SIGTERM and at once SIGKILL to process 1 of a container, then a new one"
    ),
    "activated": Way(
        "gunicorn activated", restart, "SIGTERM to gunicorn with a socket of systemd, then a new one", activated
    ),
    "machines": Way(
        "gunicorn pair", restart_in_turn, "SIGTERM to one of two machines behind HAProxy, then to the other", machines
    ),
    "machines-kill": Way(
        "gunicorn pair", kill_in_turn, "SIGKILL to one of two machines behind HAProxy, then to the other", machines
    ),
    "console": Way("gunicorn", drain_in_turn, "each worker in turn drained and restarted in the console"),
    "kill": Way("gunicorn", kill, "SIGKILL of gunicorn's master, then a new one"),
    "uvicorn-hup": Way("uvicorn workers", hup, "SIGHUP to uvicorn --workers 4"),
    "uvicorn-restart": Way("uvicorn", restart, "SIGTERM to uvicorn, then a new one"),
    "uvicorn-workers-restart": Way("uvicorn workers", restart, "SIGTERM to uvicorn --workers 4, then a new one"),
    "reload": Way("reload", edit, "uvicorn --reload, and an edited file"),
}
