"""When a worker reads the log: after a commit of its own, when another process pokes it, and on a timer below both.

A read costs 45 µs however little it finds, and there is one per commit and worker. From 2,000 commits/s on, which is a
tenth of a core for each worker, it rests for a millisecond in between: what comes is read together, and subscribers get
it in one write.
"""

from __future__ import annotations

import asyncio
import logging
import threading

from fanfare.engine.local import pokes, tail

logger = logging.getLogger(__name__)

WINDOW_S = 0.01
WINDOW_LOOKS = 20
REST_S = 0.001
REST_ENTRIES = 2


class Pace:
    """Made and used on the worker's loop; only `logged` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bell: pokes.Bell, reader: tail.Tail) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._bell = bell
        self._bell_fd: int | None = None
        self._tail = reader
        self._coming = False  # a read that has not begun yet
        self._window = 0.0  # when the counting of looks began, in the loop's time
        self._looks = 0
        self._resting: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Listen, and read what came before that: it poked nobody."""
        self._bell_fd = self._bell.open()
        self._hear(True)
        self._bell.listen()
        self._tail.advance()

    @property
    def is_poked(self) -> bool:
        """Whether other processes can reach this worker; else it has to look often by itself."""
        return self._bell_fd is not None

    def close(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._hear(False)
        self._bell_fd = None
        self._bell.close()

    def tick(self) -> None:
        """Read in any case."""
        if self._resting is None:
            self._bell.listen()
        self._tail.advance()

    def logged(self) -> None:
        """This process added entries."""
        if self._coming:
            return  # what comes reads these, too
        self._coming = True
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._look_for_own)
            else:
                self._loop.call_soon_threadsafe(self._look_for_own)
        except RuntimeError:
            logger.debug("The loop was closed before the last commit")

    def _look_for_own(self) -> None:
        if self._coming:
            self._look()

    def _poked(self) -> None:
        self._bell.drain()
        self._look()

    def _look(self) -> None:
        """Read what is new: at once, or after a rest where that was asked for very often."""
        if self._resting is not None:
            return
        now = self._loop.time()
        if now - self._window >= WINDOW_S:
            self._window, self._looks = now, 0
        self._looks += 1
        if self._looks <= WINDOW_LOOKS:
            self._coming = False  # first: a group that is written during the read is not in it
            self._bell.listen()
            self._tail.advance()
        else:
            self._rest()

    def _rest(self) -> None:
        self._coming = True
        self._bell.mute()
        self._hear(False)
        self._resting = self._loop.call_later(REST_S, self._rested)

    def _rested(self) -> None:
        """Go on resting between two reads as long as they find a lot."""
        self._resting = None
        before = self._tail.position
        self._coming = False
        try:
            self._tail.advance()
        finally:  # a delivery that fails must not leave this worker deaf
            if self._tail.position - before >= REST_ENTRIES:
                self._rest()
            else:
                self._looks = 0
                self._hear(True)
                self._poked()  # only now, so that nothing falls between the read and the listening

    def _hear(self, hear: bool) -> None:
        """Let pokes wake us, or not: not all who poke look at our byte first."""
        if self._bell_fd is None:
            return
        if hear:
            self._loop.add_reader(self._bell_fd, self._poked)
        else:
            self._loop.remove_reader(self._bell_fd)
