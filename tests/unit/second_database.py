"""A second database, with all migrations, for the tests of a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import connections


@contextlib.contextmanager
def added(folder: Path, blocker: Any) -> Iterator[dict[str, Any]]:
    """Adds the alias "second". Answers its settings."""
    settings = connections.settings["second"] = {
        **connections.settings["default"],
        "NAME": str(folder / "second.sqlite3"),
    }
    with blocker.unblock():
        call_command("migrate", database="second", verbosity=0)
        yield settings
        connections["second"].close()
    del connections["second"]
    del connections.settings["second"]
