"""Calls of the HTTP API over one connection, for what no SDK lets a test do: choose the worker, forge a signature."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from tests.harness import servers, signing
from tests.harness.deployments import Application


class Answer(NamedTuple):
    status: int
    body: Any  # decoded JSON
    headers: dict[str, str]  # names in lower case


class Caller:
    """One keep-alive connection to one worker. Use as a context manager."""

    def __init__(self, server: servers.Server, application: Application | None = None) -> None:
        self.server = server
        self.application = application or server.application
        self._connection = http.client.HTTPConnection(servers.HOST, server.port, timeout=15)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """A request as it is, signed or not."""
        self._connection.request(method, target, body or None, {"Content-Type": "application/json", **(headers or {})})
        response = self._connection.getresponse()
        text = response.read()
        decoded = json.loads(text) if text else None
        return Answer(response.status, decoded, {name.lower(): value for name, value in response.getheaders()})

    def signed(
        self,
        method: str,
        room: str,
        payload: object = None,
        query: Mapping[str, str] | None = None,
        **overrides: str,
    ) -> Answer:
        """`room`: what comes after /apps/ID/. `payload`: sent as JSON, bytes as is. `overrides`: see signing.path."""
        body = b"" if payload is None else payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        route = f"/apps/{self.application.id}/{room}"
        return self.call(method, signing.path(self.application, method, route, body, query, **overrides), body)

    def publish(self, channel: str, event: str, data: str, **more: object) -> Answer:
        """One event; 200 is asserted."""
        answer = self.signed("POST", "events", {"name": event, "channels": [channel], "data": data, **more})
        assert answer.status == 200, answer
        return answer

    def local_port(self) -> int:
        """Opens the connection first: until something was answered, nobody may have accepted it."""
        self.call("GET", "/health/live")
        return int(self._connection.sock.getsockname()[1])


def publish(server: servers.Server, channel: str, event: str, data: str, **more: object) -> Answer:
    """One event over a connection of its own, so through any worker."""
    with Caller(server) as caller:
        return caller.publish(channel, event, data, **more)


@contextlib.contextmanager
def to_each_worker(server: servers.Server) -> Iterator[dict[int, Caller]]:
    """A connection to every worker, by worker."""
    workers = server.workers()
    chosen: dict[int, Caller] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(ROUNDS):
            opened = [stack.enter_context(Caller(server)) for _ in range(ROUND)]
            by_port = {caller.local_port(): caller for caller in opened}
            for port, worker in server.workers_of(by_port).items():
                chosen.setdefault(worker, by_port[port])
            if set(workers) <= set(chosen):
                break
        else:
            raise AssertionError(f"{ROUNDS * ROUND} connections reached only {sorted(chosen)} of {workers}")
        yield chosen


# The kernel wakes all workers and one of them wins: uneven, but none is left out for long.
ROUND = 8
ROUNDS = 50
