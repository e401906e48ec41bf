"""Which web pages may connect: an application's list of origins against a browser's `Origin` header.

A pattern is one of

    https://example.com, https://example.com:8443    this scheme, host and port (the scheme's own port if none is given)
    https://*.example.com                            the same for every subdomain, not for example.com itself
    example.com, *.example.com                       any scheme, any port
    example.com:8443                                 any scheme, this port
    *                                                everything, the origin `null` of files and sandboxed frames too

The check protects users of browsers from other people's pages, nothing else: a program can send any Origin, so one that
sends none (a phone, a server) is let in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

_SCHEME_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class _Place(NamedTuple):
    scheme: str  # "" in a pattern: any
    host: str
    port: int | None  # None in a pattern: any


def is_allowed(patterns: Sequence[str], origin: str | None) -> bool:
    """Whether a page of `origin` may connect. No patterns: any page may."""
    if not patterns or not origin or "*" in patterns:
        return True
    place = _place(origin)
    return place is not None and place.scheme != "" and any(_matches(pattern, place) for pattern in patterns)


def _matches(pattern: str, place: _Place) -> bool:
    wanted = _place(pattern)
    if wanted is None:
        return False
    if wanted.scheme not in ("", place.scheme) or wanted.port not in (None, place.port):
        return False
    if wanted.host.startswith("*."):
        return place.host.endswith(wanted.host[1:]) and len(place.host) > len(wanted.host) - 1
    return place.host == wanted.host


def _place(text: str) -> _Place | None:
    """None if it is neither an origin nor a host."""
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host:
        return None
    if port is None:
        port = _SCHEME_PORTS.get(parts.scheme)
    return _Place(parts.scheme, host, port)
