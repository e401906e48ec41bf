from __future__ import annotations

import json

from django.http import HttpRequest, HttpResponse
from django.template import RequestContext, Template
from django.urls import path

from fanfare import snapshot
from myproject import urls
from tests.unit.docs import pages


def page(request: HttpRequest) -> HttpResponse:
    """The HTML block of a guide. `since`: positions in place of those of now."""
    block = pages.snippet(request.GET["guide"], request.GET["containing"], language="html")
    with snapshot("orders") as positions:
        pass
    if "since" in request.GET:
        positions = json.loads(request.GET["since"])
    context = RequestContext(request, {"positions": positions})
    return HttpResponse(Template(f"<!doctype html><title>guide</title>{block}").render(context))


urlpatterns = [path("page/", page), *urls.urlpatterns]
