"""The process that supervises this worker, and what to do when it is gone.

gunicorn's own workers notice that their master died; uvicorn's class for gunicorn does not, and neither does a child of
uvicorn's own `--reload` or `--workers`. After a SIGKILL of the master they would serve for ever, keep the port, and
nobody could restart them. So each worker looks once a second whether its parent is still the one it was, and leaves by
the front door if not.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from typing import Any

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


def workers(config: Any) -> int:
    """How many workers were asked for, where this one has this uvicorn Config."""
    asked_for = getattr(getattr(_gunicorn_worker(config), "cfg", None), "workers", None)
    return asked_for if isinstance(asked_for, int) else int(config.workers)


def of(config: Any) -> int | None:
    """The supervisor's pid for a worker with this uvicorn Config; None where a person or an init system started the
    worker.
    """
    pid = getattr(_gunicorn_worker(config), "ppid", None)
    if isinstance(pid, int):
        return pid
    parent = multiprocessing.parent_process()
    return parent.pid if parent is not None else None


async def watch(pid: int) -> None:
    """Stop this process as a SIGTERM would, once `pid` is not its parent any more.

    An orphan gets another parent at once, so a pid that the system gave away again cannot deceive.
    """
    while os.getppid() == pid:  # noqa: ASYNC110  (nobody signals the death of a parent)
        await asyncio.sleep(POLL_SECONDS)
    logger.error("The supervising process %d is gone; this worker stops.", pid)
    os.kill(os.getpid(), signal.SIGTERM)


def obey_quit(config: Any) -> None:
    """Let SIGQUIT, which gunicorn's master sends to its workers when it is interrupted, stop this worker as SIGTERM
    does.

    uvicorn's class only notes that it should not be alive any more and goes on serving, until the master kills it.
    """
    if _gunicorn_worker(config) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, os.kill, os.getpid(), signal.SIGTERM)


def _gunicorn_worker(config: Any) -> Any | None:
    """gunicorn's object for this worker, to which uvicorn reports its heartbeat; None where gunicorn is not there."""
    return getattr(config.callback_notify, "__self__", None)
