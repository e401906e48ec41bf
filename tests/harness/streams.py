"""A small protocol server with history, whose connections a test can break.

It is for tests of the browser plugin alone: the test decides what the server sends, when, and which mistakes it makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio import server as websockets_server
from websockets.exceptions import ConnectionClosed

from tests.harness import proxies, servers


@dataclasses.dataclass(eq=False)
class Subscriber:
    websocket: websockets_server.ServerConnection
    socket_id: str
    resumes: bool  # connected with `rt=1`
    channels: set[str] = dataclasses.field(default_factory=set)

    def send(self, event: str, data: Any, channel: str | None = None, **fields: Any) -> None:
        frame = {"event": event, "channel": channel, "data": json.dumps(data), **fields}
        websockets_server.broadcast([self.websocket], json.dumps(frame))  # writes at once and does not wait


class StreamServer:
    """`duplicates`: send every event twice, which a correct server does not do."""

    def __init__(self, *, duplicates: bool = False) -> None:
        self.epoch = "epoch001"
        self.logs: dict[str, list[Any]] = {}  # by channel; an event's offset is its index + 1
        self.subscribers: set[Subscriber] = set()
        self.subscribes: list[dict[str, Any]] = []  # `data` of each subscribe
        self.connections = 0
        self.unavailable = 0  # how many of the next subscribes are refused with 503
        self._duplicates = duplicates
        self._server: websockets_server.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(next(iter(self._server.sockets)).getsockname()[1])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[StreamServer]:
        await self._start(0)
        try:
            yield self
        finally:
            await self._stop()

    async def _start(self, port: int) -> None:
        self._server = await websockets_server.serve(
            self._serve, servers.HOST, port, compression=None, max_queue=None, reuse_address=True
        )

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    # -- for tests -----------------------------------------------------------------------------------------------------

    async def outage(self, seconds: float) -> None:
        """Close everything, the listening socket included, and come back on the same port after so long."""
        port = self.port
        self.reset_connections()
        await self._stop()
        await asyncio.sleep(seconds)
        await self._start(port)

    def publish(self, channel: str, data: Any) -> None:
        log = self.logs.setdefault(channel, [])
        log.append(data)
        for subscriber in self.subscribers:
            if channel in subscriber.channels:
                self._send(subscriber, channel, len(log))

    def reset_connections(self) -> None:
        """End every connection with a TCP reset and without a close frame, as a lost network does."""
        for subscriber in list(self.subscribers):
            transport = subscriber.websocket.transport
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, proxies.RESET_ON_CLOSE)
            transport.abort()
            self.subscribers.discard(subscriber)

    async def close_connections(self, code: int = 4200) -> None:
        leaving = list(self.subscribers)
        self.subscribers.clear()
        for subscriber in leaving:
            await subscriber.websocket.close(code)

    def reset_stream(self, channel: str, reason: str = "gap") -> None:
        """Tell every subscriber that events published before now cannot be recovered."""
        for subscriber in self.subscribers:
            data = {"epoch": self.epoch, "offset": len(self.logs.get(channel, [])), "reason": reason}
            subscriber.send("pusher:stream_reset", data, channel)

    # -- the protocol --------------------------------------------------------------------------------------------------

    async def _serve(self, websocket: websockets_server.ServerConnection) -> None:
        assert websocket.request is not None
        self.connections += 1
        subscriber = Subscriber(websocket, f"{self.connections}.{self.connections}", "rt=1" in websocket.request.path)
        established: dict[str, Any] = {"socket_id": subscriber.socket_id, "activity_timeout": 120}
        if subscriber.resumes:
            established["rt"] = {"v": 1, "window": 120}
        self.subscribers.add(subscriber)
        subscriber.send("pusher:connection_established", established)
        try:
            async for text in websocket:
                frame = json.loads(text)
                self._answer(subscriber, frame["event"], frame.get("data"))
        except ConnectionClosed:
            pass  # the usual end here: tests break the connections
        finally:
            self.subscribers.discard(subscriber)

    def _answer(self, subscriber: Subscriber, event: str, data: Any) -> None:
        if event == "pusher:ping":
            subscriber.send("pusher:pong", {})
        elif event == "pusher:subscribe":
            self.subscribes.append(data)
            self._subscribe(subscriber, data["channel"], data.get("resume"), data.get("rewind"))
        elif event == "pusher:unsubscribe":
            subscriber.channels.discard(data["channel"])
        elif event == "pusher:history":
            self._history(subscriber, **data)

    def _subscribe(
        self, subscriber: Subscriber, channel: str, resume: dict[str, Any] | None, rewind: dict[str, int] | None
    ) -> None:
        if self.unavailable:
            self.unavailable -= 1
            refusal = {"type": "EngineUnavailable", "error": "The log cannot be read now", "status": 503}
            subscriber.send("pusher:subscription_error", refusal, channel)
            return
        log = self.logs.setdefault(channel, [])
        stream: dict[str, Any] = {"epoch": self.epoch, "offset": len(log), "was_recovering": resume is not None}
        recovered = resume is not None and resume["epoch"] == self.epoch
        first = len(log)
        if resume is not None and recovered:
            first = resume["offset"]
        elif resume is not None:
            stream["reason"] = "epoch_changed"
        elif rewind is not None:
            first = max(0, len(log) - rewind["count"])
        stream |= {"recovered": recovered, "replayed": len(log) - first}
        extra = {"stream": stream} if subscriber.resumes else {}
        if channel.startswith("presence-"):
            me = "me"
            subscriber.send(
                "pusher_internal:subscription_succeeded",
                {"presence": {"ids": [me], "hash": {me: None}, "count": 1}, **extra},
                channel,
            )
            if extra:
                subscriber.send("pusher:stream", stream, channel)
        else:
            subscriber.send("pusher_internal:subscription_succeeded", extra, channel)
        for offset in range(first + 1, len(log) + 1):
            self._send(subscriber, channel, offset, replay=True)
        subscriber.channels.add(channel)

    def _history(
        self, subscriber: Subscriber, channel: str, before: dict[str, Any] | None, limit: int, rid: str
    ) -> None:
        end = before["offset"] - 1 if before else len(self.logs[channel])
        offsets = range(end, max(0, end - limit), -1)
        items = [
            {
                "event": "counted",
                "channel": channel,
                "data": json.dumps(self.logs[channel][offset - 1]),
                "offset": offset,
            }
            for offset in offsets
        ]
        following = {"epoch": self.epoch, "offset": offsets[-1]} if items and offsets[-1] > 1 else None
        subscriber.send("pusher:history", {"rid": rid, "items": items, "next": following}, channel)

    def _send(self, subscriber: Subscriber, channel: str, offset: int, **fields: Any) -> None:
        if subscriber.resumes:
            fields["offset"] = offset
        for _ in range(2 if self._duplicates and subscriber.resumes else 1):
            subscriber.send("counted", self.logs[channel][offset - 1], channel, **fields)
