"""The way of one event through all workers, and the newest events whose way is known."""

from __future__ import annotations

import os
import socket
from typing import Any

from fanfare.applications import database
from fanfare.console import survey
from fanfare.console.requests import Problem, Request, endpoint
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.hub import traces

TRACE_S = 15.0  # for which a page that looks at a channel has it traced
MOST = 100


def register(asked: survey.Survey, hub: hubs.Hub) -> None:
    """Let this worker answer what is asked of all workers."""

    def trace(argument: dict[str, Any]) -> Any:
        found = hub.recorder.record((argument["partition"], argument["id"]))
        return {**_worker(), **found} if found else None

    def recent(argument: dict[str, Any]) -> Any:
        if argument["app"] is not None and argument["channel"] is not None:
            hub.recorder.trace(argument["app"], argument["channel"], TRACE_S)
        return hub.recorder.recent(argument["limit"], argument["app"], argument["channel"])

    hub.on_control(interface.PUBLISHERS, hub.recorder.announced)
    asked.on("trace", trace)
    asked.on("traces", recent)


def _worker() -> dict[str, Any]:
    return {"node": socket.gethostname(), "pid": os.getpid()}


@endpoint("trace")
async def trace(request: Request) -> Any:
    """One event: its publisher, and for each worker that read it the times and the sockets. Argument: `entry`."""
    try:
        partition, entry_id = traces.parse(request.query.get("entry", ""))
    except ValueError as error:
        raise Problem(400, f"{error}.") from None
    return await find(request, partition, entry_id)


async def find(request: Request, partition: int, entry_id: int) -> dict[str, Any]:
    answers = await request.worker.survey.ask("trace", {"partition": partition, "id": entry_id})
    entry = traces.position(partition, entry_id)
    workers = [{"worker": name, **one} for name, one in answers.workers.items() if "delivery" in one]
    publications = [one["publication"] for one in answers.workers.values() if "publication" in one]
    known = [*publications, *(one["delivery"] for one in workers)]
    app = known[0]["app"] if known else None
    if app is not None and not request.access.may("view_console", app):
        raise Problem(403, "You may not see the events of this application.")
    clients = [one["delivery"]["client"] for one in workers if "client" in one["delivery"]]
    publications += [{"publisher": {"by": "a client", **client}} for client in clients]
    for one in workers:
        one["delivery"] |= latencies(one["delivery"])
    workers.sort(key=lambda one: (one["node"], one["pid"]))
    return {
        "entry": entry,
        "app": app,
        "publication": publications[0] if publications else None,
        "workers": workers,
        "missing": answers.missing,
        "webhooks": [] if app is None else await database.run(_deliveries, app, known[0]["channel"], entry_id),
    }


def latencies(delivery: dict[str, Any]) -> dict[str, float]:
    """Milliseconds from when the event was stored to when it was read and written. The writes of one event follow each
    other at equal distances, so the percentiles are those between the first and the last."""
    if "last_write" not in delivery:
        return {}
    created, first, last = delivery["created"], delivery["first_write"], delivery["last_write"]

    def after(time: float) -> float:
        return float(round(max(0.0, time - created) * 1000, 2))

    return {
        "read_ms": after(delivery["read"]),
        "p50_ms": after(first + (last - first) * 0.5),
        "p95_ms": after(first + (last - first) * 0.95),
        "p99_ms": after(first + (last - first) * 0.99),
        "last_ms": after(last),
    }


def _deliveries(app: str, channel: str, entry_id: int) -> list[dict[str, Any]]:
    """The channel decides the partition, and an id is unique within one."""
    from fanfare.webhooks.models import Delivery

    rows = Delivery.objects.filter(entry=entry_id, channel=channel, webhook__application__app_id=app)
    return [
        {
            "id": row.pk,
            "url": row.webhook.masked_url,
            "event": row.event,
            "state": row.state,
            "attempts": row.attempts,
            "status": row.status,
            "error": row.error,
            "duration_ms": row.duration_ms,
        }
        for row in rows.select_related("webhook").order_by("-pk")[:50]
    ]


@endpoint("traces")
async def recent(request: Request) -> Any:
    """The newest recorded events of all workers. With `app` and `channel` every event of this channel is recorded from
    now on, as long as this is asked again within `TRACE_S` seconds; otherwise the events are a sample."""
    app, channel = request.query.get("app") or None, request.query.get("channel") or None
    if app is not None:
        request.require("view_console", app)
    allowed = request.access.applications()
    limit = request.number("limit", 50, least=1, most=MOST)
    answers = await request.worker.survey.ask("traces", {"app": app, "channel": channel, "limit": limit})
    merged: dict[str, dict[str, Any]] = {}
    for found in answers.workers.values():
        for one in found:
            if allowed is not None and one["app"] not in allowed:
                continue
            known = merged.setdefault(
                one["entry"],
                {**one, "workers": 0, "written": 0, "slow": 0, "replays": 0, "sockets": None, "last_ms": 0.0},
            )
            known["workers"] += "written" in one
            known["written"] += one.get("written", 0)
            known["slow"] += len(one.get("slow", ()))
            known["replays"] += len(one.get("replays", ()))
            known["last_ms"] = max(known["last_ms"], latencies(one).get("last_ms", 0.0))
    newest = sorted(merged.values(), key=lambda one: float(one["created"]), reverse=True)
    return {"events": newest[:limit], "missing": answers.missing, "complete": channel is not None and app is not None}
