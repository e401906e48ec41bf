"""The engine of this process: one object, made at first use, so that all code in a process shares one commit queue."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fanfare.engine import errors, interface, moves

logger = logging.getLogger(__name__)


class Next(NamedTuple):
    """`name`: a value of FANFARE_ENGINE. `stores`: the present one and the next one."""

    name: str
    make: Callable[[], interface.Engine]
    stores: tuple[Callable[[], moves.Store], Callable[[], moves.Store]]


_make: Callable[[], interface.Engine] | None = None
_next: Next | None = None  # the engine that follows when the log was moved
_moved_to = ""  # a value of FANFARE_ENGINE, if this process followed a move
_engine: interface.Engine | None = None
_pid = 0
_replaced: list[interface.Engine] = []  # by the blocks of `replaced` that are entered


def configure(
    name: str,
    folder: Path,
    *,
    next_name: str = "",
    sync: str = "normal",
    log_seconds: float = 20.0,
    append_timeout: float = interface.APPEND_TIMEOUT_S,
    log_max_bytes: int | None = None,
    redis_partitions: int = 16,
) -> None:
    """Choose the engine of this process. Touches nothing.

    `name`: `local`, or the URL of a PostgreSQL database or of Redis. `folder`: the data folder. `next_name`: the engine
    that follows when the log was moved there. `sync`: `normal` (an acknowledged event survives the end of any process)
    or `full` (and the loss of power). `log_seconds`: how long entries without history stay for a worker that is late;
    one that is later has a gap. `append_timeout`: seconds. `log_max_bytes`: of the `local` engine. `redis_partitions`:
    of the log in Redis. Raises EngineMisconfigured for an unknown value.
    """

    def maker(name: str) -> Callable[[], interface.Engine]:
        if name.startswith(("postgres://", "postgresql://")):
            return lambda: _postgres(name, log_seconds=log_seconds, append_timeout=append_timeout)
        if name.startswith("redis") and "://" in name:
            return lambda: _redis(name, redis_partitions, log_seconds=log_seconds, append_timeout=append_timeout)
        if name != "local":
            raise errors.EngineMisconfigured(
                f"FANFARE_ENGINE={public_name(name)!r}: the engines are: local, postgres://…, redis://…"
            )
        if sync not in ("normal", "full"):
            raise errors.EngineMisconfigured(f"FANFARE_SYNC={sync!r}: it is normal or full")
        return lambda: _local(
            folder, sync=sync, log_seconds=log_seconds, append_timeout=append_timeout, log_max_bytes=log_max_bytes
        )

    follows = None
    if next_name and next_name != name:
        stores = tuple(
            functools.partial(store, one, folder, redis_partitions=redis_partitions) for one in (name, next_name)
        )
        follows = Next(next_name, maker(next_name), (stores[0], stores[1]))
    use(maker(name), follows)


def _local(
    folder: Path, *, sync: str, log_seconds: float, append_timeout: float, log_max_bytes: int | None
) -> interface.Engine:
    from fanfare.engine.local import engine

    return engine.LocalEngine(
        folder / "engine",
        full_sync=sync == "full",
        log_seconds=log_seconds,
        append_timeout=append_timeout,
        log_max_bytes=log_max_bytes or engine.LOG_MAX_BYTES,
    )


def import_next() -> None:
    """Import the modules of FANFARE_ENGINE_NEXT. Four workers that import them at once, when the log was moved, would
    need seconds of a busy machine. Opens no connection. Raises EngineMisconfigured."""
    if _next is not None:
        for make in _next.stores:
            make().close()


def follow_move() -> bool:
    """Let `current` answer with the next engine if the log was moved there. In any thread but that of an event loop.

    Raises EngineError where one of the stores cannot be asked.
    """
    if _next is None:
        return False
    with contextlib.closing(_next.stores[0]()) as old, contextlib.closing(_next.stores[1]()) as new:
        left, arrived = old.mark(), new.mark()
        if left is None or left.what != moves.MOVED:
            return False
        is_there = arrived is not None and arrived.what == moves.ARRIVED and arrived.move == left.move
        if not is_there and left.peer != new.public:
            logger.error("The log was moved to %s, but FANFARE_ENGINE_NEXT names %s", left.peer, new.public)
        if not is_there:
            return False
        logger.warning("The log was moved to %s: this process continues with it", new.public)
    use(_next.make, moved_to=_next.name)
    return True


def store(name: str, folder: Path, *, redis_partitions: int = 16) -> moves.Store:
    """The store of an engine, to move it; the arguments are those of `configure`. Raises EngineMisconfigured."""
    found: moves.Store
    if name == "local":
        from fanfare.engine.local import moving as local

        found = local.LocalStore(folder / "engine")
    elif name.startswith(("postgres://", "postgresql://")):
        _postgres(name, log_seconds=1, append_timeout=1)  # refuses where the driver is missing
        from fanfare.engine.postgres import moving as postgres

        found = postgres.PostgresStore(name)
    elif name.startswith("redis") and "://" in name:
        _redis(name, redis_partitions, log_seconds=1, append_timeout=1)
        from fanfare.engine.redis import moving as redis

        found = redis.RedisStore(name, redis_partitions)
    else:
        raise errors.EngineMisconfigured(f"{public_name(name)!r}: the engines are: local, postgres://…, redis://…")
    return found


def name_in_use(configured: str) -> str:
    """The public name of the engine of this process: the configured one, or the one to which it followed a move."""
    return public_name(_moved_to or configured)


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


def use(make: Callable[[], interface.Engine], follows: Next | None = None, *, moved_to: str = "") -> None:
    """Let `current` call `make` at its next use: for tests, and for engines of other packages. `moved_to`: the value of
    FANFARE_ENGINE for this engine, if the log was moved to it."""
    global _make, _engine, _next, _moved_to
    _make, _engine, _next, _moved_to = make, None, follows, moved_to


def current() -> interface.Engine:
    """The engine of this process. A forked child gets one of its own: threads and locks do not survive a fork."""
    global _engine, _pid
    if _engine is None or _pid != os.getpid():
        _engine, _pid = another(), os.getpid()
    if _next is not None and _engine.is_moved and not _engine.is_open and not _has_loop():
        with contextlib.suppress(errors.EngineError):
            if follow_move():
                return current()
    return _engine


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
