"""Server-Sent Events as an ASGI application: channels for browsers' EventSource, `curl -N` and other programs.

A stream has the same channels, order and frames as a WebSocket. In addition it can resume: every event of a channel
with history has an `id:`, EventSource sends the last one when it reconnects, and the first event of the new stream,
`stream`, reports for each channel whether all missed events follow.
"""

from __future__ import annotations

import collections
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
from fanfare.protocol import names, termination
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.supervisor import Supervisor
from fanfare.sockets import drain
from fanfare.sse import refusals, requests, responses, streams, tokens, writer

LOGGED_PER_SECOND: Final = 10
RECENT_TERMINATIONS: Final = 1_000  # remembered for the streams that are being opened

logger = logging.getLogger(__name__)
_log = LogThrottle(logger, 1.0, burst=LOGGED_PER_SECOND)


class Sse:
    """Answers `/sse/KEY`. `streams_per_address`: open at the same time in this worker. `now` gives Unix seconds."""

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
        self._streams_per_address = streams_per_address
        self._now = now
        self._streams: set[streams.Stream] = set()
        self._users: dict[tuple[str, str], set[streams.Stream]] = {}  # by application and the token's user
        self._addresses: collections.Counter[str] = collections.Counter()  # open streams
        self._terminated: dict[tuple[str, str], float] = {}  # Unix time, by application and user; the latest last
        self._supervisor = Supervisor(logger, count=hub.count, prefix="sse.tasks")
        self._is_watching = False
        self._is_stopping = False
        termination.on_terminated(hub, self._terminate)

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
            _log.info("Stream for %s refused: %d %s", _address(scope) or "unknown", error.status, error, key="refused")
            self._hub.activity.refused(
                "event stream",
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
            raise refusals.MethodNotAllowed("method_not_allowed", "Open a stream with GET.")
        if not application.enabled:
            # A refusal would stop an EventSource permanently, and the application may be enabled again soon.
            refusal = refusals.Unavailable if self._registry.suspended_s(application.id) else refusals.Forbidden
            raise refusal("application_disabled", "This application is disabled.")
        if not origins.is_allowed(application.allowed_origins, head.origin):
            raise refusals.Forbidden(
                "origin_not_allowed", "Pages of this origin may not read this application's streams."
            )
        asked = requests.asked(scope, head, max_channel_name=application.limits.max_channel_name)
        try:
            grant = await self._authorize(application, asked)
        except refusals.Unauthorized as error:
            if not asked.is_back:
                raise
            # The token was valid for an earlier stream, so no developer needs the reason, and a retry would not help.
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
            life_limit=None if grant is None else grant.expires - self._now(),
        )
        owner = None if grant is None or grant.user_id is None else (application.id, grant.user_id)
        with self._open(stream, _address(scope), owner):
            await self._serve(stream, to_client, headers, receive, send)

    async def _authorize(self, application: registries.Application, asked: requests.Asked) -> tokens.Grant | None:
        """The request's token; None without one. Raises Unauthorized, Forbidden, Unavailable."""
        guarded = [channel for channel in asked.channels if names.type_of(channel) is not names.Type.PUBLIC]
        if asked.token is None:
            if guarded:
                raise refusals.Unauthorized("token_required", f"{guarded[0]} is not public: it requires a token.")
            return None
        now = self._now()
        grant = tokens.verify(asked.token, application.secrets(now), now)
        for channel in guarded:
            if not grant.covers(channel):
                raise refusals.Forbidden("channel_not_granted", f"The token does not grant {channel}.")
        if grant.user_id is not None:
            await self._check_not_terminated(application.id, grant, grant.user_id)
        return grant

    async def _check_not_terminated(self, app: str, grant: tokens.Grant, user_id: str) -> None:
        try:
            terminated_at = await termination.terminated_at(self._hub.engine, app, user_id)
        except engine_errors.EngineError as error:
            raise refusals.Unavailable(error.code, str(error)) from error
        # The command may have been executed while the record was read.
        terminated_at = self._terminated.get((app, user_id), terminated_at)
        if terminated_at is not None and (grant.issued is None or grant.issued <= terminated_at):
            raise refusals.Unauthorized(
                "terminated", "The application ended this user's connections after it issued the token."
            )

    @contextlib.contextmanager
    def _open(self, stream: streams.Stream, address: str, owner: tuple[str, str] | None) -> Iterator[None]:
        """Count the stream while it is open. Raises Unavailable."""
        if self._is_stopping:
            raise refusals.Unavailable("restarting", "The server is restarting.")
        if address and self._addresses[address] >= self._streams_per_address:
            raise refusals.Unavailable(
                "too_many_streams",
                f"{self._addresses[address]} streams of this address are open; "
                f"{self._streams_per_address} are allowed.",
            )
        self._streams.add(stream)
        self._addresses[address] += 1
        if owner is not None:
            self._users.setdefault(owner, set()).add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
            if owner is not None:
                self._users[owner].discard(stream)
                if not self._users[owner]:
                    del self._users[owner]

    async def _serve(
        self,
        stream: streams.Stream,
        to_client: writer.StreamWriter,
        headers: responses.Headers,
        receive: Any,
        send: Any,
    ) -> None:
        watcher = self._supervisor.spawn("event stream: waits for the client's end", _until_gone(receive, to_client))
        try:
            cursor = await stream.open()
            await responses.start_stream(send, [(b"last-event-id", cursor.encode()), *headers])
            stream.begin()
            await to_client.ended
        finally:
            watcher.cancel()
            stream.forget()

    # -- the end of streams --------------------------------------------------------------------------------------------

    def _terminate(self, app: str, user_id: str, at: float | None) -> None:
        if at is not None:
            self._terminated.pop((app, user_id), None)
            self._terminated[app, user_id] = at
            while len(self._terminated) > RECENT_TERMINATIONS:
                del self._terminated[next(iter(self._terminated))]
        open_streams = self._users.get((app, user_id))
        if open_streams:
            self._hub.flush()  # earlier events are delivered before the end
        for stream in list(open_streams or ()):
            with self._hub.isolated("A terminated event stream could not be ended"):
                stream.end("terminated", termination.MESSAGE)

    def _watch_for_shutdown(self, send: Any) -> None:
        if not self._is_watching:
            self._is_watching = True
            transports.at_shutdown(send, functools.partial(self.stop, transports.drain_of(send)))

    def stop(self, drained: tuple[drain.Drain, Any] | None = None) -> None:
        """The server is about to wait for all open responses. `drained`: its drain, and its address."""
        self._is_stopping = True
        for stream in list(self._streams):
            with self._hub.isolated("An event stream could not be ended"):
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
