"""Whether this worker lives and whether it can work, with the reasons, in JSON.

    GET /health/live    200 as long as the event loop turns; a supervisor restarts the process when it does not answer
    GET /health/ready   200 or 503; a load balancer sends new connections only to a worker that is ready

Ready means: the worker was started, the engine acknowledges publications, the database was migrated and the
applications are loaded. A database that goes away later is reported and changes nothing: everything that connections
and publishers need is in memory.
"""

from __future__ import annotations

from typing import Any, Protocol

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from fanfare.engine import interface
from fanfare.server import errors, responses, schema


class Loader(Protocol):
    loaded: bool  # the applications are in memory
    problem: str | None  # why they may not be right, in one sentence


class Server(Protocol):
    engine: interface.Engine

    @property
    def loader(self) -> Loader: ...

    async def started(self) -> None:
        """Raises errors.NotStarted."""


class Health:
    """The ASGI application under /health/."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.schema = schema.Schema()

    async def __call__(self, scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] not in {"GET", "HEAD"}:
            problem = {"error": f"{scope['method']} is not allowed here.", "code": "method_not_allowed"}
            await responses.json(send, 405, problem, [(b"allow", b"GET, HEAD")])
        elif scope["path"].rstrip("/") == "/health/live":
            await responses.json(send, 200, {"status": "alive"})
        elif scope["path"].rstrip("/") == "/health/ready":
            ready, checks = await self._checks()
            await responses.json(
                send, 200 if ready else 503, {"status": "ready" if ready else "not ready", "checks": checks}
            )
        else:
            await responses.json(send, 404, {"error": "There are /health/live and /health/ready.", "code": "not_found"})

    async def _checks(self) -> tuple[bool, dict[str, Any]]:
        try:
            await self.server.started()
        except errors.NotStarted as error:
            return False, {"worker": _check(str(error))}
        engine = self.server.engine.health()
        database = await self.schema.problem()
        loader = self.server.loader
        ready = engine.ok and loader.loaded and self.schema.was_complete
        return ready, {
            "worker": _check(""),
            "engine": _check("" if engine.ok else engine.reason),
            "database": _check(database),
            "applications": _check(loader.problem or ""),
        }


def _check(problem: str) -> dict[str, Any]:
    return {"ok": not problem, "reason": problem or "ok"}
