"""A deployment of the local engine: its store is a file, so no worker can be cut off from it."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fanfare.engine import interface
from fanfare.engine.local import engine, locks, schema, worker
from tests.unit.engine import deployments


def shorten() -> None:
    """Trim more often, and fail sooner where another program holds SQLite's lock."""
    worker.TRIM_S = 0.2
    schema.BUSY_TIMEOUT_MS = 50


class LocalDeployment(deployments.Deployment):
    lease_s = 1.0  # the kernel tells
    can_cut = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "engine"
        self._log = self._folder / "log.sqlite3"
        self._backup = folder / "backup.sqlite3"
        self._thief: sqlite3.Connection | None = None

    def engine(self, *, log_seconds: float) -> Callable[[], interface.Engine]:
        return functools.partial(
            engine.LocalEngine,
            self._folder,
            log_seconds=log_seconds,
            append_timeout=deployments.APPEND_TIMEOUT_S,
        )

    def prepare(self) -> Callable[[], None]:
        return shorten

    def stop_store(self) -> None:
        """Another program holds SQLite's lock, outside of the engine's queue."""
        self._thief = sqlite3.connect(self._log, isolation_level=None)
        self._thief.execute("BEGIN IMMEDIATE")

    def start_store(self) -> None:
        assert self._thief is not None
        self._thief.execute("ROLLBACK")
        self._thief.close()

    @contextlib.contextmanager
    def hold_store(self) -> Iterator[None]:
        lock = locks.FileLock(self._folder / "log.lock")
        while not lock.acquire():
            time.sleep(0.001)
        try:
            yield
        finally:
            lock.release()

    def copy_store(self) -> None:
        with (
            contextlib.closing(sqlite3.connect(self._log)) as log,
            contextlib.closing(sqlite3.connect(self._backup)) as backup,
        ):
            log.backup(backup)

    def restore_store(self) -> None:
        for suffix in ("-wal", "-shm", ""):
            Path(f"{self._log}{suffix}").unlink(missing_ok=True)
        self._backup.replace(self._log)

    def stored(self) -> int:
        with contextlib.closing(sqlite3.connect(self._log)) as log:
            return int(log.execute("SELECT COUNT(*) FROM log").fetchone()[0])
