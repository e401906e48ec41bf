"""Subscriptions, their channel, and the pending entries of a slow reader, without a hub."""

from __future__ import annotations

import pytest

from fanfare.engine import interface
from fanfare.hub import connections
from tests.unit.hub.doubles import APP, FakeWriter


@pytest.fixture
def channel() -> connections.Channel:
    return connections.Channel(APP, "kept")


def subscription(channel: connections.Channel, *, with_offsets: bool = False) -> connections.Subscription:
    connection = connections.Connection(APP, "1.1", FakeWriter(), connections.ENDED, with_offsets=with_offsets)
    return connections.Subscription(connection, channel)


@pytest.mark.parametrize("with_offsets", [False, True])
def test_subscription_counts_once_in_each_state_until_it_has_left(
    channel: connections.Channel, with_offsets: bool
) -> None:
    found = [subscription(channel, with_offsets=with_offsets) for _ in range(3)]
    counts = [channel.subscriber_count]
    for one in found:
        one.catch_up(5)
    counts.append(channel.subscriber_count)
    for one in found:
        one.go_live()
    counts.append(channel.subscriber_count)
    found[0].leave()
    assert [*counts, channel.subscriber_count] == [3, 3, 3, 2]
    assert channel.receives


def test_position_is_known_while_entries_are_delivered(channel: connections.Channel) -> None:
    one = subscription(channel)
    channel.epoch, channel.offset = "e", 7
    positions = [one.position]
    one.catch_up(5)
    positions.append(one.position)
    one.go_live()
    positions.append(one.position)
    one.leave()
    assert [*positions, one.position] == [None, interface.Position("e", 5), interface.Position("e", 7), None]


def test_position_is_unknown_until_a_subscriber_has_asked_for_it(channel: connections.Channel) -> None:
    one = subscription(channel)
    one.go_live()
    assert one.position is None


def test_position_of_a_slow_reader_is_before_its_first_pending_entry(channel: connections.Channel) -> None:
    one = subscription(channel)
    one.go_live()
    channel.epoch, channel.offset = "e", 7
    one.pending = connections.PendingEntries()
    for kind, offset in ((interface.Kind.COUNT, None), (interface.Kind.CLIENT_EVENT, 5), (interface.Kind.EVENT, 7)):
        one.pending.add(interface.Entry(1, kind, APP, "kept", offset, None, None, b""))
    assert one.position == interface.Position("e", 4)


def test_pending_entries_hold_one_state_and_count_its_bytes() -> None:
    def entry(kind: interface.Kind, body: bytes) -> interface.Entry:
        return interface.Entry(1, kind, APP, "cache-a", None, None, None, body)

    other, older, newer = (
        entry(interface.Kind.CLIENT_EVENT, b"1"),
        entry(connections.STATE, b"22"),
        entry(connections.STATE, b"4444"),
    )
    pending = connections.PendingEntries()
    assert [pending.add(one) for one in (other, older, newer)] == [False, False, True]
    assert pending.entries == [other, newer]
    assert pending.bytes == 5 + 2 * connections.ENTRY_BYTES
