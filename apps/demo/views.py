"""The room's page and its messages. Everything realtime about it is one call of publish()."""

from __future__ import annotations

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_http_methods

from apps.demo import channels, forms, guests, models
from apps.realtime import clients, errors, publish


@require_GET
@never_cache
@ensure_csrf_cookie
def room(request: HttpRequest) -> HttpResponse:
    """The page. Without an application it says how to make one."""
    try:
        connection = clients.pusher_options(request)
    except errors.NoApplication as error:
        return render(request, "demo/closed.html", {"reason": str(error)}, status=503)
    guest = guests.invent()
    config = {
        **connection,
        "authEndpoint": reverse("realtime:auth"),
        "channel": channels.ROOM,
        "csrfCookie": settings.CSRF_COOKIE_NAME,
        "guest": {"id": guest.id, "name": guest.name, "token": guest.token},
    }
    return render(request, "demo/room.html", {"config": config, "max_characters": models.Message.MAX_CHARACTERS})


@require_http_methods(["GET", "POST"])
@never_cache
def messages(request: HttpRequest) -> JsonResponse:
    """GET `?after=ID`: the messages that came later, oldest first. POST `guest` and `text`: say something."""
    if request.method == "POST":
        return _say(request)
    after = request.GET.get("after", "0")
    if not after.isdecimal() or len(after) > 18:  # more digits may not fit the database's integer
        return JsonResponse({"error": "after is the id of a message."}, status=400)
    newer = models.Message.objects.filter(pk__gt=int(after))
    return JsonResponse({"messages": [message.as_data() for message in newer]})


def _say(request: HttpRequest) -> JsonResponse:
    guest = guests.recognise(request.POST.get("guest", ""))
    if guest is None:
        return JsonResponse({"error": "You are not a guest of this room. Reload the page."}, status=403)
    form = forms.MessageForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"error": " ".join(map(str, form.errors["text"]))}, status=400)
    with transaction.atomic():
        message = models.Message.objects.create(author_id=guest.id, author=guest.name, text=form.cleaned_data["text"])
        models.Message.forget_old()
        publish(channels.ROOM, "message", message.as_data())
    return JsonResponse(message.as_data(), status=201)
