from __future__ import annotations

import secrets

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST, require_safe

import fanfare
from chat.models import Turn
from fanfare.models import Application


def _chat(request: HttpRequest) -> str:
    """The visitor's chat; a new visitor gets one."""
    return str(request.session.setdefault("chat", secrets.token_hex(8)))


@require_safe
@never_cache
def page(request: HttpRequest) -> HttpResponse:
    """With `{% fanfare_client %}`, which has the plugin."""
    chat = _chat(request)
    return render(request, "chat/page.html", {"chat": chat, "turns": Turn.objects.filter(chat=chat)})


@require_safe
@never_cache
@ensure_csrf_cookie
def plain_page(request: HttpRequest) -> HttpResponse:
    """With pusher-js alone."""
    chat, application = _chat(request), Application.objects.earliest("pk")
    turns = Turn.objects.filter(chat=chat)
    return render(request, "chat/page.html", {"chat": chat, "turns": turns, "plain_key": application.key})


@require_POST
def ask(request: HttpRequest) -> HttpResponse:
    """Store the question. The background job answers it."""
    turn = Turn.objects.create(chat=_chat(request), question=request.POST["question"][:500])
    fanfare.publish(turn.channel, "question", {"id": str(turn.pk), "text": turn.question})
    return HttpResponse(status=204)


@require_POST
def stop(request: HttpRequest, turn: int) -> HttpResponse:
    found = get_object_or_404(Turn, pk=turn, chat=_chat(request))
    fanfare.cancel_stream(found.channel, str(found.pk))
    return HttpResponse(status=204)
