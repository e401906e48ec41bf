"""Whole requests that need no parser: which ones they are."""

from __future__ import annotations

import random
from typing import Any

import httptools
import pytest

from fanfare.sockets import direct_http

LINE = b"POST /apps/3/events?auth_key=a&body_md5=b HTTP/1.1\r\n"
HEAD = LINE + b"Host: example.com\r\nContent-Type: application/json\r\nContent-Length: 4\r\n"
WHOLE = HEAD + b"\r\nbody"


def parse(data: bytes) -> direct_http.Request | None:
    return direct_http.parse(data, 1_000, 8)


def test_request_is_parsed() -> None:
    assert parse(WHOLE) == direct_http.Request(
        "/apps/3/events",
        "auth_key=a&body_md5=b",
        ((b"host", b"example.com"), (b"content-type", b"application/json"), (b"content-length", b"4")),
        b"body",
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(WHOLE[:-1], id="incomplete body"),
        pytest.param(WHOLE + b"P", id="more than the body"),
        pytest.param(HEAD, id="incomplete head"),
        pytest.param(WHOLE.replace(b"POST", b"PUT"), id="method"),
        pytest.param(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), id="version"),
        pytest.param(WHOLE.replace(b"Host", b"X-Host"), id="no Host"),
        pytest.param(WHOLE.replace(b"Content-Length: 4\r\n", b""), id="no Content-Length"),
        pytest.param(HEAD + b"Content-Length: 4\r\n\r\nbody", id="two Content-Lengths"),
        pytest.param(HEAD.replace(b": 4", b": +4") + b"\r\nbody", id="signed Content-Length"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nbody", id="Transfer-Encoding"),
        pytest.param(HEAD + b"Transfer-Encoding : chunked\r\n\r\nbody", id="space before a colon"),
        pytest.param(HEAD + b" folded\r\n\r\nbody", id="folded line"),
        pytest.param(HEAD + b"X: a\nTransfer-Encoding: chunked\r\n\r\nbody", id="bare line feed"),
        pytest.param(HEAD + b"X: a\rb\r\n\r\nbody", id="bare carriage return"),
        pytest.param(HEAD + b"X: a\0b\r\n\r\nbody", id="NUL"),
        pytest.param(HEAD + b"Expect: 100-continue\r\n\r\nbody", id="Expect"),
        pytest.param(HEAD + b"Connection: close\r\n\r\nbody", id="Connection: close"),
        pytest.param(HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nbody", id="Upgrade"),
        pytest.param(HEAD + b"A: b\r\n" * 6 + b"\r\nbody", id="too many headers"),
        pytest.param(WHOLE.replace(b"auth_key", b"a" * 1_000), id="too long line"),
        pytest.param(WHOLE.replace(b"/apps", b"http://x/apps"), id="absolute target"),
        pytest.param(WHOLE.replace(b"?auth", b"#auth"), id="fragment"),
    ],
)
def test_other_request_is_left_to_the_parser(data: bytes) -> None:
    assert parse(data) is None


class Parsed:
    """What httptools finds in bytes."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = 0
        parser: Any = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method()
        self.keeps_alive = parser.should_keep_alive()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def test_parsed_requests_are_those_of_the_parser() -> None:
    """Every request that is taken from changed bytes is one complete request for httptools too, with the same parts."""
    chance = random.Random(15)
    pieces = [
        b"\r\n",
        b"\n",
        b"\r",
        b":",
        b" ",
        b"\t",
        b"\0",
        b"?",
        b"&",
        b"4",
        b"\xff",
        b"Content-Length: 4\r\n",
        b"A",
    ]
    taken = 0
    for _ in range(20_000):
        data = bytearray(WHOLE)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            at = chance.randrange(len(data))
            data[at : at + chance.choice((0, 0, 1, 2))] = chance.choice(pieces)
        request = parse(bytes(data))
        if request is None:
            continue
        taken += 1
        parsed = Parsed(bytes(data))
        assert (parsed.method, parsed.complete, parsed.keeps_alive) == (b"POST", 1, True), data
        assert parsed.url.decode() == f"{request.path}?{request.query}", data
        assert [(name, value.strip()) for name, value in parsed.headers] == list(request.headers), data
        assert parsed.body == request.body, data
    assert taken > 1_000
