"""Many subscribers in one process, so cheap that the client is not the bottleneck: one `recv` and two slices per read.

Every frame to every subscriber is checked: its first byte and its mark are compared with the other subscribers' frames
at the same position, so a missing, duplicate or reordered frame raises `Lost`. The first subscriber's stream is kept
whole, for the numbers of the events.
"""

from __future__ import annotations

import select
import time
from array import array
from collections.abc import Callable, Mapping, Sequence

from tests.harness import wire
from tests.load import connections, errors, events

READ_BYTES = 256 * 1024
TEXT_HEAD = b"\x81"  # FIN and the text opcode
CONTROL = (wire.CLOSE, wire.PING, wire.PONG)

Ready = Callable[[], None]


class Subscribers:
    """`joined` are subscribed and have no unread frames. `layout` applies to every further frame."""

    def __init__(self, joined: Sequence[connections.Connection], layout: events.Layout) -> None:
        self.layout = layout
        self.reference = bytearray()  # the stream of the first subscriber
        self.arrivals: array[float] | None = (
            None  # if set: first position, position after the last, and time of each read
        )
        self._joined = joined
        self._sockets = [one.socket for one in joined]
        self._order = bytearray()  # the marks in the order of delivery
        self._got = [0] * len(joined)  # bytes of events received
        self._total = 0
        self._buffer = bytearray(READ_BYTES)
        self._poll = select.epoll()
        self._by_fd = {one.fileno(): index for index, one in enumerate(self._sockets)}
        self._watched: dict[int, Ready] = {}
        for one in self._sockets:
            one.setblocking(False)
            self._poll.register(one, select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._joined)

    @property
    def deliveries(self) -> int:
        """Complete events received by all subscribers together."""
        return self._total // self.layout.size

    def watch(self, watched: Mapping[int, Ready]) -> None:
        """Replace the functions that are called when their file descriptors are readable."""
        for fd in self._watched:
            self._poll.unregister(fd)
        for fd in watched:
            self._poll.register(fd, select.EPOLLIN)
        self._watched = dict(watched)

    def read(self, timeout_s: float) -> None:
        """Wait until a socket is readable, then read once from each readable one. Raises Lost."""
        by_fd = self._by_fd
        for fd, _ in self._poll.poll(timeout_s, len(by_fd) + len(self._watched)):
            index = by_fd.get(fd)
            if index is None:
                self._watched[fd]()
            else:
                self._receive(index)

    def close(self) -> None:
        self._poll.close()
        for one in self._joined:
            one.close()

    def _receive(self, index: int) -> None:
        buffer, got, (size, mark) = self._buffer, self._got[index], self.layout
        try:
            count = self._sockets[index].recv_into(buffer)
        except ConnectionError as error:
            raise errors.Lost(f"subscriber {index}: {error}") from error
        if not count:
            raise errors.Lost(f"the server closed the connection of subscriber {index}")
        phase = got % size
        heads = buffer[-phase % size : count : size]
        if heads.count(TEXT_HEAD) != len(heads):
            count = self._take_control_frames(index, count, -phase % size)
        marks = buffer[(mark - phase) % size : count : size]
        at = (got - mark + size - 1) // size  # the position of the first event whose mark is in this read
        known = self._order[at : at + len(marks)]
        if known != marks:
            if not marks.startswith(known):
                raise errors.Lost(f"subscriber {index} received other events than the rest after event {at}")
            self._order += marks[len(known) :]
        if index == 0:
            self.reference += buffer[:count]
        if self.arrivals is not None:
            self.arrivals.extend((got // size, (got + count) // size, time.perf_counter()))
        self._got[index] = got + count
        self._total += count

    def _take_control_frames(self, index: int, count: int, at: int) -> int:
        """Answer control frames and remove them from the buffer. `at`: the first frame. Returns the new size."""
        buffer = self._buffer
        while at < count:
            if buffer[at] == TEXT_HEAD[0]:
                at += self.layout.size
                continue
            opcode = buffer[at] & 0x0F
            if opcode not in CONTROL:
                raise errors.Lost(f"subscriber {index} received opcode {opcode} where a frame must start")
            # The rest of the frame may not have arrived yet.
            count = self._complete(index, count, at + 2)
            end = at + 2 + buffer[at + 1]
            count = self._complete(index, count, end)
            payload = bytes(buffer[at + 2 : end])
            buffer[at : count - (end - at)] = buffer[end:count]
            count -= end - at
            if opcode == wire.CLOSE:
                raise errors.Lost(f"the server closed subscriber {index} with {int.from_bytes(payload[:2], 'big')}")
            if opcode == wire.PING:
                self._sockets[index].sendall(wire.encode(wire.WireFrame(wire.PONG, payload)))
        return count

    def _complete(self, index: int, count: int, needed: int) -> int:
        """Read until the buffer has at least `needed` bytes."""
        if count >= needed:
            return count
        one = self._sockets[index]
        one.setblocking(True)
        try:
            while count < needed:
                more = one.recv(needed - count)
                if not more:
                    raise errors.Lost(f"the connection of subscriber {index} ended within a frame")
                self._buffer[count : count + len(more)] = more
                count += len(more)
        finally:
            one.setblocking(False)
        return count
