"""HTTP API calls that no SDK can make: through a chosen worker, or with a forged signature."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self

from tests.harness import servers, signing
from tests.harness.deployments import Application


class Target(Protocol):
    """A server, or the port and the application of one that runs elsewhere."""

    @property
    def port(self) -> int: ...

    @property
    def application(self) -> Application: ...


class Answer(NamedTuple):
    status: int
    body: Any  # decoded JSON
    headers: dict[str, str]  # names in lower case


class Caller:
    """One keep-alive connection to one worker. Use as a context manager."""

    def __init__(self, server: Target, application: Application | None = None) -> None:
        self.application = application or server.application
        self._connection = http.client.HTTPConnection(servers.HOST, server.port, timeout=15)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """The next call opens another connection."""
        self._connection.close()

    def call(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send the request as given; nothing is signed."""
        self._connection.request(method, target, body or None, {"Content-Type": "application/json", **(headers or {})})
        response = self._connection.getresponse()
        text = response.read()
        decoded = json.loads(text) if text else None
        return Answer(response.status, decoded, {name.lower(): value for name, value in response.getheaders()})

    def signed(
        self,
        method: str,
        route: str,
        payload: object = None,
        query: Mapping[str, str] | None = None,
        **overrides: str,
    ) -> Answer:
        """Send a signed request to /apps/ID/`route`. `payload`: bytes are sent as is, other values as JSON.
        `overrides`: see signing.path.
        """
        body = b"" if payload is None else payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        path = f"/apps/{self.application.id}/{route}"
        return self.call(method, signing.path(self.application, method, path, body, query, **overrides), body)

    def publish(self, channel: str, event: str, data: str, **more: object) -> Answer:
        """Publish one event; the response must be 200."""
        answer = self.signed("POST", "events", {"name": event, "channels": [channel], "data": data, **more})
        assert answer.status == 200, answer
        return answer

    def local_port(self) -> int:
        """Make a request first: an open connection has no worker until one accepts it."""
        self.call("GET", "/health/live")
        return int(self._connection.sock.getsockname()[1])


def publish(server: Target, channel: str, event: str, data: str, **more: object) -> Answer:
    """Publish one event over a new connection, so through any worker."""
    with Caller(server) as caller:
        return caller.publish(channel, event, data, **more)


@contextlib.contextmanager
def to_each_worker(server: servers.Server) -> Iterator[dict[int, Caller]]:
    """A connection to each worker, by pid."""
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
            raise AssertionError(f"{ROUNDS * ROUND} connections reached only the workers {sorted(chosen)} of {workers}")
        yield chosen


# The kernel wakes all workers for a new connection and one accepts it: the distribution is uneven, but every worker
# gets one soon.
ROUND = 8
ROUNDS = 50
