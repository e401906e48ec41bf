"""A deployment of the Redis engine: each worker reaches the server through a line of its own."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fanfare.engine import interface
from fanfare.engine.redis import engine as redis_engine
from fanfare.engine.redis import leases, scripts
from tests.harness import redisserver
from tests.unit.engine import deployments
from tests.unit.engine.workers import Worker

LEASE_S = 6
OPTIONS = ("--appendonly", "no", "--unixsocket", "redis.sock")


def shorten() -> None:
    """Shorter leases."""
    scripts.LEASE_S = LEASE_S  # type: ignore[misc]
    leases.LEASE_POLL_S = 0.2  # type: ignore[misc]


class RedisDeployment(deployments.Deployment):
    lease_s = LEASE_S + 2.0

    def __init__(self, server: redisserver.Server, prefix: str) -> None:
        super().__init__()
        self._server = server
        self._prefix = prefix
        self._folder = Path(tempfile.mkdtemp(prefix="fanfare-lines-"))
        self._lines: list[deployments.Line] = []
        self._line_of: dict[int, deployments.Line] = {}

    def engine(self, *, log_seconds: float) -> Callable[[], interface.Engine]:
        path = self._folder / str(len(self._lines))
        self._lines.append(deployments.Line(path, self._server.folder / "redis.sock"))
        return functools.partial(
            redis_engine.RedisEngine,
            f"redis+unix://{path}?prefix={self._prefix}",
            log_seconds=log_seconds,
            append_timeout=deployments.APPEND_TIMEOUT_S,
        )

    async def hire(self, *, log_seconds: float = 20.0) -> Worker:
        worker = await super().hire(log_seconds=log_seconds)
        self._line_of[id(worker)] = self._lines[-1]
        return worker

    def prepare(self) -> Callable[[], None]:
        return shorten

    async def close(self) -> None:
        for line in self._lines:
            line.heal()
            line.accept()
        await super().close()
        for line in self._lines:
            line.close()
        shutil.rmtree(self._folder)

    def cut(self, worker: Worker) -> None:
        self._line_of[id(worker)].cut()

    def heal(self, worker: Worker) -> None:
        self._line_of[id(worker)].heal()

    def stop_store(self) -> None:
        for line in self._lines:
            line.refuse()

    def start_store(self) -> None:
        for line in self._lines:
            line.accept()

    @contextlib.contextmanager
    def hold_store(self) -> Iterator[None]:
        with self._server.client() as client:
            client.execute_command("CLIENT", "PAUSE", "30000", "WRITE")
            yield
            client.execute_command("CLIENT", "UNPAUSE")

    def copy_store(self) -> None:
        """As a copy of the RDB file."""
        with self._server.client() as client:
            client.save()
        shutil.copy(self._server.folder / "dump.rdb", self._server.folder / "backup.rdb")

    def restore_store(self) -> None:
        self._server.kill()
        shutil.copy(self._server.folder / "backup.rdb", self._server.folder / "dump.rdb")
        self._server.start()

    def stored(self) -> int:
        with self._server.client() as client:
            logs = client.scan_iter(match=f"{self._prefix}:*:log", count=1000)
            return sum(client.xlen(name) for name in logs)
