"""Actions on one worker."""

from __future__ import annotations

from typing import Any

from fanfare.console import audit
from fanfare.console.requests import Problem, Request, endpoint
from fanfare.console.worker_control import Action


@endpoint("worker", method="POST", permission="drain_worker")
async def worker(request: Request) -> Any:
    """Drain, resume or restart the worker with an id."""
    request.require("drain_worker")
    name = str(request.body.get("worker", ""))
    try:
        action = Action(str(request.body.get("action", "")))
    except ValueError:
        raise Problem(400, f"The action is one of {', '.join(Action)}.") from None
    collected = await request.worker.reports.collect()
    found = next((one for one in collected.reports if one.worker == name), None)
    if found is None:
        raise Problem(404, "This worker no longer answers.")
    await audit.record(request.access, action.value, target=f"{found.node} {found.pid}")
    await request.worker.control.request(name, action)
    return {"done": True}
