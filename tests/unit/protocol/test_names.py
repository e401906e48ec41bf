"""What channels and events may be called."""

from __future__ import annotations

import pytest

from fanfare.protocol import names, refusals

LIMIT = 200


@pytest.mark.parametrize(
    ("channel", "kind", "cache"),
    [
        ("news", names.Type.PUBLIC, False),
        ("private", names.Type.PUBLIC, False),
        ("presences", names.Type.PUBLIC, False),
        ("my-private-x", names.Type.PUBLIC, False),
        ("cache-x", names.Type.PUBLIC, True),
        ("private-x", names.Type.PRIVATE, False),
        ("private-encryptedx", names.Type.PRIVATE, False),
        ("private-cache-x", names.Type.PRIVATE, True),
        ("private-encrypted-x", names.Type.ENCRYPTED, False),
        ("private-encrypted-cache-x", names.Type.ENCRYPTED, True),
        ("presence-x", names.Type.PRESENCE, False),
        ("presence-cache-x", names.Type.PRESENCE, True),
    ],
)
def test_the_prefix_of_a_channel_says_what_it_is(channel: str, kind: names.Type, cache: bool) -> None:
    assert names.type_of(channel) is kind
    assert names.is_cache(channel) is cache
    assert names.is_presence(channel) is (kind is names.Type.PRESENCE)
    assert names.is_encrypted(channel) is (kind is names.Type.ENCRYPTED)


@pytest.mark.parametrize("name", ["a", "A-z_0=@,.;9", "x" * LIMIT, "private-"])
def test_a_good_channel_name_passes(name: str) -> None:
    names.check_channel(name, LIMIT)


@pytest.mark.parametrize(
    "name", ["", "a b", "news\n", "\nnews", "a/b", "a:b", "ä", "x\0", "\ud800", "#x", "#server-to-user-1"]
)
def test_a_bad_channel_name_is_refused(name: str) -> None:
    with pytest.raises(refusals.InvalidName):
        names.check_channel(name, LIMIT)


def test_a_long_name_is_refused_with_both_numbers() -> None:
    with pytest.raises(refusals.NameTooLong, match="201 characters; 200 are allowed"):
        names.check_channel("x" * (LIMIT + 1), LIMIT)
    with pytest.raises(refusals.NameTooLong, match="201 characters; 200 are allowed"):
        names.check_event("x" * (LIMIT + 1), LIMIT)


def test_a_publisher_may_write_to_a_user_and_to_no_other_reserved_channel() -> None:
    for name in ("news", "#server-to-user-42", "#server-to-user-".ljust(LIMIT, "x")):
        names.check_publishable_channel(name, LIMIT)
    for name in ("#server-to-user-", "#server-to-user-a b", "#other"):
        with pytest.raises(refusals.InvalidName):
            names.check_publishable_channel(name, LIMIT)
    with pytest.raises(refusals.NameTooLong):
        names.check_publishable_channel("#server-to-user-" + "x" * LIMIT, LIMIT)


def test_an_event_must_have_a_name() -> None:
    for name in ("x", "x" * LIMIT):
        names.check_event(name, LIMIT)
    with pytest.raises(refusals.InvalidName):
        names.check_event("", LIMIT)


@pytest.mark.parametrize(
    ("text", "valid"), [("1.2", True), ("1", False), ("1.2\n", False), ("a.b", False), ("\u0661.\u0662", False)]
)
def test_a_socket_id_is_digits_a_dot_and_digits(text: str, valid: bool) -> None:
    assert names.is_valid_socket_id(text) is valid
