"""The client's address and scheme behind a trusted proxy.

A proxy writes the client's address into `X-Forwarded-For` and the scheme into `X-Forwarded-Proto`. Any client can send
these headers, so they count only if the peer of the connection itself is in FANFARE_TRUSTED_PROXIES. The list is then
read from right to left, past every trusted address; the first other address is the client. Addresses left of it come
from the client and are ignored.

After this middleware, `scope["client"]` and `scope["scheme"]` are correct on every server.

uvicorn has a middleware of its own for this, which by default trusts every peer on this machine: any local process
could choose its address. It rewrites the scope before this middleware, so
`take_over` empties its list of trusted hosts when the lifespan starts; `--lifespan off` leaves it in place. Daphne
trusts no peer unless asked.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from typing import Any

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django.core.exceptions import ImproperlyConfigured

from fanfare.runtime import addresses
from fanfare.server import interfaces

logger = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX = "unix"  # in the list of trusted proxies: a peer on a Unix socket, which has no address

# forwarded_allow_ips without a flag: a text in uvicorn, a list in gunicorn.
LOOPBACK = frozenset({"127.0.0.1", "::1"})

SECURE = {"https": True, "wss": True, "http": False, "ws": False}


class Trusted:
    """The peers whose headers count."""

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
                    f"{setting} has {entry!r}, which is neither an IP address, nor a network such as 10.0.0.0/8, nor "
                    f"'unix': {error}."
                ) from None

    def __bool__(self) -> bool:
        return self.unix or bool(self.networks)

    def __contains__(self, address: addresses.Address | None) -> bool:
        if address is None:
            return self.unix
        return any(address in network for network in self.networks)

    def client(self, forwarded_for: str) -> addresses.Address | None:
        """The client behind a trusted peer; None if the header does not name one."""
        found = None
        for item in reversed(forwarded_for.split(",")):
            address = addresses.parse(item.strip())
            if address is None:
                break  # not an address: entries left of it may come from the client
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
        if scope["type"] == "http" or scope["type"] == "websocket":
            resolve(scope, self.trusted)
        await self.application(scope, receive, send)


def resolve(scope: Any, trusted: Trusted) -> None:
    """Set `client` and `scheme` of a scope, if its peer is trusted."""
    if trusted and _peer(scope) in trusted:
        _believe(scope, trusted)


def trusting(application: interfaces.Application, trusted: Trusted) -> interfaces.Application:
    """The application itself if no peer is trusted."""
    return TrustedProxies(application, trusted) if trusted else application


def take_over(config: Any) -> None:
    """Make uvicorn's own proxy middleware trust no peer. `config`: uvicorn's Config, loaded."""
    from uvicorn.middleware import proxy_headers

    middleware = config.loaded_app
    if not isinstance(middleware, proxy_headers.ProxyHeadersMiddleware):
        return
    middleware.trusted_hosts = proxy_headers._TrustedHosts([])
    given = config.forwarded_allow_ips
    if not LOOPBACK.issuperset(given.split(",") if isinstance(given, str) else given):
        logger.warning(
            "uvicorn's forwarded-allow-ips (%s) is not used here; name the proxies in FANFARE_TRUSTED_PROXIES.",
            given,
        )


def is_operator(scope: Any, trusted: Trusted) -> bool:
    """Whether a request comes from this machine or a trusted peer, and not through a proxy. Only such a request may
    read details. A proxy, trusted or not, adds its headers.
    """
    if any(addresses.is_proxy_header(name.decode("latin-1")) for name, _ in scope["headers"]):
        return False
    address = _peer(scope)
    return address in trusted or (address is not None and address.is_loopback)


def _peer(scope: Any) -> addresses.Address | None:
    client = scope.get("client")
    return addresses.parse(client[0]) if client else None


def _believe(scope: Any, trusted: Trusted) -> None:
    forwarded_for: list[str] = []
    scheme = ""
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            forwarded_for.append(value.decode("latin-1"))
        elif name == b"x-forwarded-proto":
            scheme = (
                value.decode("latin-1").rpartition(",")[2].strip().lower()
            )  # the last entry was written by our peer
    client = trusted.client(",".join(forwarded_for))
    if client is not None:
        scope["client"] = (str(client), 0)  # the port was the proxy's
    if scheme in SECURE:
        scope["scheme"] = ("http" if scope["type"] == "http" else "ws") + ("s" if SECURE[scheme] else "")
