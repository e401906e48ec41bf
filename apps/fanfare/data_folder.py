"""The data folder: everything that one deployment writes on this machine, and with it the deployment's identity.

Each data folder is a separate deployment, with a database, a log, sockets and a secret key of its own.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from fanfare import environment

SECRET_KEY_BYTES = 64  # of randomness: 86 characters
SECRET_KEY_MINIMUM = 50  # characters, as Django's own check demands


def prepare(folder: Path) -> Path:
    """Create the folder if it is missing, readable by its owner only, and test that files can be created in it.

    Raises ImproperlyConfigured.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"FANFARE_DATA_DIR is {str(folder)!r}, which cannot be created: {error.strerror}."
        ) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ImproperlyConfigured(f"FANFARE_DATA_DIR is {str(folder)!r}, which this user may not write to.")
    return folder


def secret_key(folder: Path) -> str:
    """The secret key of this deployment. The first process creates it; processes that start together get the same.

    Raises ImproperlyConfigured, also where an engine is shared between machines, whose folders would have other keys.
    """
    if "://" in environment.text("FANFARE_ENGINE"):
        raise ImproperlyConfigured(
            "FANFARE_ENGINE shares a log between machines, and each data folder has another secret key: set "
            "FANFARE_SECRET_KEY to the same value on every machine."
        )
    path = folder / "secret_key"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ImproperlyConfigured(f"The secret key {str(path)!r} cannot be opened: {error.strerror}.") from error
    with os.fdopen(descriptor, "r+", encoding="ascii", errors="replace") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a second process waits here and reads what the first one wrote
        key = file.read().strip()
        if len(key) < SECRET_KEY_MINIMUM:  # a new file, or its writer was killed
            key = secrets.token_urlsafe(SECRET_KEY_BYTES)
            file.seek(0)
            file.truncate()
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        return key
