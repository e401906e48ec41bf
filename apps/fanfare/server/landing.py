"""The landing page: it connects, publishes an event and shows it, and has the snippets to paste."""

from __future__ import annotations

import json
from typing import Any, Final

from django import db
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import split_domain_port
from django.shortcuts import render
from django.urls import get_script_prefix, reverse
from django.urls.resolvers import RoutePattern
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_http_methods

from fanfare import errors
from fanfare.engine import errors as engine_errors
from fanfare.integration import clients, publishing, target
from fanfare.runtime import addresses
from fanfare.server import urlconf

_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")

# The values of the snippets where there is no application to show.
_PLACEHOLDERS: Final[dict[str, Any]] = {
    "id": "YOUR_ID",
    "key": "YOUR_KEY",
    "secret": "",
    "host": "realtime.example.com",
    "port": 443,
    "tls": True,
    "path": "",
}


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


@csrf_protect
@require_http_methods(["GET", "HEAD", "POST"])
def landing(request: HttpRequest) -> HttpResponse:
    """With DEBUG the page has the values of the default application, and a form that publishes, for a developer."""
    if request.method == "POST":
        return _publish(request)
    context = connection(request)
    if context["connection"] and is_developer(request):
        context["is_developer"] = True
        context["values"]["secret"] = target.page_application().secret
    return render(request, "fanfare/landing.html", context)


def is_developer(request: HttpRequest) -> bool:
    """Whether a request may see the secret and publish without a signature: with DEBUG, from this machine and not
    through a proxy, or by a member of the staff.

    The name of the host is checked too: a page of another site could have its name resolved to 127.0.0.1.
    """
    if not settings.DEBUG:
        return False
    user = getattr(request, "user", None)
    if user is not None and user.is_active and user.is_staff:
        return True
    if any(addresses.is_proxy_header(name.lower()) for name in request.headers):
        return False
    peer = addresses.parse(request.META.get("REMOTE_ADDR", ""))
    name, _ = split_domain_port(request.get_host())
    is_local = name in _LOCAL_NAMES or name.endswith(".localhost")
    return peer is not None and peer.is_loopback and is_local


def _publish(request: HttpRequest) -> HttpResponse:
    """Publish the event of the page's form. Errors are answered as `{"error": …}`, which the page shows."""
    if not is_developer(request):
        return JsonResponse({"error": "Open this page at 127.0.0.1, or log in to the admin first."}, status=403)
    fields = [request.POST.get(name, "") for name in ("channel", "event", "data")]
    try:
        publishing.publish(*fields, app=target.page_application().id, on_commit=False, outbox=False)
    except errors.FanfareError as error:
        return JsonResponse({"error": str(error)}, status=400)
    except engine_errors.EngineError as error:
        return JsonResponse({"error": str(error)}, status=503)
    return HttpResponse(status=204)


def connection(request: HttpRequest) -> dict[str, Any]:
    """The context of the snippets: `values`, which are placeholders where `connection` is None; `problem` may then say
    why.
    """
    found: dict[str, Any] = {"connection": None, "problem": None, "values": {**_PLACEHOLDERS}}
    if settings.DEBUG:
        try:
            application = target.page_application()
            client = clients.pusher_options(request)
        except errors.NoApplication as error:
            found["problem"] = str(error)
        except db.Error:
            found["problem"] = "The database cannot be read yet. Run `python manage.py migrate`."
        else:
            options = client["options"]
            found["connection"] = {"app_id": application.id, "name": application.name, **client}
            found["values"] |= {"id": application.id, "key": application.key, "path": options.get("wsPath", "")}
            found["values"] |= {"host": options["wsHost"], "port": options["wsPort"], "tls": options["forceTLS"]}
    values = found["values"]
    values["scheme"] = "https" if values["tls"] else "http"
    values["options"] = _javascript(values)
    values["port"] = str(values["port"])  # a number would be written with the locale's thousands separator
    return found


def _javascript(values: dict[str, Any]) -> list[str]:
    """The options of pusher-js, one line each."""
    options = {
        "cluster": "",
        "wsHost": values["host"],
        "wsPort": values["port"],
        "wssPort": values["port"],
        **({"wsPath": values["path"]} if values["path"] else {}),
        "forceTLS": values["tls"],
        "enabledTransports": ["ws"],
    }
    return [f"{name}: {json.dumps(value)}," for name, value in options.items()]
