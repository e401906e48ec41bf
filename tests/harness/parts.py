"""External programs (Node, Chromium, PostgreSQL): a test is skipped without them, or fails if REQUIRE_ALL=1.

What the kernel forbids, as in a container without privileges, cannot be installed: it skips a test in both cases.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import NoReturn

import pytest

REQUIRE_ALL = os.environ.get("REQUIRE_ALL", "") not in ("", "0")

# The kernel's words for what it does not allow, or does not have.
FORBIDDEN = (
    *map(os.strerror, (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EOPNOTSUPP, errno.ENOSYS)),
    "Unknown device type",
)

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


def refused(what: str, output: str) -> NoReturn:
    """Skip the test if the kernel forbids `what`, by the output of the command that failed; otherwise see `absent`."""
    if any(words in output for words in FORBIDDEN):
        pytest.skip(f"the kernel forbids {what}: {output.strip()}")
    return absent(f"{what} failed: {output.strip()}")
