"""Decides when a worker reads the log: after its own commits, after notifications of other processes, and on a timer.

A read costs 45 µs however little it finds, and there is one per commit and worker. What this process committed itself
needs no read: the writer hands the rows over, and the reader takes them if nothing lies between them and its position.
From 2,000 commits/s on, which is a tenth of a core for each worker, the worker rests for a millisecond in between: what
comes is read together, and subscribers get it in one write.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import threading

from fanfare.engine.local.notifications import Listener
from fanfare.engine.local.reader import LogReader
from fanfare.engine.local.transactions import Added

logger = logging.getLogger(__name__)

WINDOW_S = 0.01
WINDOW_READS = 20
REST_S = 0.001
REST_ENTRIES = 2
OVERDUE_S = 1.0  # a rest that has not ended by then failed to end
LISTEN_AGAIN_S = 10.0  # where the socket could not be made: the disk was full, or too many files were open


class ReadScheduler:
    """Made and used on the worker's loop; `logged` and `read_soon` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener, reader: LogReader) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._listener = listener
        self._fd: int | None = None
        self._reader = reader
        self._coming = False  # a read that has not begun yet
        self._added: collections.deque[Added] = collections.deque()  # by this process, since the last read
        self._others = False  # other processes added entries since the last read
        self._window = 0.0  # when the counting of reads began, in the loop's time
        self._reads = 0
        self._resting: asyncio.TimerHandle | None = None
        self._listen_at = 0.0  # when to try again, in the loop's time

    def open(self) -> None:
        """Listen, and read what was written before: it notified no socket."""
        self._listen()
        self._listener.expect()
        self._reader.advance()

    @property
    def is_notified(self) -> bool:
        """Whether other processes can reach this worker; otherwise the worker polls the log."""
        return self._fd is not None

    def close(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._watch(False)
        self._fd = None
        self._listener.close()

    def tick(self) -> None:
        """Read in any case."""
        if self._fd is None and self._loop.time() >= self._listen_at:
            self._listen()
        if self._resting is not None and self._loop.time() - self._resting.when() > OVERDUE_S:
            self._resting.cancel()  # its end failed
            self._resting = None
            self._watch(True)
        if self._resting is None:
            self._coming = False
            self._listener.expect()
        self._reader.advance()

    def logged(self, added: Added, *, soon: bool = True) -> None:
        """This process added entries. `soon`: read them in the next turn of the loop; otherwise `read_own` follows."""
        self._added.append(added)  # first: a look that has begun by now may not see it, and then it is not `_coming`
        if soon:
            self.read_soon()

    def read_own(self) -> None:
        """Read what this process added in this turn of the loop, and answer its subscriptions. Another turn would cost
        a system call and handles."""
        if not self._coming and not self._added:
            return
        if threading.get_ident() == self._thread:
            self._coming = True
            self._look(True)
        else:
            self.read_soon()

    def read_soon(self) -> None:
        if self._coming:
            return  # the coming read reads these, too
        self._coming = True
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._look, True)
            else:
                self._loop.call_soon_threadsafe(self._look, True)
        except RuntimeError:
            logger.debug("The loop was closed before the last commit")

    def _listen(self) -> None:
        self._fd = self._listener.open()
        self._listen_at = self._loop.time() + LISTEN_AGAIN_S
        self._watch(self._resting is None)

    def _notified(self) -> None:
        self._listener.drain()
        self._others = True
        self._look()

    def _look(self, own: bool = False) -> None:
        """Read what is new: at once, or after a rest where reads are frequent. `own`: only if the read that
        `read_soon` asked for has not begun."""
        if self._resting is not None or (own and not self._coming):
            return
        now = self._loop.time()
        if now - self._window >= WINDOW_S:
            self._window, self._reads = now, 0
        self._reads += 1
        if self._reads <= WINDOW_READS:
            self._coming = False  # first: a group that is written during the read is not in it
            self._read(listen=True)
        else:
            self._rest()

    def _read(self, *, listen: bool) -> None:
        """Take what the writer handed over, or else read. `listen`: other processes must notify from now on."""
        taken = bool(self._added) and not self._others
        while self._added and taken:
            taken = self._reader.take(self._added.popleft())
        if taken and not self._reader.is_awaited:
            return
        self._others = False
        self._added.clear()  # it is committed, so the read finds it
        if listen:
            self._listener.expect()
        self._reader.advance()

    def _rest(self) -> None:
        self._coming = True
        self._listener.mute()
        self._watch(False)
        self._resting = self._loop.call_later(REST_S, self._rested)

    def _rested(self) -> None:
        """Go on resting between two reads as long as they find much."""
        self._resting = None
        before = self._reader.position
        self._coming = False
        try:
            self._read(listen=False)
        finally:  # a delivery that fails must not end the reading
            if self._reader.position - before >= REST_ENTRIES:
                self._rest()
            else:
                self._reads = 0
                self._watch(True)
                self._notified()  # only now, so that nothing falls between the read and the listening

    def _watch(self, on: bool) -> None:
        """Let notifications wake the loop, or not: not every writer looks at the byte first."""
        if self._fd is None:
            return
        if on:
            self._loop.add_reader(self._fd, self._notified)
        else:
            self._loop.remove_reader(self._fd)
