"""The opening handshake: RFC 6455 §4.2. No I/O.

uvicorn's HTTP parser has checked the request's syntax; this module checks that it is a WebSocket handshake.
"""

from __future__ import annotations

import base64
import hashlib
import http
import re
import urllib.parse
from collections.abc import Iterable
from typing import Final, NamedTuple

Headers = list[tuple[bytes, bytes]]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_VERSION: Final = b"13"
_SWITCHING: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_NOT_IN_A_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # a line break would begin another header
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_UNQUOTED: Final = re.compile(rb"[A-Za-z0-9_.~/-]*")  # a path with characters that are never quoted
_OF_HANDSHAKE: Final = (b"connection", b"upgrade", b"sec-websocket-key", b"sec-websocket-version")
_OWN_HEADERS: Final = (b"content-length", b"transfer-encoding", b"connection")  # of a response: set here only


class HandshakeRefused(Exception):
    """The request is not a WebSocket handshake. `status`, `headers`: of the answer."""

    def __init__(self, status: int, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers


class HeaderInvalid(Exception):
    """The application gave a header that cannot be sent: a name or a value with a character that HTTP forbids."""


class Request(NamedTuple):
    """`target`: as it was sent. `headers`: names in lower case, in the order of the request."""

    method: bytes
    target: bytes
    headers: Headers

    def tokens(self, name: bytes) -> list[bytes]:
        """A list header, joined over its lines and split at its commas."""
        return _tokens(b",".join(value for known, value in self.headers if known == name))

    def resource(self) -> tuple[bytes, bytes]:
        """Path, still quoted, and query. A target may be a whole URL too (RFC 6455 §4.2.1)."""
        target = self.target
        if not target.startswith(b"/"):
            _authority, slash, rest = target.partition(b"://")[2].partition(b"/")
            target = (slash + rest) or b"/"
        path, _, query = target.partition(b"?")
        return path, query

    def path_with_query(self) -> str:
        """For the log: the path in one way of quoting."""
        path, query = self.resource()
        text = path.decode("ascii")
        if _UNQUOTED.fullmatch(path) is None:
            text = urllib.parse.quote(urllib.parse.unquote(text))
        return f"{text}?{query.decode('ascii')}" if query else text


def read(head: bytes) -> Request:
    """Parse a request's head, which uvicorn serializes again for the WebSocket class."""
    first, *lines = head[: head.index(b"\r\n\r\n")].split(b"\r\n")
    method, target, _version = first.split(b" ", 2)
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    return Request(method, target, headers)


def key(request: Request) -> bytes:
    """The client's key. Raises HandshakeRefused if the request is not a handshake."""
    if request.method != b"GET":
        raise HandshakeRefused(405, "A WebSocket begins with GET", ((b"allow", b"GET"),))
    if not request.target.isascii():
        raise HandshakeRefused(400, "The target is not ASCII")
    found: dict[bytes, list[bytes]] = {name: [] for name in _OF_HANDSHAKE}
    for name, value in request.headers:
        if name in found:
            found[name].append(value)
    if b"upgrade" not in _tokens(b",".join(found[b"connection"]).lower()):
        raise HandshakeRefused(426, "Connection: Upgrade is missing", ((b"upgrade", b"websocket"),))
    if _tokens(b",".join(found[b"upgrade"]).lower()) != [b"websocket"]:
        raise HandshakeRefused(426, "Upgrade: websocket is missing", ((b"upgrade", b"websocket"),))
    keys = found[b"sec-websocket-key"]
    if len(keys) != 1 or _KEY.fullmatch(keys[0]) is None:
        raise HandshakeRefused(400, "Sec-WebSocket-Key must appear once, with 16 bytes in base64")
    if found[b"sec-websocket-version"] != [_VERSION]:
        version = ((b"sec-websocket-version", _VERSION), (b"upgrade", b"websocket"))
        raise HandshakeRefused(426, "Sec-WebSocket-Version must appear once, with 13", version)
    return keys[0]


def switching(client_key: bytes, header_lines: bytes) -> bytes:
    """The answer that opens the WebSocket. `header_lines`: see `lines`."""
    accepted = base64.b64encode(hashlib.sha1(client_key + _GUID, usedforsecurity=False).digest())
    return b"%bSec-WebSocket-Accept: %b\r\n%b\r\n" % (_SWITCHING, accepted, header_lines)


def response(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A complete HTTP response. Framing headers are added here; those in `headers` are dropped."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    line = f"HTTP/1.1 {status} {phrase}\r\n".encode()
    given = [(name, value) for name, value in headers if name.lower() not in _OWN_HEADERS]
    ending = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    return line + lines(given) + ending + body


def _tokens(value: bytes) -> list[bytes]:
    return [token for part in value.split(b",") if (token := part.strip())]


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines. Raises HeaderInvalid."""
    found = []
    for name, value in headers:
        if not _TOKEN.fullmatch(name):
            raise HeaderInvalid(f"{name!r} is not a header name")
        if _NOT_IN_A_VALUE.search(value):
            raise HeaderInvalid(f"The header {name!r} has a control character in its value")
        found.append(b"%b: %b\r\n" % (name, value))
    return b"".join(found)
