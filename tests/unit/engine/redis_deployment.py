"""A deployment of the Redis engine: each worker reaches the server through a line of its own."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator

from fanfare.engine import interface
from fanfare.engine.redis import engine as redis_engine
from fanfare.engine.redis import leases, scripts
from tests.harness import redisserver
from tests.unit.engine import deployments

LEASE_S = 6
OPTIONS = ("--appendonly", "no", "--unixsocket", "redis.sock")


def shorten() -> None:
    """Shorter leases."""
    scripts.LEASE_S = LEASE_S  # type: ignore[misc]
    leases.LEASE_POLL_S = 0.2  # type: ignore[misc]


class RedisDeployment(deployments.DeploymentOverLines):
    lease_s = LEASE_S + 2.0

    def __init__(self, server: redisserver.Server, prefix: str) -> None:
        super().__init__()
        self._server = server
        self._prefix = prefix

    def engine(self, *, log_seconds: float) -> Callable[[], interface.Engine]:
        path = self._folder / str(len(self._lines))
        self._lines.append(deployments.Line(path, self._server.folder / "redis.sock"))
        return functools.partial(
            redis_engine.RedisEngine,
            f"redis+unix://{path}?prefix={self._prefix}",
            log_seconds=log_seconds,
            append_timeout=deployments.APPEND_TIMEOUT_S,
        )

    def prepare(self) -> Callable[[], None]:
        return shorten

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
