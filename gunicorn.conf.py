"""What makes `gunicorn -w 4 -k uvicorn.workers.UvicornWorker myproject.asgi:application` right without a flag.

gunicorn reads this file from the current folder. Flags and GUNICORN_CMD_ARGS win over it.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

import dotenv
from django.core.exceptions import ImproperlyConfigured

from fanfare import environment

with warnings.catch_warnings():
    # The module says that it will be removed one day; the pin decides when.
    warnings.simplefilter("ignore", DeprecationWarning)
    from uvicorn.workers import UvicornWorker

try:
    _env_file = os.environ.get("FANFARE_ENV_FILE") or Path(__file__).resolve().parent / ".env"
    dotenv.load_dotenv(_env_file, override=False, interpolate=False)
    _graceful = environment.integer("FANFARE_GRACEFUL_TIMEOUT", 5, minimum=1, maximum=300)
    _max_frame = environment.integer("FANFARE_MAX_FRAME_BYTES", 131_072, minimum=1_024, maximum=16_777_216)
except ImproperlyConfigured as error:
    sys.exit(str(error))

# gunicorn hands few of its settings on to uvicorn; these are uvicorn's own.
UvicornWorker.CONFIG_KWARGS = {
    **UvicornWorker.CONFIG_KWARGS,
    "ws_max_size": _max_frame,
    "ws_per_message_deflate": False,  # 40 kB for each idle connection, and CPU for each event
    "timeout_graceful_shutdown": _graceful,  # uvicorn's default waits for ever
    "proxy_headers": False,  # FANFARE_TRUSTED_PROXIES decides (apps/fanfare/server/proxies.py)
}

graceful_timeout = _graceful + 5  # uvicorn's time and then that of the lifespan's end; after it gunicorn kills
# Seconds. Proxies and SDKs keep an idle connection for up to 60, and theirs must be the side that ends it.
keepalive = 75
control_socket_disable = True  # a file in the home folder that containers may not write
preload_app = False  # an engine holds threads and locks, which do not survive a fork

# A worker proves that it lives by touching a file; on a busy disk that may block, in memory it does not.
if os.access("/dev/shm", os.W_OK):  # noqa: S108
    worker_tmp_dir = "/dev/shm"  # noqa: S108

# Django sets the workers' zone to UTC. The master's log lines should carry the same.
os.environ["TZ"] = "UTC"
time.tzset()
