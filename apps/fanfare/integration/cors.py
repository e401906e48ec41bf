"""CORS for the auth endpoints: pages of other hosts can use them if FANFARE_CORS_ORIGINS lists their origin.

A browser sends the request of such a page with an `Origin` header that the page cannot change. If the request has
custom headers, the browser sends a preflight first. The page can read the response only if it names the origin.

Cross-site request forgery: a page of a listed origin needs no CSRF token, since it cannot read this host's cookie, and
the browser vouches for the origin. A page of any other origin needs one. A request with a token in its `Authorization`
header needs none either: a page of another origin cannot send that header without a preflight, which is refused, and
browsers do not add it by themselves (as they add Basic, Digest and Negotiate, which therefore need a CSRF token).

The session cookie is sent only if the page asks for it (`credentials: "include"`) and its SameSite attribute allows it:
between `shop.example.com` and `live.example.com` it does, between two sites it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from fanfare import conf
from fanfare.applications import origins

View = Callable[..., HttpResponseBase]

PREFLIGHT_SECONDS = 600  # that a browser caches a preflight; Chromium caches it for two hours at most
_ADDED_BY_BROWSERS = ("basic", "digest", "negotiate", "ntlm")


def is_trusted(request: HttpRequest) -> bool:
    """Whether the request comes from a page of a listed origin."""
    return origins.matches(conf.settings.CORS_ORIGINS, request.headers.get("Origin"))


def carries_token(request: HttpRequest) -> bool:
    """Whether the request has an `Authorization` header that browsers do not add by themselves."""
    scheme = request.headers.get("Authorization", "").partition(" ")[0].lower()
    return scheme != "" and scheme not in _ADDED_BY_BROWSERS


def answering(view: View) -> View:
    """View decorator: pages of listed origins can read the responses, and their preflights are answered."""

    @wraps(view)
    def answered(request: HttpRequest) -> HttpResponseBase:
        trusted = is_trusted(request)
        response: HttpResponseBase
        if trusted and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response = _preflight(request)
        else:
            response = view(request)
        patch_vary_headers(response, ("Origin",))
        if trusted:
            response["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response["Access-Control-Allow-Credentials"] = "true"
        return response

    return answered


def _preflight(request: HttpRequest) -> HttpResponse:
    response = HttpResponse(status=204)
    response["Access-Control-Allow-Methods"] = "POST"
    # The project chooses how its pages authenticate, so any header is allowed for a listed origin.
    response["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
    response["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    return response
