"""The demo room and its messages, which are kept in the channel's history.

With DEBUG a developer can kill the worker that serves the page. Other workers take its clients over, and the page
counts the messages that it missed: the ones in the history that did not arrive.
"""

from __future__ import annotations

import json
import secrets

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from demo import channels, forms
from fanfare import EngineUnavailable, NoApplication, history, presence, publish
from fanfare.console import worker_control
from fanfare.engine import current
from fanfare.server.landing import is_developer

ALONE = "Only one worker runs. Start several: FANFARE_DEBUG=1 gunicorn -w 4 -k uvicorn.workers.UvicornWorker …"


@require_safe
@never_cache
def room(request: HttpRequest) -> HttpResponse:
    """The page of the guest named in the URL. Without a name, redirect to one that no member uses."""
    try:
        here = {member.id for member in presence.members(channels.ROOM)}
    except (NoApplication, EngineUnavailable) as error:
        return render(request, "demo/closed.html", {"reason": error}, status=503)
    guest = request.GET.get("guest", "")
    if guest not in channels.GUESTS:
        free = [one for one in channels.GUESTS if one not in here] or list(channels.GUESTS)
        return redirect(f"{request.path}?guest={secrets.choice(free)}")
    return render(
        request,
        "demo/room.html",
        {
            "channel": channels.ROOM,
            "name": channels.GUESTS[guest],
            "params": {"guest": guest},
            "form": forms.MessageForm(),
            "can_kill": is_developer(request),
        },
    )


@require_http_methods(["GET", "HEAD", "POST"])
def messages(request: HttpRequest) -> HttpResponse:
    """GET: the ids of the messages in the history, the oldest first. POST: publish a message; the sender receives it
    from the channel like all other members. A second POST with the same id publishes nothing.
    """
    if request.method != "POST":
        try:
            kept = [json.loads(event.data) for event in history.events(channels.ROOM) if event.name == "message"]
        except (NoApplication, EngineUnavailable) as error:
            return JsonResponse({"error": str(error)}, status=503)
        return JsonResponse({"ids": [message["id"] for message in kept if "id" in message]})
    form = forms.MessageForm(request.POST)
    if not form.is_valid():
        problems = [str(problem) for field in form.errors.values() for problem in field]
        return JsonResponse({"error": " ".join(problems)}, status=400)
    message = {**form.cleaned_data, "name": channels.GUESTS[form.cleaned_data["guest"]], "at": timezone.now()}
    message["id"] = message["id"] or secrets.token_hex(8)
    publish(channels.ROOM, "message", message, idempotency_key=message["id"])
    return HttpResponse(status=204)


@require_POST
def kill(request: HttpRequest) -> HttpResponse:
    """Kill the worker that has the page's connection."""
    if not is_developer(request):
        return JsonResponse({"error": "Only a developer may kill a worker, with FANFARE_DEBUG=1."}, status=403)
    if int(current.current().statistics().get("workers", 1)) < 2:
        return JsonResponse({"error": ALONE}, status=409)
    worker_control.kill_worker_of(request.POST.get("socket_id", ""))
    return HttpResponse(status=204)
