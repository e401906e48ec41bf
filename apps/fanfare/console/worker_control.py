"""Drains and restarts one worker of the deployment, from any other worker, and announces new workers to old ones.

Both are commands in the log, so they reach workers of other machines too.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import orjson

from fanfare.engine import current, interface
from fanfare.hub import connections
from fanfare.hub import hub as hubs
from fanfare.runtime import close_codes
from fanfare.runtime.supervisor import Supervisor
from fanfare.sockets import drain

logger = logging.getLogger(__name__)

COMMAND, STARTED, KILL = "worker.control", "worker.started", "worker.kill"
LISTEN_S = 0.3  # for a new worker to accept connections after its start
POLL_S = 0.5  # between two looks whether a new worker has ended
KNOWN = 1_000  # process ids that are kept; a reload starts one per worker


class Action(enum.StrEnum):
    DRAIN = "drain"  # not ready, no new clients, and the connected ones are closed, paced; HTTP is served on
    RESUME = "resume"  # the end of DRAIN
    RESTART = "restart"  # stop as after SIGTERM; gunicorn, uvicorn --workers or systemd start another worker


@dataclass(frozen=True, slots=True)
class _Client:
    """A connection of the hub, for the drain."""

    connection: connections.Connection

    def restart(self, *, returns: bool) -> None:
        self.connection.close(close_codes.RECONNECT, "The worker is draining")


class WorkerControl:
    """`worker`: the id of this worker, as in its report. `kill`: what a request of `kill_worker_of` does; None: it is
    ignored. `another_started` is called when another worker of the deployment has started. All methods are called on
    the hub's loop.
    """

    def __init__(
        self,
        hub: hubs.Hub,
        worker: str,
        drains: drain.Drain,
        tasks: Supervisor,
        *,
        stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
        kill: Callable[[], None] | None = None,
        another_started: Callable[[], None] = lambda: None,
    ) -> None:
        self._hub = hub
        self._worker = worker
        self._drain = drains
        self._tasks = tasks
        self._stop = stop
        self._another_started = another_started
        self._started: deque[int] = deque(maxlen=KNOWN)  # process ids of this machine's workers, the newest last
        self._newcomer = asyncio.Event()
        hub.on_control(COMMAND, self._on_command)
        hub.on_control(STARTED, self._on_started)
        if kill is not None:
            self._kill = kill
            hub.on_control(KILL, self._on_kill)

    def introduce(self) -> None:
        """Announce this worker, which accepts connections from now on."""
        body = orjson.dumps({"worker": self._worker, "node": socket.gethostname(), "pid": os.getpid()})
        started = interface.Publication("", STARTED, body, interface.Kind.CONTROL)
        self._hub.engine.post(started, lambda _reason: None)

    async def wait_for(self, booting: Callable[[], Collection[int]], within_s: float) -> bool:
        """Wait until these processes of this machine accept connections as workers, or have ended; at most `within_s`.
        Returns whether one of them serves.

        `booting`: the process ids, asked again each time. A reload stops all old workers at once. If they closed their
        connections for the first new worker, it would get all clients of the machine.
        """
        pending: set[int] = set()
        try:
            async with asyncio.timeout(within_s):
                while pending := set(booting()) - set(self._started):
                    self._newcomer.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._newcomer.wait()
        except TimeoutError:
            logger.info("The workers %s do not serve after %g s.", ", ".join(map(str, sorted(pending))), within_s)
        else:
            await asyncio.sleep(LISTEN_S)
        return not set(booting()).isdisjoint(self._started)

    async def request(self, worker: str, action: Action) -> None:
        """Ask a worker, by the id in its report. Returns when the command is in the log. Raises EngineUnavailable."""
        body = orjson.dumps({"worker": worker, "action": action.value})
        await self._hub.engine.append([interface.Publication("", COMMAND, body, interface.Kind.CONTROL)])

    def _on_started(self, _app: str, body: Any) -> None:
        started = orjson.loads(body)
        if started["worker"] == self._worker:
            return
        self._another_started()
        if started["node"] == socket.gethostname():
            self._started.append(started.get("pid", 0))  # an earlier release sends none
            self._newcomer.set()

    def _on_kill(self, _app: str, body: Any) -> None:
        if orjson.loads(body)["socket"] in self._hub.by_socket:
            logger.warning("The demo asked this worker to end like a process that crashes.")
            self._kill()

    def _on_command(self, _app: str, body: Any) -> None:
        command = orjson.loads(body)
        if command["worker"] != self._worker:
            return
        action = Action(command["action"])
        logger.warning("An operator asked this worker to %s.", action.value)
        if action is Action.DRAIN:
            self._drain.refuse_new()
            clients = [_Client(connection) for connection in self._hub.by_socket.values()]
            self._tasks.spawn("drain on request", self._drain.close(clients))
        elif action is Action.RESUME:
            self._drain.resume()
        else:
            self._stop()


def kill_worker_of(socket_id: str) -> None:
    """Send SIGKILL to the worker that has this connection, for demonstrations. Workers obey with DEBUG only.

    Called in any thread. Returns when the command is in the log. Raises EngineUnavailable.
    """
    body = orjson.dumps({"socket": socket_id})
    current.current().append_blocking([interface.Publication("", KILL, body, interface.Kind.CONTROL)])


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
