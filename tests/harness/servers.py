"""Real servers, started with the documented commands on a free port."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from tests.harness import deployments, ports, waiting

HOST = "127.0.0.1"
START_SECONDS = 120.0  # four workers on two idle cores take about 6 s to import Django
STOP_SECONDS = 15.0

APPLICATION = "myproject.asgi:application"
UVICORN_WORKER = "uvicorn.workers.UvicornWorker"
ECHO = "tests.harness.echo:application"
CONTAINER = "container"  # the command of the image in a PID namespace; tests.deploys.ways has it
STOCK_SOCKETS = "websockets-sansio"
OWN_SOCKETS = "fanfare.sockets.protocol:WebSocketProtocol"

# The commands of the README, with the port added.
COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "uvicorn": lambda port: ["uvicorn", APPLICATION, "--port", str(port)],
    "reload": lambda port: ["uvicorn", APPLICATION, "--reload", "--port", str(port)],
    "gunicorn": lambda port: ["gunicorn", "-w", "4", "-k", UVICORN_WORKER, APPLICATION, "-b", f"{HOST}:{port}"],
    "gunicorn pair": lambda port: ["gunicorn", "-w", "2", "-k", UVICORN_WORKER, APPLICATION, "-b", f"{HOST}:{port}"],
    "uvicorn pair": lambda port: [
        *("uvicorn", APPLICATION, "--port", str(port), "--workers", "2"),
        *("--timeout-worker-healthcheck", "30"),  # the default of 5 s is short on a busy machine
    ],
    "daphne": lambda port: ["daphne", APPLICATION, "-p", str(port)],
    # With a `listener`, as deploy/fanfare.socket hands it over.
    "uvicorn activated": lambda port: ["uvicorn", APPLICATION, "--fd", "3"],
    "gunicorn activated": lambda port: [
        *("gunicorn", "-w", "1", "-k", UVICORN_WORKER, APPLICATION, "-b", f"{HOST}:{port}"),
    ],
    # Fanfare with uvicorn's own WebSocket class.
    "stock": lambda port: ["uvicorn", APPLICATION, "--ws", STOCK_SOCKETS, "--port", str(port)],
    # Without Fanfare, to compare: an echo application with uvicorn's WebSocket class, and with ours.
    "echo": lambda port: ["uvicorn", ECHO, "--ws", STOCK_SOCKETS, "--port", str(port), "--lifespan", "off"],
    "own echo": lambda port: ["uvicorn", ECHO, "--ws", OWN_SOCKETS, "--port", str(port), "--lifespan", "off"],
}
ECHOES = ("echo", "own echo")
ONE_PROCESS = ("uvicorn", "uvicorn activated", "stock", "daphne", *ECHOES)
PAIRS = ("gunicorn pair", "uvicorn pair")

# As systemd: the socket is descriptor 3, and no other copy of it is left to the server. If it is installed,
# systemd-socket-activate gets the socket, waits for a connection, and becomes the server.
ACTIVATE = """
import os, sys
given = int(sys.argv[1])
os.dup2(given, 3)
os.set_inheritable(given, given == 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Server:
    """One running server of a deployment. `command`: a name of COMMANDS. `under`: a wrapper command. `listener`: the
    socket that the server gets, as from systemd.
    """

    def __init__(
        self,
        command: str,
        deployment: deployments.Deployment,
        log: Path,
        root: Path = deployments.REPOSITORY,
        under: Sequence[str] = (),
        port: int | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self.command = command
        self._under = under
        self._inherited: tuple[int, ...] = ()
        self.listener = listener
        self.deployment = deployment
        self.application = deployment.application
        if listener is not None:
            self._inherited = (listener.fileno(),)
            self._under = [*under, sys.executable, "-c", ACTIVATE, str(listener.fileno()), *_activator(deployment)]
            port = listener.getsockname()[1]
        self.port = port or ports.reserve(self)
        self.root = root
        self.log = log
        self.tracebacks_expected: str | None = None  # the reason; if None, a traceback in the log fails the test
        self._output: IO[bytes] = log.open("ab")
        self.process = self._spawn(root)

    def _spawn(self, root: Path) -> subprocess.Popen[bytes]:
        program, *arguments = COMMANDS[self.command](self.port)
        return subprocess.Popen(
            [*self._under, str(Path(sys.executable).parent / program), *arguments],
            cwd=root,
            env=self._environment(root),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=self._inherited,
            start_new_session=True,  # a process group of its own, so that it can be stopped as a whole
        )

    def _environment(self, root: Path) -> dict[str, str]:
        """The deployment's, with the apps of `root` before those of a PYTHONPATH that it has."""
        own = self.deployment.environment()
        return {**own, "PYTHONPATH": os.pathsep.join(filter(None, [str(root / "apps"), own.get("PYTHONPATH", "")]))}

    # -- its address ------------------------------------------------------------------------------------------------

    def url(self, path: str = "/") -> str:
        return f"http://{HOST}:{self.port}{path}"

    def socket_url(self, key: str | None = None, query: str = "protocol=7&client=tests&version=1.0.0") -> str:
        return f"ws://{HOST}:{self.port}/app/{key or self.application.key}?{query}"

    def health(self, path: str = "/health/ready") -> tuple[int, dict[str, Any]]:
        """Status and body of a health page."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def is_ready(self) -> bool:
        if self.command in ECHOES:
            return self._listens()
        try:
            return self.health()[0] == 200
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return False

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def wait_until_ready(self) -> None:
        """Wait until the server is ready with all its workers. Raises AssertionError with the log if it ends."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.command} ended with {self.process.returncode}\n{self.log_text()[-4000:]}")
            # A server of systemd-socket-activate starts with the first connection.
            return self.is_ready() and len(self.workers()) == self.expected_workers and self._all_started()

        waiting.until(ready, START_SECONDS, f"{self.command} is ready")

    def _all_started(self) -> bool:
        """A health page is answered by one worker; each worker logs its own start."""
        log = self.log_text()
        return self.command in ECHOES or all(f"Fanfare: worker {own_pid(pid)}," in log for pid in self.workers())

    # -- its processes ----------------------------------------------------------------------------------------------

    @property
    def main_pid(self) -> int:
        """The process that gets the signals: process 1 of a container."""
        if self.command == CONTAINER:
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                return int(psutil.Process(self.process.pid).children()[0].pid)
        return self.process.pid

    @property
    def expected_workers(self) -> int:
        if self.command in PAIRS:
            return 2
        return 4 if self.command in ("gunicorn", "max-requests", "uvicorn workers", CONTAINER) else 1

    def workers(self) -> list[int]:
        """Process ids of the processes that serve connections."""
        if self.command in ONE_PROCESS:
            return [self.process.pid]
        try:
            children = psutil.Process(self.main_pid).children()
            return sorted(child.pid for child in children if is_alive(child) and "resource_tracker" not in _line(child))
        except psutil.NoSuchProcess:
            return []

    def workers_of(self, client_ports: Collection[int]) -> dict[int, int]:
        """The workers that hold the other ends of connections from these local ports: pids by port. A connection that
        no worker has accepted yet is missing.
        """
        found: dict[int, int] = {}
        for pid in self.workers():
            try:
                connections = psutil.Process(pid).net_connections(kind="tcp")
            except psutil.NoSuchProcess:
                continue
            for connection in connections:
                if connection.laddr.port == self.port and connection.raddr and connection.raddr.port in client_ports:
                    found[connection.raddr.port] = pid
        return found

    def worker_of(self, client_port: int) -> int | None:
        return self.workers_of([client_port]).get(client_port)

    def remaining_processes(self) -> list[psutil.Process]:
        """The live processes of this server's process group."""
        return processes_of_group(self.process.pid)

    def send_signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.kill(self.main_pid, number)

    def interrupt(self) -> None:
        """Ctrl+C: SIGINT to every process of the group, as a terminal sends it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_until_gone(self, within: float) -> None:
        """Wait until the main process and its children have ended."""
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} still runs {within} s after the signal to stop") from None
        waiting.until(lambda: not self.remaining_processes(), 2.0, f"{self.command} has no process left")

    def stop(self) -> None:
        """Stop it with SIGTERM. If it does not stop in time, kill it and raise AssertionError."""
        try:
            if self.process.poll() is None:
                self.send_signal(signal.SIGTERM)
            else:  # a master that replaced it
                for process in self.remaining_processes():
                    process.terminate()
            self.wait_until_gone(STOP_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.remaining_processes():
            process.kill()
        self.process.wait(STOP_SECONDS)
        self._output.close()

    # -- its log ----------------------------------------------------------------------------------------------------

    def log_size(self) -> int:
        return self.log.stat().st_size

    def log_text(self, start: int = 0) -> str:
        """The log from byte `start` on."""
        with self.log.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")


class Fleet:
    """All servers of a test session, with their logs, so that a failed test can show them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[Server] = []
        self._template: deployments.Deployment | None = None
        self._deployments = 0

    def deployment(self, **environment: str) -> deployments.Deployment:
        """A new deployment. `environment`: FANFARE_… settings of all its processes."""
        if self._template is None:
            self._template = deployments.template(self.folder / "template")
        self._deployments += 1
        return deployments.copy(self._template, self.folder / f"deployment-{self._deployments}", environment)

    def start(
        self,
        command: str,
        deployment: deployments.Deployment | None = None,
        root: Path = deployments.REPOSITORY,
        under: Sequence[str] = (),
        port: int | None = None,
        listener: socket.socket | None = None,
    ) -> Server:
        """Start a server and wait until it is ready."""
        log = self.folder / f"{len(self.servers) + 1}-{command}.log"
        server = Server(command, deployment or self.deployment(), log, root, under, port, listener)
        self.servers.append(server)
        try:
            server.wait_until_ready()
        except BaseException:
            server.kill()
            raise
        return server

    def log_sizes(self) -> dict[Server, int]:
        return {server: server.log_size() for server in self.servers}

    def stop(self) -> None:
        """Stop the servers that still run."""
        for server in self.servers:
            if server.process.poll() is None or server.remaining_processes():
                server.stop()


def _activator(deployment: deployments.Deployment) -> list[str]:
    """systemd-socket-activate with all variables of the environment, or nothing if it is not installed."""
    program = shutil.which("systemd-socket-activate")
    if program is None:
        return []
    return [program, *(f"--setenv={name}" for name in (*deployment.environment(), "PYTHONPATH"))]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def processes_of_group(group: int) -> list[psutil.Process]:
    """The live processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and is_alive(process):
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def own_pid(pid: int) -> int:
    """The id of a process in its own PID namespace."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])
    return pid


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""
