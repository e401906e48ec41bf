"""`runserver`'s application: the project's, with Fanfare added if the project does not add it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path
from typing import Final

from django.conf import settings

from fanfare.server import boot, interfaces, root_path

FACTORY: Final = "fanfare.server.development:application"


def application() -> interfaces.Application:
    """The project's ASGI application, with Fanfare added if the project's `asgi.py` does not add it yet."""
    from fanfare import asgi

    target = project_target()
    with boot.or_end():
        found = boot.load(target, "ASGI_APPLICATION") if target else None
    return found if isinstance(found, root_path.RootPath) else asgi.application(found)


def hint() -> str:
    """What the project's `asgi.py` lacks for servers other than `runserver`; empty if nothing. Reads the file without
    importing it.
    """
    target = project_target()
    module = target.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except ModuleNotFoundError:
        spec = None  # the server reports it
    if spec is None or spec.origin is None or "fanfare" in Path(spec.origin).read_text(encoding="utf-8"):
        return ""
    return (
        f"{target} is an ASGI application without Fanfare: `runserver` adds it, and no other server will. "
        f"Write in {spec.origin}:\n\n    import fanfare.asgi\n    application = fanfare.asgi.application()\n"
    )


def project_target() -> str:
    """The dotted path of the project's ASGI application: ASGI_APPLICATION, or `asgi.application` beside the settings.
    Empty if there is none.
    """
    named = getattr(settings, "ASGI_APPLICATION", None)
    if named:
        return str(named)
    package = os.environ.get("DJANGO_SETTINGS_MODULE", "").rpartition(".")[0]
    while package:  # the settings may be a package: shop.settings.local
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(f"{package}.asgi") is not None:
                return f"{package}.asgi.application"
        package = package.rpartition(".")[0]
    return ""
