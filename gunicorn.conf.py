"""Settings of gunicorn for `gunicorn -w 4 -k uvicorn.workers.UvicornWorker myproject.asgi:application`.

gunicorn reads this file from the current folder, and again at each reload. Flags and GUNICORN_CMD_ARGS win over it.
What concerns one worker (the largest frame, compression, its own time-out, proxy headers) Fanfare sets in the worker
when it starts, with or without this file.

The master process outlives releases: `systemctl reload` starts workers of the new code from a master of the old. So
this file imports the standard library and gunicorn only, and workers drop modules of the project that an older version
of it imported.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gunicorn import glogging

# gunicorn's exit codes of a worker that cannot start. They make the master stop, and with it the healthy workers.
CANNOT_START = (3, 4)
PAUSE_S = 1.0  # before such a worker is started again, once the master has had a worker that served

PROJECT_MODULES = frozenset({"apps", "asgiref", "demo", "django", "dotenv", "fanfare", "myproject"})


def setting(name: str) -> str:
    """A setting as it stands in the environment or in .env; empty if it is in neither."""
    text = os.environ.get(name, "")
    if text:
        return text
    env_file = Path(os.environ.get("FANFARE_ENV_FILE") or Path(__file__).resolve().parent / ".env")
    try:
        lines = env_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next(reversed(re.findall(rf"^\s*(?:export\s+)?{name}\s*=(.*)$", lines, re.MULTILINE)), "")


def seconds(name: str, default: int) -> int:
    """A setting of whole seconds; the default if it is wrong, which a worker reports."""
    number = re.match(r"\s*[\"']?(\d{1,3})\b", setting(name))
    return int(number[1]) if number else default


# A stopping worker takes this long at most: its drain, uvicorn's time for connections, and the lifespan's end. Then
# gunicorn kills it.
graceful_timeout = (
    seconds("FANFARE_DRAIN_DELAY", 0)
    + seconds("FANFARE_DRAIN_SECONDS", 10)
    + seconds("FANFARE_GRACEFUL_TIMEOUT", 5)
    + 5
)
# Seconds. Proxies and SDKs keep an idle connection for up to 60, and theirs must be the side that closes it.
keepalive = 75
control_socket_disable = True  # a file in the home folder, which containers may not write


class JsonLines(logging.Formatter):
    """The master's lines as JSON objects with the workers' fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


class Lines(glogging.Logger):  # type: ignore[misc]
    """Gives the master's lines the format of the workers' (LOGGING in myproject/settings.py, FANFARE_LOG_FORMAT)."""

    error_fmt = "%(asctime)s [%(process)d] %(levelname)s %(name)s: %(message)s"
    datefmt = None

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        if setting("FANFARE_LOG_FORMAT").strip(" \"'") == "json":
            for handler in self.error_log.handlers:
                handler.setFormatter(JsonLines())


logger_class = Lines
preload_app = False  # an engine holds threads and locks, which do not survive a fork

# A worker's heartbeat is a file's time; on a busy disk writing it may block, in memory it does not.
if os.access("/dev/shm", os.W_OK):  # noqa: S108
    worker_tmp_dir = "/dev/shm"  # noqa: S108

# Django sets the workers' time zone to UTC; the master's log lines get the same.
os.environ["TZ"] = "UTC"
time.tzset()


def pre_fork(server: Any, worker: Any) -> None:
    """Give the workers one shared byte, for as long as this master runs: whether any of them has served."""
    if not hasattr(server, "fanfare_served"):
        server.fanfare_served = mmap.mmap(-1, 1)


def post_fork(server: Any, worker: Any) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in PROJECT_MODULES]:
        del sys.modules[name]

    heartbeat = worker.notify  # uvicorn's worker calls it once it serves

    def served() -> None:
        server.fanfare_served[0] = 1
        worker.notify = heartbeat
        heartbeat()

    worker.notify = served


def worker_exit(server: Any, worker: Any) -> None:
    """Let a worker that cannot start stop the master at its first start only.

    Wrong settings then end the command with their sentence. Later, an unreadable folder or a mistake in a new release
    must not end the workers that serve: the master starts the failed one again.
    """
    end = sys.exc_info()[1]
    if isinstance(end, SystemExit) and end.code in CANNOT_START and server.fanfare_served[0]:
        server.log.error("The worker could not start (see above); trying again in %g s.", PAUSE_S)
        time.sleep(PAUSE_S)
        os._exit(1)
