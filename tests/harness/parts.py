"""External programs (Node, Chromium, PostgreSQL): a test is skipped without them, or fails if REQUIRE_ALL=1."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

REQUIRE_ALL = os.environ.get("REQUIRE_ALL", "") not in ("", "0")

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable(*names: str) -> str:
    """The path of the first of these programs that is installed; otherwise see `absent`."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    return absent(f"{names[0]} is not installed")


def absent(reason: str) -> NoReturn:
    """Skip the test, or fail it if REQUIRE_ALL is set."""
    if REQUIRE_ALL:
        pytest.fail(f"REQUIRE_ALL is set, and {reason}", pytrace=False)
    pytest.skip(reason)
