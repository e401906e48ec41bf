"""A publisher that retries each event, with the same idempotency key, until the server acknowledges it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import time
from collections.abc import AsyncIterator
from uuid import uuid4

from tests.harness import calls, servers

PAUSE = 0.01  # seconds between two events: at most 100 a second
RETRY_SECONDS = 0.05
RETRIED = (429, 503)  # statuses after which a client tries again


class Publisher:
    """Publishes `tick` events with the data 0, 1, 2, … in turn. `published`: how many were acknowledged."""

    def __init__(self, server: servers.Server, channel: str) -> None:
        self.published = 0
        self.retries = 0
        self._server = server
        self._channel = channel
        self._stream = uuid4().hex
        self._stop = False

    async def run(self) -> None:
        while not self._stop:
            await asyncio.to_thread(self._publish, self.published)
            self.published += 1
            await asyncio.sleep(PAUSE)

    async def reach(self, count: int, within: float = 30.0) -> None:
        """Wait until `count` events are acknowledged."""
        async with asyncio.timeout(within):
            while self.published < count:
                await asyncio.sleep(PAUSE)

    def stop(self) -> None:
        self._stop = True

    def _publish(self, number: int) -> None:
        """Publish until acknowledged. Each attempt opens a new connection, so all workers get some."""
        key = f"{self._stream}-{number}"
        event = {"name": "tick", "channels": [self._channel], "data": str(number), "idempotency_key": key}
        while True:
            try:
                with calls.Caller(self._server) as caller:
                    answer = caller.signed("POST", "events", event)
            except (OSError, http.client.HTTPException):
                pass  # the worker died before it answered; the idempotency key prevents a duplicate
            else:
                if answer.status == 200:
                    return
                assert answer.status in RETRIED, answer
            self.retries += 1
            time.sleep(RETRY_SECONDS)


@contextlib.asynccontextmanager
async def publishing(server: servers.Server, channel: str) -> AsyncIterator[Publisher]:
    """A running publisher; it stops at the end, after its last event is acknowledged."""
    publisher = Publisher(server, channel)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        publisher.stop()
        await task
