"""Django system checks: configurations that are allowed and lead to trouble.

Those of a deployment run with `manage.py check --deploy`.
"""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks

from fanfare import conf
from fanfare.engine import current, errors
from fanfare.engine.local import paths
from fanfare.server import machine_limits


@checks.register(checks.Tags.files)
def data_folder_is_local(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """The log is a SQLite file in WAL mode, which needs shared memory and locks that hold."""
    folder = conf.settings.DATA_DIR
    kind = paths.file_system(folder)
    if conf.settings.ENGINE != "local" or conf.settings.REMOTE_URL or kind not in paths.NETWORK_FILE_SYSTEMS:
        return []
    return [
        checks.Error(
            f"FANFARE_DATA_DIR {str(folder)!r} is on a network file system ({kind}), where the log would be damaged.",
            hint="Set FANFARE_DATA_DIR to a folder on a local disk.",
            id="fanfare.E002",
        )
    ]


@checks.register(checks.Tags.security, deploy=True)
def limits_of_the_machine(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    found = {"fanfare.W001": machine_limits.open_files(), "fanfare.W012": machine_limits.queue()}
    return [checks.Warning(one[0], hint=one[1], id=name) for name, one in found.items() if one is not None]


@checks.register(checks.Tags.security, deploy=True)
def data_folder_is_private(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """A folder that existed keeps its mode, and SQLite makes its files readable by all users."""
    folder = conf.settings.DATA_DIR
    try:
        is_open = folder.stat().st_mode & stat.S_IXOTH
        found = [file.name for file in sorted(folder.glob("*.sqlite3")) if file.stat().st_mode & stat.S_IROTH]
    except OSError:
        return []
    if not is_open or not found:
        return []
    return [
        checks.Warning(
            f"Other users of this machine can read {found[0]!r} in FANFARE_DATA_DIR {str(folder)!r}, which may contain "
            "the applications' secrets.",
            hint=f"chmod o-rwx {folder}",
            id="fanfare.W013",
        )
    ]


@checks.register
def encryption_extra(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    if not conf.settings.ENCRYPTION_MASTER_KEY or importlib.util.find_spec("nacl") is not None:
        return []
    return [
        checks.Warning(
            "FANFARE_ENCRYPTION_MASTER_KEY is set and PyNaCl is not installed: publishing to encrypted channels fails.",
            hint='pip install "django-fanfare[encryption]"',
            id="fanfare.W007",
        )
    ]


@checks.register
def engine_is_usable(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """The URL and its driver. Opens no connection."""
    found: list[checks.CheckMessage] = []
    for name, value in (("ENGINE", conf.settings.ENGINE), ("ENGINE_NEXT", conf.settings.ENGINE_NEXT)):
        if not value or conf.settings.REMOTE_URL:
            continue
        try:
            current.store(value, conf.settings.DATA_DIR).close()
        except errors.EngineMisconfigured as error:
            text = str(error).replace("FANFARE_ENGINE", f"FANFARE_{name}")
            found.append(checks.Error(text, id="fanfare.E005"))
    return found


@checks.register
def transactional_engine(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    if not conf.settings.TRANSACTIONAL_PUBLISH or conf.settings.ENGINE.startswith(("postgres://", "postgresql://")):
        return []
    return [
        checks.Error(
            "FANFARE_TRANSACTIONAL_PUBLISH is on, and FANFARE_ENGINE is not a PostgreSQL database.",
            hint="Name the project's own database in FANFARE_ENGINE, or turn on FANFARE_OUTBOX instead.",
            id="fanfare.E004",
        )
    ]


@checks.register
def misspelt_variables(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    return [
        checks.Warning(
            f"The environment variable {name} is not a setting of Fanfare and has no effect.",
            hint=suggestion or "docs/reference/settings.md lists all settings.",
            id="fanfare.W005",
        )
        for name, suggestion in conf.unknown_variables(os.environ)
    ]


@checks.register
def settings_outside_the_dict(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """`FANFARE_OUTBOX = True` in a settings module: that name is for the environment."""
    return [
        checks.Warning(
            f"{setting.variable} in the settings module has no effect.",
            hint=f'Write FANFARE = {{"{setting.name}": …}}, or set the environment variable {setting.variable}.',
            id="fanfare.W006",
        )
        for setting in conf.settings
        if hasattr(settings, setting.variable)
    ]
