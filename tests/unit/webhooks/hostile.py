"""Receivers that do each of the things that a webhook's receiver must not do."""

from __future__ import annotations

import gzip
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.harness import receivers

ENDLESS_BYTES = 200_000_000  # no receiver sends more; a client that reads it all takes that much memory
BOMB = gzip.compress(b"\x00" * 50_000_000)


def raw(data: bytes) -> receivers.Answer:
    """These bytes and nothing else, and then the end of the connection."""

    def answer(handler: BaseHTTPRequestHandler, _events: list[dict[str, Any]]) -> bool:
        handler.wfile.write(data)
        return False

    return answer


def repeated(head: bytes, chunk: bytes, pause_s: float = 0.0) -> receivers.Answer:
    """A head, and then the same bytes again and again until the client is gone."""

    def answer(handler: BaseHTTPRequestHandler, _events: list[dict[str, Any]]) -> bool:
        handler.wfile.write(head)
        deadline = time.monotonic() + 20
        sent = 0
        while sent < ENDLESS_BYTES and time.monotonic() < deadline:
            handler.wfile.write(chunk)
            handler.wfile.flush()
            sent += len(chunk)
            time.sleep(pause_s)
        return False

    return answer


def _redirect(location: bytes, status: int = 307) -> receivers.Answer:
    return raw(b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, location))


CHUNK = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
ERROR = b"HTTP/1.1 500 Broken\r\n"
OK = b"HTTP/1.1 200 OK\r\n"

# Those after which the events are refused.
REFUSING: dict[str, receivers.Answer] = {
    "redirect to a byte that is no UTF-8": _redirect(b"http://127.0.0.1/\xff"),
    "unfollowed redirect to a byte that is no UTF-8": _redirect(b"http://127.0.0.1/\xff?a=b", 301),
    "redirect to no URL": _redirect(b"http://[::1"),
    "redirect to a port that does not exist": _redirect(b"http://127.0.0.1:99999/"),
    "redirect to another scheme": _redirect(b"file:///etc/passwd"),
    "redirect with control characters": _redirect(b"http://127.0.0.1/\x1b[31m"),
    "redirect to a host that is no name": _redirect(b"http://" + b"a" * 300 + b"/"),
    "redirect to itself": _redirect(b"/hook"),
    "body that is no UTF-8": raw(ERROR + b"Content-Length: 6\r\n\r\n\xff\xfe\x00\x1b[m"),
    "reason that is no UTF-8": raw(b"HTTP/1.1 500 \xff\xfe\r\nContent-Length: 0\r\n\r\n"),
    "slow head": repeated(b"HTTP/1.1 2", b"0", 0.05),
    "slow error body": repeated(ERROR + b"Content-Length: 100000\r\n\r\n", b".", 0.05),
    "endless error body": repeated(
        ERROR + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"
    ),
    "endless header": repeated(OK + b"X-Endless: ", b"x" * 65_536),
    "endless headers": repeated(OK, b"X-Endless: " + b"x" * 1_000 + b"\r\n"),
    "endless interim responses": repeated(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.001),
    "connection closed in the head": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "connection closed in the error body": raw(ERROR + b"Content-Length: 1000\r\n\r\nbegun"),
    "invalid chunks in an error body": raw(ERROR + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"),
    "compressed bomb in an error body": raw(
        ERROR + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB
    ),
    "invalid chunks in a success": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "status of five digits": raw(b"HTTP/1.1 99999 Odd\r\nContent-Length: 0\r\n\r\n"),
    "silence": receivers.hang,
    "reset": receivers.reset,
}

# Those that have accepted the events with their head.
ACCEPTING: dict[str, receivers.Answer] = {
    "endless body": repeated(OK + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    "slow body": repeated(OK + b"Content-Length: 100000\r\n\r\n", b".", 0.05),
    "connection closed in the body": raw(OK + b"Content-Length: 1000\r\n\r\nbegun"),
    "compressed bomb": raw(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB),
}
