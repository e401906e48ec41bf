"""Django system checks: what is allowed and still a mistake.

Those of a deployment run with `manage.py check --deploy`.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks

from fanfare.engine.local import place

# A connection is a file; a server with the usual 1,024 is full at a thousand of them.
OPEN_FILES = 4_096


@checks.register(checks.Tags.database)
def persistent_connections(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """Under ASGI each request has a thread of its own: a persistent connection is never used again and never closed."""
    return [
        checks.Error(
            f"DATABASES[{alias!r}] has CONN_MAX_AGE={configuration['CONN_MAX_AGE']}: under ASGI every request would "
            "leave a connection open until the database has no more.",
            hint='Set CONN_MAX_AGE to 0; for PostgreSQL, OPTIONS["pool"] keeps connections.',
            id="fanfare.E001",
        )
        for alias, configuration in settings.DATABASES.items()
        if configuration.get("CONN_MAX_AGE", 0) != 0
    ]


@checks.register(checks.Tags.files)
def data_folder_is_local(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """The log is a SQLite file in WAL mode, which needs shared memory and locks that hold."""
    kind = place.file_system(settings.FANFARE_DATA_DIR)
    if settings.FANFARE_ENGINE != "local" or kind not in place.NETWORK_FILE_SYSTEMS:
        return []
    return [
        checks.Error(
            f"FANFARE_DATA_DIR {str(settings.FANFARE_DATA_DIR)!r} is on a network file system ({kind}), where the log "
            "would be damaged.",
            hint="Set FANFARE_DATA_DIR to a folder on a local disk.",
            id="fanfare.E002",
        )
    ]


@checks.register(checks.Tags.security, deploy=True)
def open_files(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return []
    return [
        checks.Warning(
            f"A process may open {soft} files, and every connection is one.",
            hint="Raise it: `ulimit -n 65536`, or LimitNOFILE=65536 in a systemd unit.",
            id="fanfare.W001",
        )
    ]


@checks.register(checks.Tags.security, deploy=True)
def encryption(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    if settings.FANFARE_TLS:
        return []
    return [
        checks.Warning(
            "FANFARE_TLS is off: cookies travel without encryption, and browsers are not told to insist on it.",
            hint="Put TLS in front, name the proxy in FANFARE_TRUSTED_PROXIES and set FANFARE_TLS=1.",
            id="fanfare.W002",
        )
    ]


@checks.register(checks.Tags.security, deploy=True)
def hosts(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    loopback = {"localhost", ".localhost", "127.0.0.1", "[::1]"}
    if set(settings.ALLOWED_HOSTS) - loopback:
        return []
    return [
        checks.Warning(
            "FANFARE_ALLOWED_HOSTS names only this machine: pages that are asked for by another name answer 400.",
            hint="Set FANFARE_ALLOWED_HOSTS to the names that people use, with commas between them.",
            id="fanfare.W003",
        )
    ]


@checks.register(checks.Tags.security, deploy=True)
def demo(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    if not settings.FANFARE_DEMO:
        return []
    return [
        checks.Warning(
            "The demo is on: whoever finds /demo/ may write in it.",
            hint="Set FANFARE_DEMO=0 once you have seen that everything works.",
            id="fanfare.W004",
        )
    ]
