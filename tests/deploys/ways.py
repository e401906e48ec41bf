"""The ways to deploy: a command that starts the server, and what an operator does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.harness import servers, waiting

WITHIN_S = 60.0

servers.COMMANDS.update(
    {
        # On a busy machine a worker takes longer to start than uvicorn's default of 5 s.
        "uvicorn workers": lambda port: [
            *("uvicorn", servers.APPLICATION, "--port", str(port)),
            *("--workers", "4", "--timeout-worker-healthcheck", "30"),
        ],
        "max-requests": lambda port: [*servers.COMMANDS["gunicorn"](port), "--max-requests", "40"],
    }
)


@dataclass(frozen=True)
class Way:
    """`act` deploys, and returns when the server's new processes are ready."""

    command: str
    act: Callable[[servers.Server, servers.Fleet], servers.Server]
    help: str


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


def hup(server: servers.Server, _fleet: servers.Fleet) -> servers.Server:
    old = children(server.process.pid)
    server.send_signal(signal.SIGHUP)
    waiting.until(_replaced(server, old), WITHIN_S, "new workers only")
    return server


def usr2(server: servers.Server, _fleet: servers.Fleet) -> servers.Server:
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
    return server


def max_requests(server: servers.Server, _fleet: servers.Fleet) -> servers.Server:
    """Requests until each worker was replaced once."""
    old = children(server.process.pid)
    end = time.monotonic() + WITHIN_S

    def are_replaced() -> bool:
        for _ in range(20):
            server.is_ready()
        return not children(server.process.pid) & old

    waiting.until(are_replaced, end - time.monotonic(), "new workers only")
    return server


def restart(server: servers.Server, fleet: servers.Fleet) -> servers.Server:
    server.send_signal(signal.SIGTERM)
    server.wait_until_gone(WITHIN_S)
    return fleet.start(server.command, server.deployment, port=server.port)


def kill(server: servers.Server, fleet: servers.Fleet) -> servers.Server:
    """SIGKILL of the master; the orphans must go."""
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(WITHIN_S)
    waiting.until(lambda: not server.remaining_processes(), WITHIN_S, "the workers have ended")
    return fleet.start(server.command, server.deployment, port=server.port)


def edit(server: servers.Server, _fleet: servers.Fleet) -> servers.Server:
    """Touch a file below --reload."""
    old = children(server.process.pid)
    file = Path(server.root) / "myproject" / "asgi.py"
    file.write_text(file.read_text() + "\n# edited\n")
    waiting.until(_replaced(server, old), WITHIN_S, "the new code is served")
    return server


WAYS: dict[str, Way] = {
    "hup": Way("gunicorn", hup, "SIGHUP to gunicorn's master"),
    "usr2": Way("gunicorn", usr2, "SIGUSR2, then SIGTERM to the old master"),
    "max-requests": Way("max-requests", max_requests, "gunicorn --max-requests"),
    "restart": Way("gunicorn", restart, "SIGTERM to gunicorn's master, then a new one"),
    "kill": Way("gunicorn", kill, "SIGKILL of gunicorn's master, then a new one"),
    "uvicorn-hup": Way("uvicorn workers", hup, "SIGHUP to uvicorn --workers 4"),
    "uvicorn-restart": Way("uvicorn", restart, "SIGTERM to uvicorn, then a new one"),
    "uvicorn-workers-restart": Way("uvicorn workers", restart, "SIGTERM to uvicorn --workers 4, then a new one"),
    "reload": Way("reload", edit, "uvicorn --reload, and an edited file"),
}
