"""The reader of frames, with the parser of `websockets` as its oracle, and the frames that are written."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER
from websockets.protocol import Protocol as Oracle

from fanfare.sockets import frames
from tests.harness import wire
from tests.harness.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WireFrame

PATIENT = settings(deadline=None)  # the machine may be busy

MAX_BYTES = 300  # just over the first border of the header's three sizes


@dataclass
class Heard:
    """What came of some bytes: messages and control frames, and the code of the violation that ended them."""

    messages: list[tuple[int, bytes]] = field(default_factory=list)
    code: int | None = None


def ours(pieces: list[bytes], max_bytes: int = MAX_BYTES) -> Heard:
    heard = Heard()
    reader = frames.Reader(max_bytes)
    try:
        for piece in pieces:
            reader.feed(piece)
            while (taken := reader.take()) is not None:
                if taken[0] == CLOSE:
                    frames.read_close(taken[1])
                if taken != frames.FRAGMENT:
                    heard.messages.append(taken)
                if taken[0] == CLOSE:
                    return heard
    except frames.ProtocolViolation as violation:
        heard.code = violation.code
    return heard


def theirs(pieces: list[bytes]) -> Heard:
    heard = Heard()
    oracle = Oracle(SERVER, state=OPEN, max_size=MAX_BYTES, logger=logging.getLogger("oracle"))
    parts: list[Frame] = []
    for piece in pieces:
        oracle.receive_data(piece)
    for event in oracle.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            parts.append(event)
            if event.fin:
                heard.messages.append((int(parts[0].opcode), b"".join(part.data for part in parts)))
                parts = []
        else:
            heard.messages.append((int(event.opcode), bytes(event.data)))
    if oracle.parser_exc is not None:
        assert oracle.close_sent is not None
        heard.code = oracle.close_sent.code
    return heard


payloads = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"", b"x" * 125, b"x" * 126, b"x" * 127, b"x" * 128, b"x" * 299, b"x" * 300]),
)
messages = st.builds(
    lambda opcode, parts: [
        WireFrame(CONTINUATION if n else opcode, part, fin=n == len(parts) - 1) for n, part in enumerate(parts)
    ],
    st.sampled_from([TEXT, BINARY]),
    st.lists(st.binary(max_size=60), min_size=1, max_size=4),
)
pings_and_pongs = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)).map(lambda of: WireFrame(*of))
controls = pings_and_pongs.map(lambda frame: [frame])
wholes = st.tuples(st.sampled_from([TEXT, BINARY]), payloads).map(lambda of: [WireFrame(*of)])
closes = st.builds(
    lambda code, reason: [WireFrame(CLOSE, code.to_bytes(2, "big") + reason.encode()[:123])],
    st.one_of(st.integers(0, 5_000), st.sampled_from([1_000, 1_001, 1_005, 1_006, 1_015, 3_000])),
    st.text(max_size=10),
)
faults = st.sampled_from(
    [
        [WireFrame(TEXT, b"x", reserved=1)],
        [WireFrame(PING, b"", reserved=4)],
        [WireFrame(3, b"")],
        [WireFrame(11, b"")],
        [WireFrame(PING, b"x" * 126)],
        [WireFrame(PING, b"", fin=False)],
        [WireFrame(CLOSE, b"x")],
        [WireFrame(CLOSE, b"\x03\xe8\xff")],
        [WireFrame(CONTINUATION, b"x")],
        [WireFrame(TEXT, b"", fin=False), WireFrame(TEXT, b"")],
        [WireFrame(TEXT, b"x" * 301)],
        [WireFrame(TEXT, b"x" * 300, fin=False), WireFrame(CONTINUATION, b"x")],
        [WireFrame(CLOSE, b"")],
    ]
)
streams = st.tuples(st.lists(st.one_of(messages, controls, wholes), max_size=6), st.one_of(st.just([]), faults, closes))


@st.composite
def interleaved(draw: st.DrawFn) -> bytes:
    """Messages one after another, with control frames between their fragments, and at most one fault, at the end."""
    whole, end = draw(streams)
    sent = b""
    for message in whole:
        for number, frame in enumerate(message):
            if number and draw(st.booleans()):
                sent += wire.encode(draw(pings_and_pongs))
            sent += wire.encode(frame)
    return sent + b"".join(wire.encode(frame) for frame in end)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@PATIENT
@given(interleaved(), st.lists(st.integers(0, 2_000), max_size=12))
def test_frames_are_parsed_like_websockets_parses_them_however_the_bytes_are_split(
    sent: bytes, cuts: list[int]
) -> None:
    assert ours(split(sent, cuts)) == theirs([sent])


@PATIENT
@given(interleaved())
def test_stream_in_single_bytes_is_parsed_like_the_whole(sent: bytes) -> None:
    assert ours([sent[n : n + 1] for n in range(len(sent))]) == ours([sent])


@PATIENT
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
def test_invalid_bytes_are_refused_no_later_than_by_websockets(pieces: list[bytes]) -> None:
    """Earlier: it waits for the whole frame before it says what was wrong with its header."""
    mine, oracles = ours(pieces), theirs(pieces)
    assert mine.messages == oracles.messages
    if oracles.code is not None:
        assert mine.code in (frames.PROTOCOL_ERROR, frames.TOO_BIG, frames.INVALID_TEXT)


@PATIENT
@given(interleaved(), st.lists(st.integers(0, 2_000), max_size=6))
def test_drained_reader_keeps_only_an_incomplete_frame(sent: bytes, cuts: list[int]) -> None:
    reader = frames.Reader(MAX_BYTES)
    try:
        for piece in split(sent, cuts):
            reader.feed(piece)
            while reader.take() is not None:
                continue
            assert reader._start == 0
            assert len(reader._buffer) < MAX_BYTES + 14
    except frames.ProtocolViolation:
        return


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_frame_of_each_length_form_is_written_as_it_is_read(size: int, opcode: int) -> None:
    payload = b"x" * size
    client = Oracle(CLIENT, state=OPEN, max_size=None)
    client.receive_data(frames.frame(opcode, payload))
    [got] = client.events_received()
    assert isinstance(got, Frame)
    assert (got.opcode, got.data, got.fin) == (opcode, payload, True)
    assert ours([wire.encode(WireFrame(opcode, payload))], size).messages == [(opcode, payload)]


@pytest.mark.parametrize("size", [130, 70_000])
def test_message_at_the_limit_is_accepted_and_one_byte_more_is_refused(size: int) -> None:
    halves = [WireFrame(TEXT, b"x" * (size // 2), fin=False), WireFrame(CONTINUATION, b"x" * (size // 2))]
    assert ours([wire.encode(frame) for frame in halves], size).code is None
    assert ours([wire.encode(frame) for frame in halves], size - 1).code == frames.TOO_BIG
    assert ours([wire.encode(WireFrame(TEXT, b"x" * size))], size).code is None
    assert ours([wire.encode(WireFrame(TEXT, b"x" * (size + 1)))], size).code == frames.TOO_BIG


def test_message_over_the_limit_is_refused_at_its_header() -> None:
    reader = frames.Reader(1_000)
    reader.feed(wire.encode(WireFrame(TEXT, b"x" * 1_001))[:8])
    with pytest.raises(frames.ProtocolViolation) as refusal:
        reader.take()
    assert refusal.value.code == frames.TOO_BIG
    assert "1001" in refusal.value.reason
    assert "1000" in refusal.value.reason


def test_control_frames_do_not_count_towards_the_message_limit() -> None:
    parts = [WireFrame(TEXT, b"x" * 100, fin=False), WireFrame(PING, b"y" * 125), WireFrame(CONTINUATION, b"x" * 30)]
    assert ours([wire.encode(frame) for frame in parts], 130).messages == [(PING, b"y" * 125), (TEXT, b"x" * 130)]


def test_each_fragment_is_returned_so_that_frames_can_be_counted() -> None:
    reader = frames.Reader(10)
    reader.feed(wire.encode(WireFrame(TEXT, b"", fin=False)) + wire.encode(WireFrame(CONTINUATION, b"", fin=False)) * 2)
    assert [reader.take() for _ in range(4)] == [frames.FRAGMENT] * 3 + [None]


def cpu_of_reading(pieces: list[bytes]) -> float:
    """Seconds of this process, the least of three."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        assert ours(pieces, 1 << 24).code is None
        taken.append(time.process_time() - began)
    return min(taken)


@pytest.mark.parametrize("shape", ["pieces of one frame", "fragments", "a frame and the start of the next"])
def test_cost_of_a_message_is_linear_in_its_size(shape: str) -> None:
    """Four times the pieces: 4 times the CPU if each byte is copied a few times, 16 if all with each piece."""

    def of(count: int) -> list[bytes]:
        if shape == "fragments":
            opened = [wire.encode(WireFrame(TEXT, b"", fin=False))]
            return opened + [wire.encode(WireFrame(CONTINUATION, b"x" * 100, fin=False))] * count
        if shape == "pieces of one frame":
            sent = wire.encode(WireFrame(TEXT, bytes(count * 100)))
            return [sent[n : n + 100] for n in range(0, len(sent), 100)]
        sent = wire.encode(WireFrame(TEXT, bytes(94))) * count  # frames of 100 bytes
        return [sent[:50]] + [sent[n : n + 100] for n in range(50, len(sent), 100)]

    small, large = of(8_000), of(32_000)
    assert cpu_of_reading(large) < 10 * cpu_of_reading(small)


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
def test_close_frame_is_read_as_it_is_written(code: int) -> None:
    written = frames.close(code, "because")
    assert frames.read_close(written[2:]) == (code, "because")


def test_close_frame_without_a_code_has_no_payload() -> None:
    assert frames.close(frames.NO_CODE, "lost") == frames.close(frames.ABNORMAL) == b"\x88\x00"
    assert frames.read_close(b"") == (frames.NO_CODE, "")


@PATIENT
@given(st.text(st.characters(), max_size=200))
def test_close_reason_is_cut_to_the_size_of_a_control_frame(reason: str) -> None:
    written = frames.close(1000, reason)
    assert len(written) <= 2 + 125
    assert reason.encode(errors="replace").decode().startswith(frames.read_close(written[2:])[1])


def test_close_reason_is_cut_between_characters() -> None:
    assert frames.close_reason("ü" * 100) == "ü" * 61


def test_close_reason_may_contain_half_a_surrogate_pair() -> None:
    assert frames.read_close(frames.close(1000, "no \ud800")[2:]) == (1000, "no ?")
