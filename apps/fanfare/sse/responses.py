"""The responses of SSE connections, with their headers.

An EventSource stops permanently after any status except 200. That is right for permanent errors and wrong for an
overload. Therefore `Unavailable` is a 503 with `Retry-After` for programs, and for clients that accept
`text/event-stream` a response with the single event `unavailable`. They reconnect with their last cursor.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from fanfare.applications import registry
from fanfare.sse import encoding, refusals, requests

Headers = list[tuple[bytes, bytes]]

METHODS: Final = b"GET, HEAD, OPTIONS"
RETRY_AFTER_S: Final = 2
PREFLIGHT_S: Final = 7_200  # how long a browser caches the answer to OPTIONS; Chromium's own maximum


def cors(application: registry.Application | None, head: requests.Head) -> Headers:
    """Pages of the application's origins may read the response; without an application or origins, any page."""
    if application is None or not application.allowed_origins:
        allowed: Headers = [(b"access-control-allow-origin", b"*")]
    else:
        origin = (head.origin or "null").encode("latin-1")  # a page of another origin can read its refusal
        allowed = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
    return [*allowed, (b"access-control-expose-headers", b"last-event-id, retry-after")]


async def start_stream(send: Any, headers: Headers) -> None:
    """`no-transform` and `X-Accel-Buffering` keep proxies from compressing and buffering the response."""
    await _start(
        send,
        200,
        [
            (b"content-type", encoding.CONTENT_TYPE),
            (b"cache-control", b"no-store, no-transform"),
            (b"x-accel-buffering", b"no"),
            *headers,
        ],
    )


async def head_only(send: Any, headers: Headers) -> None:
    await start_stream(send, headers)
    await _end(send)


async def preflight(send: Any, headers: Headers) -> None:
    allowed: Headers = [
        (b"allow", METHODS),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", b"authorization, cache-control, last-event-id"),
        (b"access-control-max-age", b"%d" % PREFLIGHT_S),
    ]
    await _start(send, 204, [*allowed, *headers])
    await _end(send)


async def stop_for_good(send: Any, headers: Headers) -> None:
    """204: an EventSource does not reconnect after it."""
    await _start(send, 204, [(b"cache-control", b"no-store"), *headers])
    await _end(send)


async def refusal(send: Any, error: refusals.SseError, head: requests.Head, headers: Headers) -> None:
    """JSON; or a response of one event, for a client that would stop permanently after a temporary refusal."""
    is_temporary = isinstance(error, refusals.Unavailable)
    if is_temporary and head.wants_stream and head.method == "GET":
        await start_stream(send, headers)
        await _end(send, encoding.unavailable(error.code, str(error)))
        return
    body = orjson.dumps({"error": str(error), "code": error.code})
    more: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    if is_temporary:
        more.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    if isinstance(error, refusals.MethodNotAllowed):
        more.append((b"allow", METHODS))
    await _start(send, error.status, [*more, *headers])
    await _end(send, b"" if head.method == "HEAD" else body)


async def not_started(scope: Any, code: str, message: str, send: Any) -> None:
    """The worker is not ready: a temporary refusal, before any application is known."""
    head = requests.head(scope)
    await refusal(send, refusals.Unavailable(code, message), head, cors(None, head))


async def _start(send: Any, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _end(send: Any, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})
