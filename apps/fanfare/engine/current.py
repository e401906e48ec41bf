"""The engine of this process: one object, made at first use, so that all code in a process shares one commit queue."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fanfare.engine import errors, interface

_make: Callable[[], interface.Engine] | None = None
_engine: interface.Engine | None = None
_pid = 0
_replaced: list[interface.Engine] = []  # by the blocks of `replaced` that are entered


def configure(
    name: str,
    folder: Path,
    *,
    sync: str = "normal",
    log_seconds: float = 20.0,
    append_timeout: float = interface.APPEND_TIMEOUT_S,
    log_max_bytes: int | None = None,
    redis_partitions: int = 16,
) -> None:
    """Choose the engine of this process. Touches nothing.

    `name`: `local`, or the URL of a PostgreSQL database or of Redis. `folder`: the data folder. `sync`: `normal` (an
    acknowledged event survives the end of any process) or `full` (and the loss of power). `log_seconds`: how long
    entries without history stay for a worker that is late; one that is later has a gap. `append_timeout`: seconds.
    `log_max_bytes`: of the `local` engine. `redis_partitions`: of the log in Redis. Raises EngineMisconfigured for an
    unknown value.
    """
    if name.startswith(("postgres://", "postgresql://")):
        use(lambda: _postgres(name, log_seconds=log_seconds, append_timeout=append_timeout))
        return
    if name.startswith("redis") and "://" in name:
        use(lambda: _redis(name, redis_partitions, log_seconds=log_seconds, append_timeout=append_timeout))
        return
    if name != "local":
        raise errors.EngineMisconfigured(
            f"FANFARE_ENGINE={public_name(name)!r}: the engines are: local, postgres://…, redis://…"
        )
    if sync not in ("normal", "full"):
        raise errors.EngineMisconfigured(f"FANFARE_SYNC={sync!r}: it is normal or full")

    def make() -> interface.Engine:
        from fanfare.engine.local import engine

        return engine.LocalEngine(
            folder / "engine",
            full_sync=sync == "full",
            log_seconds=log_seconds,
            append_timeout=append_timeout,
            log_max_bytes=log_max_bytes or engine.LOG_MAX_BYTES,
        )

    use(make)


def public_name(name: str) -> str:
    """The name of an engine without the user and the password of a URL, for messages and pages."""
    scheme, separator, rest = name.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}" if separator else name


def _postgres(url: str, *, log_seconds: float, append_timeout: float) -> interface.Engine:
    try:
        from fanfare.engine.postgres import engine
    except ImportError as error:
        raise errors.EngineMisconfigured(
            f"FANFARE_ENGINE names PostgreSQL, and {error.name} is not installed: pip install django-fanfare[postgres]"
        ) from error
    return engine.PostgresEngine(url, log_seconds=log_seconds, append_timeout=append_timeout)


def _redis(url: str, partitions: int, *, log_seconds: float, append_timeout: float) -> interface.Engine:
    try:
        from fanfare.engine.redis import engine
    except ImportError as error:
        raise errors.EngineMisconfigured(
            f"FANFARE_ENGINE names Redis, and {error.name} is not installed: pip install django-fanfare[redis]"
        ) from error
    return engine.RedisEngine(url, partitions=partitions, log_seconds=log_seconds, append_timeout=append_timeout)


def use(make: Callable[[], interface.Engine]) -> None:
    """Let `current` call `make` at its next use: for tests, and for engines of other packages."""
    global _make, _engine
    _make, _engine = make, None


def current() -> interface.Engine:
    """The engine of this process. A forked child gets one of its own: threads and locks do not survive a fork."""
    global _engine, _pid
    if _engine is None or _pid != os.getpid():
        _engine, _pid = another(), os.getpid()
    return _engine


def made() -> interface.Engine | None:
    """The engine that `current` made, if it was called."""
    return _engine


def another() -> interface.Engine:
    """One more engine of the same deployment, for a caller that opens and closes its own."""
    if _make is None:
        raise errors.EngineMisconfigured("No engine is configured: fanfare.engine.current.configure was not called")
    return _make()


@contextlib.contextmanager
def replaced(engine: interface.Engine) -> Iterator[None]:
    """Let `current` answer with `engine` inside the block: for tests."""
    global _engine, _pid
    before, _engine, _pid = (_engine, _pid), engine, os.getpid()
    _replaced.append(engine)
    try:
        yield
    finally:
        _engine, _pid = before
        _replaced.pop()


def is_replaced() -> bool:
    """Whether a test has put an engine of its own in place."""
    return bool(_replaced)
