"""Stops this worker if its parent process ends.

gunicorn's own worker classes exit when their master dies. uvicorn's class for gunicorn does not, and neither does a
child of uvicorn's `--reload` or `--workers`: after a SIGKILL of the parent it would serve forever and hold the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fanfare.sockets import drain

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS has no such clock, and no /proc either


def workers(config: Any) -> int:
    """The number of workers that were started together. `config`: uvicorn's Config of this worker."""
    asked_for = getattr(getattr(gunicorn_worker(config), "cfg", None), "workers", None)
    return asked_for if isinstance(asked_for, int) else int(config.workers)


def pid(config: Any) -> int | None:
    """The process id of the parent of a worker with this uvicorn Config; None if uvicorn or gunicorn did not start it
    as a child.
    """
    found = getattr(gunicorn_worker(config), "ppid", None)
    if isinstance(found, int):
        return found
    parent = multiprocessing.parent_process()
    return parent.pid if parent is not None else None


async def watch(parent: int) -> None:
    """Send this process a SIGTERM once `parent` is not its parent any more.

    The kernel gives an orphan a new parent at once, so a reused process id does not hide the end of the parent.
    """
    while os.getppid() == parent:  # noqa: ASYNC110  (the kernel sends no event when a parent exits)
        await asyncio.sleep(POLL_SECONDS)
    logger.error("The parent process %d is gone; this worker stops.", parent)
    os.kill(os.getpid(), signal.SIGTERM)


def listener(config: Any) -> Callable[[], bool]:
    """Whether gunicorn's master holds the listener of its workers, asked later: it closes its copy when it stops, and
    keeps it while it replaces them.
    """
    worker = gunicorn_worker(config)
    if worker is None:
        return lambda: False
    return functools.partial(drain.holds, worker.ppid, drain.inodes(worker.sockets))


def is_eldest(parent: int) -> bool:
    """Whether this process has the least id of the children of `parent`, or is not known to have an elder one.

    gunicorn starts a worker when another one has ended. If all of them wait for the new one, as with `--max-requests`,
    none comes: the eldest waits only a moment.
    """
    try:
        return min(_children(parent), default=0) == os.getpid()
    except OSError:
        return True


def has_surplus(parent: int, workers: int) -> bool:
    """Whether uvicorn's parent process has more than `workers` workers: at SIGHUP it replaces them in turn, and each
    new one serves before an old one stops. When all stop, it has no surplus.
    """
    found = 0
    with contextlib.suppress(OSError):
        for child in _children(parent):
            with contextlib.suppress(OSError):  # it has ended
                # The parent also has a resource tracker, which multiprocessing starts. A zombie has no command line.
                found += b"multiprocessing.spawn" in Path(f"/proc/{child}/cmdline").read_bytes()
    return found > workers


def now_s() -> float:
    """On the clock of `younger_children`."""
    return time.clock_gettime(SINCE_BOOT)


def younger_children(parent: int, since_s: float) -> set[int] | None:
    """The children of a process that started after `since_s` and have no child of their own: a new master of gunicorn
    is no worker. None without /proc.
    """
    try:
        children = _children(parent)
    except OSError:
        return None
    found = set()
    for child in children:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
            # The fields after the name in parentheses; the 22nd of all is the start, in clock ticks.
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[19]) / TICKS_PER_SECOND > since_s and not _children(child):
                found.add(child)
    return found


def _children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


async def keep_alive(config: Any) -> None:
    """Report this worker to gunicorn's master as alive, by the monotonic clock.

    uvicorn's worker class compares wall times. If the clock is set back, it reports nothing until the old time is
    reached again, and the master aborts every worker.
    """
    worker = gunicorn_worker(config)
    if worker is None:
        return
    interval = max(POLL_SECONDS, float(config.timeout_notify) / 3)
    while True:
        worker.notify()
        await asyncio.sleep(interval)


def handle_quit(config: Any) -> None:
    """Let SIGQUIT, which gunicorn's master sends to its workers when it is interrupted, stop this worker as SIGTERM
    does.

    uvicorn's class only sets a flag and continues until the master kills it.
    """
    if gunicorn_worker(config) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, os.kill, os.getpid(), signal.SIGTERM)


def gunicorn_worker(config: Any) -> Any | None:
    """gunicorn's object of this worker, to which uvicorn reports its heartbeat; None without gunicorn."""
    return getattr(config.callback_notify, "__self__", None)
