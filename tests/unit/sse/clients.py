"""An event-stream client of an ASGI application, without a server between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from tests.harness import waiting


class Event(NamedTuple):
    name: str  # "message" where the stream names none
    id: str | None  # its own, not the remembered one
    data: Any  # decoded JSON

    @property
    def number(self) -> int:
        """What the tests publish: a number as the data of a frame."""
        return int(self.data["data"])


def parse(text: str) -> list[Event]:
    """The whole events of a stream, as the HTML standard reads them."""
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if "data" in fields:
            found.append(Event(fields.get("event", "message"), fields.get("id"), json.loads(fields["data"])))
    return found


class Response:
    """What the application answered so far. While `reads` is cleared, the client reads nothing."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False
        self.reads = asyncio.Event()
        self.reads.set()
        self._gone = asyncio.Event()
        self._asked = False

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            assert self.status is None
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        assert self.status is not None
        assert not self.complete
        self.body += message["body"]
        self.complete = not message.get("more_body", False)
        if self.complete:
            self._gone.set()

    async def receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def hang_up(self) -> None:
        self._gone.set()

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Event]:
        return parse(self.text)

    @property
    def messages(self) -> list[Event]:
        return [event for event in self.events if event.name == "message"]

    @property
    def numbers(self) -> list[int]:
        return [event.number for event in self.messages if event.data["event"] == "n"]

    @property
    def statement(self) -> dict[str, Any]:
        """What the first event says of each channel."""
        first = self.events[0]
        assert first.name == "stream"
        channels: dict[str, Any] = first.data["channels"]
        return channels

    @property
    def cursor(self) -> str:
        """What a browser would come back with now."""
        return [event.id for event in self.events if event.id is not None][-1]


def scope(
    query: str, *, key: str = "key", method: str = "GET", client: str = "127.0.0.1", **headers: str
) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "method": method,
        "path": f"/sse/{key}",
        "query_string": query.encode(),
        "headers": named,
        "client": (client, 1),
    }


@contextlib.asynccontextmanager
async def asking(application: Any, query: str, **options: Any) -> AsyncIterator[Response]:
    """A client that asks and reads; at the end it hangs up, and the application has returned."""
    response = Response()
    task = asyncio.create_task(application(scope(query, **options), response.receive, response.send))
    try:
        yield response
    finally:
        response.hang_up()
        response.reads.set()
        await asyncio.wait_for(task, 20)


async def until(condition: Callable[[], object], what: str = "the condition", within: float = 5) -> None:
    async def look() -> object:
        return condition()

    await waiting.until_async(look, within, what)
