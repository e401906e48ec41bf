"""How much the log may grow, and the space that is kept for a disk that is full.

Trimming needs space before it gives any back: SQLite writes the changed pages into the WAL first. So the log stops
taking publications while there is still room, and a file of `RESERVE_BYTES` beside it is deleted when a write fails
after all because other programs filled the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from fanfare.engine import errors
from fanfare.engine.local.paths import LogPaths

logger = logging.getLogger(__name__)

# The log leaves so much of its disk free, or an eighth of a small disk: Django's database may be there too.
FREE_BYTES = 16 * 1024 * 1024
FREE_SHARE = 8

RESERVE_BYTES = 1024 * 1024  # a trim of 200 entries, a new WAL and its index
EMERGENCY_BYTES = 512 * 1024  # with less free than this the reserve is given back at once

PRESSURE_SHARE = 0.8  # of the limit; above it entries are trimmed before their time

_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class Space(NamedTuple):
    """All in bytes. `used`: the pages that hold entries and other rows, and the WAL. `limit`: of `used`, at most
    `configured`. `free`: of the disk, where the log leaves `left_free`."""

    used: int
    limit: int
    free: int
    left_free: int
    configured: int

    @property
    def is_disk_short(self) -> bool:
        """Unused pages must be given back to the disk."""
        return self.free < self.left_free

    @property
    def is_short(self) -> bool:
        """Entries must be trimmed before their time."""
        return self.used > self.limit * PRESSURE_SHARE

    def full(self) -> errors.LogFull | None:
        """Why publications are refused."""
        if self.used <= self.limit:
            return None
        if self.limit == self.configured:
            return errors.LogFull(
                f"The log is full: it holds {_mb(self.used)} MB, and FANFARE_LOG_MAX_BYTES allows {_mb(self.limit)} MB"
            )
        return errors.LogFull(
            f"The log cannot be written: its disk has {_mb(self.free)} MB left, and {_mb(self.left_free)} MB are kept "
            f"free; the log holds {_mb(self.used)} MB"
        )


def measure(connection: sqlite3.Connection, paths: LogPaths, max_bytes: int) -> Space:
    """Raises sqlite3.Error, OSError."""
    [(pages,)] = connection.execute("PRAGMA page_count").fetchall()
    [(unused,)] = connection.execute("PRAGMA freelist_count").fetchall()
    [(page_bytes,)] = connection.execute("PRAGMA page_size").fetchall()
    log, wal, _ = paths.files()
    log_bytes, wal_bytes = _size(log), _size(wal)
    free, left_free = _free(paths.folder)
    # Pages that are only in the WAL count twice: a checkpoint writes them into the log as well.
    limit = min(max_bytes, log_bytes + wal_bytes + free - left_free)
    return Space((pages - unused) * page_bytes + wal_bytes, limit, free, left_free, max_bytes)


class Reserve:
    """The file that is deleted when the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def release(self) -> bool:
        """Delete it. False: there was none. Never raises."""
        try:
            self._path.unlink()
        except OSError:
            return False
        logger.warning("The disk of the log is full: %s was deleted so that the log can be trimmed", self._path)
        return True

    def release_if_needed(self) -> None:
        with contextlib.suppress(OSError):
            if _free(self._path.parent)[0] < EMERGENCY_BYTES:
                self.release()

    def restore(self) -> None:
        """Create it if there is room. Never raises."""
        try:
            free, left_free = _free(self._path.parent)
            if self._path.exists() or free < left_free + RESERVE_BYTES:
                return
            with self._path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
                else:
                    file.write(b"\0" * RESERVE_BYTES)
        except OSError as error:
            logger.debug("No reserve at %s: %s", self._path, error)
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def is_full(fault: BaseException) -> bool:
    """Whether a write failed because the disk is full."""
    if isinstance(fault, sqlite3.Error):
        code = getattr(fault, "sqlite_errorcode", 0)
        return code & 0xFF == sqlite3.SQLITE_FULL or code in (
            sqlite3.SQLITE_IOERR_SHMSIZE,
            sqlite3.SQLITE_IOERR_WRITE,
            sqlite3.SQLITE_IOERR_TRUNCATE,
        )
    return isinstance(fault, OSError) and fault.errno in _FULL_ERRNOS


def _free(folder: Path) -> tuple[int, int]:
    """The free bytes of a disk, and those that the log leaves free."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize, min(FREE_BYTES, disk.f_blocks * disk.f_frsize // FREE_SHARE)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _mb(count: int) -> str:
    return f"{count / 1_000_000:.1f}"
