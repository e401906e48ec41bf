"""The ASGI application at `<prefix>fanfare/console/…`: the live data of the console's pages.

A request carries the page's token (`Authorization: Bearer TOKEN`) and no cookie, so pages of any origin may send it:
the rights come from the token alone.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
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
SILENCE_S: Final = 10.0  # a stream without values sends an empty line, so that proxies keep it open
WRITE_S: Final = 30.0  # a page that reads nothing for so long is disconnected
READ_S: Final = 10.0  # for the body of a POST
BEARER: Final = b"bearer "

_CORS: Final = [(b"access-control-allow-origin", b"*"), (b"cache-control", b"no-store")]
_PREFLIGHT: Final = [
    *_CORS,
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type"),
    (b"access-control-max-age", b"7200"),
]
_LINES: Final = [*_CORS, (b"content-type", b"application/x-ndjson"), (b"x-accel-buffering", b"no")]

_Value = tuple[Any, Exception | None]


class _Gone(Exception):
    """The client disconnected, or reads nothing."""


class Live:
    """One per worker. `worker`: its parts."""

    def __init__(self, worker: requests.Worker) -> None:
        self._worker = worker
        self._streams: collections.Counter[str] = collections.Counter()  # by the user's id
        self._leaving: set[asyncio.Event] = set()  # one of each stream; set when it must end
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
                await self._stream(endpoint, self._request(scope, access), receive, send)
                return
            body = await _read_json(receive, endpoint.max_body) if endpoint.method == "POST" else {}
            assert endpoint.answer is not None  # noqa: S101  (one of both)
            await _json(send, 200, await endpoint.answer(self._request(scope, access, body)))
        except requests.Problem as problem:
            await _json(send, problem.status, {"error": str(problem)})
        except engine_errors.EngineError as error:
            await _json(send, 503, {"error": str(error)})
        except _Gone:
            return
        except Exception as error:  # noqa: BLE001  (logged with its traceback)
            self._log.error("The console's request %s failed", scope["path"], key=scope["path"], error=error)
            self._worker.hub.count("console.failed")
            await _json(send, 500, {"error": "The worker failed to answer; its log says why."})

    def _authorized(self, scope: Any) -> tuple[requests.Endpoint, Access]:
        path: str = scope["path"]
        name = path[path.index(PATH) + len(PATH) :].rstrip("/")
        sent = next((value for key, value in scope["headers"] if key == b"authorization"), b"")
        token = sent[len(BEARER) :].strip() if sent[: len(BEARER)].lower() == BEARER else b""
        access = tokens.read(token.decode("latin-1")) if token else None
        if access is None:
            raise requests.Problem(401, "The page's token is not valid any more. Reload the page.")
        endpoint = requests.declared.get(name)
        if endpoint is None:
            raise requests.Problem(404, f"This worker has no console data named {name[:50]!r}.")
        if scope["method"] != endpoint.method:
            raise requests.Problem(405, f"{name} is asked for with {endpoint.method}.")
        if not access.may(endpoint.permission):
            raise requests.Problem(403, f"You need the permission fanfare.{endpoint.permission}.")
        return endpoint, access

    def _request(self, scope: Any, access: Access, body: dict[str, Any] | None = None) -> requests.Request:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=50))
        return requests.Request(self._worker, access, query, body or {})

    # -- streams -------------------------------------------------------------------------------------------------------

    async def _stream(self, endpoint: requests.Endpoint, request: requests.Request, receive: Any, send: Any) -> None:
        user = request.access.user_id
        if self._streams.total() >= STREAMS_PER_WORKER or self._streams[user] >= STREAMS_PER_USER:
            raise requests.Problem(503, "Too many console pages are open at this worker. Close some of them.")
        self._streams[user] += 1
        leaving = asyncio.Event()
        self._leaving.add(leaving)
        if not self._watches_shutdown:
            self._watches_shutdown = transports.at_shutdown(send, self.stop)
        reader = self._worker.tasks.spawn("reader of a console stream", _disconnected(receive, leaving))
        try:
            assert endpoint.stream is not None  # noqa: S101  (as the caller found)
            async with contextlib.aclosing(endpoint.stream(request)) as values:  # type: ignore[type-var]
                await self._write(values, request.access, leaving, send)
        finally:
            reader.cancel()
            self._leaving.discard(leaving)
            self._streams[user] -= 1
            if not self._streams[user]:
                del self._streams[user]

    def stop(self) -> None:
        """End all streams: the worker is stopping, and their pages connect to another one."""
        for leaving in self._leaving:
            leaving.set()

    async def _write(self, values: AsyncIterator[Any], access: Access, leaving: asyncio.Event, send: Any) -> None:
        """One line for each value, until there is none, the page leaves, or its token expires."""
        started = False
        left = self._worker.tasks.spawn("end of a console stream", leaving.wait())
        waiting: asyncio.Task[_Value] | None = None
        try:
            while (rest_s := access.expires - time.time()) > 0 and not leaving.is_set():
                if waiting is None:
                    waiting = self._worker.tasks.spawn("next value of a console stream", _next(values))
                await asyncio.wait([waiting, left], timeout=min(SILENCE_S, rest_s), return_when=asyncio.FIRST_COMPLETED)
                line = b"\n"
                if waiting.done():
                    (value, error), waiting = waiting.result(), None
                    if isinstance(error, StopAsyncIteration):
                        break
                    if error is not None:
                        raise error
                    line = orjson.dumps(value) + b"\n"
                if not started:  # not before the first value, so that a Problem has its status
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": _LINES})
                await _write(send, line)
        except (requests.Problem, engine_errors.EngineError) as problem:
            if not started:
                raise
            await _write(send, orjson.dumps({"error": str(problem)}) + b"\n")
        finally:
            left.cancel()
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait([waiting])
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": _LINES})
        await send({"type": "http.response.body", "body": b""})


async def _next(values: AsyncIterator[Any]) -> _Value:
    try:
        return await anext(values), None
    except Exception as error:  # noqa: BLE001  (raised again where the value is taken)
        return None, error


async def _write(send: Any, line: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_S):
            await send({"type": "http.response.body", "body": line, "more_body": True})
    except (TimeoutError, OSError) as error:
        raise _Gone from error


async def _disconnected(receive: Any, leaving: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    leaving.set()


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
        raise requests.Problem(408, "The request did not come within 10 s.") from None
    try:
        value = orjson.loads(bytes(body))
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
