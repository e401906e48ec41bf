"""A second database, with all migrations, for the tests of a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.db import connections


@contextlib.contextmanager
def added(folder: Path, blocker: Any) -> Iterator[dict[str, Any]]:
    """Adds the alias "second". Answers its settings."""
    default = connections["default"]
    name = str(folder / "second.sqlite3") if default.vendor == "sqlite" else f"{default.settings_dict['NAME']}_second"
    first = connections.settings["default"]
    settings = connections.settings["second"] = {**first, "TEST": {**first["TEST"], "NAME": name}}
    try:
        connection = connections["second"]
        with blocker.unblock():
            connection.creation.create_test_db(verbosity=0, autoclobber=True)
            yield settings
            connection.creation.destroy_test_db("unused", verbosity=0)
    finally:
        del connections["second"]
        del connections.settings["second"]
