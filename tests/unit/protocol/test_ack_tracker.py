"""What a page has seen, as far as its pongs tell."""

from __future__ import annotations

from fanfare.engine import interface
from fanfare.protocol import ack_tracker


def at(offset: int, epoch: str = "E") -> interface.Position:
    return interface.Position(epoch, offset)


def page(record: bytes | None = None, socket_id: str = "1.1") -> ack_tracker.AckTracker:
    return ack_tracker.AckTracker("token-token-token", socket_id, record)


def test_a_pong_says_that_what_was_sent_before_its_ping_was_seen() -> None:
    one = page()
    one.subscribed("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.pinged({"c": at(9)}, now=1)
    assert one.ponged()
    assert one.start_of("c") == at(7)
    assert one.ponged()
    assert one.start_of("c") == at(9)
    assert not one.ponged(), "a pong that nobody asked for says nothing"


def test_the_record_brings_the_next_socket_to_where_the_page_stands() -> None:
    one = page()
    one.subscribed("c", at(5))
    one.subscribed("d", at(1))
    one.pinged({"c": at(7)}, now=0)
    two = page(one.record(), "1.2")
    assert (two.start_of("c"), two.start_of("d"), two.start_of("e")) == (at(5), at(1), None)
    assert two.earlier_sockets == ("1.1",)
    three = page(two.record(), "1.3")
    assert three.start_of("c") == at(5), "what the second socket never subscribed to is kept"
    assert three.earlier_sockets == ("1.1", "1.2")


def test_a_replay_that_was_sent_is_not_seen_before_it_is_acknowledged() -> None:
    one = page()
    one.replaying("c", at(5))
    assert one.start_of("c") == at(5)
    assert one.unasked("c", at(9)) == 4
    one.pinged({"c": at(9)}, now=0)
    assert one.unasked("c", at(9)) == 0
    one.ponged()
    assert one.start_of("c") == at(9)


def test_nothing_is_asked_about_what_was_asked_about_or_is_not_followed() -> None:
    one = page()
    one.subscribed("c", at(5))
    assert one.unasked("c", at(5)) == one.unasked("other", at(3)) == 0
    assert one.unasked("c", at(105)) == 100


def test_a_ping_about_one_channel_takes_back_nothing_of_another() -> None:
    one = page()
    one.subscribed("c", at(5))
    one.subscribed("d", at(1))
    one.pinged({"c": at(7)}, now=0)
    one.pinged({"d": at(2)}, now=1)
    assert one.unasked("c", at(7)) == one.unasked("d", at(2)) == 0
    one.subscribed("c", at(6))
    assert one.unasked("c", at(7)) == 1, "it subscribed anew: of this nobody asked yet"
    one.ponged()
    one.ponged()
    assert (one.start_of("c"), one.start_of("d")) == (at(7), at(2))


def test_a_channel_that_was_left_is_forgotten_and_a_late_pong_does_not_bring_it_back() -> None:
    one = page()
    one.subscribed("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.left("c")
    assert not one.ponged()
    assert one.start_of("c") is None
    assert page(one.record()).start_of("c") is None


def test_a_pong_of_before_a_new_subscribe_does_not_move_it() -> None:
    one = page()
    one.subscribed("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.left("c")
    one.subscribed("c", at(3, "F"))
    one.ponged()
    assert one.start_of("c") == at(3, "F")


def test_a_client_that_never_answers_is_taken_to_have_seen_what_is_old() -> None:
    one = page()
    one.subscribed("c", at(5))
    one.pinged({"c": at(7)}, now=0)
    one.pinged({"c": at(8)}, now=30)
    assert one.expires == ack_tracker.UNANSWERED_SECONDS
    assert not one.expire(now=ack_tracker.UNANSWERED_SECONDS)
    assert one.expire(now=ack_tracker.UNANSWERED_SECONDS + 1)
    assert one.start_of("c") == at(7)


def test_only_the_newest_sockets_are_remembered() -> None:
    record = None
    for number in range(20):
        record = page(record, f"1.{number}").record()
    assert page(record).earlier_sockets == tuple(f"1.{number}" for number in range(12, 20))
