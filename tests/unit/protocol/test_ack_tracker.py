"""The acknowledged positions of a page."""

from __future__ import annotations

import time

import orjson

from fanfare.engine import interface
from fanfare.protocol import ack_tracker


def at(offset: int, epoch: str = "E") -> interface.Position:
    return interface.Position(epoch, offset)


def start(of: ack_tracker.AckTracker, channel: str) -> interface.Position | None:
    position, _ = of.start_of(channel)
    return position


def page(record: bytes | None = None, socket_id: str = "1.1") -> ack_tracker.AckTracker:
    return ack_tracker.AckTracker(socket_id, record)


def test_pong_acknowledges_what_was_sent_before_its_ping() -> None:
    one = page()
    one.begin("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.pinged({"c": at(9)}, now=1)
    assert one.ponged()
    assert start(one, "c") == at(7)
    assert one.ponged()
    assert start(one, "c") == at(9)
    assert not one.ponged(), "a pong that nobody asked for says nothing"


def test_record_gives_the_next_socket_the_acknowledged_positions() -> None:
    one = page()
    one.begin("c", at(5))
    one.begin("d", at(1))
    one.pinged({"c": at(7)}, now=0)
    two = page(one.record(), "1.2")
    assert (start(two, "c"), start(two, "d"), start(two, "e")) == (at(5), at(1), None)
    assert two.earlier_sockets == ("1.1",)
    three = page(two.record(), "1.3")
    assert start(three, "c") == at(5), "what the second socket never subscribed to is kept"
    assert three.earlier_sockets == ("1.1", "1.2")


def test_recovered_entries_count_only_when_they_are_acknowledged() -> None:
    one = page()
    one.begin("c", at(5))
    assert start(one, "c") == at(5)
    assert one.unpinged("c", at(9)) == 4
    one.pinged({"c": at(9)}, now=0)
    assert one.unpinged("c", at(9)) == 0
    one.ponged()
    assert start(one, "c") == at(9)


def test_no_ping_is_due_for_pinged_or_unknown_channels() -> None:
    one = page()
    one.begin("c", at(5))
    assert one.unpinged("c", at(5)) == one.unpinged("other", at(3)) == 0
    assert one.unpinged("c", at(105)) == 100


def test_ping_of_one_channel_leaves_the_others() -> None:
    one = page()
    one.begin("c", at(5))
    one.begin("d", at(1))
    one.pinged({"c": at(7)}, now=0)
    one.pinged({"d": at(2)}, now=1)
    assert one.unpinged("c", at(7)) == one.unpinged("d", at(2)) == 0
    one.begin("c", at(6))
    assert one.unpinged("c", at(7)) == 1, "it subscribed anew: of this nobody asked yet"
    one.ponged()
    one.ponged()
    assert (start(one, "c"), start(one, "d")) == (at(7), at(2))


def test_late_pong_does_not_bring_an_unsubscribed_channel_back() -> None:
    one = page()
    one.begin("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.left("c")
    assert not one.ponged()
    assert start(one, "c") is None
    assert start(page(one.record()), "c") is None


def test_pong_for_an_earlier_subscription_does_not_move_a_new_one() -> None:
    one = page()
    one.begin("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.left("c")
    one.begin("c", at(3, "F"))
    one.ponged()
    assert start(one, "c") == at(3, "F")


def test_report_of_a_loss_is_in_the_record_until_the_ping_after_it_is_answered() -> None:
    one = page()
    one.begin("c", at(5))
    one.pinged({"c": at(5)}, now=0)
    one.begin("c", at(9), "position_expired")
    assert not one.ponged(), "that ping was sent before the report"
    assert one.unpinged("c", at(9)) == 1
    two = page(one.record())
    assert two.start_of("c") == (None, "position_expired")
    two.begin("c", at(11), "position_expired")
    two.pinged({"c": at(11)}, now=1)
    assert two.unpinged("c", at(11)) == 0
    assert two.start_of("c") == (None, "position_expired")
    assert two.ponged(), "the record has changed"
    assert two.start_of("c") == page(two.record()).start_of("c") == (at(11), None)


def test_report_of_a_loss_is_not_repeated_for_a_channel_that_was_left_or_recovers() -> None:
    one = page()
    for channel in ("c", "d"):
        one.begin(channel, at(5), "too_many")
    one.left("c")
    one.begin("d", at(6))
    assert one.start_of("c") == (None, None)
    assert page(one.record()).start_of("d") == (at(6), None)


def test_client_without_pongs_has_old_events_acknowledged() -> None:
    one = page()
    one.begin("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.pinged({"c": at(8)}, now=30)
    assert one.expires == ack_tracker.UNANSWERED_S
    assert not one.expire(now=ack_tracker.UNANSWERED_S)
    assert one.expire(now=ack_tracker.UNANSWERED_S + 1)
    assert start(one, "c") == at(7)


def test_record_keeps_the_newest_socket_ids() -> None:
    record = None
    for number in range(20):
        record = page(record, f"1.{number}").record()
    assert page(record).earlier_sockets == tuple(f"1.{number}" for number in range(12, 20))


def test_record_keeps_the_origin_and_the_user_that_it_belongs_to() -> None:
    one = ack_tracker.AckTracker("1.1", origin="https://shop.example")
    one.user_id = "42"
    two = ack_tracker.AckTracker("1.2", one.record(), origin="https://evil.example")
    assert (two.origin, two.user_id) == ("https://shop.example", "42")


def test_record_holds_a_bounded_number_of_channels_and_says_so() -> None:
    """A page that comes back again and again with other channels does not let its record grow."""
    record = None
    for number in range(5):
        one = ack_tracker.AckTracker(f"1.{number}", record, max_channels=3)
        for channel in (f"a{number}", f"b{number}"):
            assert one.begin(channel, at(number))
        record = one.record()
    last = ack_tracker.AckTracker("1.9", record, max_channels=3)
    known = [channel for channel in ("a4", "b4", "a3", "b3", "a2", "b2") if start(last, channel)]
    assert set(known[:2]) == {"a4", "b4"}
    assert len(known) == 3
    assert last.start_of("a0") == (None, ack_tracker.RECORD_FULL), "a lost position is reported, and not taken for new"


def test_full_record_refuses_a_new_channel_and_keeps_the_known_ones() -> None:
    one = ack_tracker.AckTracker("1.1", max_channels=2)
    assert one.begin("a", at(1))
    assert one.begin("b", at(2))
    assert one.start_of("c") == (None, None), "the record has its maximum of channels, and none is missing"
    assert one.begin("c", at(3)) is False
    assert one.begin("a", at(4)), "a channel of the record subscribes again"
    assert (start(one, "a"), start(one, "b")) == (at(4), at(2))
    assert one.start_of("c") == (None, ack_tracker.RECORD_FULL)
    two = ack_tracker.AckTracker("1.2", one.record(), max_channels=2)
    assert two.start_of("c") == (None, ack_tracker.RECORD_FULL), "the next socket gets the reason too"


def test_record_with_its_maximum_of_channels_is_complete() -> None:
    one = ack_tracker.AckTracker("1.1", max_channels=2)
    one.begin("a", at(1))
    one.begin("b", at(2))
    two = ack_tracker.AckTracker("1.2", one.record(), max_channels=2)
    assert two.start_of("new") == (None, None)


def test_record_drops_channels_of_earlier_sockets_first() -> None:
    one = ack_tracker.AckTracker("1.1", max_channels=2)
    one.begin("a", at(1))
    one.begin("b", at(2))
    two = ack_tracker.AckTracker("1.2", one.record(), max_channels=2)
    two.begin("a", at(3))
    two.begin("c", at(4))
    assert orjson.loads(two.record())["seen"] == {"a": ["E", 3], "c": ["E", 4]}
    assert two.start_of("b") == (None, ack_tracker.RECORD_FULL)


def test_record_of_a_refused_token_reports_its_channels_as_shared() -> None:
    one = page(orjson.dumps({ack_tracker.SHARED_UNTIL: 1_000}))
    assert one.start_of("c") == (None, ack_tracker.TOKEN_SHARED)
    one.begin("c", at(1))
    assert one.start_of("c") == (at(1), None)
    two = page(one.record(), "1.2")
    assert two.start_of("c") == (at(1), None)
    assert two.start_of("d") == (None, ack_tracker.TOKEN_SHARED), "the next socket gets the reason too"
    assert page(page().record()).start_of("d") == (None, None)


def test_channel_without_a_record_may_be_lost_until_the_window_is_over() -> None:
    one = page()
    one.begin("a", at(1))
    one.lost_until = time.monotonic() + 3_600
    assert one.start_of("a") == (at(1), None), "its record is there"
    assert one.start_of("b") == (None, ack_tracker.EPOCH_CHANGED)
    one.lost_until = time.monotonic() - 0.001
    assert one.start_of("b") == (None, None)


def test_pong_without_new_events_moves_no_position() -> None:
    one = page()
    one.begin("c", at(5))
    one.pinged({"c": at(5)}, now=0)
    assert not one.ponged(), "no record needs to be written"
