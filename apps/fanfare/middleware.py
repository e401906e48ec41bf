"""Django middleware that a project may use.

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "fanfare.middleware.ContentSecurityPolicy",
    "fanfare.middleware.LoginThrottle",
    …
]
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.contrib.auth import signals
from django.contrib.auth.views import LoginView
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve

from fanfare import conf
from fanfare.hub import activity
from fanfare.runtime import addresses, text
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.token_bucket import TokenBucket

MAX_ADDRESSES: Final = 10_000  # whose attempts are remembered; the one that tried longest ago is forgotten
LOGGED_PER_MINUTE: Final = 30

_ATTEMPT: Final = "_fanfare_login_attempt"  # attribute of a request: the key of its bucket
_log = LogThrottle(logging.getLogger(__name__), 60.0, burst=LOGGED_PER_MINUTE)


class ContentSecurityPolicy:
    """Sends a strict Content-Security-Policy with each page that has none of its own.

    Scripts, styles, fonts and pictures come from this host, pictures also from `data:`; connections go to this host and
    to FANFARE_PUBLIC_URL. Inline scripts and styles, plugins and frames are refused. With DEBUG, responses with the
    status 400, 404 or 500 get none, because Django's debug pages contain inline scripts and styles.
    """

    sync_capable = True
    async_capable = True
    HEADER: Final = "Content-Security-Policy"
    DEBUG_PAGES: Final = (400, 404, 500)

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        return self._answer(request) if self._is_async else self._with_policy(request, self._get_response(request))

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        return self._with_policy(request, await self._get_response(request))

    def _with_policy(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        is_debug_page = settings.DEBUG and response.status_code in self.DEBUG_PAGES
        if not is_debug_page and not response.has_header(self.HEADER):
            response[self.HEADER] = self.policy(request)
        return response

    @staticmethod
    def policy(request: HttpRequest) -> str:
        try:
            hosts = [request.get_host()]
        except DisallowedHost:  # the error page for such a request
            hosts = []
        if conf.settings.PUBLIC_URL:
            hosts.append(urlsplit(conf.settings.PUBLIC_URL).netloc)
        schemes = ("wss", "https") if request.is_secure() else ("ws", "wss", "http", "https")
        connect = "".join(f" {scheme}://{host}" for host in hosts for scheme in schemes)
        return (
            f"default-src 'self'; connect-src 'self'{connect}; img-src 'self' data:; object-src 'none'; "
            "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
        )


class LoginThrottle:
    """Limits login attempts by client address, and logs failed ones.

    An attempt is a POST to a view named `login` (the admin's, `django.contrib.auth.urls`) or to a LoginView. Above
    FANFARE_LOGIN_ATTEMPTS a minute it gets 429, before the password is hashed. A successful login does not count, but
    the failed ones before it do: otherwise the owner of one account could guess the passwords of others without limit.

    The address is REMOTE_ADDR. Under Fanfare's ASGI application it is the client's, behind the proxies of
    FANFARE_TRUSTED_PROXIES; a forged X-Forwarded-For does not change it. IPv6 addresses count by their /64 network.
    Each worker counts on its own.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], Any], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._get_response = get_response
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}  # by address; the latest attempt last
        signals.user_login_failed.connect(_log_failure, dispatch_uid="fanfare.middleware.LoginThrottle")
        signals.user_logged_in.connect(self._succeeded)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        if self._is_async:
            return self._acall(request)
        return self._refusal(request) or self._get_response(request)

    async def _acall(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self._refusal(request) or await self._get_response(request)
        return response

    def _refusal(self, request: HttpRequest) -> HttpResponse | None:
        if request.method != "POST" or not _is_login(request):
            return None
        key = addresses.network(_address(request))
        per_minute = conf.settings.LOGIN_ATTEMPTS
        now = self._clock()
        bucket = self._buckets.pop(key, None) or TokenBucket(per_minute, now)
        self._buckets[key] = bucket
        while len(self._buckets) > MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        if bucket.take(per_minute / 60, per_minute, now):
            setattr(request, _ATTEMPT, key)
            return None
        activity.count("http.refused.login_attempts")
        _log.warning("Login refused: more than %d attempts a minute from %s", per_minute, key, key=("refused", key))
        wait_s = math.ceil(60 / per_minute)
        message = (
            f"There were too many login attempts from {key}; {per_minute} a minute are allowed. "
            f"Try again in {wait_s} s.\n"
        )
        return HttpResponse(message, status=429, content_type="text/plain", headers={"Retry-After": str(wait_s)})

    def _succeeded(self, request: HttpRequest | None = None, **_: object) -> None:
        bucket = self._buckets.get(getattr(request, _ATTEMPT, ""))
        if bucket is not None:
            bucket.give_back()


def _is_login(request: HttpRequest) -> bool:
    try:
        match = resolve(request.path_info)
    except Resolver404:
        return False
    view = getattr(match.func, "view_class", None)
    return match.url_name == "login" or (isinstance(view, type) and issubclass(view, LoginView))


def _log_failure(credentials: dict[str, Any], request: HttpRequest | None = None, **_: object) -> None:
    """Django removes passwords from `credentials`."""
    name = next((str(value) for name, value in credentials.items() if "name" in name or "mail" in name), "")
    address = "unknown" if request is None else _address(request) or "unknown"
    _log.warning("Login failed for %r from %s", text.clean(name)[:150], address, key="failed")


def _address(request: HttpRequest) -> str:
    return str(request.META.get("REMOTE_ADDR") or "")
