"""The options of pusher-js."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest
from django.urls import get_script_prefix

from fanfare import conf
from fanfare.integration import target

_DEFAULT_PORTS = {"http": 80, "https": 443}


def pusher_options(request: HttpRequest) -> dict[str, Any]:
    """The `key` and the `options` of `new Pusher(key, options)`. Public values only.

    The sockets are at FANFARE_PUBLIC_URL or, in remote mode, at FANFARE_REMOTE_URL; otherwise at the host of the
    request, below the project's path and FANFARE_URL_PREFIX. The page adds `channelAuthorization` itself, since it
    depends on where the page keeps its CSRF token. Raises NoApplication.
    """
    place = _elsewhere() or _here(request)
    options = {
        "cluster": "",  # required by pusher-js, and used only without wsHost
        "wsHost": place.host,
        "wsPort": place.port,
        "wssPort": place.port,
        "forceTLS": place.tls,
        # Without it pusher-js also tries the vendor's fallback servers. `ws` uses TLS if forceTLS is true, and `wss`
        # would use it even on a plain port.
        "enabledTransports": ["ws"],
    }
    return {
        "key": target.page_application().key,
        "options": {**options, "wsPath": place.path} if place.path else options,
    }


def is_elsewhere() -> bool:
    """Whether pages connect to another host than their own."""
    return bool(conf.settings.PUBLIC_URL or conf.settings.REMOTE_URL)


class _Place(NamedTuple):
    """Where the sockets are. `host`: as a URL has it, an IPv6 address in brackets. `path`: before `/app/KEY`."""

    host: str
    port: int
    tls: bool
    path: str


def _elsewhere() -> _Place | None:
    url = conf.settings.PUBLIC_URL or conf.settings.REMOTE_URL
    if not url:
        return None
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return _Place(f"[{host}]" if ":" in host else host, port, parts.scheme == "https", parts.path.rstrip("/"))


def _here(request: HttpRequest) -> _Place:
    host = request.get_host()
    name, colon, port = host.rpartition(":")
    path = get_script_prefix().rstrip("/") + conf.settings.URL_PREFIX.rstrip("/")
    if colon and port.isdigit():
        return _Place(name, int(port), request.is_secure(), path)
    if settings.USE_X_FORWARDED_PORT and "HTTP_X_FORWARDED_PORT" in request.META:
        return _Place(host, int(request.get_port()), request.is_secure(), path)
    return _Place(host, _DEFAULT_PORTS[request.scheme or "http"], request.is_secure(), path)
