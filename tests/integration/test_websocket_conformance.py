"""RFC 6455, case by case: Fanfare answers every frame no worse than plain uvicorn with a trivial echo does.

The cases follow the classes of the Autobahn test suite: pings, reserved bits, opcodes, fragmentation, UTF-8, closing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.harness import servers, wire
from tests.harness.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WireFrame

ALIVE = "alive"
DROPPED = "dropped"  # the connection ended without a close frame

# What a client may say to either side: Fanfare answers it with a pong of the protocol, the echo with itself.
MARKER = b'{"event":"pusher:ping","data":{}}'
ANSWERS = (MARKER, b'"pusher:pong"')


@dataclass(frozen=True)
class Case:
    """`expected`: the close code, or ALIVE. `pongs`: the payloads that must come back."""

    name: str
    frames: tuple[WireFrame, ...]
    expected: int | str = ALIVE
    pongs: tuple[bytes, ...] = ()
    masked: bool = True

    def __str__(self) -> str:
        return self.name


def text(payload: bytes, *, fin: bool = True) -> WireFrame:
    return WireFrame(TEXT, payload, fin)


def more(payload: bytes, *, fin: bool = True) -> WireFrame:
    return WireFrame(CONTINUATION, payload, fin)


def close(code: int, reason: bytes = b"") -> WireFrame:
    return WireFrame(CLOSE, code.to_bytes(2, "big") + reason)


KAPPA = "κόσμε".encode()
DIGITS = tuple(b"%d" % digit for digit in range(10))
GOOD_CODES = (1000, 1001, 1002, 1003, 1007, 1011, 3000, 4999)
BAD_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 2999)  # reserved, or not to be sent (RFC 6455 §7.4)

CASES = [
    # pings and pongs
    Case("a ping", (WireFrame(PING, b""),), pongs=(b"",)),
    Case("a ping with a payload", (WireFrame(PING, b"hello"),), pongs=(b"hello",)),
    Case("a ping with a binary payload", (WireFrame(PING, b"\x00\xff\xfe\xfd"),), pongs=(b"\x00\xff\xfe\xfd",)),
    Case("a ping of 125 bytes", (WireFrame(PING, b"x" * 125),), pongs=(b"x" * 125,)),
    Case("a ping of 126 bytes", (WireFrame(PING, b"x" * 126),), expected=1002),
    Case("a pong that nobody asked for", (WireFrame(PONG, b"surprise"),)),
    Case("ten pings at once", tuple(WireFrame(PING, digit) for digit in DIGITS), pongs=DIGITS),
    # reserved bits
    *(Case(f"reserved bits {n} on a text", (WireFrame(TEXT, b"{}", reserved=n),), expected=1002) for n in range(1, 8)),
    Case("a reserved bit on a ping", (WireFrame(PING, b"", reserved=1),), expected=1002),
    Case("a reserved bit on a close", (WireFrame(CLOSE, b"", reserved=4),), expected=1002),
    # opcodes
    *(Case(f"opcode {code}", (WireFrame(code, b""),), expected=1002) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    # masks
    Case("an unmasked text", (text(b"{}"),), expected=1002, masked=False),
    Case("an unmasked ping", (WireFrame(PING, b""),), expected=1002, masked=False),
    # fragments
    Case("a text in two fragments", (text(b"{", fin=False), more(b"}"))),
    Case("a text in fragments of a byte", (text(b"", fin=False), *(more(d, fin=False) for d in DIGITS), more(b""))),
    Case("a ping between fragments", (text(b"{", fin=False), WireFrame(PING, b"ping"), more(b"}")), pongs=(b"ping",)),
    Case("a binary message in two fragments", (WireFrame(BINARY, b"ab", fin=False), more(b"cd"))),
    Case("a fragmented ping", (WireFrame(PING, b"", fin=False),), expected=1002),
    Case("a fragmented close", (WireFrame(CLOSE, b"", fin=False),), expected=1002),
    Case("a continuation of nothing", (more(b"{}"),), expected=1002),
    Case("an open continuation of nothing", (more(b"{}", fin=False),), expected=1002),
    Case("a text inside a fragmented text", (text(b"{", fin=False), text(b"{}")), expected=1002),
    Case("a binary inside a fragmented text", (text(b"{", fin=False), WireFrame(BINARY, b"x")), expected=1002),
    # UTF-8
    Case("valid UTF-8 of several bytes", (text(KAPPA),)),
    Case("valid UTF-8 cut inside a character", (text(KAPPA[:3], fin=False), more(KAPPA[3:]))),
    Case("the highest code point", (text(b"\xf4\x8f\xbf\xbf"),)),
    Case("a noncharacter", (text(b"\xef\xbf\xbe"),)),
    Case("a byte that is never UTF-8", (text(b"\xff"),), expected=1007),
    Case("a lone continuation byte", (text(b"\x80"),), expected=1007),
    Case("an overlong slash", (text(b"\xc0\xaf"),), expected=1007),
    Case("an overlong NUL of three bytes", (text(b"\xe0\x80\x80"),), expected=1007),
    Case("a surrogate", (text(b"\xed\xa0\x80"),), expected=1007),
    Case("beyond the highest code point", (text(b"\xf4\x90\x80\x80"),), expected=1007),
    Case("a character cut off at the end", (text(KAPPA[:-1]),), expected=1007),
    Case("invalid UTF-8 in the second fragment", (text(KAPPA, fin=False), more(b"\xff")), expected=1007),
    Case("invalid UTF-8 in a binary message", (WireFrame(BINARY, b"\xff\xfe"),)),
    # closing
    Case("a close without a code", (WireFrame(CLOSE, b""),), expected=1005),
    Case("a close with one byte", (WireFrame(CLOSE, b"\x03"),), expected=1002),
    *(Case(f"a close with {code}", (close(code),), expected=code) for code in GOOD_CODES),
    *(Case(f"a close with {code}", (close(code),), expected=1002) for code in BAD_CODES),
    Case("a close with a reason", (close(1000, b"done"),), expected=1000),
    Case("a close with the longest reason", (close(1000, b"x" * 123),), expected=1000),
    Case("a close with a reason that is too long", (close(1000, b"x" * 124),), expected=1002),
    Case("a close with a reason that is no UTF-8", (close(1000, b"\xff"),), expected=1007),
    Case("a ping after a close", (close(1000), WireFrame(PING, b"late")), expected=1000),
    Case("a text after a close", (close(1000), text(b"{}")), expected=1000),
    Case("a second close", (close(1000), close(1001)), expected=1000),
]

Outcome = tuple[int | str, tuple[bytes, ...]]


@pytest.fixture(scope="module")
def echo(fleet: servers.Fleet) -> servers.Server:
    """Plain uvicorn."""
    server = fleet.start("echo")
    server.tracebacks_expected = "it logs one for each message of invalid UTF-8"
    return server


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_frame_is_answered_worse_than_by_plain_uvicorn(
    uvicorn: servers.Server, echo: servers.Server, case: Case
) -> None:
    ours = play(uvicorn, f"/app/{uvicorn.application.key}?protocol=7", case)
    plain = play(echo, "/", case)
    right = (case.expected, case.pongs)
    assert ours in (right, plain), f"plain uvicorn: {plain}"


def play(server: servers.Server, target: str, case: Case) -> Outcome:
    """Send a case and then the marker; how it ended, and the pongs that came before."""
    pongs: list[bytes] = []
    with wire.Wire(server.port, target) as connection:
        if server.command != "echo":
            established = connection.receive()
            assert established is not None
            assert json.loads(established.payload)["event"] == "pusher:connection_established"
        connection.send(*case.frames, masked=case.masked)
        with contextlib.suppress(ConnectionError):  # closed already: what it said is still to be read
            connection.send(text(MARKER))
        while (frame := connection.receive()) is not None:
            if frame.opcode == PONG:
                pongs.append(frame.payload)
            elif frame.opcode == CLOSE:
                return (int.from_bytes(frame.payload[:2], "big") if frame.payload else 1005), tuple(pongs)
            elif any(answer in frame.payload for answer in ANSWERS):
                return ALIVE, tuple(pongs)
    return DROPPED, tuple(pongs)


# -- a log that cannot be filled -----------------------------------------------------------------------------------

MESSAGES = 300
LOG_BYTES_EACH = 400  # the two or three access lines of a connection; a traceback alone has 2,000


@pytest.fixture(params=["uvicorn", "four_workers", "daphne"])
def noisy(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    server: servers.Server = request.getfixturevalue(request.param)
    yield server


def test_a_client_that_sends_invalid_utf_8_all_day_cannot_fill_the_log(noisy: servers.Server) -> None:
    before = noisy.log_size()
    for _ in range(MESSAGES):
        with wire.Wire(noisy.port, f"/app/{noisy.application.key}?protocol=7") as connection:
            connection.receive()
            connection.send(text(b"\xff\xfe"))
            while (frame := connection.receive()) is not None:
                assert frame.opcode != TEXT
                if frame.opcode == CLOSE:
                    assert frame.payload[:2] == (1007).to_bytes(2, "big")
                    break
    written = noisy.log_text(before)
    assert "Traceback" not in written
    assert len(written) <= MESSAGES * LOG_BYTES_EACH


def test_a_client_that_sends_malformed_frames_all_day_cannot_fill_the_log(noisy: servers.Server) -> None:
    before = noisy.log_size()
    with wire.Wire(noisy.port, f"/app/{noisy.application.key}?protocol=7") as connection:
        connection.receive()
        connection.send(*(text(b"{") for _ in range(5_000)))
        connection.send(text(MARKER))
        while (frame := connection.receive()) is not None and b'"pusher:pong"' not in frame.payload:
            continue
    assert len(noisy.log_text(before)) <= 10_000


def test_a_scanner_that_asks_for_unknown_paths_cannot_fill_the_log(noisy: servers.Server) -> None:
    before = noisy.log_size()
    for _ in range(100):
        with wire.Wire(noisy.port, "/no/such/place") as connection:
            while (frame := connection.receive()) is not None and frame.opcode != CLOSE:
                continue
    written = noisy.log_text(before)
    assert "Traceback" not in written
    assert len(written) <= 100 * 2 * LOG_BYTES_EACH
