"""WebSocket connections by the thousand: many handshakes under way at once, from one thread.

What a server and its client say to each other before the first event is a `Dialogue`, a generator: it yields bytes to
send, gets the payload of the next frame, and ends when the connection is ready.
"""

from __future__ import annotations

import base64
import select
import socket
import time
from collections.abc import Callable, Generator, Sequence, Sized

from tests.harness import servers, wire
from tests.load import errors

AT_ONCE = 64  # handshakes under way: enough to keep a server busy, fewer than any listen queue holds
PATIENCE_S = 20.0  # without progress on any of them
READ_BYTES = 65_536
STRICT_MASK = (
    b"\0\0\0\0"  # a mask of zeros is one (RFC 6455 §5.3 asks clients to be unpredictable; nobody listens here)
)

Dialogue = Generator[bytes, bytes, None]

# As a browser sends them, besides what RFC 6455 needs.
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
    """After the handshake. Its socket does not block; `receive` waits all the same."""

    def __init__(self, one: socket.socket) -> None:
        self.socket = one

    def receive(self) -> bytes:
        """The payload of the next frame, where nothing follows it yet. Raises Lost."""
        self.socket.settimeout(PATIENCE_S)
        try:
            frames = Frames()
            while not (payloads := frames.feed(self.socket.recv(READ_BYTES))):
                continue
        except OSError as error:
            raise errors.Lost(f"No frame came: {error}") from error
        finally:
            self.socket.setblocking(False)
        if len(payloads) > 1 or frames.rest:
            raise errors.Lost(f"More than one frame came: {payloads}")
        return payloads[0]

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.socket.close()


class Frames:
    """Cuts a server's stream into frames."""

    def __init__(self) -> None:
        self.rest = b""  # of a frame that is not whole
        self.pings: list[bytes] = []  # payloads of pings that wait for an answer

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the text frames that are whole now. Raises Lost at the end of the stream, or a close."""
        if not data:
            raise errors.Lost("The server ended the connection")
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
                raise errors.Lost(f"The server closed with {stream[start : start + size]!r}")
            if first == 0x80 | wire.TEXT:
                payloads.append(stream[start : start + size])
            elif first == 0x80 | wire.PING:
                self.pings.append(stream[start : start + size])
            else:
                raise errors.Lost(f"A frame that begins with {first:#x}: the client is out of step")
            at = start + size
        self.rest = stream[at:]
        return payloads


def text(payload: bytes) -> bytes:
    """A client's text frame."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + STRICT_MASK + payload


def pong(payload: bytes) -> bytes:
    """A client's answer to a ping."""
    return bytes((0x80 | wire.PONG, 0x80 | len(payload))) + STRICT_MASK + payload


def silent() -> Dialogue:
    """The upgrade is all there is."""
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
    """This many connections whose dialogue is over. Raises Lost; none is left open then."""
    dialogues = (dialogue() for _ in range(count))
    return each(port, target, list(dialogues), headers=headers, at_once=at_once)


def each(
    port: int, target: str, dialogues: Sequence[Dialogue], *, headers: Sequence[str] = (), at_once: int = AT_ONCE
) -> list[Connection]:
    """A connection for each dialogue, in this order."""
    request = _request(port, target, headers)
    sockets: list[socket.socket] = []
    under_way: dict[int, _Handshake] = {}
    with select.epoll() as poll:
        try:
            while len(sockets) < len(dialogues) or under_way:
                while len(sockets) < len(dialogues) and len(under_way) < at_once:
                    one = socket.socket()
                    sockets.append(one)
                    one.connect((servers.HOST, port))
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    one.sendall(request)
                    one.setblocking(False)
                    under_way[one.fileno()] = _Handshake(one, dialogues[len(sockets) - 1])
                    poll.register(one, select.EPOLLIN)
                ready = poll.poll(PATIENCE_S, at_once)
                _check_progress(ready, under_way)
                for fd, _ in ready:
                    if under_way[fd].proceed():
                        poll.unregister(fd)
                        del under_way[fd]
        except BaseException as error:
            for one in sockets:
                one.close()
            if isinstance(error, OSError):
                raise errors.Lost(f"Connection {len(sockets)}: {error}") from error
            raise
    return [Connection(one) for one in sockets]


def read_for(connections: Sequence[Connection], seconds: float, beat: Callable[[float], None]) -> None:
    """Keep idle connections alive: answer pings. `beat` is called every few milliseconds with the seconds so far."""
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
                    raise errors.Lost("The server ended an idle connection")
                if data[0] == 0x80 | wire.PING:
                    by_fd[fd].send(pong(data[2 : 2 + data[1]]))


def _check_progress(ready: Sized, under_way: Sized) -> None:
    if not ready:
        raise errors.Lost(f"{len(under_way)} handshakes got no answer for {PATIENCE_S:g} s")


class _Handshake:
    """Of one connection: the answer to the upgrade, then the dialogue."""

    def __init__(self, one: socket.socket, dialogue: Dialogue) -> None:
        self._socket = one
        self._dialogue = dialogue
        self._frames: Frames | None = None
        self._head = b""

    def proceed(self) -> bool:
        """Something can be read. Returns whether the dialogue is over."""
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise errors.Lost(f"The server ended a handshake after {self._head!r}")
        if self._frames is None:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            if b" 101 " not in head[:16]:
                raise errors.Lost(f"The upgrade was refused: {head!r}")
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
