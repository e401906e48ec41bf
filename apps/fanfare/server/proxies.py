"""The client's real address and scheme, behind a proxy that is trusted and only then.

A proxy says in `X-Forwarded-For` and `X-Forwarded-Proto` whom it speaks for. Anybody can send these headers, so they
count only if the peer of the connection itself is in FANFARE_TRUSTED_PROXIES. Then the list is walked from its right
end, where the nearest proxy wrote, over all that is trusted; the first address that is not is the client. Everything
left of it is the client's own claim.

After this wrapper `scope["client"]` and `scope["scheme"]` are the truth for everything behind it, on every server.

uvicorn has a middleware of its own for this, and by default it trusts whatever connects from this machine: any local
process could choose its address. It stands outside the application and rewrites the scope before it arrives here, so
`take_over` empties its list of trusted hosts when the lifespan starts (gunicorn.conf.py does not let it be installed at
all); `--lifespan off` would leave it in place. Daphne trusts nobody unless asked.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from typing import Any

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django.core.exceptions import ImproperlyConfigured

from fanfare.server import interfaces

logger = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX = "unix"  # in the list of trusted proxies: a peer on a Unix socket, which has no address

UVICORN_DEFAULT = "127.0.0.1,::1"  # what its forwarded_allow_ips is when nobody said anything

SECURE = {"https": True, "wss": True, "http": False, "ws": False}


class Trusted:
    """Which peers are believed."""

    def __init__(self, entries: Iterable[str], *, setting: str = "FANFARE_TRUSTED_PROXIES") -> None:
        self.networks: list[Network] = []
        self.unix = False
        for entry in entries:
            if entry == UNIX:
                self.unix = True
                continue
            try:
                self.networks.append(ipaddress.ip_network(entry))
            except ValueError as error:
                raise ImproperlyConfigured(
                    f"{setting} has {entry!r}, which is no IP address, no network such as 10.0.0.0/8 and not "
                    f"'unix': {error}."
                ) from None

    def __bool__(self) -> bool:
        return self.unix or bool(self.networks)

    def __contains__(self, address: Address | None) -> bool:
        if address is None:
            return self.unix
        return any(address in network for network in self.networks)

    def client(self, forwarded_for: str) -> Address | None:
        """Whom a trusted peer speaks for; None if it does not say."""
        found = None
        for item in reversed(forwarded_for.split(",")):
            address = parse(item.strip())
            if address is None:
                break  # a name, an underscore, garbage: what is left of it cannot be told from a lie
            found = address
            if address not in self:
                break
        return found


class TrustedProxies:
    """ASGI middleware; see the module's docstring."""

    def __init__(self, application: interfaces.Application, trusted: Trusted) -> None:
        self.application = application
        self.trusted = trusted

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if (scope["type"] == "http" or scope["type"] == "websocket") and _peer(scope) in self.trusted:
            _believe(scope, self.trusted)
        await self.application(scope, receive, send)


def trusting(application: interfaces.Application, trusted: Trusted) -> interfaces.Application:
    """Wrap the application where there is somebody to trust, and cost nothing where there is not."""
    return TrustedProxies(application, trusted) if trusted else application


def parse(value: str) -> Address | None:
    """An address as proxies write it: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`."""
    if value.startswith("["):
        value = value[1:].partition("]")[0]
    elif value.count(":") == 1:
        value = value.partition(":")[0]
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def take_over(config: Any) -> None:
    """Make uvicorn's own proxy middleware believe nobody. `config`: uvicorn's Config, loaded."""
    from uvicorn.middleware import proxy_headers

    middleware = config.loaded_app
    if not isinstance(middleware, proxy_headers.ProxyHeadersMiddleware):
        return
    middleware.trusted_hosts = proxy_headers._TrustedHosts([])
    if config.forwarded_allow_ips != UVICORN_DEFAULT:
        logger.warning(
            "uvicorn's forwarded-allow-ips (%s) is not used here; name the proxies in FANFARE_TRUSTED_PROXIES.",
            config.forwarded_allow_ips,
        )


def _peer(scope: Any) -> Address | None:
    client = scope.get("client")
    return parse(client[0]) if client else None


def _believe(scope: Any, trusted: Trusted) -> None:
    forwarded_for: list[str] = []
    scheme = ""
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            forwarded_for.append(value.decode("latin-1"))
        elif name == b"x-forwarded-proto":
            scheme = value.decode("latin-1").rpartition(",")[2].strip().lower()  # the last word is that of our peer
    client = trusted.client(",".join(forwarded_for))
    if client is not None:
        scope["client"] = (str(client), 0)  # the port is the proxy's business
    if scheme in SECURE:
        scope["scheme"] = ("http" if scope["type"] == "http" else "ws") + ("s" if SECURE[scheme] else "")
