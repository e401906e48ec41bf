"""The benchmark's own arithmetic: a wrong one would print numbers that look right."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from typing import cast

import pytest

from tests.harness import wire
from tests.load import bars, errors, events, figures, machine, subjects, subscribers
from tests.load.rows import fanout, latency

LAYOUT = events.layout(events.body(0))


class Pipe:
    """What Subscribers needs of a wire: a socket. Its other end is the server's."""

    def __init__(self) -> None:
        self.socket, self.server = socket.socketpair()

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.server.close()


class Audience:
    def __init__(self, count: int) -> None:
        self.pipes = [Pipe() for _ in range(count)]
        self.subscribers = subscribers.Subscribers([cast(wire.Wire, one) for one in self.pipes], LAYOUT)

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


def key(subject: str, *, saturates: bool = True) -> figures.Key:
    return figures.Key(subject, "a way", saturates)


def sample(cpu_us: float) -> fanout.Sample:
    return fanout.Sample(1_000_000, 2.0, cpu_us, 1.0, 1.5)


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


def test_a_stream_may_be_cut_anywhere(audience: Audience) -> None:
    stream = frames(*range(1, 6))
    audience.send(stream, 0)
    for at in range(0, len(stream), 41):
        audience.send(stream[at : at + 41], 1)
    assert audience.subscribers.deliveries == 10


def test_a_server_may_choose_another_order_than_the_publisher_but_one_for_all(audience: Audience) -> None:
    audience.send(frames(2, 1, 3), 0, 1)
    assert LAYOUT.numbers(audience.subscribers.reference) == [2, 1, 3]


@pytest.mark.parametrize("wrong", [(1, 3), (2, 1), (1, 1, 2)], ids=["missing", "swapped", "doubled"])
def test_what_differs_between_subscribers_is_noticed(audience: Audience, wrong: tuple[int, ...]) -> None:
    audience.send(frames(1, 2, 3), 0)
    with pytest.raises(errors.Lost, match="something else"):
        audience.send(frames(*wrong), 1)


def test_a_ping_between_events_is_answered_and_not_counted(audience: Audience) -> None:
    audience.send(frames(1, 2, 3), 1)
    audience.send(PING + frame(1) + PING + frames(2, 3) + PING, 0)
    assert audience.subscribers.deliveries == 6
    assert LAYOUT.numbers(audience.subscribers.reference) == [1, 2, 3]
    answers = audience.pipes[0].server.recv(100)
    assert answers.count(bytes((0x80 | wire.PONG, 0x80 | 4))) == 3


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_ping_may_be_cut_anywhere(audience: Audience, cut: int) -> None:
    server = audience.pipes[0].server
    rest = threading.Timer(0.05, server.sendall, [PING[cut:]])
    rest.start()
    audience.send(frame(1) + PING[:cut], 0)
    rest.join()
    audience.send(frame(2), 0)
    assert LAYOUT.numbers(audience.subscribers.reference) == [1, 2]


def test_an_end_of_a_connection_is_noticed(audience: Audience) -> None:
    close = wire.encode(wire.WireFrame(wire.CLOSE, (4100).to_bytes(2, "big")), masked=False)
    with pytest.raises(errors.Lost, match="4100"):
        audience.send(frame(1) + close, 0)
    audience.pipes[1].server.close()
    with pytest.raises(errors.Lost, match="ended"):
        audience.subscribers.read(1.0)


# -- rows ---------------------------------------------------------------------------------------------------------


def test_a_sample_tells_the_cost_of_a_delivery_the_rate_and_who_was_busy() -> None:
    one = fanout.Sample(deliveries=2_000_000, wall_s=4.0, server_cpu_s=3.0, client_cpu_s=2.0, core_s=3.5)
    assert (one.cpu_us, one.per_second) == (1.5, 500_000)
    assert (one.server_busy, one.others_busy, one.client_busy) == (0.75, 0.125, 0.5)


def test_ticks_that_were_rounded_differently_are_not_a_negative_share() -> None:
    assert fanout.Sample(1, 1.0, 1.0, 0.5, core_s=0.99).others_busy == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmark reads /proc")
def test_a_process_that_works_is_seen_to_work() -> None:
    before = machine.cpu_seconds(os.getpid())
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        pass
    assert 0.05 < machine.cpu_seconds(os.getpid()) - before < 0.5


def test_a_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 201)]
    assert latency.percentile(values, 50) == 100
    assert latency.percentile(values, 99) == 198
    assert latency.percentile([3.0], 99) == 3.0


def test_one_read_of_several_events_delays_each_from_its_own_due_time() -> None:
    arrivals = array("d", (0, 2, 10.0, 2, 3, 11.0, 3, 3, 12.0))
    assert latency.delays(arrivals, [9.0, 9.5, 9.75]) == [1.0, 0.5, 1.25]


# -- figures and bars ---------------------------------------------------------------------------------------------


def test_a_spread_is_the_median_and_the_range() -> None:
    assert figures.spread([3.0, 1.0, 10.0], float) == (3.0, 1.0, 10.0)


def test_bars_are_judged_on_medians_and_on_the_same_run() -> None:
    found = figures.Figures(
        {key(subjects.FANFARE): [sample(9), sample(3), sample(2)], key(subjects.STOCK): [sample(150)]}
    )
    assert [verdict.reached for verdict in bars.verdicts(found)] == [True, True]
    found.fanout[key(subjects.FANFARE)] = [sample(3.1)]
    assert [verdict.reached for verdict in bars.verdicts(found)] == [False, False]


def test_a_publisher_that_does_not_saturate_is_not_judged() -> None:
    found = figures.Figures({key(subjects.FANFARE, saturates=False): [sample(9)], key(subjects.STOCK): [sample(150)]})
    assert bars.verdicts(found) == []
