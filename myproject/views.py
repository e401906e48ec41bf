"""The project's pages: landing page, quick start, and the HTTP API reference."""

from __future__ import annotations

from typing import Any

from django import db
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.views.decorators.http import require_safe

from fanfare import errors
from fanfare.integration import clients, target


@require_safe
def landing(request: HttpRequest) -> HttpResponse:
    """The landing page. With DEBUG it shows an application's id and key in ready-made snippets."""
    return render(request, "landing.html", _connection(request))


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """The quick start. Its snippets contain an application's values with DEBUG, otherwise placeholders."""
    return render(request, "docs.html", _connection(request))


@require_safe
def api_docs(request: HttpRequest) -> HttpResponse:
    """The HTTP API reference, rendered in the browser from /api/openapi.json."""
    return render(request, "api_docs.html")


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Redirect for pages without an icon link, such as the admin."""
    return redirect(static("fanfare/logo.svg"))


def _connection(request: HttpRequest) -> dict[str, Any]:
    """Template context: `connection` with an application's values, or None and perhaps a `problem` that says why."""
    if not settings.DEBUG:
        return {"connection": None, "problem": None}
    try:
        application = target.application()
        client = clients.pusher_options(request)
    except errors.NoApplication as error:
        return {"connection": None, "problem": str(error)}
    except db.Error:
        return {
            "connection": None,
            "problem": "The database cannot be read yet. Run `make setup`, or `python manage.py migrate`.",
        }
    return {"connection": {"app_id": application.id, "name": application.name, **client}, "problem": None}
