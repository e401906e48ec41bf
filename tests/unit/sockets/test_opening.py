"""Upgrade requests that begin a WebSocket without uvicorn's parser."""

from __future__ import annotations

import random
from typing import Any

import httptools
import pytest

from fanfare.sockets import handshake, opening

LINE = b"GET /app/key?protocol=7&client=js HTTP/1.1\r\n"
FIELDS = (
    b"Host: example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvZg==\r\nOrigin:\thttp://a \r\n"
)
WHOLE = LINE + FIELDS + b"\r\n"


def upgrade(data: bytes) -> handshake.Request | None:
    return opening.upgrade(data, line_bytes=100, head_bytes=1_000, headers=8)


def test_upgrade_is_parsed() -> None:
    """Names are in lower case, and values without the space around them."""
    assert upgrade(WHOLE) == handshake.Request(
        b"GET",
        b"/app/key?protocol=7&client=js",
        [
            (b"host", b"example.com"),
            (b"connection", b"keep-alive, Upgrade"),
            (b"upgrade", b"WebSocket"),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-key", b"c2l4dGVlbiBieXRlcyBvZg=="),
            (b"origin", b"http://a"),
        ],
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(WHOLE[:-1], id="incomplete head"),
        pytest.param(WHOLE + b"\x81", id="more than the head"),
        pytest.param(WHOLE + WHOLE, id="two requests"),
        pytest.param(WHOLE.replace(b"GET", b"POST"), id="method"),
        pytest.param(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), id="version"),
        pytest.param(WHOLE.replace(b" /app", b" http://x/app"), id="absolute target"),
        pytest.param(WHOLE.replace(b"/key", b"/key#a"), id="fragment"),
        pytest.param(WHOLE.replace(b"/key", b"/k\xc3\xa9y"), id="target that is not ASCII"),
        pytest.param(WHOLE.replace(b"/key", b"/" + b"k" * 100), id="too long line"),
        pytest.param(LINE + FIELDS + b"A: b\r\n" * 3 + b"\r\n", id="too many headers"),
        pytest.param(LINE + FIELDS + b"A: " + b"b" * 1_000 + b"\r\n\r\n", id="too large head"),
        pytest.param(LINE + FIELDS + b"Content-Length: 4\r\n\r\n", id="Content-Length"),
        pytest.param(LINE + FIELDS + b"Transfer-Encoding: chunked\r\n\r\n", id="Transfer-Encoding"),
        pytest.param(LINE + FIELDS + b"Expect: 100-continue\r\n\r\n", id="Expect"),
        pytest.param(LINE + FIELDS + b"Connection: close\r\n\r\n", id="two Connections"),
        pytest.param(LINE + FIELDS + b"Upgrade: h2c\r\n\r\n", id="two Upgrades"),
        pytest.param(WHOLE.replace(b"Upgrade: WebSocket", b"Upgrade: h2c"), id="another protocol"),
        pytest.param(WHOLE.replace(b"keep-alive, Upgrade", b"keep-alive"), id="Connection without Upgrade"),
        pytest.param(LINE + FIELDS + b"X : a\r\n\r\n", id="space before a colon"),
        pytest.param(LINE + FIELDS + b" folded\r\n\r\n", id="folded line"),
        pytest.param(LINE + FIELDS + b"X: a\nY: b\r\n\r\n", id="bare line feed"),
        pytest.param(LINE + FIELDS + b"X: a\rb\r\n\r\n", id="bare carriage return"),
        pytest.param(LINE + FIELDS + b"X: a\0b\r\n\r\n", id="NUL"),
    ],
)
def test_other_request_is_left_to_the_parser(data: bytes) -> None:
    assert upgrade(data) is None


class Parsed:
    """What httptools finds in bytes."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.upgrades = False
        parser: Any = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgraded:
            self.upgrades = upgraded.args[0] in (len(data), -1)
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        pytest.param(b"", b"Cookie: a=1\r\nCookie: b=2; c=3\r\nCOOKIE:\r\n", id="several Cookies"),
        pytest.param(
            b"",
            b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame\r\n",
            id="extensions",
        ),
        pytest.param(
            b"", b"Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: c\r\n", id="several offers of subprotocols"
        ),
        pytest.param(
            b"",
            b"X-Forwarded-For: 198.51.100.1, 203.0.113.9\r\nX-Forwarded-For:10.0.0.1\r\nX-Forwarded-Proto: https\r\n",
            id="proxies",
        ),
        pytest.param(b"", b"Authorization: Basic YTpi\r\nX-Name: \xc3\xa9\tb\r\n", id="value that is not ASCII"),
        pytest.param(b"&a=" + b"b%20+" * 1_640, b"", id="query of 8 kB"),
    ],
)
def test_unusual_upgrade_is_as_uvicorn_passes_it(query: bytes, fields: bytes) -> None:
    """uvicorn's class writes the parsed request out again for the WebSocket class."""
    data = WHOLE.replace(b" HTTP/1.1", query + b" HTTP/1.1").replace(b"Origin:\thttp://a \r\n", fields)
    request = opening.upgrade(data, line_bytes=32_768, head_bytes=65_536, headers=128)
    parsed = Parsed(data)
    assert parsed.upgrades
    lines = [b"%b: %b\r\n" % (name, value) for name, value in parsed.headers]
    assert request == handshake.read(b"GET %b HTTP/1.1\r\n%b\r\n" % (parsed.url, b"".join(lines)))
    assert request.resource() == (b"/app/key", b"protocol=7&client=js" + query)


def test_parsed_upgrades_are_those_of_the_parser() -> None:
    """Every request that is taken from changed bytes is one upgrade for httptools too, with the same parts."""
    chance = random.Random(15)
    pieces = [b"\r\n", b"\n", b"\r", b":", b" ", b"\t", b"\0", b"?", b"&", b",", b"\xff", b"Upgrade", b"A"]
    taken = 0
    for _ in range(20_000):
        data = bytearray(WHOLE)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            at = chance.randrange(len(data))
            data[at : at + chance.choice((0, 0, 1, 2))] = chance.choice(pieces)
        request = upgrade(bytes(data))
        if request is None:
            continue
        taken += 1
        parsed = Parsed(bytes(data))
        assert (parsed.method, parsed.upgrades, parsed.url) == (b"GET", True, request.target), data
        assert [(name, value.strip()) for name, value in parsed.headers] == request.headers, data
    assert taken > 1_000
