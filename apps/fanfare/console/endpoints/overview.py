"""The overview: what the deployment does now, and its last hour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fanfare.console import board
from fanfare.console.requests import Request, endpoint, stream


@endpoint("applications")
async def applications(request: Request) -> Any:
    """The applications that the user may see, by name."""
    allowed = request.access.applications()
    found = [
        {"id": one.id, "name": one.name, "enabled": one.enabled}
        for one in request.worker.registry.all()
        if allowed is None or one.id in allowed
    ]
    return {"applications": sorted(found, key=lambda one: str(one["name"]).lower())}


@stream("overview")
async def overview(request: Request) -> AsyncIterator[Any]:
    """A snapshot of all workers every two seconds."""
    while True:
        yield await request.worker.board.snapshot()
        await asyncio.sleep(board.EVERY_S)


@endpoint("overview/hour")
async def hour(request: Request) -> Any:
    """The samples of the last hour, by worker; with `after`, a Unix time, the later ones."""
    after = request.number("after", 0, most=2**40)
    answers = await request.worker.survey.ask(board.RECENT, {"after": after})
    return {"workers": answers.workers, "missing": answers.missing}
