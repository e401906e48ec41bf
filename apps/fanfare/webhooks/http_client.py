"""Signed requests to endpoints, bounded in time and memory, to public addresses only.

The URL of an endpoint decides where this server connects to, and the network around the server has other services of
the operator. Therefore the address is checked where its socket is created: after the name was resolved, for each
redirect, and for exactly the address that the socket connects to. A name that resolves differently a moment later
makes no difference.

Only 307 and 308 redirects are followed: after 301, 302 and 303 most clients send a GET. The headers that the endpoint's
owner configured, which may hold a token, are sent to the endpoint's own origin only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import logging
import socket
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent import futures
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from fanfare.applications import registry
from fanfare.runtime import addresses
from fanfare.runtime.log_throttle import LogThrottle, exception_line
from fanfare.runtime.text import clean, clean_lines
from fanfare.webhooks import errors
from fanfare.webhooks.outcome import Outcome

CONTENT_TYPE = "application/json"  # without a charset: the Ruby SDK compares the whole value
REDIRECTS = 3
ANSWER_BYTES = 1_000  # of an error response's body that are stored
ANSWER_S = 1.0  # for these bytes, after the status
IDLE_S = (
    2.0  # shorter than the usual keep-alive of servers, so that a POST does not use a connection that was just closed
)
REQUESTS_PER_HOST = 16  # concurrent, for the endpoints of one scheme, host and port
REQUESTS = 256  # concurrent, of all endpoints: the worker needs its file descriptors for clients
SLOW_REQUESTS = 128  # of these, for endpoints whose last request took QUICK_S or longer, and for unknown ones
QUICK_S = 1.0
LOOKUPS = 16  # concurrent lookups; a name server that does not answer occupies a thread for 30 s
URL_CHARACTERS = 200  # of a redirect target in an error message

_log = LogThrottle(logging.getLogger(__name__))


class _Answer(NamedTuple):
    status: int | None
    error: str = ""
    excerpt: str = ""


def body_of(payloads: Sequence[str], now: float) -> bytes:
    """The body of a request. `now`: Unix time; SDKs refuse a body that is older than five minutes."""
    return b'{"time_ms":%d,"events":[%s]}' % (now * 1000, ",".join(payloads).encode())


def sign(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class HttpClient:
    """Use it as an async context manager."""

    def __init__(self, *, timeout_seconds: float, allow_private: bool) -> None:
        self._timeout_seconds = timeout_seconds
        self._allow_private = allow_private
        self._slots = asyncio.Semaphore(REQUESTS)
        # Otherwise 32 slow endpoints with eight requests each would delay all others.
        self._slow_slots = asyncio.Semaphore(SLOW_REQUESTS)
        self._quick: set[int] = set()  # endpoints
        # Not a limit of aiohttp's connector, whose wait would count as the receiver's.
        self._hosts: weakref.WeakValueDictionary[Any, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(),
            socket_factory=open_any if self._allow_private else open_public,
            limit=0,
            keepalive_timeout=IDLE_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `post` has one timeout for all redirects together
            auto_decompress=False,  # a small compressed body can be very large
            trust_env=False,  # a proxy of the environment would connect to addresses that are refused here
            skip_auto_headers=("Accept-Encoding",),
            headers={"User-Agent": "Fanfare"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(
        self,
        application: registry.Application,
        webhook: registry.Webhook,
        payloads: Sequence[str],
        trace: Mapping[str, str] = MappingProxyType({}),
    ) -> Outcome:
        """Send events. `trace`: headers of the trace context. Raises nothing for any behaviour of the receiver."""
        lane = contextlib.nullcontext() if webhook.id in self._quick else self._slow_slots
        async with self._host(webhook.url), lane, self._slots:
            body = body_of(payloads, time.time())
            own = {
                **trace,
                "Content-Type": CONTENT_TYPE,
                "X-Pusher-Key": application.key,
                "X-Pusher-Signature": sign(application.secret, body),
            }
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._timeout_seconds) as limit:
                    answer = await self._follow(webhook, own, body)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                expired = isinstance(error, TimeoutError) and limit.expired()
                answer = _Answer(None, f"No response within {self._timeout_seconds:g} s" if expired else _reason(error))
            except Exception as error:  # noqa: BLE001  (a fault of ours or of aiohttp: no receiver may stop the others)
                _log.error("A request to webhook %d failed", webhook.id, error=error)
                answer = _Answer(None, clean(exception_line(error)))
            took_s = time.monotonic() - started
            (self._quick.add if took_s < QUICK_S else self._quick.discard)(webhook.id)
            return Outcome(*answer, round(took_s * 1000))

    def _host(self, url: str) -> asyncio.Semaphore:
        try:
            origin: Any = _origin(url)
        except ValueError:
            origin = url  # the request says why it fails
        found = self._hosts.get(origin)
        if found is None:
            found = self._hosts[origin] = asyncio.Semaphore(REQUESTS_PER_HOST)
        return found

    async def _follow(self, webhook: registry.Webhook, own: dict[str, str], body: bytes) -> _Answer:
        url, origin = webhook.url, _origin(webhook.url)
        for _ in range(REDIRECTS + 1):
            headers = {**dict(webhook.headers), **own} if _origin(url) == origin else own
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
                if 200 <= status < 300:
                    return _Answer(status)
                location = response.headers.get("Location", "")
                if status not in (307, 308) or not location:
                    return _Answer(status, _refusal(status, location), await _excerpt(response))
            try:
                url = urljoin(url, location)
                scheme = _origin(url)[0]
                location.encode()  # bytes of a header that are not UTF-8 are surrogates here
            except ValueError:
                return _Answer(status, f"Redirected to {clean(location, URL_CHARACTERS)}, which is not a URL")
            if scheme not in ("http", "https") or (origin[0] == "https" and scheme == "http"):
                return _Answer(status, f"Redirected from {origin[0]} to {_shown(url)}")
        return _Answer(None, f"More than {REDIRECTS} redirects")


def _origin(url: str) -> tuple[str, str, int | None]:
    """Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _shown(url: str) -> str:
    """The URL without its query, which may contain a token."""
    try:
        url = urlsplit(url)._replace(query="", fragment="").geturl()
    except ValueError:
        url = url.partition("?")[0]
    return clean(url, URL_CHARACTERS)


def _refusal(status: int, location: str) -> str:
    if status in (301, 302, 303) and location:
        return f"HTTP {status} to {_shown(location)}: only 307 and 308 are followed with a POST"
    return f"HTTP {status}"


def _reason(error: Exception) -> str:
    """The error without the URL, whose query may contain a token."""
    if isinstance(error, aiohttp.ClientResponseError):
        return clean(f"The response is not valid HTTP: {error.message}")
    if isinstance(error, aiohttp.InvalidURL):
        return "The URL, or the one of a redirect, is not valid"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED:
        return f"Cannot connect to {error.host}:{error.port}: Connection refused"
    return clean(str(error)) or type(error).__name__


async def _excerpt(response: aiohttp.ClientResponse) -> str:
    """The beginning of the body: as much of it as arrived in time."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        return f"(a body with Content-Encoding {clean(encoding, 50)})"
    found = bytearray()
    try:
        async with asyncio.timeout(ANSWER_S):
            while len(found) < ANSWER_BYTES and (more := await response.content.read(ANSWER_BYTES - len(found))):
                found += more
    except (aiohttp.ClientError, OSError):  # a timeout included
        pass
    return clean_lines(bytes(found), ANSWER_BYTES)


# -- names and addresses -----------------------------------------------------------------------------------------------


class _Resolver(AbstractResolver):
    """The system's resolver in its own threads: slow name servers must not delay other work in the default executor."""

    def __init__(self) -> None:
        self._threads = futures.ThreadPoolExecutor(LOOKUPS, thread_name_prefix="fanfare-webhooks-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        def look_up() -> list[Any]:
            return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)

        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=family_, proto=proto, flags=flags)
            for family_, _, proto, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def open_public(information: tuple[Any, ...]) -> socket.socket:
    """A socket for one result of getaddrinfo. Raises AddressRefused unless its address is public."""
    address = str(information[4][0])
    parsed = addresses.parse(address.partition("%")[0])
    if parsed is None or not addresses.is_public(parsed):
        raise errors.AddressRefused(address)
    return open_any(information)


def open_any(information: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = information
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setblocking(False)
    return made
