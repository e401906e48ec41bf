"""The options of pusher-js, and tokens for event streams."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest
from django.urls import get_script_prefix

from fanfare import conf, errors
from fanfare.integration import target, users
from fanfare.protocol import names
from fanfare.sse import tokens

TOKEN_SECONDS = 3_600  # longer than the life of a stream, so that one token lasts for a visit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_TOKEN_PATTERN = re.compile(r"\A[-A-Za-z0-9_=@,.;*]+\Z")


def pusher_options(request: HttpRequest) -> dict[str, Any]:
    """The `key` and the `options` of `new Pusher(key, options)`. Public values only.

    The sockets are at FANFARE_PUBLIC_URL or, in remote mode, at FANFARE_REMOTE_URL; otherwise at the host that the
    browser asked, below the project's path and FANFARE_URL_PREFIX. The page adds `channelAuthorization` itself, since
    it depends on where the page keeps its CSRF token. Raises NoApplication.
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


def sse_token(
    channels: Iterable[str],
    *,
    user_id: users.User | None = None,
    seconds: int = TOKEN_SECONDS,
    app: target.App = None,
) -> str:
    """A token with which a visitor may read private channels as an event stream.

        token = sse_token(["private-orders-*"], user_id=request.user, seconds=600)

    The page opens `/sse/KEY?channels=private-orders-1&token=TOKEN`. `channels`: 1 to 100 names, in which `*` stands for
    any characters; public channels need no token, and event streams carry no presence channels. `user_id`: the user
    of the token, or their id; `disconnect_user()` of that user ends the stream. `seconds`: how long it is valid; a
    stream that is open then ends. `app`: an application or its id, by default the project's default application.
    Returns a JSON Web Token (HS256) of at most 4,096 bytes. Any program that has it can use it until it expires, so
    send it over https and keep `seconds` short.

    Raises InvalidName, InvalidUser, NoApplication, and ValueError for `seconds` below 1. Source: RFC 7519.
    """
    patterns = (channels,) if isinstance(channels, str) else tuple(channels)
    if not 1 <= len(patterns) <= tokens.MAX_PATTERNS:
        raise errors.InvalidName(f"A token names 1 to {tokens.MAX_PATTERNS} channels, not {len(patterns)}.")
    for pattern in patterns:
        _check_token_pattern(pattern)
    if seconds < 1:
        raise ValueError(f"`seconds` is {seconds}; a token is valid for at least 1 second.")
    owner = None if user_id is None else users.user_id(user_id)
    token = tokens.sign(target.application(app).secret, tokens.Grant(patterns, time.time() + seconds, owner))
    if len(token) > tokens.MAX_BYTES:
        raise errors.InvalidName(
            f"The token has {len(token)} bytes; {tokens.MAX_BYTES} are allowed. Name fewer channels, or use `*`."
        )
    return token


def _check_token_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str) or _TOKEN_PATTERN.match(pattern) is None:
        raise errors.InvalidName(f"{pattern!r} is not a channel name, in which `*` may stand for any characters.")
    if names.is_presence(pattern):
        raise errors.InvalidName(
            f"{pattern!r} is a presence channel. Event streams carry none, since their readers would not be among the "
            f"members: publish to a private channel as well, such as {pattern.replace('presence-', 'private-', 1)!r}, "
            "or subscribe over WebSocket."
        )
