"""A publisher as a backend is one: it tries again, with the same idempotency key, until each event is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import time
from collections.abc import AsyncIterator
from uuid import uuid4

from tests.harness import calls, servers

PAUSE = 0.01  # seconds between two events: about a hundred a second, a busy channel
RETRY_SECONDS = 0.05
RETRIED = (429, 503)  # the statuses that ask for another attempt


class Publisher:
    """Publishes 0, 1, 2, … as the data of `tick`, one after the other. `published` of them were acknowledged."""

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
        """Wait until this many were acknowledged."""
        async with asyncio.timeout(within):
            while self.published < count:
                await asyncio.sleep(PAUSE)

    def stop(self) -> None:
        self._stop = True

    def _publish(self, number: int) -> None:
        """On a new connection each time, so through every worker, and until it is acknowledged."""
        key = f"{self._stream}-{number}"
        event = {"name": "tick", "channels": [self._channel], "data": str(number), "idempotency_key": key}
        while True:
            try:
                with calls.Caller(self._server) as caller:
                    answer = caller.signed("POST", "events", event)
            except (OSError, http.client.HTTPException):
                pass  # the worker died before it answered: whether it had published, the key decides
            else:
                if answer.status == 200:
                    return
                assert answer.status in RETRIED, answer
            self.retries += 1
            time.sleep(RETRY_SECONDS)


@contextlib.asynccontextmanager
async def publishing(server: servers.Server, channel: str) -> AsyncIterator[Publisher]:
    """A publisher at work; at the end its last event is acknowledged."""
    publisher = Publisher(server, channel)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        publisher.stop()
        await task
