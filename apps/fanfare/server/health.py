"""Health pages of this worker, in JSON.

    GET /health/live    200 while the event loop runs; a supervisor restarts a process that does not answer
    GET /health/ready   200 or 503; a load balancer sends new connections only to a worker that is ready

A worker is ready when it was started, does not drain, the applications are loaded, the database was migrated, and an
entry that the worker wrote to the log came back to it within the last seconds (probe.py). A later failure of the
database is reported but does not make the worker unready, because connections and publishers need only the memory.

The reasons name files and hosts. They are shown to this machine and to the peers of FANFARE_TRUSTED_PROXIES; other
clients see which check failed, and the worker's log has the reason.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from fanfare.engine import interface
from fanfare.server import errors, proxies, responses, root_path

# The texts of failed checks for other clients.
PUBLIC: Final = {
    "worker": "The worker has not started.",
    "engine": "Events do not pass through the log.",
    "database": "The database does not answer or is not migrated.",
    "applications": "The applications cannot be read from the database.",
    "mounts": "A mounted application has not started.",
    "drain": "The worker is draining.",
}


class Loader(Protocol):
    loaded: bool  # the applications are in memory
    problem: str | None  # why they may be out of date


class Prober(Protocol):
    async def problem(self) -> str: ...


class Schema(Protocol):
    was_complete: bool

    async def problem(self) -> str: ...


class Mounts(Protocol):
    @property
    def problem(self) -> str: ...


class Drain(Protocol):
    is_draining: bool


class Server(Protocol):
    engine: interface.Engine

    @property
    def loader(self) -> Loader: ...
    @property
    def probe(self) -> Prober: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def mounts(self) -> Mounts: ...
    @property
    def drain(self) -> Drain: ...

    async def started(self) -> None:
        """Raises errors.NotStarted."""


class Health:
    """Answers /health/live and /health/ready. `trusted`: the peers that may read the reasons, beside this machine."""

    def __init__(self, server: Server, trusted: proxies.Trusted | None = None) -> None:
        self.server = server
        self.trusted = trusted or proxies.Trusted([])
        self.schema = server.schema

    async def __call__(self, scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if root_path.below(scope).startswith("/health/live"):
            await responses.json(send, 200, {"status": "alive"})
            return
        ready, checks = await self._checks()
        if not proxies.is_operator(scope, self.trusted):
            checks = {name: _check("" if check["ok"] else PUBLIC[name]) for name, check in checks.items()}
        body = {"status": "ready" if ready else "not ready", "checks": checks}
        await responses.json(send, 200 if ready else 503, body)

    async def _checks(self) -> tuple[bool, dict[str, Any]]:
        try:
            await self.server.started()
        except errors.NotStarted as error:
            return False, {"worker": _check(str(error))}
        # The probe writes while the engine reports a fault, too: where nothing else is published, only its write shows
        # that the fault is over.
        problem = await self.server.probe.problem()
        engine = self.server.engine.health()
        if not engine.ok:
            problem = engine.reason
        database = await self.schema.problem()
        loader = self.server.loader
        ready = not problem and loader.loaded and self.schema.was_complete
        checks = {
            "worker": _check(""),
            "engine": _check(problem),
            "database": _check(database),
            "applications": _check(loader.problem or ""),
        }
        if self.server.mounts.problem:
            checks["mounts"] = _check(self.server.mounts.problem)
        if self.server.drain.is_draining:
            ready = False
            checks["drain"] = _check(PUBLIC["drain"])
        return ready, checks


def _check(problem: str) -> dict[str, Any]:
    return {"ok": not problem, "reason": problem or "ok"}
