"""Signed requests to the deployment, with retries.

A request that fails, or gets 429, 500, 502, 503 or 504, is sent again until its deadline. For FAILURE_S after a failed
call, each call makes a single attempt, so that views do not wait for a deployment that is down. Redirects are not
followed, because a signature is valid for one path.

Source: Pusher Channels, "HTTP API", "Authentication".
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import orjson

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.protocol import signatures

IDLE_S = 4.0  # longer idle connections are closed: uvicorn closes them after 5 s
IDLE_CONNECTIONS = 8  # per process
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0  # between two attempts
CONNECT_S = 2.0  # a lost SYN is sent again after 1 s
FAILURE_S = 10.0  # after a failure, in which calls make a single attempt

RETRIED = frozenset({429, 500, 502, 503, 504})


class Answer(NamedTuple):
    """An HTTP response. `body`: the decoded JSON, None if it is not JSON."""

    status: int
    body: Any
    headers: http.client.HTTPMessage

    @property
    def message(self) -> str:
        return str(self.body.get("error", "")) if isinstance(self.body, dict) else ""

    @property
    def code(self) -> str:
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""


class Refused(Exception):
    """A 4xx response that the call itself caused."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Client:
    """The requests of one application to its deployment. Thread-safe and fork-safe.

    `url`: of the deployment, with the path of its API. `timeout_s`: of one call with its retries.
    """

    def __init__(self, url: str, target: registry.Application, *, timeout_s: float) -> None:
        self.url = url
        self._target = target
        self._timeout_s = timeout_s
        self._connections = Connections(url)
        self._failed_at = -FAILURE_S  # monotonic

    def close(self) -> None:
        """Close the idle connections. The next call opens others."""
        self._connections.close()

    def deadline(self, timeout: float | None = None) -> float:
        """The monotonic time until which a call that begins now may take. `timeout`: its seconds if it has its own."""
        return time.monotonic() + (self._timeout_s if timeout is None else timeout)

    def ask(
        self, method: str, path: str, deadline: float, *, query: dict[str, str] | None = None, body: Any = None
    ) -> Any:
        """The JSON of a 2xx response. Raises Refused for a 4xx response that the call itself caused."""
        is_retried = time.monotonic() - self._failed_at >= FAILURE_S
        pause = FIRST_PAUSE_S
        while True:
            reason, wait = "", 0.0
            try:
                answer = self._attempt(method, path, query or {}, body, deadline)
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if answer.status not in RETRIED:
                    self._failed_at = -FAILURE_S
                    return self._checked(answer)
                reason = f"it answered {answer.status} {answer.message}".rstrip()
                wait = _retry_after(answer)
            wait = max(wait, pause * random.uniform(0.75, 1.0))  # noqa: S311  (not all processes at once)
            if not is_retried or time.monotonic() + wait >= deadline:
                self._failed_at = time.monotonic()
                raise engine_errors.EngineUnavailable(
                    f"The deployment at {self.url} (FANFARE_REMOTE_URL) did not accept the request: {reason}"
                )
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _attempt(self, method: str, path: str, query: dict[str, str], body: Any, deadline: float) -> Answer:
        data = b"" if body is None else orjson.dumps(body)
        target = self._signed(method, path, query, data)
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data else {})
        for connection, is_fresh in self._connections.take():
            try:
                if is_fresh:
                    connection.connect()
                connection.sock.settimeout(max(deadline - time.monotonic(), 0.05))
                connection.request(method, target, data or None, headers)
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                if is_fresh:
                    raise
                continue  # the server has closed the idle connection
            except BaseException:
                connection.close()
                raise
            if response.will_close:
                connection.close()
            else:
                self._connections.give_back(connection)
            return Answer(response.status, _json(text), response.headers)
        raise AssertionError("the last connection is fresh")

    def _signed(self, method: str, path: str, query: dict[str, str], data: bytes) -> str:
        """The request target with its signature."""
        path = f"{self._connections.prefix}/apps/{quote(self._target.id, safe='')}/{path}"
        signed = {
            **query,
            "auth_key": self._target.key,
            "auth_timestamp": str(int(time.time())),
            "auth_version": "1.0",
        }
        if data:
            signed["body_md5"] = hashlib.md5(data, usedforsecurity=False).hexdigest()
        lines = f"{method}\n{path}\n" + "&".join(f"{name}={value}" for name, value in sorted(signed.items()))
        signature = signatures.sign(self._target.secret, lines)
        return f"{path}?{urlencode({**signed, 'auth_signature': signature}, quote_via=quote)}"

    def _checked(self, answer: Answer) -> Any:
        if 200 <= answer.status < 300 and answer.body is not None:
            return answer.body
        if 300 <= answer.status < 400:
            raise engine_errors.EngineMisconfigured(
                f"FANFARE_REMOTE_URL is {self.url!r}, which redirects to {answer.headers.get('Location')!r}: "
                "set it to the URL of the deployment itself."
            )
        if answer.code == "":
            raise engine_errors.EngineMisconfigured(
                f"FANFARE_REMOTE_URL is {self.url!r}, which answers {answer.status} without the JSON of Fanfare: "
                "is it the URL of a Fanfare deployment, with its path?"
            )
        if answer.status == 401:
            hint = "set the clock of this machine" if answer.code == "expired_timestamp" else "check both settings"
            raise errors.NoApplication(
                f"{self.url} does not accept FANFARE_REMOTE_KEY and FANFARE_REMOTE_SECRET for the application "
                f"{self._target.id} ({answer.code}): {_without_signature(answer.message)} Remedy: {hint}."
            )
        if answer.status in (403, 404):
            raise errors.NoApplication(
                f"{self.url}, application {self._target.id} (FANFARE_REMOTE_APP_ID): {answer.message}"
            )
        raise Refused(answer)


class Connections:
    """The open connections of this process to one server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.prefix = parts.path.rstrip("/")
        self._host = parts.hostname or ""
        self._port = parts.port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._lock = threading.Lock()
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []  # since when
        self._pid = os.getpid()

    def take(self) -> Iterator[tuple[http.client.HTTPConnection, bool]]:
        """Connections to try in turn. The last one is new and not connected yet."""
        while (kept := self._kept()) is not None:
            yield kept, False
        if self._tls is None:
            yield http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S), True
        else:
            yield http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=self._tls), True

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < IDLE_CONNECTIONS and self._pid == os.getpid():
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def close(self) -> None:
        while (kept := self._kept()) is not None:
            kept.close()

    def _kept(self) -> http.client.HTTPConnection | None:
        with self._lock:
            if self._pid != os.getpid():  # a fork: the parent uses these sockets
                self._idle, self._pid = [], os.getpid()
            while self._idle:
                since, connection = self._idle.pop()
                if time.monotonic() - since < IDLE_S:
                    return connection
                connection.close()
        return None


def _retry_after(answer: Answer) -> float:
    """The seconds of the Retry-After header, at most LONGEST_PAUSE_S."""
    value = answer.headers.get("Retry-After") or ""
    return min(float(value), LONGEST_PAUSE_S) if value.isascii() and value.isdecimal() else 0.0


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _without_signature(message: str) -> str:
    """The first line: a message about a signature quotes the string that was signed."""
    return message.split("\n", 1)[0][:300]
