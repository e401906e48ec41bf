"""Events that arrive as one whole request, published without ASGI.

Most publications are a signed POST with one event or a batch, in one piece, on a connection that stays open
(`fanfare.sockets.direct_http`). `Direct` verifies and publishes such a request in the callback that received it, and
writes the response in the callback of the commit. It takes a request only if everything up to the commit succeeds: any
other request goes through ASGI, where `fanfare.api.asgi` refuses it with its reason, log line and counters.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from fanfare.api import asgi, authentication, events, requests
from fanfare.applications import registry as registries
from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.hub import transports
from fanfare.sockets import direct_http

_EVENTS: Final = re.compile(r"/apps/([0-9]+)/(batch_)?events")
_OK: Final = asgi.Response(200, events.EMPTY, [])


class Direct:
    """Handles the requests of `direct_http`. `is_running`: whether the worker can publish. `resolve`: gives a scope the
    client's address from the headers of a trusted proxy."""

    def __init__(
        self,
        api: asgi.Api,
        hub: hubs.Hub,
        registry: registries.Registry,
        *,
        is_running: Callable[[], bool],
        resolve: Callable[[requests.Scope], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._hub = hub
        self._registry = registry
        self._is_running = is_running
        self._resolve = resolve
        self._now = now
        self._ok = b""  # the whole response to a publication
        self._ok_of: Any = None  # the server's headers in it

    def __call__(self, connection: direct_http.Answering, request: direct_http.Request) -> bool:
        try:
            pending = self._pending(request)
            if pending is None:
                return False
            then = functools.partial(self._answer, connection, request, pending)
            self._hub.publish_then(pending.batch, then, budget=pending.budget)
        except Exception:  # noqa: BLE001  (the same request fails through ASGI, where it is answered and logged)
            return False
        self._hub.count("api.requests")
        connection.begin()
        return True

    def _pending(self, request: direct_http.Request) -> events.Pending | None:
        found = _EVENTS.fullmatch(request.path)
        if found is None or not self._is_running():
            return None
        application = self._registry.by_id(found[1])
        if application is None or not application.enabled:
            return None
        body = request.body
        body_md5 = authentication.verify_plain(application, request.path, request.query, self._now())
        if body_md5 is None:
            return None
        authentication.verify_body("POST", body_md5, body)
        is_batch = found[2] is not None
        limit = events.batch_body_limit if is_batch else events.body_limit
        if len(body) > events.BODY_BYTES and len(body) > limit(application.limits):
            return None
        headers = dict(request.headers)
        key, traceparent = headers.get(b"idempotency-key"), headers.get(b"traceparent")
        batch = events.plain_publications(application, body, is_batch=is_batch) if key is None else None
        if batch is None:
            signed = requests.Request(application, {}, {}, body, None if key is None else key.decode("latin-1"))
            wanted = events.events_of_batch(signed) if is_batch else events.event_of(signed)
            if not any(event.attributes for event in wanted):
                batch = events.publications_of(application, wanted)
        if not batch:
            return None
        traced = None if traceparent is None else traceparent.decode("latin-1")
        return events.Pending.of(self._hub, application, batch, traced)

    def _answer(
        self,
        connection: direct_http.Answering,
        request: direct_http.Request,
        pending: events.Pending,
        receipts: Sequence[interface.Receipt],
        failure: BaseException | None,
    ) -> None:
        try:
            if failure is None:
                pending.published(self._hub, receipts, lambda: self._scope(connection, request)["client"][0])
        except Exception as error:  # noqa: BLE001
            failure = error
        response = _OK
        if failure is not None:
            if not isinstance(failure, Exception):
                failure = RuntimeError("The commit was cancelled")
            response = self._api.failed(self._scope(connection, request), failure)
        connection.answer(self._whole(connection, response))

    def _whole(self, connection: direct_http.Answering, response: asgi.Response) -> bytes:
        defaults = connection.default_headers
        if response is not _OK:
            return transports.response(response.status, [*defaults, *asgi.head_of(response)], response.body)
        if self._ok_of is not defaults:
            self._ok = transports.response(200, [*defaults, *asgi.head_of(_OK)], _OK.body)
            self._ok_of = defaults
        return self._ok

    def _scope(self, connection: direct_http.Answering, request: direct_http.Request) -> requests.Scope:
        """What a refusal and a record show of the request."""
        scope: requests.Scope = {
            "type": "http",
            "method": "POST",
            "path": request.path,
            "client": connection.client,
            "headers": list(request.headers),
        }
        self._resolve(scope)
        scope["client"] = scope["client"] or ("", 0)
        return scope
