"""Mutated HTTP requests over real sockets: heads, WebSocket handshakes, the API's JSON, event streams, proxy headers.

The body of a request to the API is mutated before it is signed, so that it reaches the code behind the signature.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable

import jwt

from tests.fuzz import frames
from tests.harness import calls, deployments, servers, signing

ATTACKERS = 8
PATIENCE = 60.0  # seconds for the beginning of a response
INCOMPLETE_S = 1.0  # without a response, a request is taken for an incomplete one
FAULTS = frozenset({"500", "501", "502", "504"})  # 503 is a limit's
SETTINGS = {"FANFARE_TRUSTED_PROXIES": "127.0.0.1", "FANFARE_HEAD_TIMEOUT": "2"}


class Forge:
    """Requests of an application, determined by `chance` alone."""

    def __init__(self, chance: random.Random, application: deployments.Application) -> None:
        self._chance = chance
        self._application = application
        self._templates: tuple[Callable[[], bytes], ...] = (
            self._handshake,
            self._publish,
            self._publish,
            self._query,
            self._stream,
            self._stream,
            self._page,
        )

    def request(self) -> bytes:
        """One request; a mutated head may leave it incomplete."""
        request = self._chance.choice(self._templates)()
        for _ in range(self._chance.choice((0, 0, 0, 1, 2))):
            begin = self._chance.randrange(len(request) + 1)
            end = min(len(request), begin + self._chance.randrange(6))
            request = request[:begin] + self._chance.choice(_BYTES) + request[end:]
        return request

    def _text(self, text: str, share: float = 0.15) -> str:
        """Mutated with this probability: of many fields, few should be wrong at the same time."""
        return frames.changed(text, self._chance) if self._chance.random() < share else text

    def _head(self, method: str, target: str, **headers: str) -> bytes:
        proxied = {"X-Forwarded-For": self._text("1.2.3.4, 10.0.0.1"), "X-Forwarded-Proto": self._text("https")}
        fields = {"Host": servers.HOST, **(proxied if self._chance.random() < 0.5 else {}), **headers}
        lines = [
            f"{method} {target} HTTP/1.1",
            *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()),
        ]
        return "\r\n".join((*lines, "", "")).encode("utf-8", "replace")

    def _handshake(self) -> bytes:
        return self._head(
            "GET",
            self._text(f"/app/{self._application.key}?protocol=7&client=fuzz&version=1.0"),
            Upgrade=self._text("websocket"),
            Connection=self._text("Upgrade"),
            Sec_WebSocket_Key=self._text("AAAAAAAAAAAAAAAAAAAAAA=="),
            Sec_WebSocket_Version=self._text("13"),
            Sec_WebSocket_Extensions=self._text("permessage-deflate; client_max_window_bits"),
            Origin=self._text("https://example.com"),
        )

    def _publish(self) -> bytes:
        event = {
            "name": "e",
            "channels": ["news", "kept-room-1"],
            "data": "{}",
            "socket_id": "1.2",
            "info": "user_count",
        }
        route, fields = self._chance.choice((("events", event), ("batch_events", {"batch": [event]})))
        body = self._text(json.dumps(fields), 0.7).encode("utf-8", "replace")
        path = signing.path(self._application, "POST", f"/apps/{self._application.id}/{route}", body)
        return self._head("POST", path, Content_Type="application/json", Content_Length=str(len(body))) + body

    def _query(self) -> bytes:
        route, query = self._chance.choice(
            (
                ("channels", {"filter_by_prefix": self._text("presence-"), "info": self._text("user_count")}),
                ("channels/kept-room-1/history", {"limit": self._text("10"), "since": self._text("aZ3kP0Qx:57")}),
                ("channels/presence-room-1/users", {}),
            )
        )
        return self._head(
            "GET", signing.path(self._application, "GET", f"/apps/{self._application.id}/{route}", query=query)
        )

    def _stream(self) -> bytes:
        claims = {"channels": ["private-a", "news"], "exp": int(time.time()) + 60, "sub": "1"}
        payload = self._text(json.dumps(claims), 0.5).encode("utf-8", "replace")
        token = self._text(jwt.PyJWS().encode(payload, self._application.secret, "HS256"))
        query = self._text("channels=private-a,news&rewind=5&last_event_id=1.-.-")
        return self._head(
            "GET",
            f"/sse/{self._application.key}?{query}",
            Accept="text/event-stream",
            Authorization=f"Bearer {token}",
            Last_Event_ID=self._text("1.aZ3kP0Qx:57.-", 0.5),
        )

    def _page(self) -> bytes:
        body = self._text("socket_id=1.2&channel_name=private-a").encode("utf-8", "replace")
        return (
            self._head(
                "POST",
                self._text(self._chance.choice(("/pusher/auth", "/pusher/user-auth", "/health/ready", "/nowhere"))),
                Content_Type="application/x-www-form-urlencoded",
                Content_Length=self._text(str(len(body))),
            )
            + body
        )


_BYTES = (
    b"", b"\x00", b"\xff", b"\r\n", b"\n", b"\r\n\r\n", b":", b" ", b"\t", b"%00", b"%ff", b"HTTP/1.1", b"HTTP/9.9",
    b"Transfer-Encoding: chunked\r\n", b"\r\nContent-Length: -1", b"\r\nContent-Length: 99999999999999999999",
    b"\r\nExpect: 100-continue", b"x" * 40_000,
)  # fmt: skip


async def run(server: servers.Server, application: deployments.Application, total: int, seed: int) -> Counter[str]:
    """Send `total` requests; answers the number of each status. Raises AssertionError if the server was harmed."""
    workers = server.workers()
    statuses: Counter[str] = Counter()
    await asyncio.gather(
        *(
            _attack(server, Forge(random.Random(f"{seed}-{number}"), application), total // ATTACKERS, statuses)
            for number in range(ATTACKERS)
        )
    )
    assert server.workers() == workers, "a worker died"
    assert not FAULTS & set(statuses), f"{statuses}"
    assert await asyncio.to_thread(server.is_ready)
    with calls.Caller(server, application) as caller:
        await asyncio.to_thread(caller.publish, "news", "after", "1")
    return statuses


async def _attack(server: servers.Server, forge: Forge, count: int, statuses: Counter[str]) -> None:
    for _ in range(count):
        reader, writer = await asyncio.open_connection(servers.HOST, server.port)
        try:
            request = forge.request()
            writer.write(request)
            line = await _first_line(reader, writer)
            statuses[line[9:12].decode("latin-1") or "none"] += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            statuses["reset"] += 1
        except TimeoutError:
            raise AssertionError(f"no response to {request[:2_000]!r}") from None
        finally:
            writer.transport.abort()


async def _first_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Raises TimeoutError. An incomplete request gets its response, or a close, once the client's end is closed."""
    line = asyncio.ensure_future(reader.readline())
    await asyncio.wait([line], timeout=INCOMPLETE_S)
    if not line.done():
        writer.write_eof()
    return await asyncio.wait_for(line, PATIENCE)
