"""The opening handshake: what is read of a request, what is refused, and what is written."""

from __future__ import annotations

import pytest

from fanfare.sockets import handshake

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # of the example in RFC 6455 §1.3
ASKED = {
    b"host": b"example.com",
    b"connection": b"keep-alive, Upgrade",
    b"upgrade": b"WebSocket",
    b"sec-websocket-key": KEY,
    b"sec-websocket-version": b"13",
}


def request(
    method: bytes = b"GET", target: bytes = b"/", more: tuple[tuple[bytes, bytes], ...] = (), **changed: bytes | None
) -> handshake.Request:
    """A right request, but for `changed`: header by name, with underscores; None leaves one out."""
    headers = ASKED | {name.replace("_", "-").encode(): value for name, value in changed.items()}
    return handshake.Request(
        method, target, [(name, value) for name, value in headers.items() if value is not None] + list(more)
    )


def test_head_is_read_as_uvicorn_serializes_it() -> None:
    read = handshake.read(b"GET /a%20b?c=d HTTP/1.1\r\nhost: x\r\nX-Twice: 1 \r\nx-twice:\t2\r\nempty: \r\n\r\n")
    assert read.method == b"GET"
    assert read.target == b"/a%20b?c=d"
    assert read.headers == [(b"host", b"x"), (b"x-twice", b"1"), (b"x-twice", b"2"), (b"empty", b"")]


@pytest.mark.parametrize(
    ("target", "resource"),
    [
        (b"/", (b"/", b"")),
        (b"/a%20b?c=d?e", (b"/a%20b", b"c=d?e")),
        (b"//a", (b"//a", b"")),
        (b"http://example.com/a?b=c", (b"/a", b"b=c")),
        (b"wss://example.com", (b"/", b"")),
    ],
)
def test_target_may_be_a_path_or_a_url(target: bytes, resource: tuple[bytes, bytes]) -> None:
    assert request(target=target).resource() == resource


def test_handshake_is_answered_as_in_the_example_of_the_rfc() -> None:
    assert handshake.key(request()) == KEY
    assert handshake.switching(KEY, handshake.lines([(b"x-more", b"1")])) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nx-more: 1\r\n\r\n"
    )


REFUSED = {
    "not a GET": (request(b"POST"), 405),
    "a target that is not ASCII": (request(target=b"/caf\xc3\xa9"), 400),
    "no Connection": (request(connection=None), 426),
    "a Connection that does not upgrade": (request(connection=b"keep-alive"), 426),
    "no Upgrade": (request(upgrade=None), 426),
    "another Upgrade": (request(upgrade=b"h2c"), 426),
    "two Upgrades": (request(upgrade=b"websocket, h2c"), 426),
    "no key": (request(sec_websocket_key=None), 400),
    "an empty key": (request(sec_websocket_key=b""), 400),
    "a key that is not base64": (request(sec_websocket_key=b"!" * 24), 400),
    "a key of 15 bytes": (request(sec_websocket_key=b"AAAAAAAAAAAAAAAAAAAA"), 400),
    "two keys": (request(more=((b"sec-websocket-key", KEY),)), 400),
    "no version": (request(sec_websocket_version=None), 426),
    "an old version": (request(sec_websocket_version=b"8"), 426),
    "two versions": (request(more=((b"sec-websocket-version", b"13"),)), 426),
}


@pytest.mark.parametrize(("asked", "status"), REFUSED.values(), ids=REFUSED)
def test_request_that_is_not_a_handshake_is_refused(asked: handshake.Request, status: int) -> None:
    with pytest.raises(handshake.HandshakeRefused) as refusal:
        handshake.key(asked)
    assert refusal.value.status == status


def test_refused_version_gets_426_with_the_supported_version() -> None:
    with pytest.raises(handshake.HandshakeRefused) as refusal:
        handshake.key(request(sec_websocket_version=b"8"))
    assert (b"sec-websocket-version", b"13") in refusal.value.headers


def test_list_header_is_joined_over_several_lines() -> None:
    asked = request(more=((b"sec-websocket-protocol", b"a, b"), (b"sec-websocket-protocol", b",c ")))
    assert asked.tokens(b"sec-websocket-protocol") == [b"a", b"b", b"c"]


def test_response_has_one_content_length_and_closes_the_connection() -> None:
    given = [
        (b"Content-Length", b"99"),
        (b"transfer-encoding", b"chunked"),
        (b"Connection", b"keep-alive"),
        (b"x", b"y"),
    ]
    assert handshake.response(401, given, b"no") == (
        b"HTTP/1.1 401 Unauthorized\r\nx: y\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
    )


def test_status_without_a_phrase_is_sent() -> None:
    assert handshake.response(599, [], b"").startswith(b"HTTP/1.1 599 \r\n")


@pytest.mark.parametrize(
    "header", [(b"x", b"1\r\nSet-Cookie: a=b"), (b"x: 1\r\ny", b"2"), (b"", b"1"), (b"x", b"\x00")]
)
def test_header_with_a_line_break_is_refused(header: tuple[bytes, bytes]) -> None:
    for write in (lambda: handshake.lines([header]), lambda: handshake.response(403, [header], b"")):
        with pytest.raises(handshake.HeaderInvalid):
            write()
