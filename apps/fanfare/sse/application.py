"""Server-Sent Events as an ASGI application: channels for browsers' EventSource, for `curl -N`, and for every program
that can read a line.

The same hub as behind the WebSocket: the same channels, the same order, the same bytes in each `data:`. What a stream
can do better is to come back. Every event of a channel that keeps a history has an `id:`, EventSource sends the last
one when it reconnects, and the first event of the new stream, `stream`, says for each channel whether all that was
missed follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from fanfare.applications import registry as registries
from fanfare.hub import hub as hubs
from fanfare.hub import transports
from fanfare.protocol import names, origins
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.sse import answers, errors, requests, streams, tokens, writer

# A stopping server gives readers this long for what they have not read: it waits for open responses before all else.
FAREWELL_S: Final = 1.0
LOGGED_PER_SECOND: Final = 10

_log = LogThrottle(logging.getLogger(__name__), 1.0, burst=LOGGED_PER_SECOND)


class Sse:
    """Answers `/sse/KEY`. `now` gives Unix seconds."""

    def __init__(
        self,
        hub: hubs.Hub,
        registry: registries.Registry,
        *,
        times: streams.Times = streams.DEFAULT_TIMES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._times = times
        self._now = now
        self._streams: set[streams.Stream] = set()
        self._is_watching = False
        self._is_stopping = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        transports.keep_out_of_log(send)  # there may be a token in the URL
        head = requests.head(scope)
        application: registries.Application | None = None
        try:
            application = self._application(scope)
            await self._answer(application, head, scope, receive, send)
        except streams.Over:
            self._hub.count("sse.hung_up")
        except errors.SseError as error:
            self._hub.count(f"sse.refused.{error.code}")
            client = scope.get("client")
            _log.info("Stream for %s refused: %d %s", client[0] if client else "unknown", error.status, error)
            await answers.refusal(send, error, head, answers.cors(application, head))

    def _application(self, scope: Any) -> registries.Application:
        application = self._registry.by_key(requests.key(scope))
        if application is None:
            raise errors.NotFound("unknown_application", "There is no application with this key.")
        return application

    async def _answer(
        self, application: registries.Application, head: requests.Head, scope: Any, receive: Any, send: Any
    ) -> None:
        if head.method == "OPTIONS":
            await answers.preflight(send, answers.cors(application, head))
            return
        if head.method not in ("GET", "HEAD"):
            raise errors.MethodNotAllowed("method_not_allowed", "A stream is asked for with GET.")
        if not application.enabled:
            raise errors.Forbidden("application_disabled", "This application is disabled.")
        if not origins.is_allowed(application.allowed_origins, head.origin):
            raise errors.Forbidden(
                "origin_not_allowed", "Pages of this origin may not read this application's streams."
            )
        asked = requests.asked(scope, head, max_channel_name=application.limits.max_channel_name)
        try:
            life_limit = self._authorize(application, asked)
        except errors.Unauthorized as error:
            if not asked.is_back:
                raise
            # It had a stream, so its token was good: no developer is in need of a reason, and no retry helps.
            self._hub.count(f"sse.sent_away.{error.code}")
            await answers.stop_for_good(send, answers.cors(application, head))
            return
        headers = answers.cors(application, head)
        if head.method == "HEAD":
            await answers.head_only(send, headers)
            return
        self._watch_for_the_end(send)
        to_client = writer.StreamWriter(send, asked.channels, self._hub.max_buffer_bytes, transports.below(send))
        client = scope.get("client")
        stream = streams.Stream(
            self._hub,
            application,
            asked,
            to_client,
            self._times,
            address=client[0] if client else "",
            life_limit=life_limit,
        )
        await self._serve(stream, to_client, headers, receive, send)

    def _authorize(self, application: registries.Application, asked: requests.Asked) -> float | None:
        """For how many seconds the stream may live; None: no token says. Raises Unauthorized, Forbidden."""
        guarded = [channel for channel in asked.channels if names.type_of(channel) is not names.Type.PUBLIC]
        if asked.token is None:
            if guarded:
                raise errors.Unauthorized("token_required", f"{guarded[0]} is not public: it takes a token.")
            return None
        now = self._now()
        grant = tokens.verify(asked.token, application.secrets(now), now)
        for channel in guarded:
            if not grant.covers(channel):
                raise errors.Forbidden("channel_not_granted", f"The token does not name {channel}.")
        return grant.expires - now

    async def _serve(
        self, stream: streams.Stream, to_client: writer.StreamWriter, headers: answers.Headers, receive: Any, send: Any
    ) -> None:
        if self._is_stopping:
            raise errors.Unavailable("restarting", "The server is restarting.")
        self._streams.add(stream)
        watcher = asyncio.create_task(_until_gone(receive, to_client))
        try:
            cursor = await stream.open()
            await answers.stream_begins(send, [(b"last-event-id", cursor.encode()), *headers])
            stream.begin()
            await to_client.ended
        finally:
            watcher.cancel()
            self._streams.discard(stream)
            stream.forget()

    # -- the end of the server -----------------------------------------------------------------------------------------

    def _watch_for_the_end(self, send: Any) -> None:
        if not self._is_watching:
            self._is_watching = True
            transports.at_shutdown(send, self.stop)

    def stop(self) -> None:
        """The server below is about to wait for all responses to end."""
        self._is_stopping = True
        loop = asyncio.get_running_loop()
        for stream in list(self._streams):
            stream.end("restart", "The server is restarting: come back with the last id")
            loop.call_later(FAREWELL_S, stream.abort)


async def _until_gone(receive: Any, to_client: writer.StreamWriter) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    to_client.lost()
