"""The benchmark's arithmetic: an error there would produce plausible but wrong figures."""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from typing import cast
from xml.etree import ElementTree as ET

import pytest

from tests.harness import deployments, wire
from tests.load import connections, errors, events, figures, machine, picture, report, subjects, subscribers, targets
from tests.load.rows import crowd, fanout, latency, posts, small_rooms

LAYOUT = events.layout(events.body(0))


class Pipe:
    """A connection for Subscribers: a socket pair, whose other end is the server."""

    def __init__(self) -> None:
        self.socket, self.server = socket.socketpair()

    def close(self) -> None:
        self.socket.close()
        self.server.close()


class Audience:
    def __init__(self, count: int) -> None:
        self.pipes = [Pipe() for _ in range(count)]
        self.subscribers = subscribers.Subscribers([cast(connections.Connection, one) for one in self.pipes], LAYOUT)

    def send(self, data: bytes, *indices: int) -> None:
        for index in indices:
            self.pipes[index].server.sendall(data)
        self.subscribers.read(1.0)


@pytest.fixture
def audience() -> Iterator[Audience]:
    two = Audience(2)
    yield two
    two.subscribers.close()


PING = wire.encode(wire.WireFrame(wire.PING, b"life"), masked=False)


def frame(number: int) -> bytes:
    return wire.encode(wire.WireFrame(wire.TEXT, events.body(number)), masked=False)


def frames(*numbers: int) -> bytes:
    return b"".join(frame(number) for number in numbers)


def key(subject: str, *, row: str = fanout.NAME, saturates: bool = True) -> figures.Key:
    return figures.Key(row, subject, "a way", saturates)


def sample(cpu_us: float) -> fanout.Sample:
    return fanout.Sample(1_000_000, 2.0, cpu_us, 1.0, 1.5)


def found(**costs: float) -> figures.Figures:
    """Figures of the fan-out row, by the names of the constants in `subjects`."""
    return figures.Figures({key(getattr(subjects, name)): [sample(cost)] for name, cost in costs.items()})


# -- events -------------------------------------------------------------------------------------------------------


def test_all_events_have_the_same_size() -> None:
    assert {len(events.body(number)) for number in (0, 1, 63, 64, 99_999_999)} == {events.BODY_BYTES}


def test_a_layout_finds_the_number_of_every_event_of_a_stream() -> None:
    assert len(frame(1)) == LAYOUT.size
    assert LAYOUT.numbers(frames(7, 8, 12_345_678)) == [7, 8, 12_345_678]


@pytest.mark.parametrize("length", [100, 125, 126, 150, 70_000])
def test_a_layout_knows_every_form_of_a_frame_head(length: int) -> None:
    payload = (events.data(5) + '"}').encode().rjust(length, b"x")[-length:]
    whole = wire.encode(wire.WireFrame(wire.TEXT, payload), masked=False)
    found = events.layout(payload)
    assert found.size == len(whole)
    assert whole[found.mark : found.mark + 1].decode() == events.ALPHABET[5]


# -- subscribers --------------------------------------------------------------------------------------------------


def test_deliveries_are_counted_over_all_subscribers(audience: Audience) -> None:
    audience.send(frames(1, 2, 3), 0, 1)
    assert audience.subscribers.deliveries == 6


def test_stream_may_be_split_anywhere(audience: Audience) -> None:
    stream = frames(*range(1, 6))
    audience.send(stream, 0)
    for at in range(0, len(stream), 41):
        audience.send(stream[at : at + 41], 1)
    assert audience.subscribers.deliveries == 10


def test_all_subscribers_must_get_one_order_but_not_the_publishers(audience: Audience) -> None:
    audience.send(frames(2, 1, 3), 0, 1)
    assert LAYOUT.numbers(audience.subscribers.reference) == [2, 1, 3]


@pytest.mark.parametrize("wrong", [(1, 3), (2, 1), (1, 1, 2)], ids=["missing", "swapped", "doubled"])
def test_different_events_for_two_subscribers_raise_lost(audience: Audience, wrong: tuple[int, ...]) -> None:
    audience.send(frames(1, 2, 3), 0)
    with pytest.raises(errors.Lost, match="other events"):
        audience.send(frames(*wrong), 1)


def test_a_ping_between_events_is_answered_and_not_counted(audience: Audience) -> None:
    audience.send(frames(1, 2, 3), 1)
    audience.send(PING + frame(1) + PING + frames(2, 3) + PING, 0)
    assert audience.subscribers.deliveries == 6
    assert LAYOUT.numbers(audience.subscribers.reference) == [1, 2, 3]
    answers = audience.pipes[0].server.recv(100)
    assert answers.count(bytes((0x80 | wire.PONG, 0x80 | 4))) == 3


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_ping_may_be_split_anywhere(audience: Audience, cut: int) -> None:
    server = audience.pipes[0].server
    rest = threading.Timer(0.05, server.sendall, [PING[cut:]])
    rest.start()
    audience.send(frame(1) + PING[:cut], 0)
    rest.join()
    audience.send(frame(2), 0)
    assert LAYOUT.numbers(audience.subscribers.reference) == [1, 2]


def test_the_end_of_a_connection_raises_lost(audience: Audience) -> None:
    close = wire.encode(wire.WireFrame(wire.CLOSE, (4100).to_bytes(2, "big")), masked=False)
    with pytest.raises(errors.Lost, match="4100"):
        audience.send(frame(1) + close, 0)
    audience.pipes[1].server.close()
    with pytest.raises(errors.Lost, match="closed the connection"):
        audience.subscribers.read(1.0)


# -- rows ---------------------------------------------------------------------------------------------------------


def test_sample_has_cost_per_delivery_rate_and_core_shares() -> None:
    one = fanout.Sample(deliveries=2_000_000, wall_s=4.0, server_cpu_s=3.0, client_cpu_s=2.0, core_s=3.5)
    assert (one.cpu_us, one.per_second) == (1.5, 500_000)
    assert (one.server_busy, one.others_busy, one.client_busy) == (0.75, 0.125, 0.5)


def test_clock_rounding_gives_no_negative_share() -> None:
    assert fanout.Sample(1, 1.0, 1.0, 0.5, core_s=0.99).others_busy == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmark reads /proc")
def test_cpu_seconds_count_the_work_of_a_process() -> None:
    before = machine.cpu_seconds(os.getpid())
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        pass
    assert 0.05 < machine.cpu_seconds(os.getpid()) - before < 0.5


def test_percentile_uses_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 201)]
    assert latency.percentile(values, 50) == 100
    assert latency.percentile(values, 99) == 198
    assert latency.percentile([3.0], 99) == 3.0


def test_events_of_one_read_are_delayed_from_their_own_due_times() -> None:
    arrivals = array("d", (0, 2, 10.0, 2, 3, 11.0, 3, 3, 12.0))
    assert latency.delays(arrivals, [9.0, 9.5, 9.75]) == [1.0, 0.5, 1.25]


# -- connections --------------------------------------------------------------------------------------------------


def server_frame(payload: bytes, opcode: int = wire.TEXT) -> bytes:
    return wire.encode(wire.WireFrame(opcode, payload), masked=False)


@pytest.mark.parametrize("step", [1, 3, 200, 100_000])
def test_frames_are_parsed_however_the_stream_is_split(step: int) -> None:
    payloads = [b"", b"short", b"x" * 125, b"y" * 126, b"z" * 70_000]
    stream = b"".join(map(server_frame, payloads)) + PING
    frames = connections.Frames()
    got = [one for at in range(0, len(stream), step) for one in frames.feed(stream[at : at + step])]
    assert got == payloads
    assert frames.rest == b""
    assert frames.pings == [b"life"]


@pytest.mark.parametrize(
    "data", [b"", server_frame(b"\x10\x04", wire.CLOSE), b"\xc1\x01a"], ids=["end", "close", "deflated"]
)
def test_invalid_stream_raises_lost(data: bytes) -> None:
    with pytest.raises(errors.Lost):
        connections.Frames().feed(data)


def test_a_pong_is_a_whole_masked_frame() -> None:
    assert connections.pong(b"life") == bytes((0x80 | wire.PONG, 0x80 | 4, 0, 0, 0, 0)) + b"life"


@pytest.mark.parametrize("size", [0, 125, 126, 65_535])
def test_client_text_frame_is_masked_with_zeros(size: int) -> None:
    frame = connections.text(b"a" * size)
    assert frame[1] & 0x80
    assert frame.endswith(bytes(4) + b"a" * size)
    assert int.from_bytes(frame[2:4], "big") == size if size > 125 else frame[1] & 0x7F == size


# -- small rooms --------------------------------------------------------------------------------------------------


class House:
    """The server's ends of the connections of a small_rooms.House with one room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(small_rooms, "ROOMS", 1)
        self.pipes = [Pipe() for _ in range(small_rooms.SEATS + 1)]
        clients = [connections.Connection(one.socket) for one in self.pipes]
        application = deployments.Application("1", "key", "secret")
        seats = small_rooms.SEATS
        self.house = small_rooms.House(application, clients[:seats], clients[seats:], ["1.1"])

    def answer(self, *receivers: int, text: bytes) -> None:
        for one in receivers:
            self.pipes[one].server.sendall(server_frame(text))

    def close(self) -> None:
        self.house.close()
        for one in self.pipes:
            one.close()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    one = House(monkeypatch)
    yield one
    one.close()


def tick(number: int) -> bytes:
    return f'{{"event":"client-tick","channel":"presence-room-0000","data":"number={number:08}..."}}'.encode()


def test_a_member_answers_pings(house: House) -> None:
    assert house.house.begin()
    house.pipes[0].server.sendall(PING)
    house.answer(0, 2, 3, 4, text=tick(1))
    house.house.live_for(0)
    assert house.pipes[0].server.recv(100) == connections.pong(b"life")


def test_client_event_counts_four_deliveries(house: House) -> None:
    assert house.house.begin()
    house.answer(0, 2, 3, 4, text=tick(1))  # member 1 sends first
    house.house.live_for(0)
    assert house.house.deliveries == 4
    assert b"client-tick" in house.pipes[1].server.recv(1_000)


@pytest.mark.parametrize(
    ("receivers", "number"), [((0, 0), 1), ((0,), 2), ((1,), 1)], ids=["doubled", "another", "its own"]
)
def test_unexpected_client_event_raises_lost(house: House, receivers: tuple[int, ...], number: int) -> None:
    assert house.house.begin()
    house.answer(*receivers, text=tick(number))
    with pytest.raises(errors.Lost):
        house.house.live_for(0)


# -- figures and targets ---------------------------------------------------------------------------------------------


def test_a_spread_is_the_median_and_the_range() -> None:
    assert figures.spread([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)


def test_best_figure_is_least_or_most_as_the_row_says() -> None:
    figure = figures.Figures()
    for way, count in (("a", 1_000), ("b", 3_000)):
        figure.add(figures.Key(posts.NAME, "x", way), posts.Sample(count, 1.0, 1.0, 1.0))
        figure.add(figures.Key(fanout.NAME, "x", way), fanout.Sample(count, 1.0, 1.0, 1.0, 1.0))
    assert figure.best(posts, "x") == 3_000
    assert figure.best(fanout, "x") == pytest.approx(1e6 / 3_000)
    assert figure.best(fanout, "y") is None


@pytest.mark.parametrize(("cpu_us", "reached"), [(1.3, True), (1.4, False)])
def test_limit_is_judged_on_the_median_of_the_worst_method(cpu_us: float, reached: bool) -> None:
    figure = found(FANFARE=0.5)
    figure.samples[figures.Key(fanout.NAME, subjects.FANFARE, "another")] = [sample(9), sample(cpu_us), sample(1)]
    target = targets.Limit(fanout, fanout.COMPARED, at_most=1.3)
    assert [verdict.reached for verdict in target.judge(figure)] == [reached]


@pytest.mark.parametrize(("rival", "reached"), [(2.0, True), (1.9, False)])
def test_ratio_is_judged_within_one_run(rival: float, reached: bool) -> None:
    target = targets.Times(fanout, 2, subjects.NCHAN)
    assert [verdict.reached for verdict in target.judge(found(FANFARE=1.0, NCHAN=rival))] == [reached]


def test_ratio_is_inverted_if_more_is_better() -> None:
    assert targets.times_better(fanout, 2.0, 8.0) == 4
    assert targets.times_better(posts, 8.0, 2.0) == 4


def test_growth_with_subscribers_is_bounded() -> None:
    figure = found(FANFARE=1.0)
    figure.samples[key(subjects.FANFARE, row=crowd.NAME)] = [sample(1.25)]
    assert [one.reached for one in targets.Grows(crowd, fanout, 1.2).judge(figure)] == [False]
    assert [one.reached for one in targets.Grows(crowd, fanout, 1.3).judge(figure)] == [True]


def test_server_that_falls_behind_is_worse_than_any_other() -> None:
    slow, quick = latency.Sample(*[math.inf] * 4, 50), latency.Sample(5e-6, 0.1, 0.2, 0.3, 0)
    target = targets.Times(latency, 1, subjects.NCHAN)
    for ours, rival, reached in ((quick, slow, True), (slow, quick, False)):
        figure = figures.Figures({key(subjects.FANFARE, row=latency.NAME): [ours]})
        figure.add(key(subjects.NCHAN, row=latency.NAME), rival)
        assert [one.reached for one in target.judge(figure)] == [reached]


def test_method_without_saturation_is_not_judged() -> None:
    figure = figures.Figures({key(subjects.FANFARE, saturates=False): [sample(9)], key(subjects.STOCK): [sample(150)]})
    assert targets.verdicts(figure) == []


def test_target_without_figures_is_listed_as_not_judged() -> None:
    assert len(targets.not_judged(figures.Figures())) == len(targets.TARGETS)


# -- report and picture -------------------------------------------------------------------------------------------


def test_a_table_has_the_ratio_to_each_rival() -> None:
    table = report.row_table(fanout, found(FANFARE=0.5, NCHAN=2.0, SOKETI=8.0))
    assert "| vs nchan | vs soketi |" in table
    assert next(line for line in table.splitlines() if line.startswith("| Fanfare")).endswith("| 4.0 | 16 |")


def test_missed_target_is_printed() -> None:
    assert "MISSED: Fanfare, a way: 9 CPU µs per delivery" in report.verdict_list(found(FANFARE=9))


def test_a_bar_far_beyond_the_others_is_cut() -> None:
    assert picture.lengths([1.0, 2.0, 4.0], 100) == [(25, False), (50, False), (100, False)]
    assert picture.lengths([1.0, 10.0, 300.0], 100) == [(8, False), (80, False), (100, True)]
    assert picture.lengths([5.0, math.inf], 100) == [(100, False), (100, True)]


def test_the_picture_is_an_image_that_names_every_server() -> None:
    drawn = ET.fromstring(picture.drawn(found(FANFARE=0.5, STOCK=200), "a machine of <2 cores"))
    texts = {one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Fanfare", "stock Channels", "0.50", "200.00", "a machine of <2 cores"} <= texts
