"""Batches that are sent on the socket beside uvloop's transport: their order, slow clients, and lost ones."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fanfare.hub import writers
from fanfare.sockets import direct_send, frames
from tests.harness import waiting
from tests.harness.wire import TEXT, Wire, WireFrame
from tests.unit.sockets.hosting import END, PATIENCE, Handing, Hosted, on

NUMBER = struct.Struct("!I")
PADDING = bytes(50_000)
FRAME_BYTES = 4 + NUMBER.size + len(PADDING)


class Sent(list[int]):
    """The number of bytes of each call of `send`; -1: it raised."""

    def sender(self, transport: Any) -> Callable[[bytes], int] | None:
        send = direct_send_sender(transport)
        if send is None:
            return None

        def recorded(data: bytes) -> int:
            self.append(-1)
            self[-1] = send(data)
            return self[-1]

        return recorded


direct_send_sender = direct_send.sender


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    recorder = Sent()
    monkeypatch.setattr(direct_send, "sender", recorder.sender)
    return recorder


@pytest.fixture
def hosted() -> Iterator[Hosted]:
    with Hosted(loop="uvloop", http="httptools") as server:
        yield server


def batch(*texts: bytes) -> writers.Batch:
    return writers.Batch(list(texts))


def text(payload: bytes) -> WireFrame:
    return WireFrame(TEXT, payload)


def test_batches_after_the_first_are_sent_on_the_socket(hosted: Hosted, sent: Sent) -> None:
    application = Handing()
    with on(hosted, application) as client:
        for payload in (b"one", b"two", b"three"):
            assert hosted.call(lambda payload=payload: application.socket.write(batch(payload))) is False  # type: ignore[misc]
            assert client.receive() == text(payload)
    assert sent == [len(b"two") + 2, len(b"three") + 2]


def test_order_is_kept_while_the_client_reads_slowly_and_afterwards(hosted: Hosted, sent: Sent) -> None:
    application = hosted.application = Handing()
    written = 0

    def write_until_full() -> None:
        """Batches and replies in turn, until the kernel takes no more, and some more of both."""
        nonlocal written
        more = 3
        writer = application.socket.bound(100_000_000)
        while more:
            body = NUMBER.pack(written) + PADDING
            assert not (writer.send(body) if written % 5 == 4 else writer.write(batch(body)))
            written += 1
            more -= writer.buffered() > 0

    with Wire(hosted.port, "/", receive_buffer=4_096) as client:
        assert application.handed_over.wait(PATIENCE)
        received = 0
        for _ in range(3):
            del sent[:]
            hosted.call(write_until_full)
            assert FRAME_BYTES in sent
            while received < written:
                frame = client.receive()
                assert frame is not None
                assert NUMBER.unpack(frame.payload[:4]) == (received,)
                received += 1
            waiting.until(lambda: not hosted.call(application.socket.buffered), PATIENCE, "all is written")


@pytest.mark.parametrize("large", ["the first batch", "a batch", "a reply"])
def test_batch_waits_for_bytes_that_the_kernel_did_not_take(hosted: Hosted, sent: Sent, large: str) -> None:
    application = hosted.application = Handing()
    size = 20_000_000  # more than the kernel buffers for the two sockets of a loopback connection
    texts = [bytes(size), b"last"] if large == "the first batch" else [b"first", bytes(size), b"last"]
    expected = b"".join(frames.text(text) for text in texts)
    received = bytearray()

    with Wire(hosted.port, "/", receive_buffer=4_096) as client:
        assert application.handed_over.wait(PATIENCE)

        def write() -> int:
            writer = application.socket.bound(2 * size)
            for text in texts:
                if text is texts[-1]:
                    received.extend(client.socket.recv(1_000_000))  # the kernel has room before the loop notices
                writer.send(text) if len(text) == size and large == "a reply" else writer.write(batch(text))
            return int(writer.buffered())

        assert hosted.call(write)
        while len(received) < len(expected):
            received.extend(client.socket.recv(1_000_000))
    assert received == expected
    assert len(sent) == (large == "a batch")


def test_lost_client_is_reported_and_its_descriptor_is_not_used_again(hosted: Hosted, sent: Sent) -> None:
    lost, other = Handing(), Handing()
    with on(hosted, lost) as client:
        hosted.call(lambda: lost.socket.write(batch(b"one")))
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        descriptor = hosted.call(lambda: lost.socket._transport.get_extra_info("socket").fileno())

    lost.until(END)
    with on(hosted, other) as client:
        assert hosted.call(lambda: other.socket._transport.get_extra_info("socket").fileno()) == descriptor
        assert hosted.call(lambda: lost.socket.write(batch(b"of the lost client"))) is False
        hosted.call(lambda: other.socket.write(batch(b"of the other client")))
        assert client.receive() == text(b"of the other client")
    assert sent == []


def test_reset_by_the_client_in_the_same_turn_does_not_raise(hosted: Hosted, sent: Sent) -> None:
    application = Handing()
    client = on(hosted, application)
    hosted.call(lambda: application.socket.write(batch(b"one")))
    assert client.receive() == text(b"one")

    def reset_and_write() -> None:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.__exit__()
        assert application.socket.write(batch(b"two")) is False

    hosted.call(reset_and_write)
    application.until(END)
    assert sent == [-1]


def test_sender_neither_waits_nor_closes_the_socket(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    application = Handing()
    with on(hosted, application) as client:
        socket.setdefaulttimeout(5)
        try:
            send: Any = hosted.call(lambda: direct_send.sender(application.socket._transport))
        finally:
            socket.setdefaulttimeout(None)
        assert send.__self__.gettimeout() == 0
        del send
        gc.collect()
        hosted.call(lambda: application.socket.write(batch(b"one")))
        assert client.receive() == text(b"one")


def test_other_transports_have_no_sender() -> None:
    application = Handing()
    with Hosted(loop="asyncio", http="h11") as hosted, on(hosted, application) as client:
        assert hosted.call(lambda: direct_send.sender(application.socket._transport)) is None
        for payload in (b"one", b"two"):
            hosted.call(lambda payload=payload: application.socket.write(batch(payload)))  # type: ignore[misc]
            assert client.receive() == text(payload)
