"""The HTTP API as an ASGI application: Pusher's REST calls. No framework: publishing is a backend's hot path.

Source: Pusher Channels REST API reference. `_answer` processes a request in steps: route, application, signature, body,
operation. The first failing step refuses the request, so the body of an unsigned request is not read and the engine is
not queried.

Cost. For a signed event without subscribers, uvicorn takes 23 µs of CPU (as for an application that reads the body and
answers `{}`), this package 17 µs, and the log the rest. Therefore a body that has already arrived gets no timer (3 µs),
and per-request objects are named tuples instead of frozen dataclasses (0.3 µs each).

Browsers. A page must not contain an application's secret, but its backend can give it a signed request, which is valid
for ten minutes. Only the signature authorizes a request, never a cookie or an origin, so pages of any origin may send
it and read the response.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote, unquote

import orjson

from fanfare.api import authentication, operations, refusals, requests
from fanfare.applications import registry as registries
from fanfare.engine import errors as engine_errors
from fanfare.hub import hub as hubs
from fanfare.hub import transports
from fanfare.runtime.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

ANY_ORIGIN = (b"access-control-allow-origin", b"*")
JSON = (b"content-type", b"application/json")
LOG_INTERVAL_S = 1.0  # per code of a refusal; there are about thirty codes
LOGGED_PATH_CHARACTERS = 200
PREFLIGHT_SECONDS = 7_200  # how long a browser caches the answer to OPTIONS; Chromium's own maximum


class Response(NamedTuple):
    status: int
    body: bytes  # JSON, or empty
    headers: refusals.Headers


class Api:
    """Answers `/apps/…` and `/users/…`. `now` gives Unix seconds."""

    def __init__(self, hub: hubs.Hub, registry: registries.Registry, *, now: Callable[[], float] = time.time) -> None:
        self._hub = hub
        self._registry = registry
        self._now = now
        self._log = LogThrottle(logger, LOG_INTERVAL_S)

    async def __call__(self, scope: requests.Scope, receive: requests.Receive, send: requests.Send) -> None:
        self._hub.count("api.requests")
        transports.keep_out_of_log(send)  # the query holds a signature that is valid for minutes
        try:
            response = await self._answer(scope, receive)
        except refusals.Disconnected:
            self._hub.count("api.disconnected")
            return
        except Exception as error:  # noqa: BLE001
            response = self.failed(scope, error)
        await _send(response, send)

    def failed(self, scope: requests.Scope, error: Exception) -> Response:
        """The answer to a request that was refused or failed; it is logged and counted."""
        if isinstance(error, engine_errors.OverBudget):
            error = refusals.TooMany(error.limit, error.actual)
        elif isinstance(error, engine_errors.EngineError):
            error = refusals.Unavailable(str(error), code=error.code)
        if isinstance(error, refusals.ApiError):
            return self._refuse(scope, error)
        logger.error("API request failed: %s %r", scope["method"], scope["path"], exc_info=error)
        self._hub.count("api.failed")
        return Response(500, _explain("The server failed to answer; its log says why.", "internal"), [])

    async def _answer(self, scope: requests.Scope, receive: requests.Receive) -> Response:
        method: str = scope["method"]
        path, *longer = _paths(scope)
        found = operations.find(path)
        if found is None:
            raise refusals.NotFound("The API has no such route.")
        route, names = found
        if method == "OPTIONS":
            return Response(204, b"", _preflight(route))
        if method not in route.methods:
            raise refusals.MethodNotAllowed(f"{method[:20]} is not allowed here, but {route.allowed}.", route.allowed)

        query = requests.parse_query(scope["query_string"])
        application = self._application(names, query)
        body_md5 = authentication.verify(application, method, (path, *longer), query, self._now())
        if not application.enabled:
            raise refusals.Forbidden(f"The application {application.id} is disabled.")

        head = requests.Head(scope["headers"])
        body = await requests.read_body(head, receive, method, route.body_limit(application.limits))
        authentication.verify_body(method, body_md5, body)
        request = requests.Request(
            application=application,
            names={name: unquote(value) for name, value in names.items()},
            query=query.arguments(),
            body=body,
            idempotency_key=head.idempotency_key,
            address=str(scope["client"][0]) if scope.get("client") else "",
            traceparent=head.traceparent,
        )
        return Response(route.status, await route.operation(self._hub, request), [])

    def _application(self, names: dict[str, str], query: requests.Query) -> registries.Application:
        """The application of the path or, for a route without an id, of the key. Raises NotFound or Unauthorized."""
        if "app_id" in names:
            application = self._registry.by_id(names["app_id"])
            if application is None:
                raise refusals.NotFound("There is no application with this id.", code="unknown_application")
            return application
        application = self._registry.by_key(authentication.key(query))
        if application is None:
            raise refusals.Unauthorized("There is no application with this auth_key.", code="invalid_key")
        return application

    def _refuse(self, scope: requests.Scope, error: refusals.ApiError) -> Response:
        self._hub.count(f"api.refused.{error.status}")
        client = scope.get("client")
        self._log.warning(  # without the query, whose signature is valid for minutes
            "API request refused: %s (%d) %.20s %.*r from %s",
            error.code,
            error.status,
            scope["method"],
            LOGGED_PATH_CHARACTERS,
            scope["path"],
            client[0] if client else "unknown",
            key=error.code,
        )
        self._hub.activity.refused(
            "API request",
            error.code,
            str(error),
            app=_application_id(scope["path"]),
            address=client[0] if client else "",
            evidence={"method": scope["method"], "path": scope["path"]},
        )
        return Response(error.status, _explain(str(error), error.code), error.headers())


def _application_id(path: str) -> str:
    """The id in `…/apps/ID/…`; empty for another path."""
    return path.partition("/apps/")[2].partition("/")[0][:40]


def _paths(scope: requests.Scope) -> list[str]:
    """The possible signed paths, not decoded. First the part below the mount prefix, which the routes match; then
    longer ones, up to the whole path.

    A client signs the path that it sends, and a proxy may strip a prefix of it or keep it.
    """
    raw: bytes | None = scope.get("raw_path")
    whole: str = raw.decode("utf-8", "replace") if raw is not None else scope["path"]
    root: str = scope.get("root_path", "")
    if not root:
        return [whole]
    path = whole.removeprefix(quote(root))
    found = [path]
    for part in reversed(root.strip("/").split("/")):
        path = f"/{quote(part)}{path}"
        found.append(path)
    return found


def _preflight(route: operations.Route) -> refusals.Headers:
    methods = route.allowed.encode()
    return [
        (b"allow", methods),
        (b"access-control-allow-methods", methods),
        (b"access-control-allow-headers", b"content-type, idempotency-key"),
        (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
    ]


def _explain(message: str, code: str) -> bytes:
    return orjson.dumps({"error": message, "code": code})


def head_of(response: Response) -> refusals.Headers:
    """All headers of a response."""
    status, body, headers = response
    if status == 204:
        return [ANY_ORIGIN, *headers]
    return [ANY_ORIGIN, JSON, (b"content-length", b"%d" % len(body)), *headers]


async def _send(response: Response, send: requests.Send) -> None:
    status, body, _ = response
    headers = head_of(response)
    if status != 204 and transports.respond(send, status, headers, body):
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
