"""Which workers live. Told by the kernel: a worker lives while it holds the lock on its own file.

The lock is a `flock`, not a POSIX lock, which falls when any descriptor of the file is closed. The kernel drops it with
the process, however that ends, and keeps it while the process is starved or stopped: nobody is declared dead by a
clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from pathlib import Path

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """An exclusive lock on a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Without waiting. False: somebody else holds it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        _held.add(self)
        return True

    def is_in_place(self) -> bool:
        """Whether the file that is locked is still the one at the path: if not, others can take us for dead."""
        try:
            return os.path.samestat(os.fstat(self._fd), self.path.stat())
        except OSError:
            return False

    def count(self) -> int:
        """A number that is larger at each call. It is stored in the locked file, which outlives the log.

        In a new file it begins with the time of day. Raises OSError.
        """
        text = os.pread(self._fd, 20, 0)
        number = max((int(text) if text.isdigit() else 0) + 1, time.time_ns() // 1_000_000)
        os.pwrite(self._fd, str(number).encode(), 0)
        return number

    def release(self, *, remove: bool) -> None:
        if self._fd < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1
        _held.discard(self)

    def forget(self) -> None:
        """In a forked child: give back the inherited descriptor, or the lock would live as long as the child."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1


def is_held(path: Path) -> bool:
    """Whether somebody lives who holds the lock on this file."""
    lock = Lock(path)
    try:
        free = lock.acquire()
    except FileNotFoundError:
        return False
    if free:
        lock.release(remove=False)
    return not free


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
