"""The project's pages: the quick start, and the HTTP API reference."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import get_script_prefix
from django.views.decorators.http import require_safe

from fanfare import conf
from fanfare.server.landing import connection


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """The quick start. Its snippets contain an application's values with DEBUG, otherwise placeholders."""
    return render(request, "docs.html", connection(request))


@require_safe
def api_docs(request: HttpRequest) -> HttpResponse:
    """The HTTP API reference, rendered in the browser from openapi.json."""
    description = get_script_prefix() + conf.settings.URL_PREFIX.lstrip("/") + "api/openapi.json"
    return render(request, "api_docs.html", {"description": description})


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Redirect for pages without an icon link, such as the admin."""
    return redirect(static("fanfare/logo.svg"))
