"""The ASGI application at `<prefix>fanfare/console/…`: the live data of the console's pages.

A request carries the page's token (`Authorization: Bearer TOKEN`) and no cookie, so pages of any origin may send it:
the rights come from the token alone.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from fanfare.console import endpoints, requests, tokens
from fanfare.console.permissions import Access
from fanfare.engine import errors as engine_errors
from fanfare.hub import transports
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

PATH: Final = "/fanfare/console/"
STREAMS_PER_WORKER: Final = 200
STREAMS_PER_USER: Final = 50  # of one worker
WRITE_S: Final = 30.0  # a page that reads nothing for so long is disconnected
READ_S: Final = 10.0  # for the body of a POST
MAX_ARGUMENTS: Final = 50  # of a request's query
BEARER: Final = b"bearer "

_CORS: Final = [(b"access-control-allow-origin", b"*"), (b"cache-control", b"no-store")]
_PREFLIGHT: Final = [
    *_CORS,
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type"),
    (b"access-control-max-age", b"7200"),
]
_LINES: Final = [*_CORS, (b"content-type", b"application/x-ndjson"), (b"x-accel-buffering", b"no")]
_WORKER: Final = b"x-fanfare-worker"  # the node and the process id, which the page shows when the connection is lost


class _Gone(Exception):
    """The client disconnected, or reads nothing."""


class Live:
    """One per worker. `worker`: its parts."""

    def __init__(self, worker: requests.Worker) -> None:
        self._worker = worker
        self._streams: collections.Counter[str] = collections.Counter()  # by the user's id
        self._lives: set[asyncio.Timeout] = set()  # one of each stream
        self._watches_shutdown = False
        self._log = LogThrottle(logger)
        endpoints.load()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        transports.keep_out_of_log(send)
        try:
            if scope["method"] == "OPTIONS":
                await _respond(send, 204, b"", _PREFLIGHT)
                return
            endpoint, access = self._authorized(scope)
            if endpoint.stream is not None:
                await self._stream(endpoint, self._request(scope, access), scope["path"], receive, send)
                return
            body = await _read_json(receive, endpoint.max_body) if endpoint.method == "POST" else {}
            assert endpoint.answer is not None  # noqa: S101  (one of both)
            await _json(send, 200, await endpoint.answer(self._request(scope, access, body)))
        except _Gone:
            return
        except Exception as error:  # noqa: BLE001  (`_explained` logs it)
            status, message = self._explained(error, scope["path"])
            await _json(send, status, {"error": message})

    def _explained(self, error: Exception, path: str) -> tuple[int, str]:
        """The status and the message for the page. A fault of this code is logged and counted."""
        if isinstance(error, requests.Problem):
            return error.status, str(error)
        if isinstance(error, engine_errors.EngineError):
            return 503, str(error)
        self._log.error("The console's request %s failed", path, key=path, error=error)
        self._worker.hub.count("console.failed")
        return 500, "The worker failed to answer; its log says why."

    def _authorized(self, scope: Any) -> tuple[requests.Endpoint, Access]:
        path: str = scope["path"]
        name = path[path.index(PATH) + len(PATH) :].rstrip("/")
        sent = next((value for key, value in scope["headers"] if key == b"authorization"), b"")
        token = sent[len(BEARER) :].strip() if sent[: len(BEARER)].lower() == BEARER else b""
        access = tokens.read(token.decode("latin-1")) if token else None
        if access is None:
            raise requests.Problem(401, "The page's token is no longer valid. Reload the page.")
        endpoint = requests.declared.get(name)
        if endpoint is None:
            raise requests.Problem(404, f"This worker has no console data named {name[:50]!r}.")
        if scope["method"] != endpoint.method:
            raise requests.Problem(405, f"{name} must be requested with {endpoint.method}.")
        if not access.may(endpoint.permission):
            raise requests.Problem(403, f"You need the permission fanfare.{endpoint.permission}.")
        return endpoint, access

    def _request(self, scope: Any, access: Access, body: dict[str, Any] | None = None) -> requests.Request:
        return requests.Request(self._worker, access, _query(scope["query_string"]), body or {})

    # -- streams -------------------------------------------------------------------------------------------------------

    async def _stream(
        self, endpoint: requests.Endpoint, request: requests.Request, path: str, receive: Any, send: Any
    ) -> None:
        user = request.access.user_id
        if self._streams.total() >= STREAMS_PER_WORKER or self._streams[user] >= STREAMS_PER_USER:
            raise requests.Problem(503, "Too many console pages are open at this worker. Close some of them.")
        self._streams[user] += 1
        life = asyncio.timeout(max(0.0, request.access.expires - time.time()))
        self._lives.add(life)
        if not self._watches_shutdown:
            self._watches_shutdown = transports.at_shutdown(send, self.stop)
        reader = self._worker.tasks.spawn("reader of a console stream", _disconnected(receive, life))
        try:
            assert endpoint.stream is not None  # noqa: S101  (as the caller found)
            await self._write_all(endpoint.stream(request), life, path, send)
        finally:
            reader.cancel()
            self._lives.discard(life)
            self._streams[user] -= 1
            if not self._streams[user]:
                del self._streams[user]

    async def _write_all(self, values: AsyncIterator[Any], life: asyncio.Timeout, path: str, send: Any) -> None:
        """Send one line for each value, until there is none or the stream's life ends: the page leaves, its token
        expires, or the worker stops. An error after the first value is the last line."""
        started = False
        try:
            async with life, contextlib.aclosing(values) as lines:  # type: ignore[type-var]
                async for value in lines:
                    if not started:  # not before the first value, so that a Problem has its status
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": _lines()})
                    await _write(send, value if isinstance(value, bytes) else orjson.dumps(value) + b"\n")
        except _Gone:
            raise
        except Exception as error:
            if not (life.expired() and isinstance(error, TimeoutError)):
                if not started:
                    raise
                await _write(send, orjson.dumps({"error": self._explained(error, path)[1]}) + b"\n")
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": _lines()})
        await _write(send, b"", more=False)

    def stop(self) -> None:
        """End all streams: the worker is stopping, and their pages connect to another one."""
        for life in self._lives:
            _end(life)


def _lines() -> list[tuple[bytes, bytes]]:
    worker = f"{os.getpid()} of {socket.gethostname()}".encode()
    return [*_LINES, (_WORKER, worker), (b"access-control-expose-headers", _WORKER)]


def _end(life: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # it ends already
        life.reschedule(0.0)


async def _write(send: Any, line: bytes, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(WRITE_S):
            await send({"type": "http.response.body", "body": line, "more_body": more})
    except (TimeoutError, OSError) as error:
        raise _Gone from error


def _query(query_string: bytes) -> dict[str, str]:
    """The arguments, the last one of each name. Raises Problem."""
    try:
        return dict(parse_qsl(query_string.decode("latin-1"), max_num_fields=MAX_ARGUMENTS))
    except ValueError:
        raise requests.Problem(400, f"The request has more than {MAX_ARGUMENTS} arguments.") from None


async def _disconnected(receive: Any, life: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    _end(life)


async def _read_json(receive: Any, limit: int) -> dict[str, Any]:
    body = bytearray()
    more = True
    try:
        async with asyncio.timeout(READ_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body += message.get("body", b"")
                if len(body) > limit:
                    raise requests.Problem(413, f"The request has more than {limit:,} bytes.")
                more = message.get("more_body", False)
    except TimeoutError:
        raise requests.Problem(408, "The request did not arrive within 10 s.") from None
    return _object(bytes(body))


def _object(body: bytes) -> dict[str, Any]:
    """Raises Problem unless `body` is a JSON object."""
    try:
        value = orjson.loads(body)
    except ValueError:
        raise requests.Problem(400, "The body is not JSON.") from None
    if not isinstance(value, dict):
        raise requests.Problem(400, "The body is not a JSON object.")
    return value


async def _json(send: Any, status: int, value: Any) -> None:
    await _respond(send, status, orjson.dumps(value), [*_CORS, (b"content-type", b"application/json")])


async def _respond(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    if status != 204:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
