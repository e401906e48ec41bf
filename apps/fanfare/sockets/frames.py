"""WebSocket frames as a server reads and writes them: RFC 6455 §5 without extensions. No I/O.

`websockets`, which uvicorn requires, unmasks them in C.
"""

from __future__ import annotations

import functools
from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # no binary for this platform: the same in Python
    from websockets.utils import apply_mask

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
DATA_OPCODES: Final = (TEXT, BINARY)
CONTROL_OPCODES: Final = (CLOSE, PING, PONG)

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005  # stands for a close frame without a code; never sent
ABNORMAL: Final = 1006  # stands for a connection that ended without a close frame; never sent
INVALID_TEXT: Final = 1007
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012

FRAGMENT: Final = (CONTINUATION, b"")  # Reader.take returns it for a part of a message

MAX_CONTROL_BYTES: Final = 125
MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2

_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_SMALLEST: Final = 2  # the bytes of a header that say how long the header is


class ProtocolViolation(Exception):
    """The client violated RFC 6455, or its message is too large. `code`: the close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Reader:
    """Bytes in, messages out: call `feed`, then `take` until it returns None.

    A message larger than `max_bytes` is refused as soon as a header says so, before its bytes are stored. Each byte is
    copied a bounded number of times, for any sizes of the pieces.
    """

    __slots__ = ("_buffer", "_max_bytes", "_message", "_opcode", "_start", "_wanted")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer: bytes | bytearray = b""  # unread bytes; a bytearray only while a frame arrives in pieces
        self._start = 0  # of the next frame in it
        self._wanted = _SMALLEST  # bytes from there that the next step needs
        self._opcode = CONTINUATION  # of the incomplete fragmented message; CONTINUATION: none
        self._message: bytes | bytearray = b""  # its fragments so far

    def feed(self, data: bytes) -> None:
        if self._start == len(self._buffer):
            self._buffer = data
            self._start = 0
            return
        if not isinstance(self._buffer, bytearray) or self._start:
            self._buffer = bytearray(memoryview(self._buffer)[self._start :])
            self._start = 0
        self._buffer += data

    def take(self) -> tuple[int, bytes] | None:
        """The next message or control frame, as its opcode and its payload. None: more bytes are needed.

        For a fragment that does not end its message it returns FRAGMENT, so that the caller can count frames: one read
        from a socket can hold 40,000. Raises ProtocolViolation; nothing can be taken after that.
        """
        while len(self._buffer) - self._start >= self._wanted:
            frame = self._take_frame()
            if frame is None:
                continue
            first, payload = frame
            opcode = first & 0x0F
            if opcode >= CLOSE:
                return opcode, payload
            if opcode != CONTINUATION:
                if first & _FINAL:
                    return opcode, payload
                self._opcode, self._message = opcode, bytearray(payload)
                return FRAGMENT
            self._message += payload
            if not first & _FINAL:
                return FRAGMENT
            opcode, payload = self._opcode, bytes(self._message)
            self._opcode, self._message = CONTINUATION, b""
            return opcode, payload
        if self._start:  # an idle connection keeps no more than its incomplete frame
            self._buffer, self._start = self._buffer[self._start :], 0
        return None

    def _take_frame(self) -> tuple[int, bytes] | None:
        """The first byte and the payload of the next frame. None: it needs `_wanted` bytes."""
        buffer, start = self._buffer, self._start
        first, second = buffer[start], buffer[start + 1]
        size = second & 0x7F
        header = 6  # with the mask
        if size >= 126:
            header = 8 if size == 126 else 14
            if len(buffer) - start < header:
                self._check_header(first, second, size)  # refuse it before the rest of the header arrives
                self._wanted = header
                return None
            size = int.from_bytes(buffer[start + 2 : start + header - 4], "big")
        self._check_header(first, second, size)
        end = start + header + size
        if len(buffer) < end:
            self._wanted = header + size
            return None
        mask = buffer[start + header - 4 : start + header]
        payload = apply_mask(buffer[start + header : end], mask) if size else b""
        self._wanted = _SMALLEST
        if end == len(buffer):
            self._buffer, self._start = b"", 0
        else:
            self._start = end
        return first, payload

    def _check_header(self, first: int, second: int, size: int) -> None:
        opcode = first & 0x0F
        if first & _RESERVED:
            raise ProtocolViolation(PROTOCOL_ERROR, "A reserved bit is set")
        if not second & _MASKED:
            raise ProtocolViolation(PROTOCOL_ERROR, "A client's frames are masked")
        if opcode in CONTROL_OPCODES:
            if not first & _FINAL:
                raise ProtocolViolation(PROTOCOL_ERROR, "A control frame is fragmented")
            if size > MAX_CONTROL_BYTES:
                raise ProtocolViolation(PROTOCOL_ERROR, f"A control frame is over {MAX_CONTROL_BYTES} bytes")
        elif opcode in DATA_OPCODES:
            if self._opcode != CONTINUATION:
                raise ProtocolViolation(PROTOCOL_ERROR, "A message begins inside another one")
        elif opcode != CONTINUATION:
            raise ProtocolViolation(PROTOCOL_ERROR, f"Opcode {opcode} is not known")
        elif self._opcode == CONTINUATION:
            raise ProtocolViolation(PROTOCOL_ERROR, "A continuation of nothing")
        total = size + (len(self._message) if opcode == CONTINUATION else 0)
        if total > self._max_bytes:
            raise ProtocolViolation(TOO_BIG, f"The message has {total} bytes; {self._max_bytes} are allowed")


def frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame, as a server sends it."""
    size = len(payload)
    first = _FINAL | opcode
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


# A text frame of a payload in UTF-8.
text = functools.partial(frame, TEXT)


def close(code: int, reason: str = "") -> bytes:
    """A close frame with `reason`, see `close_reason`. NO_CODE and ABNORMAL make one without a code."""
    if code in (NO_CODE, ABNORMAL):
        return frame(CLOSE, b"")
    return frame(CLOSE, code.to_bytes(2, "big") + close_reason(reason).encode())


def close_reason(text: str) -> str:
    """The text, cut to the MAX_REASON_BYTES that a close frame has for it."""
    # It may quote a client, and JSON can hold half a surrogate pair.
    return text.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")


def read_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a client's close frame. Raises ProtocolViolation (RFC 6455 §7.4)."""
    if not payload:
        return NO_CODE, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not may_be_sent(code):
        raise ProtocolViolation(PROTOCOL_ERROR, "The close code is not valid")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolViolation(INVALID_TEXT, "The close reason is not UTF-8") from None


def may_be_sent(code: int) -> bool:
    """Whether a close frame may have this code: RFC 6455 §7.4 and its IANA registry."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code < 5000
