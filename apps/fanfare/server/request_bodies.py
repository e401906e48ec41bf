"""Limits for the bodies of requests to Django's pages.

Django reads a whole body before it looks at the URL, also for a 404: the first 2.5 MB into memory, and the rest, of any
size, into the temporary folder. This module refuses a body that is too large with 413, and one that arrives too slowly
with 408. The HTTP API has its own limits (`fanfare.api.requests`), and SSE requests have no body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from fanfare.runtime.log_throttle import LogThrottle
from fanfare.server import interfaces

GRACE_S: Final = 30.0  # for a body of any size
MIN_BYTES_PER_S: Final = 1_000  # the minimum rate after that: 25 MB may take seven hours, 60 bytes 30 seconds
FORM_BYTES: Final = 262_144  # for Fanfare's own views, which read a few form fields

_log = LogThrottle(logging.getLogger(__name__))


class RequestBodies:
    """ASGI middleware. `max_bytes`: of a body; 0 for no limit. `forms`: the path prefix of Fanfare's own views. `count`
    adds one to a counter.
    """

    def __init__(
        self,
        application: interfaces.Application,
        *,
        max_bytes: int,
        forms: str = "/pusher/",
        count: Callable[[str], object],
        grace_s: float = GRACE_S,
    ) -> None:
        self._application = application
        self._max_bytes = max_bytes
        self._forms = forms
        self._count = count
        self._grace_s = grace_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        declared: int | None = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                declared = int(value) if value.isdigit() and len(value) < 20 else None
            elif name == b"transfer-encoding":
                declared = -1
        if not declared:  # no body
            await self._application(scope, receive, send)
            return
        limit = self._limit(scope)
        body = _Body(scope, receive, send, limit=limit, grace_s=self._grace_s, count=self._count)
        if limit and declared > limit:
            await body.refuse_size(declared)
        else:
            await self._application(scope, body.receive, body.send)

    def _limit(self, scope: Any) -> int:
        if scope["path"].removeprefix(scope.get("root_path", "")).startswith(self._forms):
            return min(self._max_bytes or FORM_BYTES, FORM_BYTES)
        return self._max_bytes


class _Body:
    """One request. After a refusal the application gets a disconnect, and its messages are dropped."""

    def __init__(
        self, scope: Any, receive: Any, send: Any, *, limit: int, grace_s: float, count: Callable[[str], object]
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._count = count
        self._bytes = 0
        self._remaining_s = grace_s
        self._is_complete = False
        self._is_answered = False
        self._is_refused = False

    async def receive(self) -> Any:
        if self._is_refused:
            return {"type": "http.disconnect"}
        if self._is_complete:
            return await self._receive()
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._remaining_s):
                message = await self._receive()
        except TimeoutError:
            return await self._refuse(
                408,
                "body_timeout",
                f"The request's body arrives too slowly: {self._bytes} bytes so far, {MIN_BYTES_PER_S} a second are "
                "required.",
            )
        if message["type"] != "http.request":
            return message
        size = len(message.get("body", b""))
        self._bytes += size
        self._remaining_s += size / MIN_BYTES_PER_S - (loop.time() - started)
        if self._limit and self._bytes > self._limit:
            return await self.refuse_size(self._bytes)
        self._is_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Any) -> None:
        if self._is_refused:
            return
        self._is_answered = True
        await self._send(message)

    async def refuse_size(self, actual: int) -> Any:
        return await self._refuse(
            413, "body_bytes", f"The request's body has at least {actual} bytes; {self._limit} are allowed."
        )

    async def _refuse(self, status: int, reason: str, message: str) -> Any:
        self._is_refused = True
        self._count(f"http.refused.{reason}")
        client = self._scope.get("client")
        _log.warning("HTTP request refused: %s (from %s)", message, client[0] if client else "unknown", key=reason)
        if not self._is_answered:
            body = message.encode()
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),  # the rest of the body is not read
            ]
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
        return {"type": "http.disconnect"}
