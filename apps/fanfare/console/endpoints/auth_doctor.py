"""The auth doctor: the newest refusals of all workers, and the examination of a signature."""

from __future__ import annotations

from typing import Any

from fanfare.console import doctor, survey
from fanfare.console.requests import Problem, Request, endpoint
from fanfare.hub import hub as hubs

MOST = 200
MAX_CHARACTERS = 20_000  # of one field


def register(asked: survey.Survey, hub: hubs.Hub) -> None:
    """Let this worker answer what is asked of all workers."""
    asked.on("refusals", lambda argument: list(hub.activity.refusals)[-int(argument["limit"]) :])


@endpoint("refusals")
async def refusals(request: Request) -> Any:
    """The newest refusals, the latest first: each with the sentence that its client or its developer gets."""
    limit = request.number("limit", MOST, least=1, most=MOST)
    allowed, app = request.access.applications(), request.query.get("app") or None
    if app is not None:
        request.require("view_console", app)
    answers = await request.worker.survey.ask("refusals", {"limit": MOST})
    found = [
        one
        for of_worker in answers.workers.values()
        for one in of_worker
        if (allowed is None or one["app"] in allowed) and (app is None or one["app"] == app)
    ]
    found.sort(key=lambda one: float(one["at"]), reverse=True)
    return {"refusals": found[:limit], "missing": answers.missing}


@endpoint("doctor", method="POST")
async def examine(request: Request) -> Any:
    """Why a signature is refused. Body: `app`, `kind`, and the fields of `fanfare.console.doctor.examine`."""
    application = request.application()
    kind = str(request.body.get("kind") or doctor.SUBSCRIPTION)
    if kind not in doctor.KINDS:
        raise Problem(400, f"The kind is one of: {', '.join(doctor.KINDS)}.")
    fields = {}
    for name in ("socket_id", "channel", "auth", "channel_data", "user_data", "method", "url"):
        value = request.body.get(name) or ""
        if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
            raise Problem(400, f"The field {name} is a text of at most {MAX_CHARACTERS:,} characters.")
        fields[name] = value if name in ("channel_data", "user_data") else value.strip()
    if kind == doctor.API and not fields["url"]:
        raise Problem(400, "Paste the URL of the request, with its query.")
    if kind == doctor.SUBSCRIPTION and not fields["channel"]:
        raise Problem(400, "Name the channel.")
    others = [one for one in request.worker.registry.all() if request.access.may("view_console", one.id)]
    return doctor.examine(kind, fields, application, others).to_json()
