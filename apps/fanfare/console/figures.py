"""What one worker reports of itself: its counters and its gauges."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable
from typing import Final

from fanfare.console import metrics, reports
from fanfare.hub import hub as hubs
from fanfare.runtime import supervisor

PAGE_BYTES: Final = resource.getpagesize()
_GAUGES: Final = frozenset(level.source for level in metrics.GAUGES)
# Figures of the engine that are neither: identifiers, and numbers that other gauges hold.
_LEFT_OUT: Final = frozenset({"engine.position", "engine.workers"})


class Figures:
    """Reads the figures of one worker. The two methods are called for each report."""

    def __init__(
        self, hub: hubs.Hub, jobs: Callable[[], Iterable[supervisor.Status]] = tuple[supervisor.Status, ...]
    ) -> None:
        """`jobs`: the background jobs of the worker."""
        self._hub = hub
        self._jobs = jobs

    def counters(self) -> reports.Values:
        """Numbers that only grow, by their names in `Hub.statistics`."""
        found = self._hub.statistics()
        return {name: value for name, value in found.items() if name not in _GAUGES and name not in _LEFT_OUT and value}

    def gauges(self) -> reports.Values:
        """Numbers as they are now, by the names that `metrics.GAUGES` reads."""
        found = {name: value for name, value in self._hub.statistics().items() if name in _GAUGES}
        connections = self._hub.by_socket.values()
        found["subscriptions.now"] = sum(len(connection.subscriptions) for connection in connections)
        found["engine.ok"] = int(self._hub.engine.health().ok)
        found["memory.bytes"] = resident_bytes()
        for status in self._jobs():
            key = f"{metrics.JOBS}{status.name}.{status.state.value}"
            found[key] = found.get(key, 0) + 1
        return found


def resident_bytes() -> int:
    """Memory of this process that is in RAM; where the system has no /proc, the most it ever was."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  (a Path costs four times as much)
            return int(file.read().split()[1]) * PAGE_BYTES
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
