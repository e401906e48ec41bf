"""What a page needs to know to connect a pusher-js of its own to this server."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from fanfare.integration import application

_DEFAULT_PORTS = {"http": 80, "https": 443}


def pusher_options(request: HttpRequest) -> dict[str, Any]:
    """The `key` and the `options` of `new Pusher(key, options)`, for the host that the browser asked. Public values
    only.

    `channelAuthorization` is the page's business: it depends on where the page keeps its CSRF token.
    Raises NoApplication.
    """
    target = application.resolve()
    host, port = _address(request)
    return {
        "key": target.key,
        "options": {
            "cluster": "",  # pusher-js insists on one and uses it only where there is no wsHost
            "wsHost": host,
            "wsPort": port,
            "wssPort": port,
            "forceTLS": request.is_secure(),
            "enabledTransports": ["ws", "wss"],  # without it pusher-js also tries the vendor's own fallback servers
        },
    }


def _address(request: HttpRequest) -> tuple[str, int]:
    """The host as a URL has it (an IPv6 address keeps its brackets), and the port."""
    host = request.get_host()
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return name, int(port)
    return host, _DEFAULT_PORTS[request.scheme or "http"]
