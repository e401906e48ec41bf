"""The Channels consumer of the Pusher protocol: it shakes hands, and reads a WebSocket for its session."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, WebSocketReceiveEvent
from channels.consumer import AsyncConsumer

from fanfare.applications import registry as registries
from fanfare.hub import hub as hubs
from fanfare.hub import transports, writers
from fanfare.protocol import (
    handshake,
    refusals,
    server_frames,
    session_owners,
    sessions,
)

DEFAULT_MAX_FRAME_BYTES: Final = 131_072  # a client event of the default 102,400 bytes fits, with escapes and envelope
FRAMES_PER_TURN: Final = 64  # then others get the loop: one read from a socket can hold thousands of small frames
CLOSE_SECONDS: Final = 5  # that a refused client has to answer the close frame
RETURN_SPREAD_S: Final = 2.0  # within which the clients of an application come back that is enabled again


class PusherConsumer(AsyncConsumer):
    """One client's WebSocket, from the handshake to the end.

        PusherConsumer.as_asgi(hub=hub, registry=registry)

    It answers on every path: any but `…/app/KEY` is refused with 4005. After the accept, nothing goes through ASGI's
    `send`; the connection's writer is the only way to the client.

    It is a Channels consumer without Channels' machinery. `AsyncConsumer` runs each message in a task of its own and
    passes it to a thread first, to close old database connections: 90 µs for each message, and 0.95 s when another
    consumer's query takes a second, since all consumers of a process share that thread. This consumer has no database
    and no channel layer, so it reads its messages in a plain loop.
    """

    def __init__(
        self,
        *,
        hub: hubs.Hub,
        registry: registries.Registry,
        options: sessions.Options | None = None,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        owners: session_owners.SessionOwners | None = None,
    ) -> None:
        """`max_frame_bytes`: of a client's message. `owners`: of this worker's resume tokens, one object for all
        consumers of a hub; without it no page is resumed.
        """
        self._hub = hub
        self._registry = registry
        self._options = options or sessions.Options()
        self._max_frame_bytes = max_frame_bytes
        self._owners = owners

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self.scope = scope
        self.base_send = send
        await receive()  # websocket.connect
        session = await self.websocket_connect(receive)
        if session is None:
            return
        listening = False
        try:
            session.open()
            # Where the server below can call the session for each message, this task is over.
            listening = transports.listen(send, session)
            if not listening:
                await self._read(receive, session)
        finally:
            if not listening:
                session.end()

    async def websocket_connect(self, receive: ASGIReceiveCallable) -> sessions.Session | None:
        """Shake hands. None if the client was refused and is gone."""
        await self.base_send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        writer = transports.writer_for(self.base_send, max_buffer_bytes=self._hub.max_buffer_bytes)
        client = self.scope.get("client")
        address = client[0] if client else ""
        try:
            accepted = await self._accepted(address, receive)
        except refusals.ConnectionRefused as refusal:
            sessions.note_refusal(self._hub, refusal.code, refusal.message, address)
            await _dismiss(writer, refusal, receive)
            return None
        if accepted is None:
            return None
        return sessions.Session(self._hub, self._registry, writer, accepted, options=self._options, owners=self._owners)

    async def _accepted(self, address: str, receive: ASGIReceiveCallable) -> handshake.Handshake | None:
        """None if the client is gone. Raises ConnectionRefused."""
        origin = self._take_origin()
        while True:
            try:
                return handshake.accept(
                    self._registry,
                    path=self.scope["path"],
                    query=self.scope["query_string"],
                    origin=origin,
                    address=address,
                )
            except refusals.ApplicationSuspended as suspended:
                self._hub.count("pusher.suspended")
                message = await self._wait_while_suspended(suspended.app_id, receive)
                if message is not None:
                    if message["type"] == "websocket.disconnect":
                        return None
                    raise  # it sends frames before it was greeted

    async def _wait_while_suspended(self, app_id: str, receive: ASGIReceiveCallable) -> Any:
        """None when the application has changed, or its suspension is over; a message if the client sent one.

        A client that waits for its greeting costs an idle socket. One that was refused comes back every second.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._registry.suspended_s(app_id)) as timeout:

                def changed() -> None:
                    timeout.reschedule(loop.time() + random.uniform(0, RETURN_SPREAD_S))  # noqa: S311

                with self._registry.watching(app_id, changed):
                    return await receive()
        except TimeoutError:
            return None

    def websocket_receive(self, message: WebSocketReceiveEvent, session: sessions.Session) -> None:
        text = message.get("text")
        size = len(message.get("bytes") or b"") if text is None else _size(text)
        if size > self._max_frame_bytes:
            session.close(refusals.FRAME_TOO_BIG, f"The message has {size} bytes; {self._max_frame_bytes} are allowed")
        elif text is None:
            session.received_binary()
        else:
            session.received(text)

    def _take_origin(self) -> str | None:
        headers = self.scope["headers"]
        origin = next((value.decode("latin-1") for name, value in headers if name == b"origin"), None)
        if isinstance(headers, list):
            headers.clear()  # the server would keep them as long as the connection: 2 kB
        return origin

    async def _read(self, receive: ASGIReceiveCallable, session: sessions.Session) -> None:
        """Until the client is gone."""
        frames_of_turn = 0
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            if message["type"] == "websocket.receive":
                self.websocket_receive(message, session)
            frames_of_turn += 1
            if frames_of_turn == FRAMES_PER_TURN:
                frames_of_turn = 0
                await asyncio.sleep(0)


async def _dismiss(writer: writers.Writer, refusal: refusals.ConnectionRefused, receive: ASGIReceiveCallable) -> None:
    """Send the reason, and close. The hub does not know this client, so its end is awaited here."""
    writer.send(server_frames.error(refusal.code, refusal.message))
    writer.close(refusal.code, refusals.close_reason(refusal.message))
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            while (await receive())["type"] != "websocket.disconnect":
                pass
    except TimeoutError:
        writer.abort()


def _size(text: str) -> int:
    """Bytes in UTF-8, without encoding what is ASCII, as nearly every frame is."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
