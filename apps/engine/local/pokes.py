"""How a worker hears that there is something to read: a datagram without content on a Unix socket.

A poke is a hint. It never blocks, it may be lost, and a full queue means that the other one is awake anyway; the log is
the truth and is looked at on a timer too. Where there are no Unix sockets the timer is all there is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path

logger = logging.getLogger(__name__)

_DRAIN = 64  # datagrams taken per wake-up; more than that only means that we are late, and one read serves them all


class Bell:
    """This worker's socket."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.path = folder / f"{worker}.sock"
        self._socket: socket.socket | None = None

    def open(self) -> int | None:
        """Its descriptor, to wait for; None where the platform or the folder gives no such socket."""
        if not hasattr(socket, "AF_UNIX"):
            return None
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        try:
            bell.bind(os.fspath(self.path))
        except OSError as error:
            bell.close()
            logger.warning("No socket at %s (%s): the log is read on a timer", self.path, error)
            return None
        self._socket = bell
        return bell.fileno()

    def drain(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_DRAIN):
                    self._socket.recv(1)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.path.unlink(missing_ok=True)


class Ringer:
    """Pokes the other workers. Used by one thread at a time: the one that writes."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._listed_ns = -1
        self._paths: list[str] = []

    def ring(self, folder: Path, but: str | None) -> None:
        """One datagram for every socket in `folder`, except the one of worker `but`."""
        if self._socket is None:
            if not hasattr(socket, "AF_UNIX"):
                return
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        try:
            # A folder's time changes with its entries: 1.5 µs here instead of a listing.
            changed_ns = os.stat(folder).st_mtime_ns  # noqa: PTH116 - a Path's costs twice as much
            if changed_ns != self._listed_ns:
                self._paths = [entry.path for entry in os.scandir(folder) if entry.name != f"{but}.sock"]
                self._listed_ns = changed_ns
        except OSError:
            return
        for path in self._paths:
            # EAGAIN: it has unread pokes. ECONNREFUSED, ENOENT: it is gone, and will be reaped.
            with contextlib.suppress(OSError):
                self._socket.sendto(b"", path)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
