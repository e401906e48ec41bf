"""A webhook receiver: an HTTP server in threads that can refuse, hang and reset."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.harness import proxies, servers, waiting

HEARD_S = 90.0  # the lease of a killed worker ends after 10 s


class Request(NamedTuple):
    """One POST as received."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    accepted: bool
    at: float  # Unix time

    @property
    def events(self) -> list[dict[str, Any]]:
        return json.loads(self.body)["events"]


Answer = Callable[[BaseHTTPRequestHandler, list[dict[str, Any]]], bool]
"""Answers a request; returns whether it accepted the events."""


def accept(handler: BaseHTTPRequestHandler, _events: list[dict[str, Any]]) -> bool:
    return say(handler, 200)


def say(handler: BaseHTTPRequestHandler, status: int, text: bytes = b"", **headers: str) -> bool:
    handler.send_response(status)
    if status != 200:
        headers["Connection"] = "close"
    for name, value in {**headers, "Content-Length": str(len(text))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(text)
    return 200 <= status < 300


def refuse(handler: BaseHTTPRequestHandler, _events: list[dict[str, Any]]) -> bool:
    return say(handler, 500, b"refused by the test")


def hang(handler: BaseHTTPRequestHandler, _events: list[dict[str, Any]]) -> bool:
    """Answer nothing until the sender gives up."""
    handler.connection.settimeout(30)
    handler.connection.recv(1)
    return False


def reset(handler: BaseHTTPRequestHandler, _events: list[dict[str, Any]]) -> bool:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, proxies.RESET_ON_CLOSE)
    handler.connection.close()
    return False


class Receiver:
    """A running receiver. `answer` may be replaced at any time."""

    def __init__(self, answer: Answer = accept, host: str = servers.HOST) -> None:
        self.host = host
        self.answer = answer
        self.requests: list[Request] = []
        self.together = 0  # requests in progress
        self.most_together = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((host, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self._server.server_address[1]}/hook"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def accepted(self) -> list[Request]:
        return [request for request in self.requests if request.accepted]

    def events(self, name: str | None = None, channel: str | None = None) -> list[dict[str, Any]]:
        """The accepted events, in the order of their requests."""
        return [
            event
            for request in self.accepted
            for event in request.events
            if name in (None, event["name"]) and channel in (None, event["channel"])
        ]

    async def heard(self, name: str, channel: str) -> list[dict[str, Any]]:
        """The accepted events of this kind and channel, once there is one."""

        async def there() -> bool:
            return bool(self.events(name, channel))

        await waiting.until_async(there, HEARD_S, f"{name} of {channel}")
        return self.events(name, channel)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver._lock:
                    receiver.together += 1
                    receiver.most_together = max(receiver.most_together, receiver.together)
                try:
                    accepted = receiver.answer(self, json.loads(body)["events"])
                except OSError:
                    accepted = False
                self.close_connection = not accepted
                with receiver._lock:
                    receiver.together -= 1
                    receiver.requests.append(Request(self.path, dict(self.headers), body, accepted, time.time()))

            def handle(self) -> None:
                try:
                    super().handle()
                except (OSError, ValueError):  # either side reset the connection
                    return

            def finish(self) -> None:
                try:
                    super().finish()
                except (OSError, ValueError):
                    return

            def log_message(self, *_: object) -> None:
                return

        return Handler


@contextmanager
def receiver(answer: Answer = accept, host: str = servers.HOST) -> Iterator[Receiver]:
    made = Receiver(answer, host)
    try:
        yield made
    finally:
        made.stop()
