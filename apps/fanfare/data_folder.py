"""The data folder: everything that one installation writes, and with it the identity of that installation.

Another folder is another world, with a database, a log, sockets and a secret key of its own.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

SECRET_KEY_BYTES = 64  # of randomness: 86 characters
SECRET_KEY_MINIMUM = 50  # characters: what Django asks for


def prepare(folder: Path) -> Path:
    """Create the folder if it is missing, readable by its owner only, and make sure that files can be made in it.

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
    """The key of this installation: made once, kept in the folder, and the same for all workers that start together."""
    path = folder / "secret_key"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ImproperlyConfigured(f"The secret key {str(path)!r} cannot be opened: {error.strerror}.") from error
    with os.fdopen(descriptor, "r+", encoding="ascii", errors="replace") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # who comes second waits here, and reads what the first one wrote
        key = file.read().strip()
        if len(key) < SECRET_KEY_MINIMUM:  # new, or a process died while it wrote
            key = secrets.token_urlsafe(SECRET_KEY_BYTES)
            file.seek(0)
            file.truncate()
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        return key
