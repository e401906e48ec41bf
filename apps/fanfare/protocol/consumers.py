"""The Channels consumer of the Pusher protocol: it accepts a WebSocket and passes its messages to a session."""

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
from fanfare.runtime import close_codes

DEFAULT_MAX_FRAME_BYTES: Final = 131_072  # a client event of the default 102,400 bytes fits, with escapes and envelope
FRAMES_PER_TURN: Final = 64  # then other tasks run: one read from a socket can have thousands of small frames
CLOSE_SECONDS: Final = 5  # for a refused client to answer the close frame
RETURN_SPREAD_S: Final = 2.0  # within which clients of a re-enabled application reconnect


class PusherConsumer(AsyncConsumer):
    """One client's WebSocket.

        PusherConsumer.as_asgi(hub=hub, registry=registry)

    It accepts every path; all but `…/app/KEY` are closed with 4005. After the accept, nothing goes through ASGI's
    `send`; the connection's writer is the only way to the client.

    It does not use Channels' `AsyncConsumer`, which runs each message in a task and first passes it to a thread, to
    close old database connections. This costs 90 µs per message, and 0.95 s while another consumer's query takes a
    second, because all consumers of a process share the thread. This consumer has no database
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
            # If the ASGI server can call the session for each message, this task ends.
            listening = transports.listen(send, session)
            if not listening:
                await self._read(receive, session)
        finally:
            if not listening:
                session.end()

    async def websocket_connect(self, receive: ASGIReceiveCallable) -> sessions.Session | None:
        """Accept or refuse the WebSocket. None if it was refused and has ended."""
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
        """None if the client has disconnected. Raises ConnectionRefused."""
        origin = self._take_origin()
        while True:
            try:
                accepted = handshake.accept(
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
                    raise  # it sends frames before connection_established
            else:
                if message := self._options.addresses.refusal(address):
                    self._hub.count("sockets.refused.address")
                    raise refusals.ConnectionRefused(close_codes.OVER_CAPACITY, message)
                return accepted

    async def _wait_while_suspended(self, app_id: str, receive: ASGIReceiveCallable) -> Any:
        """Returns None when the application has changed or its suspension is over, or a message of the client.

        A waiting client costs an idle socket. A refused one would reconnect every second.
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

    def websocket_receive(self, message: WebSocketReceiveEvent, session: sessions.Session) -> float:
        """Returns the seconds to wait before the next message is read."""
        text = message.get("text")
        size = len(message.get("bytes") or b"") if text is None else _size(text)
        if size > self._max_frame_bytes:
            session.close(refusals.FRAME_TOO_BIG, f"The message has {size} bytes; {self._max_frame_bytes} are allowed")
            return 0.0
        return session.received_binary() if text is None else session.received(text)

    def _take_origin(self) -> str | None:
        headers = self.scope["headers"]
        origin = next((value.decode("latin-1") for name, value in headers if name == b"origin"), None)
        if isinstance(headers, list):
            headers.clear()  # otherwise they stay in memory with the connection: 2 kB
        return origin

    async def _read(self, receive: ASGIReceiveCallable, session: sessions.Session) -> None:
        """Read messages until the client disconnects."""
        frames_of_turn = 0
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            rest_s = 0.0
            if message["type"] == "websocket.receive":
                rest_s = self.websocket_receive(message, session)
            frames_of_turn += 1
            if rest_s or frames_of_turn == FRAMES_PER_TURN:
                frames_of_turn = 0
                await asyncio.sleep(rest_s)


async def _dismiss(writer: writers.Writer, refusal: refusals.ConnectionRefused, receive: ASGIReceiveCallable) -> None:
    """Send the reason and close. The hub does not know this client, so this waits for its end."""
    writer.send(server_frames.error(refusal.code, refusal.message))
    writer.close(refusal.code, refusal.message)
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            while (await receive())["type"] != "websocket.disconnect":
                pass
    except TimeoutError:
        writer.abort()


def _size(text: str) -> int:
    """The size in UTF-8, without encoding ASCII text."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
