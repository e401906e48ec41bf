"""The project's pages: the quick start, and the HTTP API reference."""

from __future__ import annotations

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import get_script_prefix
from django.views.decorators.http import require_safe
from django.views.static import serve

from fanfare import conf
from fanfare.server.landing import connection


@require_safe
def docs(request: HttpRequest) -> HttpResponseBase:
    """The documentation, if it is built, otherwise the quick start."""
    return documentation(request, "index.html") if _is_built() else quick_start(request)


@require_safe
def quick_start(request: HttpRequest) -> HttpResponse:
    """Its snippets contain an application's values with DEBUG, otherwise placeholders."""
    return render(request, "docs.html", {**connection(request), "documentation": _is_built()})


def _is_built() -> bool:
    return (settings.DOCUMENTATION / "index.html").exists()


@require_safe
def documentation(request: HttpRequest, path: str) -> HttpResponseBase:
    """A file of the site that `make docs` builds. Its theme has inline scripts and styles, so it has its own policy."""
    if not _is_built():
        raise Http404("The documentation is not built: make docs.")
    response = serve(request, path, document_root=str(settings.DOCUMENTATION))
    response["Content-Security-Policy"] = (
        "default-src 'self' 'unsafe-inline' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'none'"
    )
    return response


@require_safe
def api_docs(request: HttpRequest) -> HttpResponse:
    """The HTTP API reference, rendered in the browser from openapi.json."""
    description = get_script_prefix() + conf.settings.URL_PREFIX.lstrip("/") + "api/openapi.json"
    return render(request, "api_docs.html", {"description": description})


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Redirect for pages without an icon link, such as the admin."""
    return redirect(static("fanfare/logo.svg"))
