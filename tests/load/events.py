"""The events of the benchmark: numbered, and all of exactly the same size.

Equal sizes are what makes a cheap client possible: it finds every frame, and checks it, with two slices of what a
`recv` gave, however many frames that was. For the second slice each event carries a *mark*, one character that follows
from its number.
"""

from __future__ import annotations

import string
from typing import NamedTuple

NAME = "tick"
CHANNEL = "load"
BODY_BYTES = 150  # of JSON, in Pusher's form: a chat message, a price, a position on a map

ALPHABET = string.digits + string.ascii_letters + "-_"  # of the marks: 64 characters that JSON does not escape
DIGITS = 8
PADDING = "."
_FRAME = '{"event":"%s","channel":"%s","data":"%s"}'
DATA_BYTES = BODY_BYTES - len(_FRAME % (NAME, CHANNEL, ""))


def data(number: int) -> str:
    """The event's data: padding, mark, number."""
    return padded(number, DATA_BYTES)


def padded(number: int, size: int) -> str:
    """The same in `size` bytes, for servers whose frame around it has another size."""
    return f"{ALPHABET[number % len(ALPHABET)]}{number:0{DIGITS}}".rjust(size, PADDING)


def body(number: int) -> bytes:
    """The whole text, for servers that relay texts and know nothing of events."""
    return (_FRAME % (NAME, CHANNEL, data(number))).encode()


class Layout(NamedTuple):
    """Where things are in what a subscriber gets: the size of a frame, and the offset of its mark."""

    size: int
    mark: int

    def numbers(self, stream: bytes | bytearray) -> list[int]:
        """The numbers of all events of a stream that begins with a frame and has nothing but frames."""
        start = self.mark + 1
        return [int(stream[at + start : at + start + DIGITS]) for at in range(0, len(stream), self.size)]


def layout(payload: bytes) -> Layout:
    """The layout of a server's frames (RFC 6455 §5.2, not masked), from the payload of one of them."""
    head = 2 if len(payload) < 126 else 4 if len(payload) < 65_536 else 10
    return Layout(head + len(payload), head + payload.rindex(PADDING.encode()) + 1)
