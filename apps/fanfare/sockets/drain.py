"""Closes the connections of a stopping worker one after another, so that its clients return spread over some seconds.

uvicorn closes the worker's listener first and then tells each connection to end. Where another process accepts
connections at the same address (a new worker after a reload, another worker after `--max-requests`, another machine of
the deployment), the connections are closed over `seconds`, in random order, and each client finds a server. Until that
process answers, no connection is closed: a reload of gunicorn starts the new workers and stops the old ones at the same
time.

Where no process accepts connections, waiting would only lengthen the outage: all connections are closed at once. So are
up to `FEW` connections, after `SIBLINGS_S` and `FEW_ANSWER_S`: their close code tells whether another process answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)

DRAIN: Final = "fanfare_drain"  # attribute of uvicorn's Config
FEW: Final = 50  # connections that are closed at once: their return is no load
WHOLE: Final = 5_000  # connections of a machine whose closes take all of `seconds`; fewer take less
TICK_S: Final = 0.05
SIBLINGS_S: Final = (
    0.3  # within which the other workers of a stopping server close their listeners; uvicorn polls 0.1 s
)
BOOT_S: Final = 10.0  # for a new worker to answer, where the parent process starts one; it takes 2 to 6 s
RELOAD_S: Final = 60.0  # for all new workers of a reload to serve; the old ones serve meanwhile
ANSWER_S: Final = 1.5  # for an answer, where no parent process is known to start a worker
FEW_ANSWER_S: Final = 0.5  # the same, for few connections
# After a drain on request. An idle worker accepts more of the new connections than busy ones, so clients come back to
# it several times: of 800, the last one was away for 12 s with a pause each time, and is for 1 s without.
MOVE_S: Final = 5.0
PROBE_S: Final = 1.0  # between two checks that the address still accepts connections
REQUEST: Final = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Drainable(Protocol):
    """A connection of the worker."""

    def restart(self, *, returns: bool) -> None:
        """Close it. `returns`: another process accepts connections, so the client may return at once."""


class Siblings(NamedTuple):
    """The other workers of a worker's server. `workers`: how many the server has, with this one; they are assumed to
    have as many connections, and to stop together. `parent_starts`: whether the parent process holds the listener, and
    starts a worker while this one waits. `may_be_replaced`: by other workers or by a new master, so that also few
    clients are worth a probe of the address. `stop_alone`: whether the others serve on while one stops.
    """

    workers: int = 1
    parent_starts: Callable[[], bool] = lambda: False
    may_be_replaced: bool = False
    stop_alone: Callable[[], bool] = lambda: False


class Drain:
    """One per worker. `seconds`: for the closes of `WHOLE` connections; 0 closes all at once. `has_others`: whether
    other machines serve the deployment. `count` adds to a counter.
    """

    def __init__(
        self,
        tasks: Supervisor,
        *,
        seconds: float,
        count: Callable[[str, int], None],
        has_others: Callable[[], bool] = lambda: False,
    ) -> None:
        self.seconds = seconds
        self.config: Any = None  # uvicorn's, whose timeout grows by the time that the closes take
        self.is_draining = False  # /health/ready is 503
        self.refuses_new = False  # new clients are refused, so that they go to another worker
        self.is_relieved = False  # new workers of a reload serve
        self._moves_until_s = 0.0
        self._tasks = tasks
        self._count = count
        self._has_others = has_others
        self._siblings = Siblings()
        self._waiting: list[Drainable] = []
        self._address: Any = None
        self._closing: asyncio.Task[None] | None = None

    def watch(self, config: Any, siblings: Siblings) -> None:
        """Close the connections of the server with this uvicorn Config when it stops."""
        self.config = config
        self._siblings = siblings
        setattr(config, DRAIN, self)

    def announce(self) -> None:
        """From now on /health/ready is 503: a load balancer sends new connections to other workers."""
        self.is_draining = True

    def refuse_new(self) -> None:
        self.announce()
        self.refuses_new = True

    def resume(self) -> None:
        self.is_draining = self.refuses_new = False

    def add(self, connection: Drainable, address: Any) -> None:
        """uvicorn has told this connection to end. `address`: the one that it was accepted at, as of a socket."""
        self.announce()
        self._waiting.append(connection)
        self._address = self._address or address
        if self._closing is None:
            self._closing = self._tasks.spawn("drain of a stopping worker", self._run())

    async def close(self, connections: Iterable[Drainable]) -> None:
        """Close these connections, paced, while the server runs on."""
        self._moves_until_s = float("inf")
        try:
            await self._close_paced(list(connections), lambda: True)
        finally:
            self._moves_until_s = asyncio.get_running_loop().time() + MOVE_S

    @property
    def moves_clients(self) -> bool:
        """Whether a new client may return to another worker at once."""
        return asyncio.get_running_loop().time() < self._moves_until_s

    async def _run(self) -> None:
        # uvicorn tells all connections in one turn of the loop, before this task begins.
        waiting, self._waiting = self._waiting, []
        self._closing = None
        try:
            await self._drain(waiting)
        except Exception:  # logged and counted by the supervisor
            self._close(waiting, returns=False)
            raise

    async def _drain(self, waiting: list[Drainable]) -> None:
        has_others = self._has_others()
        if len(waiting) <= FEW or not self.seconds:
            returns = self.is_relieved or has_others
            if not returns and self._siblings.may_be_replaced and self.seconds:
                returns = await self._is_answered(FEW_ANSWER_S)
            self._close(waiting, returns=returns)
            return
        self._extend_timeout(self.seconds)
        if not has_others and not await self._is_answered(BOOT_S if self._siblings.parent_starts() else ANSWER_S):
            logger.info("No other process serves %s: %d connections are closed.", _text(self._address), len(waiting))
            self._close(waiting, returns=False)
            return
        loop = asyncio.get_running_loop()
        next_probe_s = loop.time() + PROBE_S
        probe: asyncio.Task[bool] | None = None

        def goes_on() -> bool:
            nonlocal next_probe_s, probe
            if has_others:
                return True
            if probe is not None and probe.done() and not probe.result():
                return False
            if loop.time() >= next_probe_s and (probe is None or probe.done()):
                next_probe_s = loop.time() + PROBE_S
                probe = self._tasks.spawn("check of the listener", self._accepts())
            return True

        await self._close_paced(waiting, goes_on)

    async def _close_paced(self, waiting: list[Drainable], goes_on: Callable[[], bool]) -> None:
        """Close in random order, each at a random time within an equal share of the drain. If `goes_on` returns False,
        close the others at once."""
        total = len(waiting)
        workers = 1 if self._siblings.stop_alone() else self._siblings.workers
        whole_s = self.seconds * min(1.0, total * workers / WHOLE) if total > FEW else 0.0
        logger.info("Draining %d connections within %.1f s.", total, whole_s)
        random.shuffle(waiting)
        begun_s = asyncio.get_running_loop().time()
        closed = 0
        while closed < total and whole_s > 0:
            passed = (asyncio.get_running_loop().time() - begun_s) / whole_s
            due = min(total, int(total * passed + random.random()))  # noqa: S311
            self._close(waiting[closed:due], returns=True)
            closed = max(closed, due)
            if not goes_on():
                break
            await asyncio.sleep(TICK_S)
        self._close(waiting[closed:], returns=goes_on())

    def _close(self, connections: Sequence[Drainable], *, returns: bool) -> None:
        for connection in connections:
            try:
                connection.restart(returns=returns)
            except Exception:
                logger.exception("A connection could not be closed")
        self._count("drained", len(connections))

    def _extend_timeout(self, seconds: float) -> None:
        """uvicorn reads its timeout 0.1 s after it has told the connections. Only a probe and a paced drain lengthen
        it: otherwise a hanging request would delay each stop.
        """
        if self.config is not None and self.config.timeout_graceful_shutdown is not None:
            self.config.timeout_graceful_shutdown += seconds

    # -- the process that takes over -----------------------------------------------------------------------------------

    async def _is_answered(self, within_s: float) -> bool:
        """Wait until another process answers at the address. False: it accepts no connections, or no answer came within
        this time.
        """
        if getattr(self.config, "should_reload", False):
            return False  # uvicorn --reload starts the new process when this one has ended
        self._extend_timeout(SIBLINGS_S + within_s)
        await asyncio.sleep(SIBLINGS_S)
        try:
            async with asyncio.timeout(within_s):
                while True:
                    answer = await self._ask()
                    if answer is not None:
                        return answer
                    await asyncio.sleep(TICK_S)
        except TimeoutError:
            return False

    async def _accepts(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await self._connect()
        except OSError:  # TimeoutError too
            return False
        writer.close()
        return True

    async def _ask(self) -> bool | None:
        """True: there is an answer. False: no process listens. None: none came on this connection."""
        try:
            reader, writer = await self._connect()
        except OSError:
            return False
        try:
            writer.write(REQUEST)
            # With TLS, a server closes the connection in answer to a plain request.
            return bool(await reader.read(1)) or getattr(self.config, "is_ssl", False) or None
        except OSError:
            return None
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._address, str | bytes):
            return await asyncio.open_unix_connection(os.fsdecode(self._address))
        return await asyncio.open_connection(*self._address[:2])


def holds(process: int, listeners: frozenset[int]) -> bool:
    """Whether a process has one of these sockets open. `listeners`: their inodes. False without /proc."""
    names = {f"socket:[{inode}]" for inode in listeners}
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) in names:
                    return True
    return False


def inodes(sockets: Iterable[Any]) -> frozenset[int]:
    return frozenset(os.fstat(one.fileno()).st_ino for one in sockets)


def of(config: Any) -> Drain | None:
    """The drain of the server with this uvicorn Config."""
    found = getattr(config, DRAIN, None)
    return found if isinstance(found, Drain) else None


def address_of(transport: Any) -> Any:
    """The address at which a connection was accepted: (host, port, …) or a path."""
    one = transport.get_extra_info("socket")
    if one is not None and one.family == socket.AF_UNIX:
        return one.getsockname()
    return transport.get_extra_info("sockname")


def _text(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
