"""A small protocol client that shows every frame the server sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed

from tests.harness import servers, signing
from tests.harness.deployments import Application

PATIENCE = 30.0  # seconds to wait for a frame; a loaded two-core machine needs some, an idle one milliseconds
OPEN_S = 40.0  # for a handshake, which may wait for a worker that starts


class Frame(NamedTuple):
    """One frame from the server. `data` as received: a string for channel events, an object for errors."""

    event: str
    channel: str | None
    data: Any
    user_id: str | None

    @property
    def decoded(self) -> Any:
        """`data` with the protocol's second layer of JSON decoded."""
        return json.loads(self.data) if isinstance(self.data, str) else self.data


class Socket:
    """One WebSocket, opened by `connect` (reads `pusher:connection_established`) or `open_raw` (reads nothing)."""

    def __init__(self, websocket: ClientConnection, application: Application) -> None:
        self.websocket = websocket
        self.application = application
        self.socket_id = ""

    @property
    def local_port(self) -> int:
        return int(self.websocket.local_address[1])

    # -- reading ----------------------------------------------------------------------------------------------------

    async def receive(self, within: float = PATIENCE) -> Frame:
        """The next frame of any kind."""
        async with asyncio.timeout(within):
            text = await self.websocket.recv()
        assert isinstance(text, str), "the protocol has text frames only"
        frame = json.loads(text)
        return Frame(frame["event"], frame.get("channel"), frame.get("data"), frame.get("user_id"))

    async def expect(self, event: str, channel: str | None = None, within: float = PATIENCE) -> Frame:
        """The next frame, which must be this event on this channel."""
        frame = await self.receive(within)
        assert (frame.event, frame.channel) == (event, channel), frame
        return frame

    async def skip_to(self, event: str, channel: str | None = None, within: float = PATIENCE) -> Frame:
        """The next frame with this event and channel; earlier frames are dropped."""
        async with asyncio.timeout(within):
            while True:
                frame = await self.receive(within)
                if (frame.event, frame.channel) == (event, channel):
                    return frame

    async def expect_silence(self) -> None:
        """Assert that the server sent nothing: the answer to a ping is the next frame."""
        await self.send({"event": "pusher:ping", "data": {}})
        await self.expect("pusher:pong")

    async def closed(self, within: float = PATIENCE) -> int:
        """Drop frames until the server closes the connection; the close code (1006 if none came)."""
        async with asyncio.timeout(within):
            try:
                while True:
                    await self.websocket.recv()
            except ConnectionClosed:
                return self.websocket.close_code or 1006

    # -- writing ----------------------------------------------------------------------------------------------------

    async def send(self, frame: object) -> None:
        await self.websocket.send(json.dumps(frame))

    async def send_text(self, text: str) -> None:
        await self.websocket.send(text)

    async def request_subscription(
        self, channel: str, *, auth: str | None = None, member: dict[str, Any] | None = None
    ) -> None:
        """Send a subscribe with a valid signature, or with `auth`. `member`: the channel_data of a presence channel."""
        data: dict[str, Any] = {"channel": channel}
        channel_data = None
        if member is not None:
            channel_data = json.dumps(member)
            data["channel_data"] = channel_data
        if auth is not None:
            data["auth"] = auth
        elif channel.startswith(("private-", "presence-")):
            data["auth"] = signing.subscription(self.application, self.socket_id, channel, channel_data)
        await self.send({"event": "pusher:subscribe", "data": data})

    async def subscribe(self, channel: str, *, member: dict[str, Any] | None = None) -> Frame:
        """Subscribe; `subscription_succeeded` must be the next frame."""
        await self.request_subscription(channel, member=member)
        return await self.expect("pusher_internal:subscription_succeeded", channel)

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe and wait until the server has handled it: an unsubscribe has no answer, so a ping follows."""
        await self.send({"event": "pusher:unsubscribe", "data": {"channel": channel}})
        await self.send({"event": "pusher:ping", "data": {}})
        await self.skip_to("pusher:pong")

    async def sign_in(self, user_id: str) -> None:
        """Sign in, and drop frames until the server has answered."""
        user_data = json.dumps({"id": user_id})
        signature = signing.hexadecimal(self.application.secret, f"{self.socket_id}::user::{user_data}")
        data = {"auth": f"{self.application.key}:{signature}", "user_data": user_data}
        await self.send({"event": "pusher:signin", "data": data})
        await self.skip_to("pusher:signin_success")

    async def trigger(self, channel: str, event: str, data: object) -> None:
        """Send a client event."""
        await self.send({"event": event, "channel": channel, "data": data})


@contextlib.asynccontextmanager
async def open_raw(
    server: servers.Server, url: str | None = None, application: Application | None = None, **options: Any
) -> AsyncIterator[Socket]:
    """An open WebSocket from which nothing was read yet."""
    application = application or server.application
    websocket = await connect_websocket(
        url or server.socket_url(application.key),
        compression=None,
        ping_interval=None,
        proxy=None,
        max_size=None,
        max_queue=None,  # unbounded, so that this client is never the slow side
        open_timeout=OPEN_S,
        close_timeout=2,
        **options,
    )
    try:
        yield Socket(websocket, application)
    finally:
        await websocket.close()


@contextlib.asynccontextmanager
async def connect(
    server: servers.Server, application: Application | None = None, url: str | None = None, **options: Any
) -> AsyncIterator[Socket]:
    """An established connection: `pusher:connection_established` was read and checked."""
    async with open_raw(server, url, application, **options) as socket:
        await establish(socket)
        yield socket


async def establish(socket: Socket) -> None:
    frame = await socket.expect("pusher:connection_established")
    assert isinstance(frame.data, str), "the Java SDK casts it to a string"
    assert frame.decoded["activity_timeout"] > 0
    socket.socket_id = frame.decoded["socket_id"]


async def spread(
    server: servers.Server,
    stack: contextlib.AsyncExitStack,
    each: int = 1,
    workers: Collection[int] | None = None,
    application: Application | None = None,
) -> dict[int, list[Socket]]:
    """At least `each` connections to every worker, or to each of `workers`, by pid. `stack` closes them."""
    wanted = workers or server.workers()
    found: dict[int, list[Socket]] = {pid: [] for pid in wanted}
    for _ in range(ROUNDS):
        opened = [await stack.enter_async_context(connect(server, application)) for _ in range(ROUND)]
        by_port = {socket.local_port: socket for socket in opened}
        for port, worker in (await asyncio.to_thread(server.workers_of, by_port)).items():
            if worker in found:
                found[worker].append(by_port[port])
        if all(len(sockets) >= each for sockets in found.values()):
            return found
    counts = {pid: len(sockets) for pid, sockets in found.items()}
    raise AssertionError(f"{ROUNDS * ROUND} connections were not enough for {each} on every worker: {counts}")


# The kernel wakes all workers for a new connection and one accepts it: the distribution is uneven, but every worker
# gets one soon.
ROUND = 8
ROUNDS = 50
