"""A small SSE client over a plain socket, so that a test decides when to read and when to disconnect."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.harness import servers
from tests.harness.deployments import Application

PATIENCE = 30.0  # seconds to wait for an event; a loaded two-core machine needs some, an idle one milliseconds


class Event(NamedTuple):
    name: str  # "message" if the event has no name field
    id: str | None  # this event's own id field, not the last one seen
    data: Any  # decoded JSON

    @property
    def number(self) -> int:
        """The number in a `tick` event, as the tests publish them."""
        return int(self.data["data"])


class Ended(Exception):
    """The stream ended. `cleanly`: with the final HTTP chunk."""

    def __init__(self, *, cleanly: bool) -> None:
        super().__init__()
        self.cleanly = cleanly


class EventStream:
    """One response. `last_event_id`: what a browser would send when it reconnects."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lines: list[str] = []
        self._rest = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.last_event_id: str | None = None

    @property
    def local_port(self) -> int:
        return int(self._writer.get_extra_info("sockname")[1])

    async def read_head(self) -> None:
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def next(self, within: float = PATIENCE) -> Event:
        """The next event; comments are skipped. Raises Ended."""
        async with asyncio.timeout(within):
            while True:
                block = await self._block()
                fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
                if "id" in fields:
                    self.last_event_id = fields["id"]
                if "data" in fields:
                    return Event(fields.get("event", "message"), fields.get("id"), json.loads(fields["data"]))

    async def statement(self) -> dict[str, Any]:
        """Read the first event, `stream`: the recovery result of each channel."""
        event = await self.next()
        assert event.name == "stream", event
        channels: dict[str, Any] = event.data["channels"]
        return channels

    async def numbers(self, count: int) -> list[int]:
        return [(await self.next()).number for _ in range(count)]

    async def ended(self, within: float = PATIENCE) -> bool:
        """Read to the end; whether the stream ended cleanly."""
        async with asyncio.timeout(within):
            while True:
                try:
                    await self.next(within)
                except Ended as end:
                    return end.cleanly

    async def _block(self) -> str:
        while b"\n\n" not in self._rest:
            self._rest += await self._chunk()
        block, _, self._rest = self._rest.partition(b"\n\n")
        return block.decode()

    async def _chunk(self) -> bytes:
        try:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            chunk = (await self._reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Ended(cleanly=False) from None
        if not size:
            raise Ended(cleanly=True)
        return chunk

    def reset(self) -> None:
        """Drop the connection without closing it, as a phone in a tunnel does."""
        self._writer.transport.abort()

    def stop_reading(self) -> None:
        """Stop reading from the socket; what the server sends stays in the buffers in between."""
        transport = self._writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def path(application: Application, channels: Sequence[str], **more: str) -> str:
    return f"/sse/{application.key}?{urlencode({'channels': ','.join(channels), **more})}"


@contextlib.asynccontextmanager
async def request(server: servers.Server, target: str, **headers: str | None) -> AsyncIterator[EventStream]:
    """Send a GET and read the response head. `headers`: `last_event_id` becomes Last-Event-ID; None is left out."""
    reader, writer = await asyncio.open_connection(servers.HOST, server.port, limit=2**22)
    lines = [f"GET {target} HTTP/1.1", f"Host: {servers.HOST}", "Accept: text/event-stream"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
    stream = EventStream(reader, writer)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await stream.read_head()
        yield stream
    finally:
        await stream.close()


@contextlib.asynccontextmanager
async def listen(
    server: servers.Server, application: Application, *channels: str, last_event_id: str | None = None, **query: str
) -> AsyncIterator[EventStream]:
    """An open stream; its statement is still to be read."""
    async with request(server, path(application, channels, **query), last_event_id=last_event_id) as stream:
        assert stream.status == 200, stream.headers
        yield stream


def token(application: Application, *channels: str, seconds: float = 60) -> str:
    """A JWT (RFC 7519) signed without the server's code."""

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = json.dumps({"channels": channels, "exp": int(time.time() + seconds)})
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(claims.encode())
    signature = hmac.new(application.secret.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + part(signature)).decode()
