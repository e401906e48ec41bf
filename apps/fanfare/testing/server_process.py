"""The process of `running_server`: the project's settings with the test's databases, served by uvicorn.

    python -m fanfare.testing.server_process FILE

FILE is JSON; see `fanfare.testing.live_server._plan`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn


def main(file: Path) -> None:
    plan = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    uvicorn.run(application(plan), host=plan["host"], port=plan["port"])


def application(plan: dict[str, Any]) -> Any:
    """The ASGI application of the project."""
    os.environ["DJANGO_SETTINGS_MODULE"] = plan["settings"]
    os.environ.update(plan["environment"])
    from django.conf import settings
    from django.utils.module_loading import import_string

    from fanfare import asgi, conf

    settings.SECRET_KEY = plan["secret_key"]
    settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, plan["host"]]
    for alias, name in plan["databases"].items():
        settings.DATABASES[alias]["NAME"] = name
    os.environ.update(plan["environment"])  # once more: a settings module may have set these variables itself
    conf.settings.reload()
    own = getattr(settings, "ASGI_APPLICATION", None)
    return import_string(own) if own else asgi.application()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
