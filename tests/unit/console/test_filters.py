from __future__ import annotations

import time

import pytest

from fanfare.console import filters, tails
from fanfare.engine import interface


def entry(channel: str = "orders-1", app: str = "1", **more: object) -> interface.Entry:
    fields = {"kind": 0, "offset": None, "user_id": None, "exclude": None, "body": b"{}", **more}
    return interface.Entry(id=1, app=app, channel=channel, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("orders-1", "orders-1", True),
        ("orders-1", "orders-12", False),
        ("orders-*", "orders-12", True),
        ("*-12", "orders-12", True),
        ("o*r*-*2", "orders-12", True),
        ("*", "", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*b*b*", "abc", False),
        ("**", "anything", True),
        ("", "x", False),
    ],
)
def test_star_stands_for_any_characters(pattern: str, text: str, expected: bool) -> None:
    assert filters.matches(pattern, text) is expected


def test_pattern_of_many_stars_takes_linear_time() -> None:
    began = time.process_time()
    assert not filters.matches("a*" * 100 + "b", "a" * 200)
    assert time.process_time() - began < 0.5


def test_filter_without_fields_takes_everything_of_the_allowed_applications() -> None:
    found = filters.parse({}, ["1"])
    assert found.takes({"type": "refusal", "app": "1"})
    assert not found.takes({"type": "refusal", "app": "2"})
    assert found.takes_entry(entry())
    assert not found.takes_entry(entry(app="2"))
    assert interface.Kind.EVENT in found.kinds


def test_fields_of_a_filter_hold_together() -> None:
    found = filters.parse({"types": "events", "channel": "orders-*", "event": "created", "user": "7"}, None)
    item = {"type": "event", "app": "1", "channel": "orders-1", "event": "created", "user": "7"}
    assert found.takes(item)
    for name, value in (("channel", "news"), ("event", "deleted"), ("user", "8"), ("type", "refusal")):
        assert not found.takes({**item, name: value})


def test_events_sent_to_a_user_are_found_with_the_user() -> None:
    found = filters.parse({"user": "7"}, None)
    for channel, expected in (("#server-to-user-7", True), ("#server-to-user-77", False), ("orders", False)):
        assert found.takes({"type": "event", "app": "1", "channel": channel}) is expected
        assert found.takes_entry(entry(channel)) is expected


def test_socket_is_also_found_as_the_one_that_an_event_excludes() -> None:
    found = filters.parse({"socket": "1.2"}, None)
    assert found.takes({"type": "event", "app": "1", "exclude": "1.2"})
    assert found.takes({"type": "closed", "app": "1", "socket": "1.2"})
    assert not found.takes({"type": "closed", "app": "1", "socket": "1.3"})


def test_search_looks_into_every_text() -> None:
    found = filters.parse({"text": "MAY_see"}, None)
    assert found.takes({"type": "refusal", "app": "1", "text": "shop.channels.may_see answered False"})
    assert not found.takes({"type": "refusal", "app": "1", "text": "another"})


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"types": "events,nonsense"}, "types", "nonsense"),
        ({"app": "2"}, "app", "2"),
        ({"channel": "orders 1"}, "channel", "' '"),
        ({"channel": "(orders"}, "channel", r"'\('"),
        ({"channel": "x" * 201}, "channel", "201 characters; 200"),
        ({"event": "x" * 201}, "event", "201"),
        ({"socket": "abc"}, "socket", "1234.5678"),
    ],
)
def test_invalid_filter_names_the_field_and_what_it_may_be(fields: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(filters.InvalidFilter, match=words) as caught:
        filters.parse(fields, ["1"])
    assert caught.value.field == field


def test_filter_is_the_same_after_its_way_through_the_log() -> None:
    found = filters.parse({"channel": "a*", "types": "events,refusals"}, ["1", "2"])
    assert filters.Filter.from_json(found.to_json()) == found


BODIES = [
    b'{"event":"created","channel":"orders-1","data":"{\\"id\\":7,\\"name\\":\\"Ann\\"}"}',
    b'{"event":"created","channel":"orders-1","data":"caf\xc3\xa9 \xe2\x84\xaa"}',  # a Kelvin sign
    b'{"event":"created","channel":"orders-1","data":"caf\\u00e9 \\u0041nn"}',
    b'{"event":"a\\/b","channel":"orders-1","data":"\\/a\\/B"}',
    b'{"event":"sale.done","channel":"orders-1","data":"[1, 2]"}',
    b"no JSON",
]
OF_CLIENTS = [
    b'{"event":"client-a\\/b","channel":"orders-1","data":{"path":"\\/a\\/B"}}',
    b'{"event":"client-sale.done","channel":"orders-1","data":{"n":[1, 2]}}',
]
TEXTS = [
    "ann",
    "id",
    '"id"',
    ":7,",
    "caf\u00e9",
    "k",
    "a/b",
    "/a/b",
    "[1,2]",
    "[1, 2]",
    "4.2",
    "bob",
    "created",
    "orders",
]
EVENTS = ["created", "*a/b", "sale.*", "*.done", "s*.*e", "*"]
SEARCHES = (
    [{"text": text} for text in TEXTS] + [{"event": name} for name in EVENTS] + [{"event": "created", "text": "7"}]
)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_entry_is_decoded_if_its_item_is_taken(search: dict[str, str]) -> None:
    """The test of the bytes spares most decoding, and never hides an item."""
    chosen = filters.parse(search, None)
    of_client = {"kind": interface.Kind.CLIENT_EVENT.value, "user_id": "Bob", "exclude": "4.2"}
    entries = [*(entry(body=body) for body in BODIES), *(entry(body=body, **of_client) for body in OF_CLIENTS)]
    taken = [one for one in entries if chosen.takes(tails.item(0, one))]
    assert taken
    assert all(map(chosen.takes_entry, taken))


def test_body_without_the_text_or_the_event_is_not_decoded() -> None:
    assert not filters.parse({"text": "needle"}, None).takes_entry(entry(body=BODIES[0]))
    assert not filters.parse({"event": "sale*"}, None).takes_entry(entry(body=BODIES[0]))
    joined = entry(kind=interface.Kind.MEMBER_ADDED.value, body=b"null")
    assert filters.parse({"text": "joined"}, None).takes_entry(joined)
