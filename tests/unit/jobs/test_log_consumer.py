"""From reading the log to following this worker's deliveries: each entry is returned once and in order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.jobs import log_consumer

KINDS = {interface.Kind.OCCUPIED, interface.Kind.VACATED}


class Log:
    """A hub and its engine: a log, one cursor, and the deliveries of a worker."""

    def __init__(self) -> None:
        self.engine = self
        self.log: list[interface.Entry] = []
        self.cursors: dict[str, int] = {}
        self.reads = 0
        self.delivered = 0  # index of the next entry that is delivered
        self.observer: log_consumer.LogConsumer | None = None

    def write(self, kind: interface.Kind = interface.Kind.OCCUPIED) -> None:
        number = len(self.log) + 1
        self.log.append(interface.Entry(number, kind, "42", f"c{number}", None, None, None, b""))

    def deliver(self, at_most: int = 1_000) -> None:
        batch = self.log[self.delivered : self.delivered + at_most]
        self.delivered += len(batch)
        if batch and self.observer is not None:
            self.observer.delivered(batch)

    # -- of the hub and the engine -------------------------------------------------------------------------------------

    def observe(self, observer: Any) -> None:
        self.observer = observer

    async def entries(self, after: int, limit: int) -> Sequence[interface.Entry]:
        self.reads += 1
        return self.log[after : after + limit]

    async def cursor(self, name: str) -> int:
        return self.cursors.setdefault(name, len(self.log))

    async def move_cursor(self, name: str, position: int) -> None:
        self.cursors[name] = position

    async def drop_cursor(self, name: str) -> None:
        self.cursors.pop(name, None)


@pytest.fixture
def log() -> Log:
    return Log()


async def opened(log: Log, after: int | None = None, *, observe: bool = True) -> log_consumer.LogConsumer:
    consumer = log_consumer.LogConsumer(log, "test", KINDS, observe=observe)  # type: ignore[arg-type]
    await consumer.open(after)
    return consumer


async def ids(consumer: log_consumer.LogConsumer, within_s: float = 1.0) -> list[int]:
    return [entry.id for entry in await consumer.next(within_s)]


async def test_log_is_read_until_the_consumer_has_caught_up_and_not_afterwards(log: Log) -> None:
    for _ in range(3):
        log.write()
    consumer = await opened(log, after=1)
    log.deliver()
    assert await ids(consumer) == [2, 3]
    reads = log.reads
    for kind in (interface.Kind.EVENT, interface.Kind.VACATED, interface.Kind.EVENT):
        log.write(kind)
    log.deliver()
    assert await ids(consumer) == [5]
    assert consumer.position == 6, "entries of other kinds are passed, too"
    assert log.reads == reads


async def test_log_is_read_again_after_a_gap(log: Log) -> None:
    log.write()
    consumer = await opened(log, after=0)
    log.deliver()
    assert await ids(consumer) == [1]
    log.write()
    log.write()
    log.delivered = 3  # the deliveries left them out
    consumer.gap_detected()
    assert await ids(consumer) == [2, 3]


async def test_buffer_of_a_consumer_that_does_not_read_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_consumer, "MOST_BUFFERED", 10)
    log.write()
    consumer = await opened(log, after=0)
    log.deliver()
    await consumer.next(1.0)
    for _ in range(25):
        log.write()
        log.deliver()
    assert len(consumer._buffer) <= 10
    assert [id_ for _ in range(3) for id_ in await ids(consumer, 0.0)] == list(range(2, 27))


async def test_consumer_without_observation_reads_the_log(log: Log) -> None:
    consumer = await opened(log, observe=False)
    assert log.observer is None
    for kind in (interface.Kind.OCCUPIED, interface.Kind.EVENT):
        log.write(kind)
    assert await ids(consumer) == [1]
    assert consumer.position == 2
    assert await ids(consumer, 0.0) == []


async def test_consumer_begins_at_its_cursor(log: Log) -> None:
    log.write()
    first = await opened(log)
    assert first.position == 1
    log.write()
    log.write()
    log.deliver()
    assert await ids(first) == [2, 3]
    await first.keep(2)
    first.close()
    assert (await opened(log)).position == 2
    assert (await opened(log, after=1)).position == 1
    assert log.cursors == {"test": 1}, "the log keeps what a consumer reads again"


async def test_cursor_never_goes_back_and_is_dropped_on_demand(log: Log) -> None:
    for _ in range(3):
        log.write()
    consumer = await opened(log)
    await consumer.keep(1)
    assert log.cursors == {"test": 3}
    await consumer.drop()
    assert log.cursors == {}


async def test_each_entry_comes_once_and_in_order_whatever_happens(log: Log) -> None:
    for seed in range(200):
        chance = random.Random(seed)
        log, found = Log(), []
        consumer = await opened(log, after=0)
        for _ in range(60):
            match chance.randrange(5):
                case 0 | 1:
                    log.write(chance.choice([interface.Kind.OCCUPIED, interface.Kind.EVENT]))
                case 2:
                    log.deliver(chance.randrange(1, 4))
                case 3:
                    found += await ids(consumer, 0.0)
                case _:
                    if chance.random() < 0.1:
                        log.delivered = len(log.log)
                        consumer.gap_detected()
        log.deliver()
        for _ in range(4):
            found += await ids(consumer, 0.0)
        assert found == [entry.id for entry in log.log if entry.kind == interface.Kind.OCCUPIED], seed
