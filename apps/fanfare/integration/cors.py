"""Pages of other hosts that use the auth endpoints, where `FANFARE_CORS_ORIGINS` names their origin.

What a browser does: it sends a page's request to another origin with an `Origin` header that the page cannot change,
asks first (a preflight) if the request has headers of its own, and shows the page the answer only if that names the
origin.

What follows for CSRF. A page of a named origin cannot read this host's CSRF cookie, and needs no token: that the
request comes from it is what the browser says in `Origin`, and the project has said that it trusts it. A page of any
other origin is checked as ever. A request that carries an `Authorization` header with a token needs none either: no
page of another origin can send that header without a preflight, which is refused, and browsers never add it by
themselves (as they add Basic, Digest and Negotiate, which therefore are checked).

A session cookie goes along only if the page asks for it (`credentials: "include"`) and its SameSite attribute lets it:
between `shop.example.com` and `live.example.com` it does, between two sites it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from fanfare import conf

View = Callable[..., HttpResponseBase]

PREFLIGHT_SECONDS = 600  # how long a browser remembers the answer; Chromium never does for more than two hours
_ADDED_BY_BROWSERS = ("basic", "digest", "negotiate", "ntlm")


def is_trusted(request: HttpRequest) -> bool:
    """Whether the page that sends this is one of those whose origin is named."""
    return request.headers.get("Origin") in conf.settings.CORS_ORIGINS


def carries_token(request: HttpRequest) -> bool:
    """Whether it is authorized by a token that its sender knows, and not by what a browser adds by itself."""
    scheme = request.headers.get("Authorization", "").partition(" ")[0].lower()
    return scheme != "" and scheme not in _ADDED_BY_BROWSERS


def answering(view: View) -> View:
    """Let the pages of named origins read the view's answers, and answer their preflights."""

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
    # Whatever the project authenticates by: the origin is trusted, so its headers are.
    response["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
    response["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    return response
