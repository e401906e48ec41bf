"""Opens the WebSockets of a worker at a limited rate, and refuses them while the worker is full.

After an outage all clients return at once. Each handshake, subscription and recovery costs CPU that the events of the
connected clients need, so handshakes above the rate wait their turn, in order. While handshakes wait, the rate is
halved at each turn of the loop that is late, and rises at the others. A client that would wait for longer than
`WAIT_S` is closed with 4100: it returns after a second or more, where a longer wait would exceed its own timeout.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.token_bucket import TokenBucket

logger = logging.getLogger(__name__)

GATE: Final = "fanfare_accept_gate"  # attribute of uvicorn's Config
TICK_S: Final = 0.02
BURST_S: Final = 0.02  # so many seconds' worth are opened without a wait; a busy loop turns slower, and opens fewer
LAG_S: Final = 0.02  # of the loop; above it the connected clients wait for handshakes
LEAST: Final = 0.1  # of the rate: so that the clients return on a machine that is always busy
RISE: Final = 1.1  # of the rate in each tick without lag: from the least to the whole within half a second
LATE_S: Final = 0.1  # between two turns of a busy loop; the least rate holds up to there
WAIT_S: Final = 8.0  # pusher-js gives a connection attempt 10 s
MEMORY_S: Final = 1.0  # between two looks at the memory
NEARLY: Final = 0.98  # of the connections of a worker; the rest is for HTTP, which publishers need


class Waiting(Protocol):
    """A WebSocket before its handshake."""

    @property
    def is_connecting(self) -> bool: ...

    def enter(self) -> None:
        """Its turn has come."""


class AcceptGate:
    """One per worker. `per_second`: 0 for no limit. `connections`: of the worker, HTTP included; 0 for no limit.
    `memory_bytes`: of the process; 0 for no limit.
    """

    def __init__(
        self,
        *,
        per_second: float,
        connections: int,
        memory_bytes: int,
        count: Callable[[str], None],
        memory: Callable[[], int] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.per_second = per_second
        self._connections = int(connections * NEARLY)
        self._memory_bytes = memory_bytes
        self._count = count
        self._memory = memory or resident_bytes
        self._clock = clock or asyncio.get_running_loop().time
        self._waiting: collections.deque[Any] = collections.deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0  # of the timer
        self._share = 1.0  # of the rate
        self._bucket = TokenBucket(self._burst, self._clock())
        self._looked_s = float("-inf")
        self._used_bytes = 0
        self._log = LogThrottle(logger)

    @property
    def _burst(self) -> float:
        return max(1.0, self._rate * BURST_S, self.per_second * LEAST * LATE_S)

    @property
    def _rate(self) -> float:
        return self.per_second * self._share

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def refusal(self, connections: int) -> str:
        """Why the worker takes no further WebSocket now; empty if it does. `connections`: those it has."""
        if self._connections and connections > self._connections:
            return self._refused("connections", f"The worker has {connections} connections")
        if self._memory_bytes and self._used() > self._memory_bytes:
            return self._refused("memory", f"The worker uses {self._used_bytes >> 20} MiB of memory")
        if self._waiting and len(self._waiting) >= max(1.0, self._rate) * WAIT_S:
            return self._refused("rate", f"{len(self._waiting)} handshakes wait")
        return ""

    def takes(self, connection: Waiting) -> bool:
        """Whether the handshake continues at once. Otherwise `connection.enter()` is called later, in arrival order."""
        if not self.per_second or (not self._waiting and self._bucket.take(self._rate, self._burst, self._clock())):
            return True
        self._waiting.append(connection)
        if self._timer is None:
            self._set_timer()
        return False

    def _set_timer(self) -> None:
        self._due_s = self._clock() + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._serve)

    def _serve(self) -> None:
        self._timer = None
        is_late = self._clock() - self._due_s > LAG_S
        self._share = max(LEAST, self._share / 2) if is_late else min(1.0, self._share * RISE)
        while self._waiting:
            if not self._waiting[0].is_connecting:
                self._waiting.popleft()  # the client has given up
            elif self._bucket.take(self._rate, self._burst, self._clock()):
                try:
                    self._waiting.popleft().enter()
                except Exception as error:  # noqa: BLE001  (of one handshake: the others wait for this loop)
                    self._log.error("A WebSocket handshake failed", error=error)
            else:
                self._set_timer()
                return
        self._share = 1.0

    def _used(self) -> int:
        now = self._clock()
        if now - self._looked_s >= MEMORY_S:
            self._looked_s, self._used_bytes = now, self._memory()
        return self._used_bytes

    def _refused(self, reason: str, message: str) -> str:
        self._count(f"sockets.refused.{reason}")
        self._log.warning("A WebSocket was closed with 4100: %s", message, key=reason)
        return message


def resident_bytes() -> int:
    """The memory of this process; 0 without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def of(config: Any) -> AcceptGate | None:
    """The gate of the server with this uvicorn Config."""
    found = getattr(config, GATE, None)
    return found if isinstance(found, AcceptGate) else None
