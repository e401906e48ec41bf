"""From reading the log to following this worker's tail: no entry is given out twice, and none is left out."""

from __future__ import annotations

import random

from fanfare.engine import interface
from fanfare.webhooks import feed


class Log:
    """A log, and a tail of it that a feed observes."""

    def __init__(self) -> None:
        self.entries: list[interface.Entry] = []
        self.reads = 0
        self.tail = 0  # index of what the tail delivers next

    def write(self, kind: interface.Kind = interface.Kind.OCCUPIED) -> None:
        number = len(self.entries) + 1
        self.entries.append(interface.Entry(number, kind, "42", f"c{number}", None, None, None, b""))

    async def read(self, after: int, limit: int) -> list[interface.Entry]:
        self.reads += 1
        return self.entries[after : after + limit]

    def deliver(self, to: feed.Feed, at_most: int = 1_000) -> None:
        batch = self.entries[self.tail : self.tail + at_most]
        self.tail += len(batch)
        if batch:
            to.delivered(batch)


async def test_the_log_is_read_until_it_has_caught_up_and_not_afterwards() -> None:
    log = Log()
    for _ in range(3):
        log.write()
    entries = feed.Feed(log.read, 1)
    log.deliver(entries)
    assert [entry.id for entry in await entries.next(1.0)] == [2, 3]
    reads = log.reads
    for kind in (interface.Kind.EVENT, interface.Kind.VACATED, interface.Kind.EVENT):
        log.write(kind)
    log.deliver(entries)
    assert [entry.id for entry in await entries.next(1.0)] == [5]
    assert entries.position == 6, "what no webhook tells of is passed, too"
    assert log.reads == reads


async def test_after_a_fence_the_log_is_read_again() -> None:
    log = Log()
    log.write()
    entries = feed.Feed(log.read, 0)
    log.deliver(entries)
    assert [entry.id for entry in await entries.next(1.0)] == [1]
    log.write()
    log.write()
    log.tail = 3  # the tail missed them
    entries.gap_detected()
    assert [entry.id for entry in await entries.next(1.0)] == [2, 3]


async def test_a_feed_that_nobody_reads_from_keeps_a_bounded_number_of_entries(monkeypatch) -> None:
    monkeypatch.setattr(feed, "MOST_WAITING", 10)
    log = Log()
    log.write()
    entries = feed.Feed(log.read, 0)
    log.deliver(entries)
    await entries.next(1.0)
    for _ in range(25):
        log.write()
        log.deliver(entries)
    assert len(entries._waiting) <= 10
    found = [entry.id for _ in range(3) for entry in await entries.next(0.0)]
    assert found == list(range(2, 27))


async def test_whatever_the_order_of_events_each_entry_comes_once_and_in_order() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        log, found = Log(), []
        entries = feed.Feed(log.read, 0)
        for _ in range(60):
            match chance.randrange(5):
                case 0 | 1:
                    log.write(chance.choice([interface.Kind.OCCUPIED, interface.Kind.EVENT]))
                case 2:
                    log.deliver(entries, chance.randrange(1, 4))
                case 3:
                    found += await entries.next(0.0)
                case _:
                    if chance.random() < 0.1:
                        log.tail = len(log.entries)
                        entries.gap_detected()
        log.deliver(entries)
        for _ in range(4):
            found += await entries.next(0.0)
        expected = [entry.id for entry in log.entries if entry.kind == interface.Kind.OCCUPIED]
        assert [entry.id for entry in found] == expected, seed
