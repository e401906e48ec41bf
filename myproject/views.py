"""The project's own pages: the landing page, the quick start and the reference of the HTTP API."""

from __future__ import annotations

from typing import Any

from django import db
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.views.decorators.http import require_safe

from fanfare.integration import application, clients, errors


@require_safe
def landing(request: HttpRequest) -> HttpResponse:
    """What this is. With DEBUG also how to connect to it; without, nothing that only its owner should know."""
    return render(request, "landing.html", _connection(request))


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """The quick start. With DEBUG its snippets work as they stand, without they have placeholders."""
    return render(request, "docs.html", _connection(request))


@require_safe
def api_docs(request: HttpRequest) -> HttpResponse:
    """The reference of the HTTP API, drawn in the browser from the description that fanfare.api.openapi serves."""
    return render(request, "api_docs.html")


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """For the pages that name no icon, the admin's."""
    return redirect(static("fanfare/logo.svg"))


def _connection(request: HttpRequest) -> dict[str, Any]:
    """`connection` is None where the snippets must have placeholders; then `problem` may say why."""
    if not settings.DEBUG:
        return {"connection": None, "problem": None}
    try:
        target = application.resolve()
        client = clients.pusher_options(request)
    except errors.NoApplication as error:
        return {"connection": None, "problem": str(error)}
    except db.Error:
        return {
            "connection": None,
            "problem": "The database cannot be read yet. Run `make setup`, or `python manage.py migrate`.",
        }
    return {"connection": {"app_id": target.id, "name": target.name, **client}, "problem": None}
