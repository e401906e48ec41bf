"""The console's live data over HTTP, as its pages ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

from django.core import signing

from fanfare.console import permissions, tokens
from tests.harness import calls, servers, sockets, waiting

PATIENCE = 30.0  # seconds to wait for a value
LINE_BYTES = 2**24


class Stream:
    """A response that is read line by line."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self) -> dict[str, Any]:
        """The next value. The lines between are empty, or sizes of HTTP chunks."""
        async with asyncio.timeout(PATIENCE):
            while not (line := await self._reader.readline()).startswith(b"{"):
                assert line, "the stream ended"
        value: dict[str, Any] = json.loads(line)
        return value

    async def item(self, wanted: Callable[[dict[str, Any]], bool], within: float = PATIENCE) -> dict[str, Any] | None:
        """The next item of a tail that is wanted; None if it did not come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while True:
                    for item in (await self.next())["items"]:
                        if wanted(item):
                            return dict(item)
        return None


class Console:
    """The console of a server, for a user with all rights."""

    def __init__(self, server: servers.Server) -> None:
        self._server = server
        environment = server.deployment.environment()
        file = server.deployment.folder / "secret_key"
        rights = dict.fromkeys(permissions.ALL)
        value = {"id": "1", "user": "tests", "rights": rights, "expires": time.time() + tokens.SECONDS}
        key = (environment.get("FANFARE_SECRET_KEY") or file.read_text()).strip()
        self._headers = {"Authorization": f"Bearer {_signed(value, key)}"}

    async def get(self, path: str, **query: str) -> Any:
        return await self._call("GET", f"{path}?{urlencode(query)}")

    async def post(self, path: str, **body: object) -> Any:
        return await self._call("POST", path, json.dumps(body).encode())

    @contextlib.asynccontextmanager
    async def stream(self, path: str, **query: str) -> AsyncIterator[Stream]:
        reader, writer = await asyncio.open_connection(servers.HOST, self._server.port, limit=LINE_BYTES)
        try:
            head = f"GET /fanfare/console/{path}?{urlencode(query)} HTTP/1.1\r\nHost: {servers.HOST}\r\n"
            lines = (f"{name}: {value}\r\n" for name, value in self._headers.items())
            writer.write("".join((head, *lines, "\r\n")).encode())
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            yield Stream(reader)
        finally:
            writer.close()

    async def _call(self, method: str, path: str, body: bytes = b"") -> Any:
        def call() -> calls.Answer:
            with calls.Caller(self._server) as caller:
                return caller.call(method, f"/fanfare/console/{path}", body, self._headers)

        answer = await asyncio.to_thread(call)
        assert answer.status == 200, answer
        return answer.body


def _signed(value: object, key: str) -> str:
    """As signing.dumps, which reads Django's settings."""
    return signing.TimestampSigner(key=key, salt=tokens.SALT, fallback_keys=[]).sign_object(value, compress=True)


async def assert_shows_other_node(here: servers.Server, there: servers.Server, channel: str, workers: int) -> None:
    """A console of one node follows, finds and disconnects a client of another one. `workers`: of all nodes."""
    console, app = Console(here), here.application.id
    async with sockets.connect(there) as socket, console.stream("tail", app=app, channel=channel) as tail:

        def is_subscribed(item: dict[str, Any]) -> bool:
            return (item["type"], item.get("socket")) == ("subscribed", socket.socket_id)

        async def is_seen() -> bool:  # the other node may not have heard yet that a tail is open
            await socket.subscribe(channel)
            subscribed = await tail.item(
                lambda one: one["type"] == "subscribed" and one["socket"] == socket.socket_id, 2
            )
            if subscribed is None:
                await socket.unsubscribe(channel)
            return subscribed is not None

        await waiting.until_async(is_seen, 20, "the tail shows a subscription of the other node")
        event: dict[str, Any] = {}

        async def is_published() -> bool:  # the tail shows events from when its worker reads the log for it
            await asyncio.to_thread(calls.publish, there, channel, "created", '{"id":7}')
            event.update(await tail.item(lambda one: one["type"] == "event", within=2) or {})
            return bool(event)

        await waiting.until_async(is_published, 20, "the tail shows an event of the other node")
        assert (event["event"], event["data"]) == ("created", '{"id":7}')

        async def is_traced() -> bool:
            found = await console.get("trace", entry=event["entry"])
            return sum(one["delivery"]["written"] for one in found["workers"]) == 1

        async def are_counted() -> bool:
            async with console.stream("overview") as overview:
                report = await overview.next()
            return len([one for one in report["workers"] if one["state"] is not None]) == workers

        async def is_found() -> bool:
            found = await console.get("connections", app=app, text=socket.socket_id, channel=channel)
            return [one["socket"] for one in found["connections"]] == [socket.socket_id]

        async def is_occupied() -> bool:
            return bool((await console.get("channel", app=app, channel=channel))["subscriptions"] == 1)

        await waiting.until_async(is_traced, 20, "the trace has the socket of the other node")
        await waiting.until_async(are_counted, 20, "the overview has the workers of both nodes")
        await waiting.until_async(is_found, 20, "the other node's connection is found")
        await waiting.until_async(is_occupied, 20, "the channel has one subscription")
        assert await console.post("disconnect", app=app, by="socket", value=socket.socket_id, returns=False) == {
            "done": True
        }
        assert await socket.closed() == 4009
