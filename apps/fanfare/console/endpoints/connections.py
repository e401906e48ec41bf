"""The connections of all workers, and their end."""

from __future__ import annotations

import heapq
from typing import Any

from fanfare.console import audit
from fanfare.console import connections as connecting
from fanfare.console.requests import Problem, Request, endpoint
from fanfare.protocol import capabilities


@endpoint("connections")
async def connections(request: Request) -> Any:
    """The first connections that match `text` (socket id, address, user, SDK) and `channel`."""
    sort = request.query.get("sort") or "newest"
    if sort not in connecting.SORTS:
        raise Problem(400, f"Connections are sorted by {', '.join(connecting.SORTS)}.")
    app, allowed = request.query.get("app"), request.access.applications()
    if app:
        request.application()
        allowed = frozenset([app])
    asked = {
        "text": request.query.get("text", "")[:200],
        "channel": request.query.get("channel", "")[:1_000],
        "sort": sort,
        "apps": None if allowed is None else sorted(allowed),
    }
    answers = await request.worker.survey.ask(connecting.CONNECTIONS, asked)
    found = [{**one, "worker": worker} for worker, answer in answers.workers.items() for one in answer["connections"]]
    return {
        "connections": heapq.nlargest(connecting.MOST, found, key=connecting.SORTS[sort]),
        "matching": sum(answer["matching"] for answer in answers.workers.values()),
        "missing": answers.missing,
    }


@endpoint("disconnect", method="POST", permission="disconnect_client")
async def disconnect(request: Request) -> Any:
    """Close the connections of a socket, a user or an address, in all workers."""
    app = request.application("disconnect_client")
    by, value = str(request.body.get("by", "")), str(request.body.get("value", ""))
    returns = bool(request.body.get("returns", True))
    if by not in connecting.MATCHES or not value:
        raise Problem(400, f"A disconnect names one of {', '.join(connecting.MATCHES)}.")
    detail = {"by": by, "may reconnect": returns}
    await audit.record(request.access, "disconnect", application=app.id, target=value, detail=detail)
    await request.worker.connections.disconnect(app.id, by, value, returns=returns)
    return {"done": True}


@endpoint("revoke", method="POST", permission="disconnect_client")
async def revoke(request: Request) -> Any:
    """Revoke a capability token by its id, in all workers."""
    app, token_id = request.application("disconnect_client"), str(request.body.get("token", ""))
    if capabilities.TOKEN_ID.match(token_id) is None:
        raise Problem(400, "The id of a token has 1 to 128 letters, digits and the characters _.:~-.")
    await audit.record(request.access, "revoke", application=app.id, target=token_id)
    await request.worker.connections.revoke(app.id, token_id)
    return {"done": True}
