"""A raw WebSocket client (RFC 6455) that can send invalid frames."""

from __future__ import annotations

import base64
import os
import socket
from typing import NamedTuple, Self

from tests.harness import servers

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

PATIENCE = 30.0  # seconds


class WireFrame(NamedTuple):
    opcode: int
    payload: bytes
    fin: bool = True
    reserved: int = 0  # the three RSV bits, as a number 0 to 7


class Wire:
    """One blocking connection after the upgrade. `receive_buffer`: SO_RCVBUF in bytes, for a slow client."""

    def __init__(self, port: int, target: str, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((servers.HOST, port))
        self._reader = self.socket.makefile("rb")
        try:
            self._upgrade(port, target)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self.socket.close()

    @property
    def local_port(self) -> int:
        return int(self.socket.getsockname()[1])

    def _upgrade(self, port: int, target: str) -> None:
        lines = (
            f"GET {target} HTTP/1.1",
            f"Host: {servers.HOST}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
        )
        self.socket.sendall("\r\n".join((*lines, "", "")).encode())
        status = self._reader.readline()
        if not status:
            raise ConnectionResetError("The server closed the connection before its answer")
        assert status.split()[1] == b"101", status
        while self._reader.readline() != b"\r\n":
            continue

    def send(self, *frames: WireFrame, masked: bool = True) -> None:
        """Send all frames in one write."""
        self.socket.sendall(b"".join(encode(frame, masked=masked) for frame in frames))

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> WireFrame | None:
        """The next frame; None if the connection ended, cleanly or not."""
        try:
            head = self._reader.read(2)
            if len(head) < 2:
                return None
            size = head[1] & 0x7F
            if size == 126:
                size = int.from_bytes(self._reader.read(2), "big")
            elif size == 127:
                size = int.from_bytes(self._reader.read(8), "big")
            payload = self._reader.read(size)
        except ConnectionError:
            return None
        return WireFrame(head[0] & 0x0F, payload, bool(head[0] & 0x80), (head[0] >> 4) & 0x7)


def encode(frame: WireFrame, *, masked: bool = True) -> bytes:
    first = (0x80 if frame.fin else 0) | (frame.reserved << 4) | frame.opcode
    mark = 0x80 if masked else 0
    size = len(frame.payload)
    if size < 126:
        head = bytes((first, mark | size))
    elif size < 65_536:
        head = bytes((first, mark | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, mark | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + frame.payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[place % 4] for place, byte in enumerate(frame.payload))
