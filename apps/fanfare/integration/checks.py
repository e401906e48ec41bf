"""Django system checks for settings of a project with which its pages cannot use the auth endpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.urls import NoReverseMatch, reverse

from fanfare import conf

CORS_HEADERS = "corsheaders.middleware.CorsMiddleware"


@checks.register(checks.Tags.security)
def cookie_paths(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """Cookies that browsers do not send to the auth endpoints."""
    endpoint = _endpoint()
    if endpoint is None:
        return []
    return [
        checks.Warning(
            f"{name} is {path!r}, so browsers do not send the cookie to {endpoint}: every visitor is anonymous there.",
            hint=f"Set {name} to '/', or include fanfare.urls below {path}.",
            id="fanfare.W020",
        )
        for name, path in (
            ("SESSION_COOKIE_PATH", settings.SESSION_COOKIE_PATH),
            ("CSRF_COOKIE_PATH", settings.CSRF_COOKIE_PATH),
        )
        if not f"{endpoint}/".startswith(path.rstrip("/") + "/")
    ]


@checks.register(checks.Tags.security)
def cors_headers(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    """django-cors-headers answers every preflight itself, including those for the auth endpoints."""
    endpoint = _endpoint()
    if CORS_HEADERS not in settings.MIDDLEWARE or not conf.settings.CORS_ORIGINS or endpoint is None:
        return []
    if re.match(getattr(settings, "CORS_URLS_REGEX", ""), endpoint) is None:
        return []
    missing = sorted(_missing_from_cors_headers())
    if not missing:
        return []
    return [
        checks.Warning(
            f"django-cors-headers answers the preflights of {endpoint} before Fanfare does, without what the origins "
            f"of FANFARE_CORS_ORIGINS need: {', '.join(missing)}.",
            hint=f'Leave the endpoints to Fanfare, with CORS_URLS_REGEX = r"^(?!{endpoint.rpartition("/")[0]}/)", or '
            "set the same origins and CORS_ALLOW_CREDENTIALS = True there.",
            id="fanfare.W021",
        )
    ]


def _missing_from_cors_headers() -> Iterator[str]:
    if not getattr(settings, "CORS_ALLOW_CREDENTIALS", False):
        yield "CORS_ALLOW_CREDENTIALS = True"
    if getattr(settings, "CORS_ALLOW_ALL_ORIGINS", False) or getattr(settings, "CORS_ALLOWED_ORIGIN_REGEXES", ()):
        return
    allowed = {str(origin) for origin in getattr(settings, "CORS_ALLOWED_ORIGINS", ())}
    for origin in conf.settings.CORS_ORIGINS:
        if origin not in allowed:
            yield f"{origin!r} in CORS_ALLOWED_ORIGINS"


def _endpoint() -> str | None:
    try:
        return reverse("fanfare:auth")
    except NoReverseMatch:
        return None
