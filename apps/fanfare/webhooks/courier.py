"""One request to one endpoint: signed, bounded in time, and never to an address inside the network.

A redirect is followed only where the request stays what it is (307, 308), because what comes after 301, 302 and 303 is
a GET in most clients; those are failures. Each hop goes through the same check of its address. What the endpoint's
owner configured as headers, and may be a token, is not sent to another origin.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import NamedTuple, Self
from urllib.parse import urljoin, urlsplit

import aiohttp

from fanfare.applications import registry
from fanfare.webhooks import sockets

CONTENT_TYPE = "application/json"  # without a charset: the Ruby SDK compares it as it is
REDIRECTS = 3
ANSWER_BYTES = 1_000  # of an answer that are kept for people
IDLE_S = 2.0  # shorter than any usual server keeps an idle connection: a POST must not meet one that just closed
CONNECTIONS_PER_HOST = 16


class Outcome(NamedTuple):
    """What became of a request. `status` is None where no answer came; `error` is empty where it was accepted."""

    status: int | None
    error: str
    answer: str
    duration_ms: int

    @property
    def accepted(self) -> bool:
        return not self.error


def envelope(payloads: Sequence[str], now: float) -> bytes:
    """The body of a request. `now`: Unix time; SDKs refuse a body that is older than five minutes."""
    return b'{"time_ms":%d,"events":[%s]}' % (now * 1000, ",".join(payloads).encode())


def sign(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class Courier:
    """Use as an async context manager."""

    def __init__(self, *, timeout_seconds: float, allow_private: bool) -> None:
        self._timeout_seconds = timeout_seconds
        self._allow_private = allow_private
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            socket_factory=sockets.open_any if self._allow_private else sockets.open_public,
            limit=0,
            limit_per_host=CONNECTIONS_PER_HOST,
            keepalive_timeout=IDLE_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # one for all hops: see `post`
            auto_decompress=False,  # an answer is not worth a bomb
            trust_env=False,  # no proxy that the environment names for others: it would connect where we may not
            skip_auto_headers=("Accept-Encoding",),
            headers={"User-Agent": "Fanfare"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(
        self, application: registry.Application, webhook: registry.Webhook, payloads: Sequence[str]
    ) -> Outcome:
        """Send events. Never raises for what the other side does."""
        body = envelope(payloads, time.time())
        own = {
            "Content-Type": CONTENT_TYPE,
            "X-Pusher-Key": application.key,
            "X-Pusher-Signature": sign(application.secret, body),
        }
        started = time.monotonic()
        status, error, answer = None, "", ""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status, error, answer = await self._follow(webhook, own, body)
        except TimeoutError:
            error = f"No answer within {self._timeout_seconds:g} seconds"
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error = _sentence(failure)
        return Outcome(status, error, answer, round((time.monotonic() - started) * 1000))

    async def _follow(self, webhook: registry.Webhook, own: dict[str, str], body: bytes) -> tuple[int | None, str, str]:
        url, origin = webhook.url, _origin(webhook.url)
        for _ in range(REDIRECTS + 1):
            headers = {**dict(webhook.headers), **own} if _origin(url) == origin else own
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                if 200 <= response.status < 300:
                    return response.status, "", ""
                if response.status in (307, 308) and "Location" in response.headers:
                    url = urljoin(url, response.headers["Location"])
                    scheme = _origin(url)[0]
                    if scheme not in ("http", "https") or (origin[0] == "https" and scheme == "http"):
                        return response.status, f"Redirected from {origin[0]} to {_shown(url)}", ""
                    continue
                answer = (await response.content.read(ANSWER_BYTES)).decode(errors="replace").replace("\x00", "")
                return response.status, _refusal(response), answer
        return None, f"More than {REDIRECTS} redirects", ""


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _shown(url: str) -> str:
    """Without a query: there may be a token in it."""
    return urlsplit(url)._replace(query="", fragment="").geturl()[:200]


def _refusal(response: aiohttp.ClientResponse) -> str:
    location = response.headers.get("Location")
    if response.status in (301, 302, 303) and location:
        return f"HTTP {response.status} to {_shown(location)}: only 307 and 308 are followed with a POST"
    return f"HTTP {response.status}"


def _sentence(failure: Exception) -> str:
    text = str(failure) or type(failure).__name__
    return text.replace("\x00", "")[:500]
