"""Server-Sent Events as an ASGI application: channels for browsers' EventSource, `curl -N` and other programs.

A connection has the same channels, order and frames as a WebSocket, and it can resume: every event of a channel with
history has an `id:`, EventSource sends the last one when it reconnects, and the first event of the new connection,
`stream`, reports for each channel whether all missed events follow.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from fanfare.applications import origins
from fanfare.applications import registry as registries
from fanfare.engine import errors as engine_errors
from fanfare.hub import hub as hubs
from fanfare.hub import transports
from fanfare.protocol import capabilities, names, revocations
from fanfare.protocol import refusals as protocol_refusals
from fanfare.runtime.address_limit import AddressLimit
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.supervisor import Supervisor
from fanfare.sockets import drain
from fanfare.sse import refusals, requests, responses, streams, writer

LOGGED_PER_SECOND: Final = 10

logger = logging.getLogger(__name__)
_log = LogThrottle(logger, 1.0, burst=LOGGED_PER_SECOND)


class Sse:
    """Answers `/sse/KEY`. `streams_per_address`: the connections that one address may have open in this worker.
    `now` returns Unix seconds."""

    def __init__(
        self,
        hub: hubs.Hub,
        registry: registries.Registry,
        *,
        times: streams.Times = streams.DEFAULT_TIMES,
        streams_per_address: int = 1_000,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._times = times
        self._now = now
        self._streams: set[streams.Stream] = set()
        self._addresses = AddressLimit(streams_per_address, "SSE connections")
        self._supervisor = Supervisor(logger, count=hub.count, prefix="sse.tasks")
        self._is_watching = False
        self._is_stopping = False
        self._revocations = revocations.of(hub)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        transports.keep_out_of_log(send)  # the URL may contain a token
        head = requests.head(scope)
        application: registries.Application | None = None
        try:
            application = self._application(scope)
            await self._answer(application, head, scope, receive, send)
        except streams.Over:
            self._hub.count("sse.hung_up")
        except refusals.SseError as error:
            self._hub.count(f"sse.refused.{error.code}")
            address = _address(scope) or "unknown"
            _log.info("SSE connection of %s refused: %d %s", address, error.status, error, key="refused")
            self._hub.activity.refused(
                "SSE connection",
                error.code,
                str(error),
                app="" if application is None else application.id,
                address=_address(scope),
            )
            await responses.refusal(send, error, head, responses.cors(application, head))

    def _application(self, scope: Any) -> registries.Application:
        application = self._registry.by_key(requests.key(scope))
        if application is None:
            raise refusals.NotFound("unknown_application", "There is no application with this key.")
        return application

    async def _answer(
        self, application: registries.Application, head: requests.Head, scope: Any, receive: Any, send: Any
    ) -> None:
        headers = responses.cors(application, head)
        if head.method == "OPTIONS":
            await responses.preflight(send, headers)
            return
        if head.method not in ("GET", "HEAD"):
            raise refusals.MethodNotAllowed("method_not_allowed", "Server-Sent Events are read with GET.")
        if not application.enabled:
            # A refusal would stop an EventSource permanently, and the application may be enabled again soon.
            refusal = refusals.Unavailable if self._registry.suspended_s(application.id) else refusals.Forbidden
            raise refusal("application_disabled", "This application is disabled.")
        if not origins.is_allowed(application.allowed_origins, head.origin):
            raise refusals.Forbidden("origin_not_allowed", "Pages of this origin may not connect to this application.")
        asked = requests.asked(scope, head, max_channel_name=application.limits.max_channel_name)
        try:
            capability = await self._authorize(application, asked)
        except refusals.Unauthorized as error:
            if not asked.is_back:
                raise
            # The token was valid for an earlier connection: no developer needs the reason, and a retry would not help.
            self._hub.count(f"sse.sent_away.{error.code}")
            await responses.stop_for_good(send, headers)
            return
        if head.method == "HEAD":
            await responses.head_only(send, headers)
            return
        self._watch_for_shutdown(send)
        to_client = writer.StreamWriter(send, asked.channels, self._hub.max_buffer_bytes, transports.below(send))
        stream = streams.Stream(
            self._hub,
            application,
            asked,
            to_client,
            self._times,
            address=_address(scope),
            life_limit=None if capability is None else capability.expires - self._now(),
            may_read_history=capability is None or capabilities.HISTORY in capability.rights,
        )
        with self._open(stream, _address(scope), capability):
            await self._serve(stream, to_client, headers, receive, send)

    async def _authorize(
        self, application: registries.Application, asked: requests.Asked
    ) -> capabilities.Capability | None:
        """The request's token; None without one. Raises Unauthorized, Forbidden, Unavailable."""
        guarded = [channel for channel in asked.channels if names.type_of(channel) is not names.Type.PUBLIC]
        if asked.token is None:
            if guarded:
                raise refusals.Unauthorized("token_required", f"{guarded[0]} is not public: it requires a token.")
            return None
        now = self._now()
        try:
            capability = capabilities.verify(asked.token, application.secrets(now), now)
            for channel in guarded:
                if not capability.covers(channel):
                    raise refusals.Forbidden("channel_not_granted", f"The token does not grant {channel}.")
            if guarded and capabilities.SUBSCRIBE not in capability.rights:
                raise refusals.Forbidden("right_not_granted", 'The token does not have the right "subscribe".')
            await self._revocations.read_and_check(application.id, capability)
        except protocol_refusals.InvalidToken as error:
            raise refusals.Unauthorized(error.reason, f"{error.message.rstrip('.')}.") from None
        except engine_errors.EngineError as error:
            raise refusals.Unavailable(error.code, str(error)) from error
        return capability

    @contextlib.contextmanager
    def _open(self, stream: streams.Stream, address: str, capability: capabilities.Capability | None) -> Iterator[None]:
        """Count the connection while it is open. Raises Unavailable."""
        if self._is_stopping:
            raise refusals.Unavailable("restarting", "The server is restarting.")
        if refusal := self._addresses.refusal(address):
            raise refusals.Unavailable("too_many_streams", f"{refusal}.")
        self._streams.add(stream)
        self._addresses.opened(address)
        app = stream.connection.app
        if capability is not None:
            self._revocations.hold(app, capability, stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._addresses.closed(address)
            if capability is not None:
                self._revocations.release(app, capability, stream)

    async def _serve(
        self,
        stream: streams.Stream,
        to_client: writer.StreamWriter,
        headers: responses.Headers,
        receive: Any,
        send: Any,
    ) -> None:
        watcher = self._supervisor.spawn("SSE connection: waits for the client's end", _until_gone(receive, to_client))
        try:
            cursor = await stream.open()
            await responses.start_stream(send, [(b"last-event-id", cursor.encode()), *headers])
            stream.begin()
            await to_client.ended
        finally:
            watcher.cancel()
            stream.forget()

    # -- the end of connections ----------------------------------------------------------------------------------------

    def _watch_for_shutdown(self, send: Any) -> None:
        if not self._is_watching:
            self._is_watching = True
            transports.at_shutdown(send, functools.partial(self.stop, transports.drain_of(send)))

    def stop(self, drained: tuple[drain.Drain, Any] | None = None) -> None:
        """The server is about to wait for all open responses. `drained`: its drain, and its address."""
        self._is_stopping = True
        for stream in list(self._streams):
            with self._hub.isolated("An SSE connection could not be closed"):
                if drained is None:
                    stream.restart(returns=False)
                else:
                    drained[0].add(stream, drained[1])


def _address(scope: Any) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


async def _until_gone(receive: Any, to_client: writer.StreamWriter) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        to_client.lost()
