"""The publisher: counts, and retries each call with the same idempotency keys until it is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from uuid import uuid4

from tests.harness import proxies, servers, signing
from tests.harness.deployments import Application
from tests.kills import histories

EVENT = "counted"
BATCH = 10  # events per call: the default limit of the API
ANSWER_S = 5.0  # then the call is retried
RETRY_S = 0.05
RETRIED = (429, 503)  # statuses after which a client tries again


class Refused(AssertionError):
    """The server refused a publication permanently."""


class Publisher:
    """Makes one call at a time, so that the log has the numbers in order. `acknowledged`: the last acknowledged one."""

    def __init__(
        self, to: proxies.TcpProxy, application: Application, channels: Sequence[str], per_second: int
    ) -> None:
        self.acknowledged = 0
        self.calls: list[histories.Call] = []
        self.longest_s = 0.0  # the longest call, including its retries
        self._to = to
        self._application = application
        self._channels = channels
        self._per_second = per_second
        self._route = f"/apps/{application.id}/batch_events"
        self._stream = uuid4().hex
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, seconds: float) -> None:
        """Publish at the constant rate, and catch up after a delay. May be called again."""
        start = time.monotonic()
        most = max(1, BATCH // len(self._channels))
        before = self.acknowledged
        total = before + int(seconds * self._per_second)
        while self.acknowledged < total:
            due = min(total, before + int((time.monotonic() - start) * self._per_second))
            if due > self.acknowledged:
                await self._publish(range(self.acknowledged + 1, min(due, self.acknowledged + most) + 1))
            else:
                await asyncio.sleep(1 / self._per_second)
        self._hang_up()

    async def publish_one(self) -> None:
        await self._publish(range(self.acknowledged + 1, self.acknowledged + 2))
        self._hang_up()

    async def _publish(self, numbers: range) -> None:
        began = time.monotonic()
        items = [
            {
                "name": EVENT,
                "channel": channel,
                "data": json.dumps({"n": number}),
                "idempotency_key": f"{self._stream}-{number}",
            }
            for number in numbers
            for channel in self._channels
        ]
        body = json.dumps({"batch": items}).encode()
        while True:
            attempted = time.monotonic()
            fault = await self._attempt(body)
            self.calls.append(
                histories.Call(numbers[0], numbers[-1], attempted, time.monotonic(), fault or "acknowledged")
            )
            if fault is None:
                break
            self._hang_up()
            await asyncio.sleep(RETRY_S)
        self.acknowledged = numbers[-1]
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def _attempt(self, body: bytes) -> str | None:
        """The reason to retry, or None on success."""
        try:
            async with asyncio.timeout(ANSWER_S):
                status, answer = await self._post(body)
        except TimeoutError:
            return "no answer"
        except (OSError, asyncio.IncompleteReadError):
            return "connection lost"  # the idempotency keys prevent duplicates
        if status == 200:
            return None
        if status not in RETRIED:
            raise Refused(f"{status} {answer!r}")
        return str(status)

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = await asyncio.open_connection(servers.HOST, self._to.port)
        reader, writer = self._connection
        target = signing.path(self._application, "POST", self._route, body)
        head = f"POST {target} HTTP/1.1\r\nHost: {servers.HOST}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        answer = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self._hang_up()
        return int(first.split()[1]), answer

    def _hang_up(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection[1].close()
            self._connection = None
