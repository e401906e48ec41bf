"""Thousands of WebSocket connections from one thread, with many handshakes in progress at once.

A `Dialogue` is the exchange of a server and its client before the first event: a generator that yields bytes to send,
receives the payload of the next frame, and returns when the connection is ready.
"""

from __future__ import annotations

import base64
import select
import socket
import time
from collections.abc import Callable, Generator, Sequence, Sized

from tests.harness import servers, wire
from tests.load import errors

AT_ONCE = 64  # handshakes in progress: enough to keep a server busy, fewer than a listen queue holds
PATIENCE_S = 20.0  # without progress of any handshake
READ_BYTES = 65_536
STRICT_MASK = b"\0\0\0\0"  # valid; RFC 6455 §5.3 asks for unpredictable masks, which loopback does not need

Dialogue = Generator[bytes, bytes, None]

# The further headers of a browser.
BROWSER = (
    "Pragma: no-cache",
    "Cache-Control: no-cache",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
    "Origin: http://127.0.0.1",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-GB,en;q=0.9",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
)


class Connection:
    """A connection after the handshake. Its socket is non-blocking; `receive` waits nevertheless."""

    def __init__(self, one: socket.socket) -> None:
        self.socket = one

    def receive(self) -> bytes:
        """The payload of the next frame, which must be the only one so far. Raises Lost."""
        self.socket.settimeout(PATIENCE_S)
        try:
            frames = Frames()
            while not (payloads := frames.feed(self.socket.recv(READ_BYTES))):
                continue
        except OSError as error:
            raise errors.Lost(f"no frame received: {error}") from error
        finally:
            self.socket.setblocking(False)
        if len(payloads) > 1 or frames.rest:
            raise errors.Lost(f"more than one frame received: {payloads}")
        return payloads[0]

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.socket.close()


class Frames:
    """Splits a server's byte stream into frames."""

    def __init__(self) -> None:
        self.rest = b""  # an incomplete frame
        self.pings: list[bytes] = []  # payloads of unanswered pings

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the text frames completed by `data`. Raises Lost at a close or the end of the stream."""
        if not data:
            raise errors.Lost("the server closed the connection")
        stream = self.rest + data if self.rest else data
        payloads = []
        at, end = 0, len(stream)
        while at + 2 <= end:
            size, start = stream[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(stream[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(stream[at + 2 : at + 10], "big"), at + 10
            if start + size > end:
                break
            first = stream[at]
            if first == 0x80 | wire.CLOSE:
                raise errors.Lost(f"the server closed with {stream[start : start + size]!r}")
            if first == 0x80 | wire.TEXT:
                payloads.append(stream[start : start + size])
            elif first == 0x80 | wire.PING:
                self.pings.append(stream[start : start + size])
            else:
                raise errors.Lost(f"unexpected first byte {first:#x} of a frame")
            at = start + size
        self.rest = stream[at:]
        return payloads


def text(payload: bytes) -> bytes:
    """A client's text frame."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + STRICT_MASK + payload


def pong(payload: bytes) -> bytes:
    """A client's pong frame."""
    return bytes((0x80 | wire.PONG, 0x80 | len(payload))) + STRICT_MASK + payload


def silent() -> Dialogue:
    """No exchange after the upgrade."""
    yield from ()


def opened(
    port: int,
    target: str,
    dialogue: Callable[[], Dialogue],
    count: int,
    *,
    headers: Sequence[str] = (),
    at_once: int = AT_ONCE,
) -> list[Connection]:
    """`count` connections whose dialogue is complete. If one fails, closes all and raises Lost."""
    dialogues = (dialogue() for _ in range(count))
    return each(port, target, list(dialogues), headers=headers, at_once=at_once)


def each(
    port: int, target: str, dialogues: Sequence[Dialogue], *, headers: Sequence[str] = (), at_once: int = AT_ONCE
) -> list[Connection]:
    """A connection for each dialogue, in their order."""
    request = _request(port, target, headers)
    sockets: list[socket.socket] = []
    in_progress: dict[int, _Handshake] = {}
    with select.epoll() as poll:
        try:
            while len(sockets) < len(dialogues) or in_progress:
                while len(sockets) < len(dialogues) and len(in_progress) < at_once:
                    one = socket.socket()
                    sockets.append(one)
                    one.connect((servers.HOST, port))
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    one.sendall(request)
                    one.setblocking(False)
                    in_progress[one.fileno()] = _Handshake(one, dialogues[len(sockets) - 1])
                    poll.register(one, select.EPOLLIN)
                ready = poll.poll(PATIENCE_S, at_once)
                _check_progress(ready, in_progress)
                for fd, _ in ready:
                    if in_progress[fd].proceed():
                        poll.unregister(fd)
                        del in_progress[fd]
        except BaseException as error:
            for one in sockets:
                one.close()
            if isinstance(error, OSError):
                raise errors.Lost(f"connection {len(sockets)}: {error}") from error
            raise
    return [Connection(one) for one in sockets]


def read_for(connections: Sequence[Connection], seconds: float, beat: Callable[[float], None]) -> None:
    """Answer the pings of idle connections. Calls `beat` every few milliseconds with the seconds passed."""
    by_fd = {one.socket.fileno(): one for one in connections}
    with select.epoll() as poll:
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            beat(passed)
            for fd, _ in poll.poll(0.01):
                data = by_fd[fd].socket.recv(READ_BYTES)
                if not data:
                    raise errors.Lost("the server closed an idle connection")
                if data[0] == 0x80 | wire.PING:
                    by_fd[fd].send(pong(data[2 : 2 + data[1]]))


def _check_progress(ready: Sized, in_progress: Sized) -> None:
    if not ready:
        raise errors.Lost(f"{len(in_progress)} handshakes got no answer for {PATIENCE_S:g} s")


class _Handshake:
    """One connection's handshake: the response to the upgrade, then the dialogue."""

    def __init__(self, one: socket.socket, dialogue: Dialogue) -> None:
        self._socket = one
        self._dialogue = dialogue
        self._frames: Frames | None = None
        self._head = b""

    def proceed(self) -> bool:
        """Read what is available. Returns whether the dialogue is complete."""
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise errors.Lost(f"the server closed the connection during a handshake, after {self._head!r}")
        if self._frames is None:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            if b" 101 " not in head[:16]:
                raise errors.Lost(f"the server refused the upgrade: {head!r}")
            self._frames = Frames()
            if self._step(None):
                return True
            if not data:
                return False
        over = False
        for payload in self._frames.feed(data):
            over = self._step(payload)
        return over

    def _step(self, payload: bytes | None) -> bool:
        try:
            out = next(self._dialogue) if payload is None else self._dialogue.send(payload)
        except StopIteration:
            return True
        if out:
            self._socket.sendall(out)
        return False


def _request(port: int, target: str, headers: Sequence[str]) -> bytes:
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {servers.HOST}:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(b'sixteen bytes of').decode()}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode()
