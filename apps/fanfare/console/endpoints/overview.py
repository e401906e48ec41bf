"""The overview: the figures of every worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fanfare.console import reports
from fanfare.console.requests import Request, endpoint, stream

INTERVAL_S = 2.0


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
    """The figures of all workers, every two seconds."""
    while True:
        yield _to_json(await request.worker.reports.collect())
        await asyncio.sleep(INTERVAL_S)


def _to_json(collected: reports.Collection) -> dict[str, Any]:
    return {
        "expected": collected.expected,
        "workers": [
            {"worker": one.worker, "node": one.node, "pid": one.pid, "version": one.version, "started": one.started}
            for one in collected.reports
        ],
    }
