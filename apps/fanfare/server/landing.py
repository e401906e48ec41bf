"""The page that a developer opens first: whether a page connects, and what to paste."""

from __future__ import annotations

from typing import Any

from django import db
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import get_script_prefix, reverse
from django.urls.resolvers import RoutePattern
from django.views.decorators.http import require_safe

from fanfare import errors
from fanfare.integration import clients, target
from fanfare.server import urlconf


class FrontPage(RoutePattern):
    """The pattern of the landing page. At the root of the site it gives way to a page of the project, whether that
    comes before `fanfare.urls` or after it, such as the catch-all of a CMS.
    """

    def match(self, path: str) -> Any:
        found = super().match(path)
        if found is None or reverse("fanfare:auth") != f"{get_script_prefix()}pusher/auth":
            return found
        is_taken = any(True for _ in urlconf.matches("", without=FrontPage))
        return None if is_taken else found


@require_safe
def landing(request: HttpRequest) -> HttpResponse:
    """With DEBUG the values of the default application; without, nothing that only its owner should know."""
    return render(request, "fanfare/landing.html", connection(request))


def connection(request: HttpRequest) -> dict[str, Any]:
    """The context of the snippets. `connection` is None where they have placeholders; `problem` may then say why."""
    if not settings.DEBUG:
        return {"connection": None, "problem": None}
    try:
        application = target.page_application()
        client = clients.pusher_options(request)
    except errors.NoApplication as error:
        return {"connection": None, "problem": str(error)}
    except db.Error:
        return {"connection": None, "problem": "The database cannot be read yet. Run `python manage.py migrate`."}
    return {"connection": {"app_id": application.id, "name": application.name, **client}, "problem": None}
