"""The events of the benchmark: numbered, and all of exactly the same size.

Equal sizes make the client cheap: it finds and checks all frames of one `recv` with two slices. The second slice
compares the *marks*: each event contains one character that is derived from its number.
"""

from __future__ import annotations

import string
from typing import NamedTuple

NAME = "tick"
CHANNEL = "load"
BODY_BYTES = 150  # of JSON in Pusher's format: the size of a chat message or a price

ALPHABET = string.digits + string.ascii_letters + "-_"  # the marks: 64 characters that JSON does not escape
DIGITS = 8
PADDING = "."
MARKED = b'"' + PADDING.encode() * 16  # once in each event
_FRAME = '{"event":"%s","channel":"%s","data":"%s"}'
DATA_BYTES = BODY_BYTES - len(_FRAME % (NAME, CHANNEL, ""))


def data(number: int) -> str:
    """The event's data: padding, mark, number."""
    return padded(number, DATA_BYTES)


def padded(number: int, size: int) -> str:
    """`data` with `size` bytes, for servers with another envelope."""
    return f"{ALPHABET[number % len(ALPHABET)]}{number:0{DIGITS}}".rjust(size, PADDING)


def body(number: int) -> bytes:
    """The whole message, for servers that relay plain text."""
    return (_FRAME % (NAME, CHANNEL, data(number))).encode()


class Layout(NamedTuple):
    """The size of a frame and the offset of its mark, as a subscriber receives it."""

    size: int
    mark: int

    def numbers(self, stream: bytes | bytearray) -> list[int]:
        """The numbers of all events in a stream of complete frames."""
        start = self.mark + 1
        return [int(stream[at + start : at + start + DIGITS]) for at in range(0, len(stream), self.size)]


def layout(payload: bytes) -> Layout:
    """The layout of a server's unmasked frames (RFC 6455 §5.2), from the payload of one frame."""
    head = 2 if len(payload) < 126 else 4 if len(payload) < 65_536 else 10
    return Layout(head + len(payload), head + payload.rindex(PADDING.encode()) + 1)
