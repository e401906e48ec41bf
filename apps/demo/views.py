"""The demo room and its messages, which are kept in the channel's history."""

from __future__ import annotations

import secrets

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from demo import channels, forms
from fanfare import EngineUnavailable, NoApplication, presence, publish


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
        },
    )


@require_POST
def say(request: HttpRequest) -> HttpResponse:
    """Publish a message. The sender receives it from the channel like all other members."""
    form = forms.MessageForm(request.POST)
    if not form.is_valid():
        problems = [str(problem) for field in form.errors.values() for problem in field]
        return JsonResponse({"error": " ".join(problems)}, status=400)
    name = channels.GUESTS[form.cleaned_data["guest"]]
    publish(channels.ROOM, "message", {**form.cleaned_data, "name": name, "at": timezone.now()})
    return HttpResponse(status=204)
