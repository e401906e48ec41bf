"""A response that is written to uvicorn's transport at once equals the one that uvicorn writes for ASGI messages."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fanfare.hub import on_uvicorn
from tests.harness import servers
from tests.unit.sockets.hosting import PATIENCE, Hosted

BODY = b'{"channels":{}}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
GET = b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n"


class Answering:
    """`/direct` is written at once if the server allows it; other paths are sent as ASGI messages."""

    def __init__(self) -> None:
        self.direct = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        on_uvicorn.mute_access_log(send)
        if scope["path"] == "/direct" and on_uvicorn.respond(send, 200, HEADERS, BODY):
            self.direct += 1
            return
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})


@pytest.fixture
def answering() -> Answering:
    return Answering()


@pytest.fixture
def hosted(answering: Answering) -> Iterator[Hosted]:
    with Hosted(answering, http=HttpToolsProtocol) as server:
        yield server


def exchange(hosted: Hosted, *requests: bytes, last: bytes = b"") -> bytes:
    """Everything that the server sends, without the date, for requests that are sent together."""
    with socket.create_connection((servers.HOST, hosted.port), timeout=PATIENCE) as client:
        client.sendall(b"".join(requests) + (last or GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") % b"/"))
        received = b""
        while piece := client.recv(65_536):
            received += piece
    return re.sub(rb"date: [^\r]+", b"date: ", received)


def test_direct_response_has_the_bytes_of_the_other_one(hosted: Hosted, answering: Answering) -> None:
    assert exchange(hosted, GET % b"/direct") == exchange(hosted, GET % b"/other")
    assert answering.direct == 1


def test_pipelined_requests_are_answered_in_order(hosted: Hosted, answering: Answering) -> None:
    received = exchange(hosted, *[GET % b"/direct"] * 3)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == received.count(BODY) == 4
    assert answering.direct == 3


@pytest.mark.parametrize(
    "request_",
    [
        b"HEAD /direct HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /direct HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /direct HTTP/1.0\r\nhost: x\r\n\r\n",
    ],
)
def test_other_requests_are_sent_by_asgi(hosted: Hosted, answering: Answering, request_: bytes) -> None:
    assert exchange(hosted, last=request_) == exchange(hosted, last=request_.replace(b"/direct", b"/other"))
    assert answering.direct == 0


def test_response_before_the_end_of_the_body_keeps_the_connection(hosted: Hosted, answering: Answering) -> None:
    upload = b"POST /direct HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
    assert exchange(hosted, upload).count(BODY) == 2
    assert answering.direct == 1


def test_h11_is_answered_by_asgi(answering: Answering) -> None:
    with Hosted(answering, http=H11Protocol) as server:
        assert exchange(server, GET % b"/direct").count(BODY) == 2
    assert answering.direct == 0
