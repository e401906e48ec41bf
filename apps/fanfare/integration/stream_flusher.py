"""The thread that writes the streams of a process: all that are due, in one commit of the log."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Protocol

from fanfare import errors
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.integration import target

logger = logging.getLogger("fanfare.integration")


class Flushed(Protocol):
    """The methods of a stream that the flusher calls; see `stream_producer.Producer`."""

    engine: target.Outlet

    def wakes_s(self) -> float: ...

    def take(self, now: float) -> list[interface.StreamWrite]: ...

    def settle(self, writes: list[interface.StreamWrite], receipts: list[interface.StreamReceipt]) -> None: ...

    def postpone(self, error: Exception) -> None: ...

    def fail(self, error: errors.FanfareError) -> None: ...


class Flusher:
    """Writes the streams of this process, in a thread of its own."""

    def __init__(self) -> None:
        self._producers: set[Flushed] = set()
        self._changed = threading.Condition()
        self._wakes_s = float("inf")
        threading.Thread(target=self._run, name="fanfare-streams", daemon=True).start()

    def add(self, producer: Flushed) -> None:
        with self._changed:
            self._producers.add(producer)
            self._changed.notify()

    def remove(self, producer: Flushed) -> None:
        with self._changed:
            self._producers.discard(producer)

    def wake(self, producer: Flushed) -> None:
        """Signal that a write of this producer is due earlier than the flusher would look."""
        with self._changed:
            if producer.wakes_s() < self._wakes_s:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                self._wakes_s = min((producer.wakes_s() for producer in self._producers), default=float("inf"))
                if self._wakes_s > now:
                    self._changed.wait(min(self._wakes_s - now, 3600.0))
                    continue
                due = [producer for producer in self._producers if producer.wakes_s() <= now]
            try:
                self._flush(due, now)
            except Exception as error:
                # All streams of the process share this thread. The streams of this turn fail; the others continue.
                logger.exception("%d streams could not be written", len(due))
                reason = engine_errors.EngineUnavailable(f"The stream could not be written: {error!r}")
                for producer in due:
                    producer.fail(reason)

    def _flush(self, due: list[Flushed], now: float) -> None:
        """Write them, those of one engine in one call."""
        by_engine: dict[int, list[tuple[Flushed, list[interface.StreamWrite]]]] = {}
        for producer in due:
            try:
                by_engine.setdefault(id(producer.engine), []).append((producer, producer.take(now)))
            except Exception as error:  # noqa: BLE001  (the thread serves all streams of the process)
                producer.postpone(error)
        for taken in by_engine.values():
            engine = taken[0][0].engine
            try:
                receipts = engine.write_streams([write for _, writes in taken for write in writes])
            except Exception as error:  # noqa: BLE001
                for producer, _ in taken:
                    producer.postpone(error)
                continue
            start = 0
            for producer, writes in taken:
                end = start + len(writes)
                try:
                    producer.settle(writes, receipts[start:end])
                except Exception as error:  # noqa: BLE001
                    producer.postpone(error)
                start = end


_flushers: dict[int, Flusher] = {}  # by process
_flushers_lock = threading.Lock()


def flusher() -> Flusher:
    """The flusher of this process: a thread does not survive a fork."""
    found = _flushers.get(os.getpid())
    if found is None:
        with _flushers_lock:
            found = _flushers.get(os.getpid())
            if found is None:
                _flushers.clear()
                found = _flushers[os.getpid()] = Flusher()
    return found
