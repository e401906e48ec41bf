"""Locks that the kernel releases with the process: which workers are alive, and which one leads.

They are `flock` locks, not POSIX locks, which are dropped when any descriptor of the file is closed. The kernel keeps
them while the process is starved or stopped, so no worker is declared dead by a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from fanfare.engine import errors, interface

LEASE_POLL_S = 1.0  # how often a waiting worker tries to get a lease

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Without waiting. False: another process holds it. Raises OSError."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        _held.add(self)
        return True

    def is_in_place(self) -> bool:
        """Whether the locked file is still the one at the path. If not, another process can lock the new one."""
        try:
            return os.path.samestat(os.fstat(self._fd), self.path.stat())
        except OSError:
            return False

    def next_number(self) -> int:
        """A number that is larger at each call. It is stored in the locked file, which outlives the log.

        In a new file it begins with the time of day. Raises OSError.
        """
        text = os.pread(self._fd, 20, 0)
        number = max((int(text) if text.isdigit() else 0) + 1, time.time_ns() // 1_000_000)
        os.pwrite(self._fd, str(number).encode(), 0)
        return number

    def release(self, *, remove: bool = False) -> None:
        """Idempotent."""
        if self._fd < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1
        _held.discard(self)

    def forget(self) -> None:
        """In a forked child: close the inherited descriptor, or the lock would outlive the parent."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock on this file. Raises OSError."""
    lock = FileLock(path)
    try:
        free = lock.acquire()
    except FileNotFoundError:
        return False
    lock.release()
    return not free


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class Leases:
    """The leader leases of one worker: it is the leader of NAME while it holds the lock on NAME.lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: set[LocalLease] = set()
        self._closed = False

    async def acquire(self, name: str) -> LocalLease:
        """Wait for it. Raises EngineUnavailable when the worker closes, or where the file cannot be locked."""
        lock = FileLock(self._folder / f"{name}.lock")
        while True:
            if self._closed:
                raise errors.EngineUnavailable(f"The engine was closed before the lease {name} was free")
            try:
                self._folder.mkdir(exist_ok=True, mode=0o700)
                if lock.acquire():
                    lease = LocalLease(lock, lock.next_number(), self._held.discard)
                    self._held.add(lease)
                    return lease
            except OSError as error:
                lock.release()
                raise errors.EngineUnavailable(f"The lease {name} cannot be taken: {error}") from error
            await asyncio.sleep(LEASE_POLL_S)

    def check(self) -> None:
        """Release the leases whose file was deleted: another worker can lock the new file."""
        for lease in list(self._held):
            if not lease.is_in_place():
                lease.release()

    def close(self) -> None:
        self._closed = True
        for lease in list(self._held):
            lease.release()


class LocalLease(interface.Lease):
    """It is lost when its worker closes or its file is deleted, and never by time."""

    def __init__(self, lock: FileLock, term: int, released: Callable[[LocalLease], None]) -> None:
        self.lost = self._lost = asyncio.Event()
        self.term = term
        self._lock = lock
        self._released = released

    def is_in_place(self) -> bool:
        return self._lock.is_in_place()

    def release(self) -> None:
        self._lost.set()
        self._released(self)
        self._lock.release()
