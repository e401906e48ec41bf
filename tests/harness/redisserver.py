"""Private Redis servers: each in a temporary folder, on a Unix socket and a free port."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.harness import parts, waiting

START_SECONDS = 20.0
DEFAULTS = ("--save", "", "--appendonly", "no", "--protected-mode", "no", "--loglevel", "warning")


class Server:
    """`start` starts it, `stop` and `kill` end it; all may be called again. `options`: of the command line."""

    def __init__(self, folder: Path, options: Sequence[str] = (), *, program: str = "redis-server") -> None:
        self.folder = folder
        self.port = free_port()
        self.options = list(options)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"redis://127.0.0.1:{self.port}/0" + (f"?{query}" if query else "")

    def client(self, **options: Any) -> redis.Redis:
        """For the test; it repeats nothing."""
        return redis.Redis(port=self.port, socket_timeout=5, decode_responses=True, **options)

    def start(self) -> None:
        log = self.folder / "log"
        command = [parts.executable("redis-server", "valkey-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        if self._program == "redis-sentinel":
            # The sentinel keeps its state in its configuration file.
            command = [command[0], str(self.folder / "sentinel.conf"), "--sentinel"]
        else:
            command += ["--dir", str(self.folder), *DEFAULTS, *self.options]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        process = self._process
        waiting.until(lambda: self._answers(process, log), START_SECONDS, "Redis answers")

    def _answers(self, process: subprocess.Popen[bytes], log: Path) -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
        except OSError:
            return False
        return bool(answer) and not answer.startswith(b"-LOADING")

    def signal(self, number: signal.Signals) -> None:
        """Freeze (SIGSTOP) or thaw (SIGCONT) it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(*options: str) -> Iterator[Server]:
    """A started server; it is stopped and its folder deleted at the end."""
    with folder() as path:
        server = Server(path, options)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fanfare-redis-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    """Below 55536: the port of a cluster's own connections is 10000 above."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
        if port < 55536:
            return port
